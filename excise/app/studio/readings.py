"""What an eraser's neurons do in one prompt, token by token, and what that did to the picture, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from excise.app.pages.parts import Badge
from excise.concepts.concept import mentioned
from excise.drawn import Pixels
from excise.erasers import Eraser, SAEEdit
from excise.erasers.hooks.context import unedited
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import capture
from excise.sites.site import tokenizer_of
from excise.sites.tokens import END, pieces
from excise.sites.truncation import cuts

MOST_NEURONS = 4
"""Neurons shown of an eraser that turns down several."""
PADDING = "⟨padding⟩"


@dataclass(frozen=True, eq=False)
class Comparison:
    """A picture `[height, width, 3]` without and with an eraser, from the same seed.

    rows: text states or patches that the eraser's edits changed while the picture was generated.
    """

    before: Pixels
    after: Pixels
    rows: int

    @property
    def identical(self) -> bool:
        """Whether the pictures are equal, bit for bit."""
        return bool((self.before == self.after).all())

    @property
    def words(self) -> str:
        """What the second picture is, as the end of a sentence."""
        return "identical, bit for bit" if self.identical else "different"

    @property
    def badge(self) -> Badge:
        """The same as a badge."""
        return Badge("picture identical", "good") if self.identical else Badge("picture changed", "part")


@dataclass(frozen=True)
class TokenCode:
    """A token with a neuron's activation, 0 or more, before any threshold.

    fires: whether it is above the threshold. share: the activation relative to the largest shown, from 0 to 1.
    """

    text: str
    code: float
    fires: bool
    share: float


@dataclass(frozen=True)
class NeuronReading:
    """One edited neuron in one prompt. `fires` is the eraser's own decision, which its gate makes."""

    neuron: int
    site: str
    threshold: float
    peak: float
    fires: bool
    tokens: tuple[TokenCode, ...]


@torch.no_grad()
def read_neurons(pipe: Pipeline, eraser: Eraser, prompt: str, sae: TopKSAE | None = None) -> tuple[NeuronReading, ...]:
    """Return what the SAE neurons that the eraser turns down in a text encoder do in the prompt, unedited.

    Of more than `MOST_NEURONS`, those that fire come first. Erasers of other kinds have none. `sae` is needed for
    gate="topk" only.
    """
    found: list[NeuronReading] = []
    for edit in eraser.text_edits:
        if isinstance(edit, SAEEdit):
            found += _read(pipe, edit, prompt, sae)
    if len(found) > MOST_NEURONS:
        found.sort(key=lambda reading: not reading.fires)
    return tuple(found[:MOST_NEURONS])


def _read(pipe: Pipeline, edit: SAEEdit, prompt: str, sae: TopKSAE | None) -> list[NeuronReading]:
    with unedited():
        (features,) = capture(pipe, [edit.site], [prompt])
    h, scored = features.states[edit.site], features.scored[0]
    here = edit.to(h.device)
    levels = here.after_lead(here.preacts(h).clamp(min=0))[0].cpu()
    opened = (here.codes(h, sae)[0].cpu() > 0).any(0)
    texts = pieces(tokenizer_of(pipe, edit.site.component), features.ids[0].tolist())
    places = scored.nonzero().flatten().tolist()
    rest = range(places[-1] + 1 if places else 0, len(texts))
    found = []
    for k, neuron in enumerate(edit.neurons):
        codes = [(texts[n].strip() or "·", float(levels[n, k])) for n in places]
        if rest:
            codes.append((PADDING, float(levels[rest, k].max())))
        threshold = max(0.0, float(edit.threshold[k]))
        peak = max((code for _, code in codes), default=0.0)
        most = max(peak, float(edit.typical[k])) or 1.0
        tokens = tuple(TokenCode(text, code, code > threshold, code / most) for text, code in codes)
        found.append(NeuronReading(neuron, edit.site.key, threshold, peak, bool(opened[k]), tokens))
    return found


@dataclass(frozen=True)
class Verdict:
    """What happened, for the page: two badges and a sentence."""

    badges: tuple[Badge, ...]
    text: str


def verdict(eraser: Eraser, readings: Sequence[NeuronReading], seen: Comparison, strength: float = 1.0) -> Verdict:
    """Say whether the eraser's neuron fires, how much was edited, and whether the picture is identical."""
    if not readings:
        edited = f"Its edits changed {_states(seen.rows)}. " if seen.rows else ""
        text = f"This eraser ({eraser.method}) has no neuron in a text encoder to read. {edited}"
        return Verdict((seen.badge,), f"{text}The picture is {seen.words}.")
    loudest = max(readings, key=lambda one: (one.fires, one.peak / (one.threshold or 1.0)))
    fires = any(one.fires for one in readings)
    names = (
        f"neuron {loudest.neuron}"
        if len(readings) == 1
        else f"{len(readings)} neurons, the loudest is {loudest.neuron}, which"
    )
    threshold = f"{loudest.threshold:.2f}"
    if fires:
        words = [one for one in loudest.tokens if one.fires and one.text not in (END, PADDING)]
        at = max(words or loudest.tokens, key=lambda one: one.code)
        text = f"Fires: {names} reaches {at.code:.2f} at “{at.text}”, above its threshold of {threshold}. "
    else:
        text = f"Silent: {names} reaches {loudest.peak:.2f} at most, not above its threshold of {threshold}. "
    if strength == 0:
        text += "At strength 0 nothing is edited, "
    else:
        text += f"{_states(seen.rows).capitalize()} edited, "
    text += f"and the picture is {seen.words}."
    return Verdict((Badge("neuron fires", "bad") if fires else Badge("neuron silent", "good"), seen.badge), text)


def _states(rows: int) -> str:
    return "no text state was" if rows == 0 else "1 text state was" if rows == 1 else f"{rows:,} text states were"


def cut_note(pipe: Pipeline, prompt: str, eraser: Eraser | None = None) -> str:
    """Say which end of the prompt the model does not read; empty if it reads all."""
    for cut in cuts(pipe, [prompt]):
        lost = " ".join(cut.lost_words.split())
        shown = lost if len(lost) <= 200 else f"{lost[:199]}…"
        note = f"The model reads {cut.limit} tokens of a prompt. It did not read the end: “{shown}”."
        if eraser is not None and mentioned(cut.lost_words, (eraser.concept, *eraser.mentions)):
            note += f" “{eraser.concept}” is in that end."
        return note
    return ""
