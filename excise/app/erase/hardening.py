"""Hardening of an eraser: words that get past it become mentions of its concept, each with an edit of its own.

Each round searches the text encoder's whole vocabulary under the eraser (`excise.bench.attacks.vocabulary`), generates
pictures from the words that are still nearest to the concept, and takes the words whose pictures show it. The eraser's
own neuron is silent in them, so SNCE is fitted on each word by itself, and its edit joins the eraser's if it leaves
prompts about other things alone.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from excise import reference
from excise.app.erase.finding import erase
from excise.app.models.resolve import sae_folder
from excise.bench.attacks.vocabulary import nearest_words
from excise.bench.canvas.families import synonyms_of_others
from excise.bench.canvas.suite import Canvas
from excise.bench.canvas.words import DESCRIBED, FOREIGN, NEAR
from excise.concepts import Concept, Kind, builtin, from_templates
from excise.concepts.concept import mentioned
from excise.concepts.everyday import everyday
from excise.concepts.sentences import sentences
from excise.erasers import Attachment, Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.erasers.proof.effects import text_changes
from excise.errors import ExciseError, InvalidSetting
from excise.methods.configs.sae import SNCEConfig
from excise.methods.judging import with_verdict
from excise.pipeline import Pipeline
from excise.reference.classifier import JUDGES
from excise.reference.world import OBJECTS, STYLES, SYNONYMS

FIRST_SEED = 50_000
"""Seed of a round's first picture. No benchmark uses these."""
OPENED, TOUCHED = 0.9, 0.02
"""Least share of a word's own prompts on which its edit acts, and the largest share of its control prompts and of
prompts about other things. A round may change at most the latter share of either more than the first eraser does."""
EVERYDAY = 300
"""Everyday prompts among those about other things."""
LAST = "the last round was reached"
COSTLY = "the last round changed too many prompts about other things"


@dataclass(frozen=True)
class Round:
    """What one eraser let through, and what was made of it."""

    mentions: tuple[str, ...]
    """Mentions of the concept that this eraser was made with."""
    neurons: tuple[int, ...]
    """Neurons that it turns down."""
    words: tuple[str, ...]
    """Words whose pictures were generated under it."""
    pictures: int
    shown: int
    """Pictures that show the concept."""
    leaks: tuple[str, ...]
    """Words of these pictures, which the next eraser gets as mentions if a neuron carries them."""
    controls: float
    """Share of the concept's control prompts, which must not change, whose text states it changes."""
    others: float
    """The same share of prompts about other things (`about_others`)."""

    def spares(self, first: Round) -> bool:
        """Whether it changes hardly more prompts than the `first` round's eraser that must not change."""
        return self.controls <= first.controls + TOUCHED and self.others <= first.others + TOUCHED

    @property
    def share(self) -> float:
        """Share of the pictures that show the concept."""
        return self.shown / self.pictures


@dataclass(frozen=True)
class Hardened:
    """The best eraser of all rounds; `measured["hardening"]` has the rounds."""

    eraser: Eraser
    rounds: tuple[Round, ...]
    best: int
    """Number of the round that tried `eraser`, from 0."""
    why: str
    """Why no further round was made."""


def harden(
    pipe: Pipeline,
    eraser: Eraser,
    *,
    gate: float = 0.05,
    rounds: int = 4,
    words: int = 32,
    steps: int = Canvas.steps,
    progress: Callable[[Round], Any] | None = None,
) -> Hardened:
    """Harden an eraser that SNCE made for the bundled model.

    Words of the benchmark's own prompts are never tried and never become mentions, so that what the benchmark reports
    of the hardened eraser is not what it was hardened on.

    Args:
        pipe: The bundled model's pipeline, without an eraser.
        eraser: The eraser to start from. It is not changed.
        gate: Share of the pictures that may show the concept; once reached, no further round is made.
        rounds: The most erasers that are tried, the first one included.
        words: Words whose pictures are generated in each round, two pictures each.
        steps: Denoising steps of a picture.
        progress: Called with each round.

    Raises:
        InvalidSetting: the eraser is not SNCE's with its own prompts' codes, or its concept is not one that the
            model's judges know.
    """
    concept, config = checked(eraser)
    others = about_others(concept)
    best, why, erasers, tried = 0, LAST, [eraser], list[Round]()
    while True:
        tried.append(_attack(pipe, erasers[-1], concept, words, steps, others))
        if progress is not None:
            progress(tried[-1])
        if not tried[-1].spares(tried[0]):
            why = COSTLY
            break
        if tried[-1].share < tried[best].share:
            best = len(tried) - 1
        if tried[-1].share <= gate:
            why = "the gate was reached"
            break
        if best != len(tried) - 1:
            why = "the last round won nothing"
            break
        if len(tried) == rounds:
            break
        more = {word: made for word in tried[-1].leaks if (made := _edits(pipe, word, concept.kind, config, others))}
        if not more:
            why = "no neuron carries the words that were found and leaves other things alone"
            break
        concept = replace(concept, mentions=(*concept.mentions, *more))
        erasers.append(_joined(pipe, erasers[-1], concept, [edit for edits in more.values() for edit in edits]))
    hardening = json.loads(json.dumps({"gate": gate, "best": best, "why": why, "rounds": [asdict(r) for r in tried]}))
    chosen = replace(erasers[best], measured={**erasers[best].measured, "hardening": hardening})
    return Hardened(chosen, tuple(tried), best, why)


