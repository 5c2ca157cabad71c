"""How much of a concept an attached eraser removes, measured on the live pipeline and on nothing that its file says.

The concept's own difference D is what becomes of a prompt with a mention, less the mean of what becomes of the same
prompt with other words in the mention's place. R is what the eraser takes away from the first of these. The removed
share is ⟨R, D⟩ / ⟨D, D⟩: 1 removes the difference exactly, 0 leaves it, and a negative share amplifies the concept. The
cosine between R and D is low where something else is written in the concept's place. The lead compares the share with
those of the other words' own differences: 1 if the eraser removes nothing of them, 0 if as much as of the concept's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from excise.concepts.concept import Kind
from excise.concepts.others import others_like
from excise.concepts.sentences import SENTENCES
from excise.concepts.templates import with_article
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.edits.weights import CopyEdit, WeightEdit
from excise.erasers.hooks.context import proving, unedited
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.erasers.proof.effects import conditional_states
from excise.erasers.proof.replay import Replay, steps_for
from excise.sites.language import LanguageModel
from excise.sites.site import text_encoders, tokenizer_of

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host
    from excise.pipeline import Pipeline

OTHERS, OTHERS_PREDICTED = 12, 4
"""Other words that a mention is compared with: where texts are read, and where a denoiser runs for each."""
PREDICTED_FORMS = slice(1, 3)
"""Of a kind's `SENTENCES`, those that a denoiser is tried on."""
MOST_MENTIONS, MOST_PREDICTED = 24, 3
"""Mentions that are measured: in texts, and by a denoiser."""


class Floor(NamedTuple):
    """The least that an eraser has to reach. Without a number for the lead, the lead is not asked."""

    share: float
    cosine: float
    lead: float | None


NEURONS = Floor(0.65, 0.4, 0.5)
"""For neurons of a text encoder's SAE."""
OTHER_TEXT_EDITS = Floor(0.1, 0.19, 0.42)
"""For vectors and weights of a text encoder."""
PREDICTIONS = Floor(0.038, 0.15, 0.33)
"""For edits of a denoiser. All floors are half of the least value of honest erasers (benchmarks/figures/floors.py)."""
WHOLE_DENOISER = PREDICTIONS._replace(lead=None)
"""For weights of a denoiser outside cross-attention. Honest ones (ESD-u) weaken other words more than their own."""


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
    others: tuple[float, ...]
    """Shares that are removed of other words' own differences."""

    @property
    def lead(self) -> float:
        """1 - mean share of the other words / share; 0 if the share is not above 0 or there are no other words."""
        if not self.others or not self.share > 0:
            return 0.0
        return 1 - sum(self.others) / len(self.others) / self.share

    @property
    def enough(self) -> bool:
        """Whether share, cosine and lead reach their floors. Values that are not numbers do not."""
        return self.margin >= 1

    @property
    def margin(self) -> float:
        """The lowest of share, cosine and lead, each relative to its floor; -∞ if one is not a number."""
        values = zip((self.share, self.cosine, self.lead), self.floor, strict=True)
        found = [value / floor for value, floor in values if floor is not None]
        return min(found) if all(map(math.isfinite, found)) else -math.inf

    def __str__(self) -> str:
        return f"“{self.mention}” {self.share:+.2f} (cosine {self.cosine:.2f}, lead {self.lead:.2f})"


def removed_of(plain: Tensor, edited: Tensor, others: Tensor) -> Sums:
    """Return the sums for one prompt.

    Args:
        plain: What becomes of the prompt without the eraser, of any shape.
        edited: The same with it.
        others: `[n, ...]`: the same for n prompts with other words in the mention's place, without the eraser.
    """
    own, others, edited = (states.cpu().double() for states in (plain, others, edited))  # MPS has no float64
    difference, removed = own - others.mean(0), own - edited
    return Sums(float((removed * difference).sum()), float(difference.square().sum()), float(removed.square().sum()))


def removed_of_each(plain: Tensor, edited: Tensor) -> tuple[Sums, ...]:
    """Return the sums for a mention and for each other word, in prompts that differ only in that word.

    The mention is compared with the mean of all others, and each other word with the mean of the remaining ones.

    Args:
        plain: `[1 + n, ...]`, n at least 2: what becomes of the prompts without the eraser, the mention's first.
        edited: The same with it.
    """
    others = range(1, len(plain))
    return tuple(removed_of(plain[w], edited[w], plain[[v for v in others if v != w]]) for w in range(len(plain)))


def can_measure_text(attachment: Host) -> bool:
    """Whether what is removed from texts can be measured: not in a language model, and not where another pipeline
    encodes."""
    text = [edit for edit in attachment.edits if edit.site.part == "text"]
    return bool(text) and not isinstance(attachment.pipe, LanguageModel)


