"""How much of a concept an attached eraser removes, measured on the live pipeline and on nothing that its file says.

The concept's own difference D is what becomes of a prompt with a mention, less the mean of what becomes of the same
prompt with other words in the mention's place. R is what the eraser takes away from the first of these. The removed
share is ⟨R, D⟩ / ⟨D, D⟩: 1 removes the difference exactly, 0 leaves it, and a negative share amplifies the concept. The
cosine between R and D is low where something else is written in the concept's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from excise.concepts.concept import Kind
from excise.concepts.others import others_like
from excise.concepts.sentences import SENTENCES
from excise.concepts.templates import with_article
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.hooks.context import proving, unedited
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.erasers.proof.replay import Replay, steps_for
from excise.sites.encoding import conditional, encode_prompt
from excise.sites.language import LanguageModel
from excise.sites.site import text_encoders, tokenizer_of

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host
    from excise.pipeline import Pipeline

OTHERS, OTHERS_PREDICTED = 8, 4
"""Other words that a mention is compared with: where texts are read, and where a denoiser runs for each."""
PREDICTED_FORMS = slice(1, 3)
"""Of a kind's `SENTENCES`, those that a denoiser is tried on."""
MOST_MENTIONS, MOST_PREDICTED = 24, 3
"""Mentions that are measured: in texts, and by a denoiser."""


class Floor(NamedTuple):
    """The least that an eraser has to remove."""

    share: float
    cosine: float


NEURONS = Floor(0.5, 0.35)
"""For neurons of a text encoder's SAE. Honest erasers of the bundled model remove 1.2 to 2.0 at cosines of 0.76 to 0.9.
A decoder row of another concept reaches 0.3 at a cosine of 0.25, λ times 0.002 reaches 0.002, and a row turned round is
negative. The floors stand about halfway between, on a scale of ratios."""
OTHER_TEXT_EDITS = Floor(0.16, 0.28)
"""For vectors and weights of a text encoder. Honest erasers remove 0.19 (Concept Steerers) to 0.83, at cosines from
0.37. Another concept's vector reaches 0.13 at 0.21; AdvUnlearn's weights change every concept, so another's pass."""
PREDICTIONS = Floor(0.05, 0.2)
"""For edits of a denoiser. Honest erasers remove 0.07 (SAFREE) to 1.3, at cosines from 0.26; λ times 0.002 would remove
0.002. Another concept's eraser mostly reaches 0.03, but up to 0.13 where a method changes every prompt (RECE)."""


@dataclass(frozen=True)
class Sums:
    """⟨R, D⟩, ⟨D, D⟩ and ⟨R, R⟩ over some of the values; sums over several prompts add up."""

    along: float
    difference: float
    removed: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.along + other.along, self.difference + other.difference, self.removed + other.removed)

    @property
    def share(self) -> float:
        """⟨R, D⟩ / ⟨D, D⟩; 0 where there is no difference to remove."""
        return self.along / self.difference if self.difference > 0 else 0.0

    @property
    def cosine(self) -> float:
        """⟨R, D⟩ / (|R| |D|); 0 where nothing is removed."""
        norms = self.difference**0.5 * self.removed**0.5
        return self.along / norms if norms > 0 else 0.0


@dataclass(frozen=True)
class Removal:
    """What is removed of one mention, in the part of what the denoiser reads or predicts where that is least."""

    mention: str
    part: str
    share: float
    cosine: float
    floor: Floor

    @property
    def enough(self) -> bool:
        """Whether share and cosine reach their floors. Values that are not numbers do not."""
        return self.share >= self.floor.share and self.cosine >= self.floor.cosine

    def __str__(self) -> str:
        return f"“{self.mention}” {self.share:+.2f} (cosine {self.cosine:.2f})"


def removed_of(plain: Tensor, edited: Tensor, others: Tensor) -> Sums:
    """Return the sums for one prompt.

    Args:
        plain: What becomes of the prompt without the eraser, of any shape.
        edited: The same with it.
        others: `[n, ...]`: the same for n prompts with other words in the mention's place, without the eraser.
    """
    own = plain.double()
    difference, removed = own - others.double().mean(0), own - edited.double()
    return Sums(float((removed * difference).sum()), float(difference.square().sum()), float(removed.square().sum()))


def can_measure_text(attachment: Host) -> bool:
    """Whether what is removed from texts can be measured: not in a language model, and not where another pipeline
    encodes."""
    text = [edit for edit in attachment.edits if edit.site.part == "text"]
    return bool(text) and not isinstance(attachment.pipe, LanguageModel)


def can_measure_prediction(attachment: Host) -> bool:
    """Whether the eraser edits a denoiser of this pipeline."""
    return any(edit.site.part == "denoiser" for edit in attachment.edits)


def text_floor(attachment: Host) -> Floor:
    """Return the floor for the removal from text states."""
    text = [edit for edit in attachment.edits if edit.site.part == "text"]
    return NEURONS if all(isinstance(edit, SAEEdit) for edit in text) else OTHER_TEXT_EDITS


