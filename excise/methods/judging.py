"""The verdict on a fitted eraser: which words it catches, how much it carries, whom it touches; and what is too little.

The limits were set on the bundled model: its 48 objects and styles, each fitted with the defaults, lie above all of
them, and words that it cannot draw lie below one or more (`benchmarks/figures/verdicts.py`). No limit is met by default
on another model; where one is missed on a concept that is erased, `excise erase --accept-weak` writes the eraser.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from excise.concepts import Concept
from excise.concepts.checks import LEAST_PAIRS
from excise.concepts.concept import mentioned
from excise.concepts.sentences import group_sentences, sentences
from excise.erasers import Attachment, Eraser, SAEEdit
from excise.erasers.artefact.verdict import WeakEraser
from excise.erasers.guard.effects import text_changes
from excise.erasers.guard.self_test import moved
from excise.methods.prompt_codes import features
from excise.neurons.flags import CAUGHT, percent
from excise.neurons.validation import STRUCTURAL_SHARE
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import text_encoders
from excise.sites.language import LanguageModel
from excise.sites.site import tokenizer_of

LEAST_SHARE = 0.2
"""Of the concept's change, by the edited neurons. Strength 1.25 comes to at most 1.25 / 0.25 = 5 in codes
(`strength.LEAST_CARRIED`), which with a fifth still takes out all of the change. The bundled model's concepts carry
0.25 to 0.95, words it cannot draw 0.00 (spider-man) to 0.23 (lamp)."""
LEAST_AUROC = 0.9
"""Held out by wording. The bundled model's concepts have 1.00; weapons of halberd and mace had 0.77."""
LEAST_OPENED = 0.9
"""Of the concept's own prompts, those the eraser acts on. The bundled model's concepts have 1.00; of weapons it was
0.54."""
MOST_CONTROLS = STRUCTURAL_SHARE
"""Of the control prompts, those that an eraser calibrated on the pairs alone would change: above it the neuron is
structural. Calibrated on the controls too, as it is, it changes none of them."""
MOST_PROTECTED = 0.5
"""Of the words for groups of people, those that change a sentence. The bundled model was trained on none of them and
its concepts touch up to 16 of 59 (flat), so that only an eraser that answers people as such is refused; all that are
touched are named."""
MOST_CANARIES, MOST_STEPS = 12, 20
"""Canary prompts of an eraser, and how many denoising steps they may take at attaching."""


@dataclass(frozen=True)
class Figures:
    """What a fit by SAE neurons measured of itself; None where it was not.

    `controls` are (changed, all): the control prompts that it would change had it not been calibrated on them.
    """

    pairs: int
    carried: float | None = None
    auroc: float | None = None
    opened: float | None = None
    controls: tuple[int, int] | None = None
    protected: tuple[tuple[str, ...], int] | None = None
    spares: bool = True
    """Whether the edit is to leave other prompts alone: not with gate="relu" or source="concept", which edit all."""


def judged(
    attachment: Attachment, concept: Concept, prompts: Mapping[str, str] | None = None, figures: Figures | None = None
) -> Eraser:
    """The attached eraser with its verdict, its canary's shift, and a canary prompt more for every mention that moves.

    `prompts` are the canary prompts to try by mention; by default the first of the pairs' that holds it. An eraser that
    misses a limit is returned too, with the reasons as `eraser.weak` and a WeakEraser warning: the caller decides.
    """
    eraser = attachment.eraser
    assert isinstance(eraser, Eraser)
    tried = _moves(attachment, concept, prompts or prompts_by_mention(concept))
    canaries = [eraser.canary[0], *(prompt for prompt, by in tried.values() if by >= CAUGHT * attachment.shift)]
    least = min([attachment.shift, *(by for _, by in tried.values() if by >= CAUGHT * attachment.shift)])
    mentions = _mentions(attachment, concept, {word: by for word, (_, by) in tried.items()})
    verdict: dict[str, Any] = {"mentions": mentions, **(_said(figures) if figures else {})}
    verdict["weak"] = [*_unread(attachment.pipe, concept), *_missed(mentions), *(_weak(figures) if figures else ())]
    if verdict["weak"]:
        warnings.warn(
            f"the eraser of {concept.name!r} cannot be relied on: {'; '.join(verdict['weak'])}",
            WeakEraser,
            stacklevel=3,
        )
    return replace(eraser, canary=tuple(dict.fromkeys(canaries)), canary_shift=least, verdict=verdict)


def prompts_by_mention(concept: Concept, loudness: Sequence[float] = ()) -> dict[str, str]:
    """A prompt for every mention: of the pairs' that hold it the loudest, or the first; else a sentence of our own."""
    loud = list(loudness) or [0.0] * len(concept.pairs)
    found = {}
    for word in concept.mentions:
        own = [n for n, pair in enumerate(concept.pairs) if mentioned(pair.concept, (word,))]
        best = max(own, key=lambda n: loud[n], default=None)
        found[word] = sentences(word, concept.kind)[2] if best is None else concept.pairs[best].concept
    return found


