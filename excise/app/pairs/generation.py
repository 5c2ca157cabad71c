"""Prompt pairs of a concept from a language model, templates, or both, with a report on how they were made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from excise.chat import Backend, Cache, Cost, Failure, Question, ask_all
from excise.concepts import Concept, Pair, check, from_templates, save_pairs
from excise.concepts.answers import parse
from excise.concepts.generation import Recipe, question
from excise.concepts.sifting import Candidate, Rejected, Sifted, sift
from excise.errors import ExciseError
from excise.files import write_atomic

SIZE = 10
"""Pairs in each question."""
TOKENS = 90
"""Token budget for each pair of an answer."""
GENEROUS = 4
"""Largest number of questions, relative to those needed if every pair were kept."""
PATIENCE = 3
"""Consecutive unanswered questions after which no more are asked."""


@dataclass(frozen=True)
class Generated:
    """The pairs, and what happened to every other candidate.

    parsed: how many pairs were found in the answers. unparsed: parts of answers that are not pairs. from_templates: how
    many of `pairs` come from templates. notes: remarks for the user, such as that there are fewer pairs than wanted.
    """

    recipe: Recipe
    backend: str
    seed: int
    wanted: int
    pairs: tuple[Pair, ...]
    spare: tuple[Pair, ...]
    rejected: tuple[Rejected, ...]
    parsed: int
    unparsed: tuple[str, ...]
    templates: int
    from_templates: int
    cost: Cost
    failures: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """Problems that `excise.concepts.check` finds in the pairs."""
        return check(Concept(self.recipe.name, self.recipe.mentions, self.pairs, kind=self.recipe.kind))

    def report(self) -> dict[str, Any]:
        """Return counts, and every rejected candidate with its reason.

        parsed + templates = kept + spare + all that were rejected.
        """
        by_reason = Sifted(self.pairs, self.spare, self.rejected).counts()
        return {
            "concept": self.recipe.name,
            "mentions": list(self.recipe.mentions),
            "kind": self.recipe.kind,
            "backend": self.backend,
            "instruction": self.recipe.instruction if self.cost.questions else "",
            "seed": self.seed,
            "wanted": self.wanted,
            "kept": len(self.pairs),
            "from_templates": self.from_templates,
            "questions": self.cost.questions,
            "cached": self.cost.cached,
            "unanswered": self.cost.unanswered,
            "tokens": self.cost.tokens,
            "tokens_spent": self.cost.spent,
            "parsed": self.parsed,
            "unparsed": len(self.unparsed),
            "templates": self.templates,
            "spare": len(self.spare),
            "rejected": by_reason,
            "failures": list(dict.fromkeys(self.failures)),
            "notes": list(self.notes),
            "problems": self.problems,
            "rejects": [asdict(r) for r in self.rejected],
            "unparsed_lines": list(self.unparsed),
        }


def generate(
    asked: Recipe,
    n: int = 100,
    backend: Backend | None = None,
    cache_folder: Path | None = None,
    progress: Callable[[int], Any] | None = None,
    *,
    fill: bool = False,
    seed: int = 0,
    jobs: int = 4,
    questions: int | None = None,
    size: int = SIZE,
) -> Generated:
    """Generate pairs for a concept with a language model, with templates, or with both.

    Answers are cached, and questions depend only on the recipe, `size` and `seed`. So the same call resumes and does
    not ask a question twice.

    Args:
        asked: What to ask for.
        n: Number of pairs wanted.
        backend: The language model; None takes all pairs from templates.
        cache_folder: Folder for answers.
        progress: Called with the number of new pairs.
        fill: Whether templates fill up pairs that the model did not give.
        seed: Seed of the questions and templates.
        jobs: Questions asked in parallel.
        questions: Largest number of questions.
        size: Pairs requested in each question.

    Raises:
        ExciseError: `n`, `questions` or `size` is below 1, or there is no backend and templates give too few pairs.
    """
    if n < 1 or size < 1 or (questions is not None and questions < 1):
        raise ExciseError("ask for at least one pair, in at least one question")
    budget = questions or GENEROUS * -(-n // size)
    candidates: list[Candidate] = []
    unparsed: list[str] = []
    failures: list[str] = []
    notes: list[str] = []
    cost, in_a_row = Cost(), 0
    sifted = Sifted((), (), ())
    advance = _Progress(progress)
    cache = Cache(cache_folder) if cache_folder is not None else None
    while backend is not None and len(sifted.kept) < n and cost.questions < budget and in_a_row < PATIENCE:
        count = min(jobs, budget - cost.questions, -(-(n - len(sifted.kept)) // size))
        texts = [question(asked, size, cost.questions + i, seed) for i in range(count)]
        outcomes = ask_all(backend, [Question(*text, max_tokens=TOKENS * size) for text in texts], cache, jobs)
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome.reason)
                in_a_row += 1
                continue
            in_a_row = 0
            pairs, pieces = parse(outcome.text)
            candidates += pairs
            unparsed += pieces
        cost += Cost.of(outcomes)
        sifted = sift(candidates, asked.mentions, n, asked.related)
        advance(len(sifted.kept))
    parsed, by_model = len(candidates), {(p.concept, p.deconcept) for p in sifted.kept}
    if backend is not None and len(sifted.kept) < n:
        end = ", then stopped answering" if in_a_row >= PATIENCE else ""
        notes.append(f"the model wrote {len(sifted.kept)} of {n} pairs in {cost.questions} questions{end}")
    if backend is None or (fill and len(sifted.kept) < n):
        candidates, sifted, short = _filled(asked, n, seed, candidates, sifted)
        if short and backend is None:
            raise ExciseError(short)
        notes += [short] if short else []
        advance(len(sifted.kept))
    return Generated(
        recipe=asked,
        backend="templates" if backend is None else backend.name,
        seed=seed,
        wanted=n,
        pairs=sifted.kept,
        spare=sifted.spare,
        rejected=sifted.rejected,
        parsed=parsed,
        unparsed=tuple(unparsed),
        templates=len(candidates) - parsed,
        from_templates=sum((p.concept, p.deconcept) not in by_model for p in sifted.kept),
        cost=cost,
        failures=tuple(failures),
        notes=tuple(notes),
    )


def save(generated: Generated, out: Path) -> Path:
    """Write the pairs to `out` (.csv or .jsonl) and the report next to it. Return the report's path.

    Without any pair, only the report is written.

    Raises:
        ExciseError: `out` has another suffix, or a file cannot be written.
    """
    report = report_path(out)
    if generated.pairs:
        save_pairs(generated.pairs, out)
    write_atomic(report, json.dumps(generated.report(), indent=2, ensure_ascii=False))
    return report


def report_path(out: Path) -> Path:
    """Return the path of the report for `out`. Raises ExciseError unless `out` ends in .csv or .jsonl."""
    if out.suffix not in (".csv", ".jsonl"):
        raise ExciseError(f"cannot save pairs as '{out.name}': the name must end in .csv or .jsonl")
    return out.with_suffix(".report.json")


class _Progress:
    """Progress in pairs. It counts new maxima only, because balancing may remove pairs again."""

    def __init__(self, advance: Callable[[int], Any] | None) -> None:
        self._advance, self._most = advance, 0

    def __call__(self, now: int) -> None:
        if self._advance is not None and now > self._most:
            self._advance(now - self._most)
        self._most = max(self._most, now)


def _filled(
    asked: Recipe, n: int, seed: int, candidates: list[Candidate], sifted: Sifted
) -> tuple[list[Candidate], Sifted, str]:
    """Append candidates from templates until `n` pairs are kept.

    More may be needed than are missing, because some exist already or do not balance.

    Returns:
        The candidates, the sifted pairs, and why they are fewer than `n` ("" if they are not).
    """
    more, short, together = n - len(sifted.kept), "", candidates
    while 1 <= more <= 16 * n:
        try:
            made = from_templates(asked.name, asked.words, more, seed, asked.kind, controls=0).pairs
        except ExciseError as error:
            short = short or str(error)
            more //= 2
            continue
        together = [*candidates, *(Candidate(p.concept, p.deconcept, p.template) for p in made)]
        sifted = sift(together, asked.mentions, n, asked.related)
        if len(sifted.kept) >= n:
            return together, sifted, ""
        if short:
            break
        more *= 2
    return together, sifted, short or f"templates only reach {len(sifted.kept)} balanced pairs; ask for fewer"
