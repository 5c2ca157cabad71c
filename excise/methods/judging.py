"""Verdict on a fitted eraser: which words it catches, how much of the concept it carries, which other prompts it
changes, and which limits it misses.

The limits were set on the bundled model. Its 48 objects and styles, fitted with the defaults, lie above all of them;
words that the model cannot generate lie below one or more (`benchmarks/figures/verdicts.py`). Other models may differ:
if a limit is missed on a concept that is erased, `excise erase --accept-weak` writes the eraser.
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
from excise.erasers.guard.self_test import moved
from excise.erasers.hooks.context import proving
from excise.erasers.proof.effects import text_changes
from excise.errors import stacklevel
from excise.methods.prompt_codes import features
from excise.neurons.flags import CAUGHT, percent
from excise.neurons.validation import STRUCTURAL_SHARE
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import text_encoders
from excise.sites.language import LanguageModel
from excise.sites.site import tokenizer_of

LEAST_SHARE = 0.2
"""Smallest share of the concept's change that the edited neurons carry. Strength 1.25 comes to at most 1.25 / 0.25 = 5
in codes (`strength.LEAST_CARRIED`), which with a fifth still removes the whole change. The bundled model's concepts
carry 0.25 to 0.95, words it cannot generate 0.00 (spider-man) to 0.23 (lamp)."""
LEAST_AUROC = 0.9
"""Smallest AUROC, held out by wording. The bundled model's concepts have 1.00; weapons of halberd and mace had 0.77."""
LEAST_OPENED = 0.9
"""Smallest share of the concept's own prompts that the eraser acts on. The bundled model's concepts have 1.00; weapons
had 0.54."""
MOST_CONTROLS = STRUCTURAL_SHARE
"""Largest share of the control prompts that an eraser calibrated on the pairs alone would change. Above it, the neuron
is structural. The eraser itself is calibrated on the controls too, and changes none of them."""
MOST_PROTECTED = 0.5
"""Largest share of the words for groups of people that change a sentence. The bundled model was trained on none of
them, and its concepts affect up to 16 of 59 (flat). So only an eraser that responds to people as such is refused; all
words that it affects are listed."""
MOST_CANARIES, MOST_STEPS = 12, 20
"""Largest number of canary prompts of an eraser, and of denoising steps that they may take at attaching."""


@dataclass(frozen=True)
class Figures:
    """Measurements of a fit by SAE neurons; None if not measured.

    `controls` are (changed, all): the control prompts that it would change had it not been calibrated on them.
    `benign` are (changed, all): prompts as users write them, unseen by the calibration.
    """

    pairs: int
    carried: float | None = None
    auroc: float | None = None
    opened: float | None = None
    controls: tuple[int, int] | None = None
    benign: tuple[int, int] | None = None
    protected: tuple[tuple[str, ...], int] | None = None
    spares: bool = True
    """Whether the edit leaves other prompts alone: not with gate="relu" or source="concept", which edit all."""


def with_verdict(
    attachment: Attachment,
    concept: Concept,
    prompts: Mapping[str, str] | None = None,
    figures: Figures | None = None,
    reasons: Sequence[str] = (),
) -> Eraser:
    """Return the attached eraser with its verdict, its canary shift, and one more canary prompt per caught mention.

    `prompts` are the canary prompts to try by mention; by default the first pair's that contains it. `reasons` are
    limits that the caller found to be missed. An eraser that
    misses a limit is returned too, with the reasons as `eraser.weak` and a WeakEraser warning: the caller decides.
    """
    eraser = attachment.eraser
    assert isinstance(eraser, Eraser)
    tried = _moves(attachment, concept, prompts or prompts_by_mention(concept))
    canaries = [eraser.canary[0], *(prompt for prompt, by in tried.values() if by >= CAUGHT * attachment.shift)]
    least = min([attachment.shift, *(by for _, by in tried.values() if by >= CAUGHT * attachment.shift)])
    mentions = _mentions(attachment, concept, {word: by for word, (_, by) in tried.items()})
    verdict: dict[str, Any] = {"mentions": mentions, **(_as_json(figures) if figures else {})}
    verdict["weak"] = [
        *_unread(attachment.pipe, concept),
        *_missed(mentions),
        *(_weak(figures) if figures else ()),
        *reasons,
    ]
    if verdict["weak"]:
        warnings.warn(
            f"the eraser of {concept.name!r} cannot be relied on: {'; '.join(verdict['weak'])}",
            WeakEraser,
            stacklevel=stacklevel(),
        )
    return replace(eraser, canary=tuple(dict.fromkeys(canaries)), canary_shift=least, verdict=verdict)