def _edits(pipe: Pipeline, word: str, kind: Kind, config: SNCEConfig, others: tuple[str, ...]) -> tuple[Any, ...]:
    """Return SNCE's edits of a word by itself; none if no neuron fires with it, or one that control prompts or prompts
    about other things set off.

    The threshold is calibrated on every second prompt of `others`, and the rest are looked at. The neuron may carry
    little of what the word changes: whether it is enough is what the next round's pictures show.
    """
    try:
        made, _ = erase(pipe, replace(from_templates(word, (word,), kind=kind), benign=others), config)
    except ExciseError:
        return ()
    fires = made.measured["fires"]
    spares = fires["controls"] <= TOUCHED and fires["benign"] <= TOUCHED
    return tuple(made.edits) if fires["concept"] >= OPENED and spares else ()


def about_others(concept: Concept) -> tuple[str, ...]:
    """Return prompts about other things than the concept: other objects by their names, and everyday prompts.

    None has a synonym of an object, since the benchmark counts what an eraser does to those.
    """
    names = [name for name in OBJECTS if not mentioned(name, concept.mentions)]
    named = [text for name in names for text in sentences(name, "object")[1:3]]
    tested = [word for words in SYNONYMS.values() for word in words]
    plain = [text for text in everyday(EVERYDAY) if not mentioned(text, (*concept.mentions, *tested))]
    return (*named, *plain)


def _joined(pipe: Pipeline, eraser: Eraser, concept: Concept, edits: Sequence[Any]) -> Eraser:
    """Return the eraser with further edits, tested on each of the concept's mentions."""
    whole = replace(eraser, edits=(*eraser.edits, *edits), mentions=concept.mentions, canary_shift=0.0)
    with Attachment(whole, pipe, trial=True) as attachment, warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)
        tested = with_verdict(attachment, concept)
    return replace(tested, verdict={**eraser.verdict, **tested.verdict})


def held_out(concept: str) -> frozenset[str]:
    """Return the words, in lower case, by which the benchmark tests an eraser of this concept, and all objects."""
    named = (*SYNONYMS.get(concept, ()), *FOREIGN[concept], *DESCRIBED[concept], *NEAR[concept])
    texts = (*named, *synonyms_of_others(concept), *OBJECTS, *STYLES)
    return frozenset(word for text in texts for word in re.findall(r"\w+", text.lower()))


def _attack(pipe: Pipeline, eraser: Eraser, concept: Concept, words: int, steps: int, others: tuple[str, ...]) -> Round:
    """Generate pictures from the words nearest to the concept under the eraser, and count those that show it."""
    kept = held_out(concept.name)
    with eraser.attach(pipe):
        near = [word.word for word in nearest_words(pipe, concept) if word.word not in kept][:words]
        prompts = [(word, text) for word in near for text in sentences(word, concept.kind)[1:3]]
        texts = [text for _, text in prompts]
        controls, changed = _changed(pipe, concept.controls), _changed(pipe, others)
        drawn = reference.draw(pipe, texts, [FIRST_SEED + n for n in range(len(texts))], steps=steps)
    shown = [
        any(judged) for judged in zip(*(_shows(concept.name, judge, drawn.pixels) for judge in JUDGES), strict=True)
    ]
    leaks = dict.fromkeys(word for (word, _), seen in zip(prompts, shown, strict=True) if seen)
    return Round(
        concept.mentions,
        tuple(neuron for edit in eraser.edits for neuron in edit.neurons),
        tuple(near),
        len(texts),
        sum(shown),
        tuple(leaks),
        controls,
        changed,
    )


def _changed(pipe: Pipeline, prompts: Sequence[str]) -> float:
    """Return the share of prompts whose text states the attached eraser changes."""
    changes = text_changes(pipe, prompts)
    return sum(change > 0 for change in changes) / len(changes)


def _shows(concept: str, judge: str, pixels: Any) -> list[bool]:
    seen = reference.judge(judge)(pixels)
    if concept in STYLES:
        return [STYLES[n] == concept for n in seen.style]
    return [bool(shown) for shown in seen.objects[:, OBJECTS.index(concept)]]


def checked(eraser: Eraser) -> tuple[Concept, SNCEConfig]:
    """Return the eraser's concept with pairs, and its settings. Raises InvalidSetting if it cannot be hardened."""
    return _concept(eraser), _config(eraser)


def _concept(eraser: Eraser) -> Concept:
    if eraser.concept not in (*OBJECTS, *STYLES):
        raise InvalidSetting(
            f"{eraser.concept!r} cannot be hardened: the judges know only {', '.join((*OBJECTS, *STYLES))}"
        )
    plain = builtin(eraser.concept)
    if tuple(eraser.mentions) == plain.mentions:
        return plain
    return from_templates(eraser.concept, tuple(eraser.mentions), kind=plain.kind)


def _config(eraser: Eraser) -> SNCEConfig:
    if eraser.created.get("method") != "snce":
        raise InvalidSetting(
            f"only erasers by snce can be hardened, not by {eraser.created.get('method')}; make one with `excise erase`"
        )
    given = dict(eraser.created["config"])
    if given.get("neurons") or given.get("source") != "prompt":
        raise InvalidSetting(
            "an eraser with neurons chosen by hand or the concept's own codes cannot be hardened; make one with "
            "`excise erase` without --neurons and --source"
        )
    try:
        return SNCEConfig(**{**given, "neurons": (), "sae": str(sae_folder(None, None))})
    except TypeError as error:
        raise InvalidSetting(f"the eraser's settings cannot be read ({error}); make it again") from error
