"""Explanations of neurons: in words by a language model, with scores of how right they are; and as word patterns."""

from __future__ import annotations

from excise.explain.explainer import explanation_question, parse_explanation
from excise.explain.explanation import SCORERS, ExplainConfig, Explanation, explain, explain_all, questions_of
from excise.explain.patterns import Pattern, find_patterns, matches, measure
from excise.explain.scores import Counts, Exam, detection, embedding_auroc, fuzzing
from excise.explain.simulation import Simulated, Simulation, pearson, saving, segments

__all__ = [
    "SCORERS",
    "Counts",
    "Exam",
    "ExplainConfig",
    "Explanation",
    "Pattern",
    "Simulated",
    "Simulation",
    "detection",
    "embedding_auroc",
    "explain",
    "explain_all",
    "explanation_question",
    "find_patterns",
    "fuzzing",
    "matches",
    "measure",
    "parse_explanation",
    "pearson",
    "questions_of",
    "saving",
    "segments",
]