def prompts_by_mention(concept: Concept, loudness: Sequence[float] = ()) -> dict[str, str]:
    """Return a prompt for every mention: of the pairs' that contain it the loudest, or the first; else one of our own.

    `loudness` holds one value for each pair, such as the codes' sum.
    """
    loud = list(loudness) or [0.0] * len(concept.pairs)
    found = {}
    for word in concept.mentions:
        own = [n for n, pair in enumerate(concept.pairs) if mentioned(pair.concept, (word,))]
        best = max(own, key=lambda n: loud[n], default=None)
        found[word] = sentences(word, concept.kind)[2] if best is None else concept.pairs[best].concept
    return found


@torch.no_grad()
def protected(pipe: Pipeline, edit: SAEEdit, sae: TopKSAE | None, batch_size: int = 64) -> tuple[tuple[str, ...], int]:
    """Return the words for groups of people that set the edit off, and how many words were tried.

    A word counts if the edit acts on a sentence with it but not on the same sentence without it. One sentence for each;
    an audit tries several.
    """
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
    """Return each mention's canary prompt and how far the eraser moves on it, for as many mentions as may be tried."""
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
    """Return a row for every mention tried: measured on sentences if text states are edited, else on its canary."""
    pipe, rows = attachment.pipe, list[dict[str, Any]]()
    if not attachment.eraser.text_edits or isinstance(pipe, LanguageModel):
        for word, by in moves.items():
            rows.append({"word": word, "caught": by >= CAUGHT * attachment.shift, "moved": float(by)})
        return rows
    forms = {word: sentences(word, concept.kind) for word in concept.mentions}
    with proving(attachment):  # other attached erasers may change these sentences too
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


def _as_json(figures: Figures) -> dict[str, Any]:
    """Return the figures that were measured, as json."""
    found: dict[str, Any] = {"pairs": figures.pairs}
    for name in ("carried", "auroc", "opened"):
        if (value := getattr(figures, name)) is not None:
            found[name] = float(value)
    for name, counts in (("controls", figures.controls), ("benign", figures.benign)):
        if counts is not None:
            found[name] = {"touched": counts[0], "of": counts[1]}
    if figures.protected is not None:
        found["protected"] = {"touched": list(figures.protected[0]), "of": figures.protected[1]}
    return found


def _unread(pipe: Pipeline, concept: Concept) -> list[str]:
    """Return the mentions that a tokenizer maps to its unknown token, which its encoder cannot tell apart."""
    out = []
    for component in text_encoders(pipe):
        tokenizer = tokenizer_of(pipe, component)
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown == tokenizer.eos_token_id:  # CLIP's tokenizer can encode every byte
            continue
        out += [f"{component} cannot read “{m}”" for m in concept.mentions if unknown in tokenizer(m).input_ids]
    return out


def _missed(mentions: Sequence[Mapping[str, Any]]) -> list[str]:
    missed = [row["word"] for row in mentions if not row["caught"]]
    named = " and ".join(f"“{word}”" for word in missed)
    return [f"{named} {'is' if len(missed) == 1 else 'are'} missed"] if missed else []


def _weak(figures: Figures) -> list[str]:
    """Return one clause for each limit that is missed."""
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