@torch.no_grad()
def removed_from_text(attachment: Host, mention: str, kind: Kind, mentions: Iterable[str] = ()) -> Removal:
    """Return what the edits of text encoders remove of a mention from what the denoiser reads.

    Each part of what it reads, by tensor and by the encoder that made it, is measured by itself over all sentences.
    """
    pipe = attachment.pipe
    others = others_like(mention, kind, lambda text: _lengths(pipe, text), OTHERS, tuple(mentions))
    parts: dict[str, Sums] = {}
    for form in SENTENCES[kind]:
        said = _said(form, mention)
        with proving(attachment, "text") as vectors:
            edited = _read(pipe, said)
        with unedited():
            plain = _read(pipe, said)
            without = [_read(pipe, _said(form, other)) for other in others]
        for n, states in enumerate(plain):
            alike = [read[n] for read in without if read[n].shape == states.shape]
            if not alike or all(torch.equal(read, states) for read in alike):
                continue  # it holds no text: position ids, or an unconditional prompt's states
            for part, rows, columns in _parts(edited[n], vectors):
                chosen = [t.flatten(0, -2)[rows, columns] for t in (states, edited[n], *alike)]
                name = f"tensor {n + 1}{part}"
                sums = removed_of(chosen[0], chosen[1], torch.stack(chosen[2:]))
                parts[name] = parts[name] + sums if name in parts else sums
    return _least(mention, parts, text_floor(attachment))


@torch.no_grad()
def removed_from_prediction(attachment: Host, mention: str, kind: Kind, mentions: Iterable[str] = ()) -> Removal:
    """Return what the edits of a denoiser remove of a mention from what it predicts.

    All prompts are predicted from the same latents, those of an unedited picture of the mention, at every step of the
    first half. Otherwise the pictures would drift apart, and their difference would be one of drawing.
    """
    pipe = attachment.pipe
    others = others_like(mention, kind, lambda text: _lengths(pipe, text), OTHERS_PREDICTED, tuple(mentions))
    steps = steps_for(attachment.edits)
    total = Sums(0.0, 0.0, 0.0)
    for form in SENTENCES[kind][PREDICTED_FORMS]:
        said, replay = _said(form, mention), Replay(pipe, steps)
        with unedited():
            plain = replay.predict(said)
            without = [replay.predict(_said(form, other)) for other in others]
        with proving(attachment, "denoiser"):
            edited = replay.predict(said)
        for n, prediction in enumerate(plain):
            alike = torch.stack([predicted[n] for predicted in without])
            # The unconditional half of guidance is the same for every prompt.
            rows = (alike != prediction).flatten(2).any(2).any(0)
            total += removed_of(prediction[rows], edited[n][rows], alike[:, rows])
    return _least(mention, {"the prediction": total}, PREDICTIONS)


def _least(mention: str, parts: dict[str, Sums], floor: Floor) -> Removal:
    """Return the part with the least removal, by the lower of share and cosine relative to their floors."""
    if not parts:
        return Removal(mention, "what is read", 0.0, 0.0, floor)
    part = min(parts, key=lambda name: min(parts[name].share / floor.share, parts[name].cosine / floor.cosine))
    return Removal(mention, part, parts[part].share, parts[part].cosine, floor)


def _parts(edited: Tensor, vectors: KnownVectors) -> Iterator[tuple[str, Tensor, slice]]:
    """Yield the parts of a tensor by the encoder that made them: a label, row numbers and columns.

    Rows that no edited encoder made are a separate part, in which nothing was removed.
    """
    rows = edited.flatten(0, -2)
    if not vectors.widths:
        yield "", torch.arange(len(rows)), slice(None)
        return
    found: dict[tuple[int, int], list[Tensor]] = {}
    unknown = torch.ones(len(rows), dtype=torch.bool)
    for numbers, made_of, _ in vectors.pieces(rows):
        unknown[numbers.cpu()] = False
        for part in made_of:
            found.setdefault(part, []).append(numbers)
    for (start, width), several in found.items():
        yield f", columns {start} to {start + width - 1}", torch.cat(several), slice(start, start + width)
    if bool(unknown.any()):
        yield ", rows that no edited encoder made", unknown.nonzero().flatten(), slice(None)


def _said(form: str, word: str) -> str:
    return form.format(m=word, it=with_article(word))


def _lengths(pipe: Pipeline, text: str) -> tuple[int, ...]:
    """Return the number of tokens of a text for each of the pipeline's tokenizers."""
    tokenizers = [tokenizer_of(pipe, name) for name in text_encoders(pipe)]
    return tuple(len(tokenizer(text).input_ids) for tokenizer in tokenizers)


def _read(pipe: Pipeline, prompt: str) -> list[Tensor]:
    """Return the floating-point tensors with a row dimension that the denoiser reads of a prompt."""
    return [t for t in conditional(pipe, encode_prompt(pipe, prompt)) if t.is_floating_point() and t.ndim > 1]


def measured_words(mentions: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the mentions to measure: each once, and at most `most`."""
    by_word = {mention.lower(): mention for mention in reversed(mentions) if mention.strip()}
    return tuple(reversed(by_word.values()))[:most]
