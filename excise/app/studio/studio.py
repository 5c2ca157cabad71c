"""A pipeline, the erasers under review, and the pictures that can be used again."""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from excise import reference
from excise.app.erase.finding import load_one
from excise.app.studio.readings import Comparison, NeuronReading, read_neurons
from excise.drawn import Pixels
from excise.erasers import Attachment, Eraser, eraser_folders, load_erasers
from excise.erasers.edits.sae_rows import sae_digest
from excise.erasers.requests import using
from excise.errors import InvalidSetting, WrongModel
from excise.neurons.contexts import Contexts
from excise.neurons.database.database import NeuronDatabase
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.settings import LARGEST_FIRST_SEED
from excise.sites import LanguageModel
from excise.sites.truncation import suppress_cut_warnings

LONGEST = 4000
"""Characters of a prompt."""
STRONGEST = 2.0
"""Largest strength on the page, relative to the fitted one."""
MOST_ATTACHED = 8
"""Erasers that stay attached, all of them switched off until a picture asks for one."""
KEPT_READINGS = 32
"""Prompts whose readings are kept, which are the same at every strength too."""
KEPT_BYTES = 64 * 2**20
"""Memory for pictures without an eraser, which are the same at every strength."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An eraser under review, and the folder that holds it."""

    eraser: Eraser
    folder: Path


