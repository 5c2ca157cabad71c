"""Records of a batch's pictures: what was generated from what, and what the detectors say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from excise.bench.run import Record, Unit
from excise.bench.suite import Case, Suite
from excise.drawn import Drawn
from excise.files import sha256


def records_of(
    unit: Unit,
    suite: Suite,
    cases: list[Case],
    drawn: Drawn,
    seconds: float,
    lost: Mapping[str, str],
) -> list[Record]:
    """Return the records of pictures, with the detectors' verdicts on sound pictures.

    If a detector fails or a picture is broken, the record states that instead. `lost` maps prompts to their truncated
    ends.
    """
    sound = [n for n, fault in enumerate(drawn.faults) if fault is None]
    verdicts: list[dict[str, Any]] = [{"fault": fault} for fault in drawn.faults]
    try:
        seen = suite.judge([cases[n] for n in sound], drawn.pixels[sound]) if sound else []
        for n, verdict in zip(sound, seen, strict=True):
            verdicts[n]["seen"] = verdict
    except Exception as error:
        for n in sound:
            verdicts[n] = {"fault": None, "error": f"{type(error).__name__}: {error}"}
    records = []
    for case, picture, verdict in zip(cases, drawn.pixels, verdicts, strict=True):
        records.append(
            {
                "method": unit.method,
                "concept": unit.concept,
                "case": case.id,
                "family": case.family,
                "prompt": case.prompt,
                "seed": case.seed,
                "generator": "cpu",
                "picture": sha256(picture.tobytes()),
                "seconds": round(seconds, 4),
                **({"lost": lost[case.prompt]} if case.prompt in lost else {}),
                **verdict,
            }
        )
    return records