def can_measure_prediction(attachment: Host) -> bool:
    """Whether the eraser edits a denoiser of this pipeline."""
    return any(edit.site.part == "denoiser" for edit in attachment.edits)


def prediction_floor(attachment: Host) -> Floor:
    """Return the floor for the removal from predictions."""
    edits = [edit for edit in attachment.edits if edit.site.part == "denoiser"]
    whole = any(edit.kind == CopyEdit.kind or _outside_cross_attention(edit) for edit in edits)
    return WHOLE_DENOISER if whole else PREDICTIONS


def _outside_cross_attention(edit: Any) -> bool:
    return edit.kind == WeightEdit.kind and ".attn2." not in f".{edit.site.path}."


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
    words = [mention, *others_like(mention, kind, lambda text: _lengths(pipe, text), OTHERS, tuple(mentions))]
    parts: dict[str, dict[int, Sums]] = {}
    for form in SENTENCES[kind]:
        texts = [_said(form, word) for word in words]
        with proving(attachment, "text") as vectors:
            edited = _read(pipe, texts)
        with unedited():
            plain = _read(pipe, texts)
        for n, states in enumerate(plain[0]):
            alike = [w for w, read in enumerate(plain) if read[n].shape == states.shape]
            before, after = (torch.stack([read[w][n] for w in alike]) for read in (plain, edited))
            if len(alike) < 3 or bool((before == before[:1]).all()):
                continue  # it holds no text: position ids, or an unconditional prompt's states
            for part, rows, columns in _parts(edited[0][n], vectors):
                chosen = (t.flatten(1, -2)[:, rows, columns] for t in (before, after))
                _add(parts.setdefault(f"tensor {n + 1}{part}", {}), alike, removed_of_each(*chosen))
    return _least(mention, parts, text_floor(attachment))


@torch.no_grad()
def removed_from_prediction(attachment: Host, mention: str, kind: Kind, mentions: Iterable[str] = ()) -> Removal:
    """Return what the edits of a denoiser remove of a mention from what it predicts.

    All prompts are predicted from the same latents, those of an unedited picture of the mention, at every step of the
    first half. Otherwise the pictures would drift apart, and their difference would be one of drawing.
    """
    pipe = attachment.pipe
    words = [mention, *others_like(mention, kind, lambda text: _lengths(pipe, text), OTHERS_PREDICTED, tuple(mentions))]
    steps = steps_for(attachment.edits)
    total: dict[int, Sums] = {}
    for form in SENTENCES[kind][PREDICTED_FORMS]:
        texts, replay = [_said(form, word) for word in words], Replay(pipe, steps)
        with unedited():
            plain = [replay.predict(text) for text in texts]
        with proving(attachment, "denoiser"):
            edited = [replay.predict(text) for text in texts]
        for n in range(len(plain[0])):
            before, after = (torch.stack([predicted[n] for predicted in of]) for of in (plain, edited))
            # The unconditional half of guidance is the same for every prompt.
            rows = (before != before[:1]).flatten(2).any(2).any(0)
            _add(total, range(len(words)), removed_of_each(before[:, rows], after[:, rows]))
    return _least(mention, {"the prediction": total}, prediction_floor(attachment))


def _add(total: dict[int, Sums], words: Iterable[int], sums: Iterable[Sums]) -> None:
    """Add one prompt's sums to the total of each word."""
    for word, own in zip(words, sums, strict=True):
        total[word] = total[word] + own if word in total else own


def _least(mention: str, parts: Mapping[str, Mapping[int, Sums]], floor: Floor) -> Removal:
    """Return the part with the least removal, relative to the floors."""
    found = [
        Removal(mention, part, own.share, own.cosine, floor, tuple(other.share for other in others))
        for part, (own, *others) in ((part, by_word.values()) for part, by_word in parts.items())
    ]
    nothing = Removal(mention, "what is read", 0.0, 0.0, floor, ())
    return min(found, key=lambda removal: removal.margin, default=nothing)


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


def _read(pipe: Pipeline, prompts: list[str]) -> list[list[Tensor]]:
    """Return the floating-point tensors with a row dimension that the denoiser reads of each prompt.

    They are encoded at once, unless the pipeline then returns a list of states instead of rows.
    """
    alone, made = conditional_states(pipe, prompts[:1]), conditional_states(pipe, prompts)
    if len(made) == len(alone):
        rows = [tensor for tensor in made if len(tensor) == len(prompts)]
        return [[tensor[n : n + 1] for tensor in rows] for n in range(len(prompts))]
    return [alone, *(conditional_states(pipe, [prompt]) for prompt in prompts[1:])]


def measured_words(mentions: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the mentions to measure: each once, and at most `most`."""
    by_word = {mention.lower(): mention for mention in reversed(mentions) if mention.strip()}
    return tuple(reversed(by_word.values()))[:most]