class Studio:
    """Everything that the page's tabs share. Its methods may be called from any thread; one at a time generates."""

    def __init__(
        self,
        pipe: Pipeline,
        candidates: Mapping[str, Candidate],
        *,
        bundled: bool = True,
        model: str = "the bundled model",
        steps: int = reference.STEPS,
        guidance: float | None = reference.GUIDANCE,
        sae: Path | None = None,
        database: Path | None = None,
        benign: Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Attach every eraser once, so that one that does not fit is refused before the page opens.

        Args:
            pipe: A diffusion pipeline without erasers.
            candidates: Erasers to review, by name.
            bundled: Whether the model is the bundled one.
            model: The model's name, for the page.
            steps: Denoising steps of a picture.
            guidance: Guidance scale; None uses the pipeline's default.
            sae: Folder of the SAE whose neurons can be found and turned, and that erasers with gate="topk" need.
            database: File of the neuron database of that SAE.
            benign: File of benign prompts; None uses the bundled captions or everyday prompts.
            device: Device that the pipeline is on.

        Raises:
            InvalidSetting: The model is a language model.
            ExciseError: An eraser is refused, or the database is of another SAE.
        """
        if isinstance(pipe, LanguageModel):
            raise InvalidSetting(
                f"{model} is a language model, and the studio shows pictures; use `excise generate --compare`"
            )
        self.pipe, self.candidates, self.bundled, self.model = pipe, dict(candidates), bundled, model
        self.steps, self.guidance, self.sae_folder, self.database = steps, guidance, sae, database
        self.benign, self.device = benign, device
        self.lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="excise-studio-")
        self.scratch = Path(self._folder.name)
        """Folder for pictures and downloads, which is gone when the studio closes."""
        self.contexts: tuple[Contexts, str] | None = None
        """What every neuron fires on in a few prompts, once they were read, and what these prompts are."""
        self._attached: OrderedDict[str, Attachment] = OrderedDict()
        self._kept: OrderedDict[str, Pixels] = OrderedDict()
        self._readings: OrderedDict[tuple[str, str], tuple[NeuronReading, ...]] = OrderedDict()
        suppress_cut_warnings(pipe)  # the page says what is cut
        if database is not None:
            with NeuronDatabase.open(database) as opened:
                if opened.provenance.sae != sae_digest(self.sae):
                    raise WrongModel(
                        f"{database} describes another SAE than {self.sae_folder}; name that one with --sae"
                    )
        for candidate in self.candidates.values():
            self._attachment(candidate.eraser)

    @cached_property
    def sae(self) -> TopKSAE:
        """The SAE whose neurons can be found and turned. Raises InvalidSetting if there is none."""
        if self.sae_folder is None:
            raise InvalidSetting("this needs an SAE of the model; start the studio with --sae DIR")
        return load_one(self.pipe, self.sae_folder)

    def candidate(self, name: Any, made: Mapping[str, Candidate] | None = None) -> Candidate:
        """Return an eraser by its name on the page. `made` are those that this visitor made."""
        known = {**self.candidates, **(made or {})}
        if name not in known:
            raise InvalidSetting(
                "choose an eraser"
                if known
                else "no eraser was named; make one under Find, or start with `excise app --eraser DIR`"
            )
        return known[name]

    def plain(self, prompt: str, seed: int) -> Pixels:
        """Return the picture `[height, width, 3]` without any eraser, generated once and then kept."""
        key = hashlib.sha256(f"{seed}\0{prompt}".encode()).hexdigest()
        with self.lock:
            if (found := self._kept.pop(key, None)) is None:
                found = self._draw(prompt, seed, {})
            self._kept[key] = found
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return found

    def compare(
        self, eraser: Eraser, prompt: str, seed: int, strength: float = 1.0, *, amplify: bool = False
    ) -> Comparison:
        """Return the picture without and with an eraser. The second is generated every time.

        Raises:
            EraserDidNotFire: The eraser could not act. There is no picture then.
            ExciseError: The eraser does not fit, or a picture is broken.
        """
        with self.lock:
            attachment = self._attachment(eraser, amplify=amplify)
            before = attachment.status()["rows_edited"]
            after = self._draw(prompt, seed, {attachment.name: strength})
            rows = attachment.status()["rows_edited"] - before
            return Comparison(self.plain(prompt, seed), after, rows)

    def read(self, eraser: Eraser, prompt: str) -> tuple[NeuronReading, ...]:
        """Return what the eraser's neurons do in a prompt, as `read_neurons`. It is read once for all strengths."""
        key = eraser.digest, prompt
        with self.lock:
            if (found := self._readings.pop(key, None)) is None:
                found = read_neurons(self.pipe, eraser, prompt, self._whole_sae(eraser))
            self._readings[key] = found
            while len(self._readings) > KEPT_READINGS:
                self._readings.popitem(last=False)
            return found

    @contextmanager
    def alone(self) -> Iterator[Pipeline]:
        """Yield the pipeline without erasers, for work that attaches its own."""
        with self.lock:
            while self._attached:
                self._attached.popitem()[1].detach()
            yield self.pipe

    def close(self) -> None:
        """Detach all erasers, and delete pictures and downloads."""
        with self.alone():
            self._kept.clear()
            self._readings.clear()
        self._folder.cleanup()

    def _draw(self, prompt: str, seed: int, erasers: Mapping[str, float]) -> Pixels:
        # One picture a batch, so that its bits do not depend on what else is generated.
        with using(self.pipe, erasers):
            made = reference.generate(
                self.pipe, [prompt], [seed], steps=self.steps, guidance=self.guidance, batch_size=1
            )
        picture: Pixels = made[0]
        return picture

    def _whole_sae(self, eraser: Eraser) -> TopKSAE | None:
        """Return the SAE if the eraser's gate reads all of its neurons. Raises InvalidSetting if there is none."""
        return self.sae if any(edit.needs_sae for edit in eraser.edits) else None

    def _attachment(self, eraser: Eraser, *, amplify: bool = False) -> Attachment:
        found = self._attached.pop(eraser.digest, None)
        if found is None:
            while len(self._attached) >= MOST_ATTACHED:
                self._attached.popitem(last=False)[1].detach()
            found = eraser.attach(
                self.pipe,
                name=eraser.digest,
                enabled=False,
                allow_amplify=amplify,
                sae=self._whole_sae(eraser),
            )
        self._attached[eraser.digest] = found
        return found


def load_candidates(folders: Sequence[Path], digests: Sequence[str] = ()) -> dict[str, Candidate]:
    """Load the erasers in these folders, by unique names. Raises ExciseError as `load_erasers`."""
    places = [place for folder in folders for place in eraser_folders(folder)]
    loaded = load_erasers(folders, digests=digests)
    return {name: Candidate(one, place) for (name, one), place in zip(loaded.items(), places, strict=True)}


def checked_prompt(text: Any) -> str:
    """Return a prompt as it is generated. Raises InvalidSetting if it is empty or too long."""
    prompt = " ".join(str(text or "").split())
    if not prompt:
        raise InvalidSetting("write a prompt first")
    if len(prompt) > LONGEST:
        raise InvalidSetting(f"the prompt has {len(prompt):,} characters; shorten it to {LONGEST:,} at most")
    return prompt


def checked_lines(text: Any, most: int) -> list[str]:
    """Return the prompts of a text with one a line, each once. Raises InvalidSetting if there are too many."""
    prompts = [checked_prompt(line) for line in str(text or "").splitlines() if line.strip()]
    if len(prompts) > most:
        raise InvalidSetting(f"there are {len(prompts)} prompts; {most} are the most at once")
    return list(dict.fromkeys(prompts))


def checked_seed(value: Any) -> int:
    """Return a seed. Raises InvalidSetting unless it is a whole number that the generator takes."""
    if not _is_number(value) or value != int(value) or not 0 <= value <= LARGEST_FIRST_SEED:
        raise InvalidSetting(f"the seed must be a whole number from 0 to {LARGEST_FIRST_SEED}")
    return int(value)


def checked_strength(value: Any, least: float = 0.0, most: float = STRONGEST) -> float:
    """Return a strength. Raises InvalidSetting if it is out of bounds."""
    if not _is_number(value) or not least <= value <= most:
        raise InvalidSetting(f"the strength must be a number from {least:g} to {most:g}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
