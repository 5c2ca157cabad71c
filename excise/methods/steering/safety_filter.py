"""The naive bar of every table: a blocklist of sentences. A prompt that is near enough to the concept is drawn as if
nothing had been asked for; everything else keeps every bit.

Nearness is the cosine between what all-MiniLM-L6-v2 (Reimers and Gurevych, Sentence-BERT, EMNLP 2019) makes of the
prompt and of the concept's words, each by itself and in "a picture of ...". The threshold is the one that tells the
concept's prompt pairs apart best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.blocklist import FilterEdit
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.build import proved
from excise.methods.configs.baselines import SafetyFilterConfig
from excise.pipeline import Pipeline
from excise.sentences import sentence_vectors
from excise.sites.denoiser import whole


def fit(pipe: Pipeline, concept: Concept, config: SafetyFilterConfig | None = None) -> Eraser:
    """The eraser of `concept` for `pipe`, proved with its canary.

    Raises ExciseError where the pipeline has no U-Net that reads one text encoder, there are no pairs to set the
    threshold by, or all-MiniLM-L6-v2 is not installed.
    """
    config = config or SafetyFilterConfig()
    more = [text.strip() for text in config.phrases.split(";") if text.strip()]
    blocked = [text for word in (*concept.mentions, *more) for text in (word, f"a picture of {word}")]
    vectors, threshold = sentence_vectors(blocked), config.threshold
    if threshold is None:
        if not concept.pairs:
            raise ExciseError(f"concept {concept.name!r} has no prompt pairs to set a threshold by; give threshold=")
        loud, quiet = (
            (sentence_vectors(list(texts)) @ vectors.T).amax(1)
            for texts in zip(*((pair.concept, pair.deconcept) for pair in concept.pairs), strict=True)
        )
        threshold = best_threshold(loud, quiet)
    site = whole(pipe, "safety-filter")
    edit = FilterEdit(site, vectors, threshold)
    return proved(pipe, [edit], concept, "safety-filter", asdict(config), {"threshold": threshold})


def best_threshold(loud: Tensor, quiet: Tensor) -> float:
    """Halfway between two neighbouring values, where most of `loud` `[P]` lie above and of `quiet` `[P]` below it."""
    values = torch.cat([loud, quiet]).double().sort().values
    between = (values[1:] + values[:-1]) / 2

    def right(at: Tensor) -> float:
        return float((loud.double() >= at).double().mean() + (quiet.double() < at).double().mean())

    scores: Sequence[float] = [right(at) for at in between]
    best = max(scores)
    # In the middle of all that are as good.
    good = [float(at) for at, score in zip(between, scores, strict=True) if score == best]
    return good[len(good) // 2]


METHOD = Fitted("safety-filter", SafetyFilterConfig, fit)