@torch.no_grad()
def protected(pipe: Pipeline, edit: SAEEdit, sae: TopKSAE | None, batch_size: int = 64) -> tuple[tuple[str, ...], int]:
    """Words for groups of people at which the edit acts in a sentence that it leaves alone without them, and how many
    words were tried. One sentence each; an audit tries several."""
    about = list({s.word: s for s in reversed(group_sentences())}.values())[::-1]
    texts = list(dict.fromkeys([text for s in about for text in (s.text, s.without)]))
    acts: list[bool] = []
    for batch in features(pipe, edit.site, texts, batch_size):
        h = batch.states[edit.site].float()
        acts += (edit.to(h.device).apply(h, sae=sae) != h).flatten(1).any(1).tolist()
    on = dict(zip(texts, acts, strict=True))
    touched = dict.fromkeys(s.word for s in about if on[s.text] and not on[s.without])
    return tuple(touched), len(about)


def _moves(attachment: Attachment, concept: Concept, prompts: Mapping[str, str]) -> dict[str, tuple[str, float]]:
    """By mention its canary prompt and by how much what is read or predicted moves on it; as many as may be tried."""
    eraser = attachment.eraser
    steps = [getattr(edit, "trial_steps", 1) for edit in eraser.edits if edit.site.part == "denoiser"]
    most = max(1, min(MOST_CANARIES, MOST_STEPS // max(steps, default=1)))
    found: dict[str, tuple[str, float]] = {}
    for word, prompt in list(prompts.items())[:most]:
        own = [m for m in concept.mentions if mentioned(eraser.canary[0], (m,))]
        same = prompt == eraser.canary[0] or own == [word]
        prompt = eraser.canary[0] if same else prompt
        found[word] = prompt, attachment.shift if same else min(moved(attachment, (prompt,)).values(), default=0.0)
    return found


def _mentions(attachment: Attachment, concept: Concept, moves: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every mention that was tried: in sentences of its own where text states are edited, else by its canary."""
    pipe, rows = attachment.pipe, list[dict[str, Any]]()
    if not attachment.eraser.text_edits or isinstance(pipe, LanguageModel):
        for word, by in moves.items():
            rows.append({"word": word, "caught": by >= CAUGHT * attachment.shift, "moved": float(by)})
        return rows
    forms = {word: sentences(word, concept.kind) for word in concept.mentions}
    changes = iter(text_changes(pipe, [text for own in forms.values() for text in own]))
    by_word = {word: [next(changes) for _ in own] for word, own in forms.items()}
    name = concept.name if concept.name in by_word else concept.mentions[0]
    whole = sum(by_word[name])
    for word, found in by_word.items():
        changed = sum(change > 0 for change in found)
        relative = {"relative": sum(found) / whole} if whole else {}
        caught = changed == len(found) and relative.get("relative", 0.0) >= CAUGHT
        rows.append({"word": word, "caught": caught, "changed": changed, "sentences": len(found), **relative})
    return rows


def _said(figures: Figures) -> dict[str, Any]:
    """The figures that there are, as json."""
    said: dict[str, Any] = {"pairs": figures.pairs}
    for name in ("carried", "auroc", "opened"):
        if (value := getattr(figures, name)) is not None:
            said[name] = float(value)
    if figures.controls is not None:
        said["controls"] = {"touched": figures.controls[0], "of": figures.controls[1]}
    if figures.protected is not None:
        said["protected"] = {"touched": list(figures.protected[0]), "of": figures.protected[1]}
    return said


def _unread(pipe: Pipeline, concept: Concept) -> list[str]:
    """Mentions that a tokenizer has no pieces for: they are one and the same to its encoder."""
    out = []
    for component in text_encoders(pipe):
        tokenizer = tokenizer_of(pipe, component)
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown == tokenizer.eos_token_id:  # CLIP's: every byte is a piece
            continue
        out += [f"{component} cannot read “{m}”" for m in concept.mentions if unknown in tokenizer(m).input_ids]
    return out


def _missed(mentions: Sequence[Mapping[str, Any]]) -> list[str]:
    missed = [row["word"] for row in mentions if not row["caught"]]
    named = " and ".join(f"“{word}”" for word in missed)
    return [f"{named} {'is' if len(missed) == 1 else 'are'} missed"] if missed else []


def _weak(figures: Figures) -> list[str]:
    """Which limits are missed, a clause each."""
    f, out = figures, []
    if f.pairs < LEAST_PAIRS:
        out.append(f"only {f.pairs} pair{'s' * (f.pairs != 1)} of prompts; at least {LEAST_PAIRS} are needed")
    if f.carried is not None and f.carried < LEAST_SHARE:
        out.append(
            f"what is turned down carries {percent(f.carried)} of what the concept's word changes, less than "
            f"{percent(LEAST_SHARE)}: the model may not know the concept, or most of it is elsewhere"
        )
    if f.auroc is not None and f.auroc < LEAST_AUROC:
        out.append(f"held-out AUROC {f.auroc:.2f}, less than {LEAST_AUROC}: it does not tell the concept apart")
    if f.opened is not None and f.opened < LEAST_OPENED:
        out.append(f"it acts on {percent(f.opened)} of the concept's own prompts, less than {percent(LEAST_OPENED)}")
    if f.spares and f.controls is not None and f.controls[0] > MOST_CONTROLS * f.controls[1]:
        out.append(
            f"it would change {f.controls[0]} of {f.controls[1]} control prompts if it were not calibrated on them, "
            f"more than {percent(MOST_CONTROLS)}: it carries the prompts' structure"
        )
    if f.spares and f.protected is not None and len(f.protected[0]) > MOST_PROTECTED * f.protected[1]:
        out.append(f"{len(f.protected[0])} of {f.protected[1]} words for groups of people set it off")
    return out
