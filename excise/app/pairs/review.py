"""Review of a file of pairs by hand. Decisions are stored next to the file, so that a review can be resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from excise.concepts import Pair, load_pairs, read_rows, save_pairs
from excise.errors import ExciseError
from excise.files import TENSORS, read_json, sha256, write_atomic

_YES_OR_NO = {"true": True, "yes": True, "y": True, "1": True, "false": False, "no": False, "n": False, "0": False}


@dataclass(frozen=True)
class Decision:
    """A pair's two sides, possibly edited, and whether to keep it."""

    keep: bool
    concept: str
    deconcept: str


class Review:
    """A review of the pairs in `file`; the first `len(decisions)` are decided. Each change is saved at once.

    Raises:
        ExciseError: The file holds no pairs, or it changed since its review began.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.pairs = file, load_pairs(file)
        self.place = file.with_name(f"{file.name}.review.json")
        self._digest = sha256(file)
        self.decisions = self._saved()

    @property
    def current(self) -> Pair | None:
        """The next pair to decide, or None when all are decided."""
        return self.pairs[len(self.decisions)] if len(self.decisions) < len(self.pairs) else None

    @property
    def kept(self) -> tuple[Pair, ...]:
        """The pairs to keep, as edited."""
        both = zip(self.decisions, self.pairs, strict=False)
        return tuple(Pair(d.concept, d.deconcept, p.template) for d, p in both if d.keep)

    @property
    def edited(self) -> int:
        """How many kept pairs were edited."""
        both = zip(self.decisions, self.pairs, strict=False)
        return sum(d.keep and (d.concept, d.deconcept) != (p.concept, p.deconcept) for d, p in both)

    def decide(self, keep: bool, concept: str | None = None, deconcept: str | None = None) -> None:
        """Keep or drop the current pair, with edited sides if given. Raises ExciseError if a side is empty."""
        pair = self.current
        if pair is None:
            raise ExciseError("every pair is decided; undo one, or write the pairs")
        new = Pair(pair.concept if concept is None else concept, pair.deconcept if deconcept is None else deconcept)
        self._set([*self.decisions, Decision(keep, new.concept, new.deconcept)])

    def undo(self) -> bool:
        """Undo the last decision. Return whether there was one."""
        if not self.decisions:
            return False
        self._set(self.decisions[:-1])
        return True

    def export(self, path: Path) -> None:
        """Write all pairs as JSON lines with their row number and whether to keep them (null: undecided)."""
        rows = []
        for number, pair in enumerate(self.pairs, 1):
            decision = self.decisions[number - 1] if number <= len(self.decisions) else None
            text = decision or pair
            row = {"row": number, "concept": text.concept, "deconcept": text.deconcept, "template": pair.template}
            rows.append({**row, "keep": decision and decision.keep})
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def apply(self, path: Path) -> None:
        """Decide every pair by a file from `export`, whose sides may be edited.

        Raises:
            ExciseError: A row is missing or appears twice, a side is empty, or `keep` is not yes or no.
        """
        found: dict[int, Decision] = {}
        for where, row in read_rows(path):
            number, sides = row.get("row"), (row.get("concept"), row.get("deconcept"))
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(self.pairs):
                raise ExciseError(f"{path}, {where}: 'row' is {number!r}, not one of 1 to {len(self.pairs)}")
            if number in found:
                raise ExciseError(f"{path}, {where}: row {number} appears twice; keep one of them")
            keep = _YES_OR_NO.get(str(row.get("keep")).strip().lower())
            if keep is None:
                raise ExciseError(f"{path}, {where}: 'keep' is {json.dumps(row.get('keep'))}; write true or false")
            if not all(isinstance(side, str) and side.strip() for side in sides):
                raise ExciseError(f"{path}, {where}: a side is empty; set keep to false to drop the pair")
            found[number] = Decision(keep, str(sides[0]), str(sides[1]))
        if missing := [n for n in range(1, len(self.pairs) + 1) if n not in found]:
            raise ExciseError(
                f"{path} lacks {len(missing)} of {len(self.pairs)} rows, first row {missing[0]}; to drop a pair, set "
                "keep to false"
            )
        self._set([found[n] for n in sorted(found)])

    def finish(self, out: Path) -> None:
        """Write the kept pairs to `out` and delete the saved decisions.

        Raises:
            ExciseError: Pairs are undecided, or none was kept.
        """
        if self.current is not None:
            raise ExciseError(f"{len(self.pairs) - len(self.decisions)} pairs are not decided yet")
        if not self.kept:
            raise ExciseError("no pair was kept, so nothing is written; undo some decisions or make other pairs")
        save_pairs(self.kept, out)
        self.place.unlink(missing_ok=True)

    def _set(self, decisions: Sequence[Decision]) -> None:
        content = {"pairs": self._digest, "decisions": [asdict(d) for d in decisions]}
        write_atomic(self.place, json.dumps(content, ensure_ascii=False))
        self.decisions = list(decisions)

    def _saved(self) -> list[Decision]:
        if not self.place.exists():
            return []
        try:
            content: Any = read_json(self.place, TENSORS)
            same = content["pairs"] == self._digest
            decisions = [Decision(**entry) for entry in content["decisions"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExciseError(f"{self.place} is not a saved review; remove it to start again") from error
        if not same or len(decisions) > len(self.pairs):
            raise ExciseError(f"{self.file} changed since its review began; remove {self.place} to start again")
        return decisions
