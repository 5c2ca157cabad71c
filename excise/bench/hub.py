"""Results as the Hugging Face hub reads them: `.eval_results/*.yaml` beside a model, one file a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from excise.bench.results import BASELINE

DATASETS = {"i2p": "AIML-TUDA/i2p", "i2p-nudity": "AIML-TUDA/i2p", "i2p-violence": "AIML-TUDA/i2p"}
"""Where a suite's prompts are published on the hub; other suites go by their own name, below `excise/`."""


def eval_results(measured: Mapping[str, Any]) -> dict[str, str]:
    """File name to YAML for each method but the baseline, of what `excise.bench.results.results` counted.

    Figures that could not be measured are left out. The format is the hub's: a list of `dataset` (`id`, `task_id`),
    `value`, `date` and `notes`.
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
