"""The bundled model's settings are those that were chosen on the tuning concepts, in docs/results/peers.json."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from excise.app.models.resolve import TUNED
from excise.methods import METHODS, method
from excise.methods.lookup import parsed

ROOT = Path(__file__).parents[3]


@pytest.fixture
def peers() -> Any:
    """What the script that chooses them tries."""
    return import_module("benchmarks.figures.peers_plan")


@pytest.fixture
def chosen(peers: Any) -> dict[str, str]:
    """By method the settings that it takes for the comparison."""
    told: dict[str, Any] = json.loads((ROOT / "docs/results/peers.json").read_text())
    return {name: peers.best(rows) for name, rows in told["tuning"].items()}


def test_every_peer_s_settings_were_tried(chosen: dict[str, str]) -> None:
    """The newer ones were not compared yet. The gate of casteer-gated was chosen in docs/results/gated_casteer.md."""
    newer = {"casteer-gated", "adavd", "speed", "hirm", "leace", "cgce", "receler", "stg"}
    assert set(chosen) == set(METHODS) - {"none"} - newer


def test_what_was_chosen_is_what_the_bundled_model_is_given(chosen: dict[str, str]) -> None:
    for name, settings in chosen.items():
        make = method(name).Config
        assert make(**TUNED.get(name, {})) == make(**parsed(f"{name}:{settings}")[1]), name


def test_what_was_tried_does_not_depend_on_what_was_chosen(peers: Any) -> None:
    for name, own in TUNED.items():
        for settings in peers.GRIDS[name]:
            assert set(own) <= set(parsed(f"{name}:{settings}")[1]), f"{name}:{settings}"
