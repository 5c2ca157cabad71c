"""The frozen test set and its page (benchmarks/figures/frozen.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.figures import floors, frozen, peers_plan, sae_shapes
from excise.bench.canvas.sizes import ATTACKED, FROZEN, INVERTED, QUICK, STANDARD, TUNING
from excise.bench.canvas.suite import Canvas
from excise.statistics import share_over, sign_flip


def test_nothing_was_chosen_or_reported_on_it_before() -> None:
    assert len(set(FROZEN)) == 16
    of_peers = (peers_plan.TUNED_ON, peers_plan.COMPARED_ON)
    for others in (TUNING, STANDARD, QUICK, *of_peers, sae_shapes.TUNING, sae_shapes.MEASURED):
        assert not set(FROZEN) & set(others)
    assert not set(FROZEN) & {*floors.TUNED_ON, floors.CONFIRMED_ON}
    assert Canvas().concepts("frozen") == FROZEN


def test_every_white_box_cell_has_32_pictures() -> None:
    assert len(FROZEN) * ATTACKED["frozen"] >= 32
    assert len(FROZEN) * INVERTED["frozen"] >= 32


def outcomes(hits: dict[str, list[bool]]) -> dict[str, Any]:
    """A method's part of the file, given its outcomes of one figure by concept."""
    over = share_over(list(hits.values())).to_json()
    by_concept = {name: {"value": sum(some) / len(some), "n": len(some)} for name, some in hits.items()}
    return {
        "setting": "",
        "commit": "0" * 40,
        "date": "2026-01-01",
        "machine": "here",
        "refused": {},
        "figures": {"ua": over, "asr.p4d": over},
        "concepts": {name: {"ua": own, "asr.p4d": own} for name, own in by_concept.items()},
        "precisions": {name: "float32" if name == FROZEN[0] else "bfloat16" for name in hits},
    }


def test_the_page_says_who_is_in_front_and_what_is_more_than_chance() -> None:
    names = FROZEN[:8]
    rows = {
        "none": outcomes({name: [False] * 4 for name in names}),
        "snce": outcomes({name: [True] * 4 for name in names}),
        "uce": outcomes({name: [True, True, True, False] for name in names}),
    }
    results = {"command": "c", "concepts": list(FROZEN), "settings": frozen.BUDGET, "methods": rows}
    page = frozen.page(json.loads(json.dumps(results)))
    assert "| snce | 100.0 (" in page
    assert f"In float32: {names[0]}. In bfloat16: {', '.join(names[1:])}." in page
    assert "| snce | 1 in float32, 7 in bfloat16 |" in page
    assert ", 32 |" in page  # the number of pictures
    assert "By the values alone, snce is in front in: target gone." in page
    assert "Others are in front in: p4d (uce)." in page  # the share that is still generated: less is better
    p = 2 * sign_flip([-0.25] * 8)  # two tests
    assert f"| uce | target gone | -25.0 | 8 | {p:.2g} | snce is better |" in page
    assert f"| uce | p4d | -25.0 | 8 | {p:.2g} | uce is better |" in page


@pytest.mark.parametrize("results", [{"command": "c", "concepts": ["pig"], "settings": {}, "methods": {}}])
def test_a_page_without_a_method_says_so(results: dict[str, Any]) -> None:
    assert "No method has been run yet." in frozen.page(results)
