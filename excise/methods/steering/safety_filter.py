"""Safety filter, the baseline of every table: a blocklist of sentences. A prompt that is close enough to the concept is
replaced by the empty prompt; everything else keeps every bit.

Closeness is the cosine between the embeddings (all-MiniLM-L6-v2; Reimers and Gurevych, Sentence-BERT, EMNLP 2019) of
the prompt and of the concept's words, each alone and in "a picture of ...". The threshold is the one that best
separates the two sides of the concept's prompt pairs.
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
from excise.methods.build import build_eraser
from excise.methods.configs.baselines import SafetyFilterConfig
from excise.pipeline import Pipeline
from excise.sentences import sentence_vectors
from excise.sites.denoiser import whole


def fit(pipe: Pipeline, concept: Concept, config: SafetyFilterConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net that reads one text encoder, if there are no pairs to set the
    threshold by, or if all-MiniLM-L6-v2 is not installed.
    """
    config = config or SafetyFilterConfig()
    more = [text.strip() for text in config.phrases.split(";") if text.strip()]
    blocked = [text for word in (*concept.mentions, *more) for text in (word, f"a picture of {word}")]
    vectors, threshold = sentence_vectors(blocked), config.threshold
    if threshold is None:
        if not concept.pairs:
            raise ExciseError(f"concept {concept.name!r} has no prompt pairs to set a threshold by; give threshold=")
        positives, negatives = (
            (sentence_vectors(list(texts)) @ vectors.T).amax(1)
            for texts in zip(*((pair.concept, pair.deconcept) for pair in concept.pairs), strict=True)
        )
        threshold = best_threshold(positives, negatives)
    site = whole(pipe, "safety-filter")
    edit = FilterEdit(site, vectors, threshold)
    return build_eraser(pipe, [edit], concept, "safety-filter", asdict(config), {"threshold": threshold})


def best_threshold(positives: Tensor, negatives: Tensor) -> float:
    """Return the midpoint of two neighbouring values that best separates `positives` `[P]` from `negatives` `[P]`."""
    values = torch.cat([positives, negatives]).double().sort().values
    between = (values[1:] + values[:-1]) / 2

    def right(at: Tensor) -> float:
        return float((positives.double() >= at).double().mean() + (negatives.double() < at).double().mean())

    scores: Sequence[float] = [right(at) for at in between]
    best = max(scores)
    # The median of all thresholds that are equally good.
    good = [float(at) for at, score in zip(between, scores, strict=True) if score == best]
    return good[len(good) // 2]


METHOD = Fitted("safety-filter", SafetyFilterConfig, fit)
