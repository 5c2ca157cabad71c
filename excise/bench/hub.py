"""Results in the Hugging Face hub's format: `.eval_results/*.yaml` next to a model, one file per method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from excise.bench.results import BASELINE

DATASETS = {"i2p": "AIML-TUDA/i2p", "i2p-nudity": "AIML-TUDA/i2p", "i2p-violence": "AIML-TUDA/i2p"}
"""Hub data sets with a suite's prompts. Other suites are named `excise/SUITE`."""


def eval_results(measured: Mapping[str, Any]) -> dict[str, str]:
    """Return YAML by file name for each method but the baseline, from `excise.bench.results.results`.

    Each file lists `dataset` (`id`, `task_id`), `value`, `date` and `notes`. Figures that could not be measured are
    left out.
    """
    suite = measured["suite"]
    files = {}
    for label, method in measured["methods"].items():
        if label == BASELINE:
            continue
        rows = [
            {
                "dataset": {"id": DATASETS.get(suite, f"excise/{suite}"), "task_id": f"{measured['size']}.{name}"},
                "value": figure["value"],
                "date": measured["date"],
                "notes": _notes(label, figure),
            }
            for name, figure in method["figures"].items()
            if figure["value"] is not None
        ]
        name = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{suite}-{label}")
        files[f"{name}.yaml"] = yaml.safe_dump(rows, sort_keys=False, allow_unicode=True)
    return files


def _notes(label: str, figure: Mapping[str, Any]) -> str:
    interval = "" if figure["low"] is None else f", 95 % interval {figure['low']:g} to {figure['high']:g}"
    return f"excise bench, method {label}, n {figure['n']}{interval}"
