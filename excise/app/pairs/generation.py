"""A concept's pairs from a language model, from templates, or from both, and the account of how they came about."""

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
"""Pairs of one question."""
TOKENS = 90
"""Tokens that a pair of an answer may have."""
GENEROUS = 4
"""So many times the questions that would do if every pair were taken are asked at most."""
PATIENCE = 3
"""So many questions without an answer, one behind the other, end the asking."""


@dataclass(frozen=True)
class Generated:
    """The pairs, and where every other candidate went.

    parsed: pairs that were read in the answers. unparsed: pieces of answers that are none. from_templates: how many of
    `pairs` are. notes: what a person should know, such as that there are fewer pairs than wanted.
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
        """What `excise.concepts.check` finds in the pairs."""
        return check(Concept(self.recipe.name, self.recipe.mentions, self.pairs, kind=self.recipe.kind))

    def report(self) -> dict[str, Any]:
        """Counts, then each candidate that was not taken, with its reason.

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
    """`n` pairs of a concept, `size` asked for in a question, until there are enough or `questions` have been asked.

    Without a backend all come from templates; with `fill` those that are missing in the end. Answers are kept in
    `cache_folder`, and the questions depend on the recipe, `size` and `seed` alone, so that the same call goes on where
    it was stopped and asks nothing twice. progress is told of pairs. Raises ExciseError for n, questions or size below
    one, and where templates are all there is and they give too few.
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
    tell = _Progress(progress)
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
        tell(len(sifted.kept))
    parsed, own = len(candidates), {(p.concept, p.deconcept) for p in sifted.kept}
    if backend is not None and len(sifted.kept) < n:
        why = "no answers came any more" if in_a_row >= PATIENCE else f"{cost.questions} questions were asked"
        notes.append(f"the model wrote {len(sifted.kept)} of {n} pairs, then {why}")
    if backend is None or (fill and len(sifted.kept) < n):
        candidates, sifted, short = _filled(asked, n, seed, candidates, sifted)
        if short and backend is None:
            raise ExciseError(short)
        notes += [short] if short else []
        tell(len(sifted.kept))
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
        from_templates=sum((p.concept, p.deconcept) not in own for p in sifted.kept),
        cost=cost,
        failures=tuple(failures),
        notes=tuple(notes),
    )


def save(generated: Generated, out: Path) -> Path:
    """Write the pairs to `out` (.csv or .jsonl) and the report beside it; returns the report's path.

    Without a single pair the report alone is written. Raises ExciseError for another ending and where the disk refuses.
    """
    report = report_path(out)
    if generated.pairs:
        save_pairs(generated.pairs, out)
    write_atomic(report, json.dumps(generated.report(), indent=2, ensure_ascii=False))
    return report


def report_path(out: Path) -> Path:
    """Where the report of `out` is. Raises ExciseError where `out` ends in neither .csv nor .jsonl."""
    if out.suffix not in (".csv", ".jsonl"):
        raise ExciseError(f"cannot save pairs as '{out.name}': the name must end in .csv or .jsonl")
    return out.with_suffix(".report.json")


class _Progress:
    """Tells how many pairs there are more than ever before: balancing may take some away again."""

    def __init__(self, tell: Callable[[int], Any] | None) -> None:
        self._tell, self._most = tell, 0

    def __call__(self, now: int) -> None:
        if self._tell is not None and now > self._most:
            self._tell(now - self._most)
        self._most = max(self._most, now)


def _filled(
    asked: Recipe, n: int, seed: int, candidates: list[Candidate], sifted: Sifted
) -> tuple[list[Candidate], Sifted, str]:
    """The candidates with as many from templates behind them as bring the pairs to `n`, and why there are fewer.

    More than are missing may be needed: some are there already, or do not balance.
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
    return together, sifted, short or f"with templates there are {len(sifted.kept)} balanced pairs; ask for fewer"
