"""Explanations of a database's neurons: patterns of words, and a language model's text with scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from excise.app.neurons.corpus import contexts_of_neuron, read_corpus
from excise.app.neurons.database import prompts_sha256
from excise.chat import Backend, Cache
from excise.erasers.edits.sae_rows import sae_digest
from excise.errors import ExciseError
from excise.explain import (
    Counts,
    ExplainConfig,
    Explanation,
    Pattern,
    Simulated,
    explain_all,
    find_patterns,
    measure,
    questions_of,
)
from excise.neurons.contexts import Context, Contexts
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Measured
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, load
from excise.sentences import sentence_vectors
from excise.sites import Site, site_at
from excise.sites.site import encoder_of

PATTERN_CONTEXTS = 10
"""Number of strongest contexts from which patterns are made."""


class Explaining:
    """A database's neurons, with their codes on its corpus, ready to be explained.

    Raises:
        ExciseError: The database was built from another SAE or other prompts.
    """

    def __init__(
        self,
        pipe: Pipeline,
        database: NeuronDatabase,
        sae_folder: Path,
        prompts: Sequence[str],
        progress: Callable[[int], Any] | None = None,
    ) -> None:
        origin = database.provenance
        component, _, path = origin.site.partition("/")
        self.pipe, self.database = pipe, database
        self.sae: TopKSAE = load(sae_folder, device=next(encoder_of(pipe, component).parameters()).device)
        self.site: Site = site_at(pipe, path, component)
        if sae_digest(self.sae) != origin.sae:
            raise ExciseError(
                f"{database.path} describes another SAE than {sae_folder}; name the one it was built from"
            )
        if prompts_sha256(prompts) != origin.prompts_sha256:
            raise ExciseError(f"{database.path} was built on {origin.corpus}; give the same prompts again")
        corpus = read_corpus(pipe, self.sae, self.site, prompts, database, progress=progress)
        self.contexts = Contexts(corpus.codes, corpus.tokens)
        database.finish()

    def patterns(self, neuron: int, config: ExplainConfig) -> tuple[tuple[Pattern, ...], Counts]:
        """Find a neuron's patterns of words and measure how well they predict where else it fires.

        Both are stored in the database.
        """
        shown = self.contexts.top(neuron, PATTERN_CONTEXTS)
        found = find_patterns(shown, lambda prompts: self.activate(prompts, neuron))
        seen = {context.text for context in shown}
        firing = [c for c in self.contexts.spread(neuron, config.held_out, config.seed) if c.text not in seen]
        counted = measure(found, firing + self.contexts.silent(neuron, config.held_out, config.seed))
        rows = [{"text": pattern.text, "support": pattern.support, "peak": pattern.peak} for pattern in found]
        self.database.set_patterns(neuron, rows)
        detail = {"precision": counted.precision, "recall": counted.tpr, **asdict(counted)}
        self.database.set_scores(neuron, {"patterns": Measured(counted.f1, detail)})
        return found, counted

    def activate(self, prompts: Sequence[str], neuron: int) -> list[Context]:
        """Return one neuron's codes on prompts, as contexts."""
        return contexts_of_neuron(self.pipe, self.sae, self.site, neuron, prompts)

    def questions(self, neurons: Sequence[int], config: ExplainConfig) -> int:
        """Return the largest number of questions that `explain` asks."""
        return questions_of(self.contexts, neurons, config)

    def explain(
        self,
        neurons: Sequence[int],
        backend: Backend,
        cache: Cache,
        config: ExplainConfig,
        progress: Callable[[int], Any] | None = None,
    ) -> list[Explanation]:
        """Explain neurons with a language model and score the explanations. Both are stored in the database.

        Raises:
            ExciseError: As `explain_all`.
        """
        encoder = (lambda texts: sentence_vectors(list(texts))) if "embedding" in config.scorers else None
        found = explain_all(self.contexts, neurons, backend, cache, config, encoder=encoder, progress=progress)
        for made in found:
            if made.text is not None:
                self.database.set_explanation(made.neuron, made.text, backend.name)
                scores = {name: _measured(score) for name, score in made.scores.items()}
                self.database.set_scores(made.neuron, scores)
        return found


def _measured(score: Counts | Simulated | float | None) -> Measured:
    """Return a score as its main figure and the details."""
    if isinstance(score, Counts):
        return Measured(score.balanced_accuracy, score.to_json())
    if isinstance(score, Simulated):
        return Measured(score.r, score.to_json())
    return Measured(score)
