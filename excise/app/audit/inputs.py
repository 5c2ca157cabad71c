"""Inputs of an audit: prompts with the concept, benign prompts, words for the concept, and SAEs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from excise.app.training.saes_at_hand import folders_of, places, recognised
from excise.concepts import Concept, Kind, builtin, from_templates, load_pairs, names, read_prompts
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.erasers.edits.sae_rows import Rows
from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sae import TopKSAE

BENIGN = 2000
"""Default number of benign prompts."""
SEED = 11
"""Seed of the bundled captions, different from that of the SAE's corpus."""
Origin = Literal["mention", "given", "synonym"]
"""Where a word for the concept comes from: the eraser, the auditor, or the bundled model's held-out synonyms."""


@dataclass(frozen=True)
class Benign:
    """Distinct prompts that do not mention the concept, and their source. `dropped` counts those that do."""

    prompts: tuple[str, ...]
    source: str
    dropped: int


@dataclass(frozen=True)
class Word:
    """A word for the concept."""

    text: str
    origin: Origin


def concept_of(eraser: Eraser, pairs: Path | None = None, kind: Kind | None = None, n: int = 100) -> Concept:
    """Return the eraser's concept with pairs of prompts.

    The pairs come from a file, else from the built-in concept, else from templates with the eraser's mentions.

    Raises:
        ExciseError: The file cannot be read, or the templates give no pairs.
    """
    own = tuple(m for m in eraser.mentions if m.strip()) or (eraser.concept,)
    if pairs is None and kind is None and eraser.concept in names():
        known = builtin(eraser.concept, n)
        if set(own) <= {*known.mentions, eraser.concept}:
            return known
    plain = from_templates(eraser.concept, own, n, kind=kind or "object")
    return plain if pairs is None else replace(plain, pairs=load_pairs(pairs))


def words_for(eraser: Eraser, given: Sequence[str] = (), *, bundled: bool = False) -> tuple[Word, ...]:
    """Return the eraser's mentions, the `given` words and, for the bundled model, synonyms of the object, each once.

    The concept's name comes first if it is a mention.
    """
    own = [m for m in eraser.mentions if m.strip()] or [eraser.concept]
    own.sort(key=lambda mention: mention.lower() != eraser.concept.lower())
    found = {text.lower(): Word(text, "mention") for text in own}
    for text in given:
        found.setdefault(text.lower(), Word(text, "given"))
    if bundled:
        from excise.reference.world import SYNONYMS

        for text in SYNONYMS.get(eraser.concept, ()):
            found.setdefault(text.lower(), Word(text, "synonym"))
    return tuple(found.values())


def benign_prompts(words: Sequence[Word], prompts: Path | None, *, bundled: bool, count: int = BENIGN) -> Benign:
    """Return the first `count` prompts without any of the words, from a file or from the bundled model's captions.

    Raises:
        ExciseError: The file cannot be read, all its prompts hold one of the words, or a model other than the bundled
            one comes without a file.
    """
    if prompts is not None:
        stream, source = read_prompts(prompts), prompts.name
    elif bundled:
        from excise import reference

        # With english=0 the captions are generated here and no file is read.
        stream, source = iter(reference.sae_corpus(captions=4 * count, english=0, seed=SEED)), "bundled captions"
    else:
        raise ExciseError("--model needs --prompts: a file of prompts that do not mention the concept")
    mentions, dropped = [word.text for word in words], 0

    def free() -> Iterator[str]:
        nonlocal dropped
        seen = set[str]()
        for text in stream:
            if text in seen:
                continue
            seen.add(text)
            if mentioned(text, mentions):
                dropped += 1
            else:
                yield text

    found = tuple(islice(free(), count))
    if not found:
        raise ExciseError(f"every prompt of {source} mentions the concept; give prompts that do not")
    return Benign(found, source, dropped)


def saes_of(
    eraser: Eraser, given: Path | None = None, *, pipe: Pipeline | None = None, bundled: bool = False
) -> dict[str, TopKSAE]:
    """Return the SAEs that the eraser's edits were made from, as far as they are found, by digest.

    The search looks in `given` if set, otherwise among the bundled SAEs and those trained for `pipe`, and never at a
    path that the eraser names: its author chose it. An SAE is recognised by its digest alone.

    Raises:
        ExciseError: `given` holds none of the SAEs.
    """
    found = recognised(eraser, places(pipe, bundled=bundled) if given is None else folders_of(given))
    if given is not None and not found and any(isinstance(edit, Rows) for edit in eraser.edits):
        raise ExciseError(f"{given} is not the SAE this eraser was made from; name that SAE, or leave out --sae")
    return found


def named_saes(created: Any) -> Iterator[str]:
    """Yield the SAE folders named in a method's settings."""
    if isinstance(created, Mapping):
        for key, value in created.items():
            if isinstance(value, str) and value and str(key).rpartition(".")[2] == "sae":
                yield value
            else:
                yield from named_saes(value)
    elif isinstance(created, list):
        for value in created:
            yield from named_saes(value)
