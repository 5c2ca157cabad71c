"""Solving again for a saved eraser's weights, from nothing but its file and the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise import reference
from excise.concepts import Concept, Pair, builtin
from excise.erasers import Eraser, verify
from excise.erasers.proof.solved import altered_weights
from excise.erasers.verify import TRUSTED
from excise.methods import method
from excise.methods.base import Fitted
from excise.methods.cross_attention import kept_words
from excise.methods.solving import MOST_ROUNDS, MOST_WORDS, solve_again

CONCEPT = Concept(
    "gun",
    ("gun", "pistol"),
    tuple(
        Pair(f"a gun {place}", f"a {other} {place}") for place in ("on grass", "in a box") for other in ("cat", "dog")
    ),
    ("a house",),
)
OLD = Path(__file__).parents[1] / "erasers" / "old"


@pytest.fixture
def saved(tiny_pipe: Any, tmp_path: Path) -> Callable[..., Eraser]:
    """Fit an eraser, save it and load it: `saved("uce", guide="a house")`."""

    def made(name: str, concept: Concept = CONCEPT, **settings: Any) -> Eraser:
        method(name).fit(tiny_pipe, concept, method(name).Config(**settings)).save(tmp_path / "made")
        return Eraser.load(tmp_path / "made")

    return made


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uce", {}),
        ("uce", {"guide": "a house", "erase": 2.0, "preserve": "horse; a cat "}),
        ("rece", {"rounds": 2, "lam": 0.3}),
        ("speed", {"limit": 1.0}),
    ],
)
def test_the_same_edits_come_again(
    tiny_pipe: Any, saved: Callable[..., Eraser], name: str, settings: dict[str, Any]
) -> None:
    for concept in (CONCEPT, replace(CONCEPT, pairs=())):
        eraser = saved(name, concept, **settings)
        solved = solve_again(tiny_pipe, eraser)
        assert solved is not None
        assert altered_weights(eraser.edits, solved.edits) == []
        assert f"{len(eraser.measured['kept_words'])} kept words" in solved.stated
        assert f"guide {settings.get('guide', '')!r}" in solved.stated
        other = replace(eraser, created={"config": {**eraser.created["config"], "guide": "ice cream"}})
        again = solve_again(tiny_pipe, other)
        assert again is not None and len(altered_weights(eraser.edits, again.edits)) == len(eraser.edits)


def with_file(eraser: Eraser, config: dict[str, Any] | None = None, **measured: Any) -> Eraser:
    created = {**eraser.created, "config": {**eraser.created["config"], **(config or {})}}
    return replace(eraser, created=created, measured={**eraser.measured, **measured})


def test_what_a_file_does_not_state_is_not_solved(tiny_pipe: Any, saved: Callable[..., Eraser]) -> None:
    eraser = saved("rece", rounds=1)
    for odd in (
        with_file(eraser, kept_words=None),
        with_file(eraser, kept_words=["cat", 5]),
        with_file(eraser, kept_words=["cat"] * MOST_WORDS),
        with_file(eraser, {"rounds": MOST_ROUNDS + 1}),
        with_file(eraser, {"lam": -1.0}),
        with_file(eraser, {"another": 1}),
        replace(eraser, created={}),
        replace(eraser, mentions=(), measured={**eraser.measured, "kept_words": []}),
        replace(eraser, method="esd-x"),
        replace(eraser, method="uce+rece"),
        replace(eraser, method="of a plugin"),
        Eraser.load(OLD / "uce"),
    ):
        assert solve_again(tiny_pipe, odd) is None


@pytest.mark.usefixtures("short_removal")
def test_verify_compares_them_or_names_them_as_trusted(
    tiny_pipe: Any, saved: Callable[..., Eraser], tmp_path: Path
) -> None:
    eraser = saved("uce", guide="a house")

    def checks(eraser: Eraser, **more: Any) -> dict[str, tuple[bool, str]]:
        eraser.save(tmp_path / "checked")
        return {c.name: (c.passed, c.detail) for c in verify(tmp_path / "checked", tiny_pipe, **more)}

    found = checks(eraser, solve=solve_again)
    assert found["weights"][0]
    assert "guide 'a house'" in found[TRUSTED][1] and "kind weights" not in found[TRUSTED][1]
    first, *others = eraser.edits
    turned = replace(eraser, edits=(replace(first, up=-first.up), *others), canary_shift=0.0)  # type: ignore[call-arg,union-attr]
    passed, detail = checks(turned, solve=solve_again)["weights"]
    assert not passed and first.site.key in detail and others[0].site.key not in detail
    for unsolved in (checks(eraser), checks(with_file(eraser, kept_words=None), solve=solve_again)):
        assert "weights" not in unsolved and "kind weights" in unsolved[TRUSTED][1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_dtype_counts_as_rounding(dtype: torch.dtype) -> None:
    """RECE's, which solves four times, differs most."""
    pipe, concept = reference.load(), builtin("dog")
    own, kept = method("rece"), kept_words(concept)
    assert isinstance(own, Fitted) and own.solve is not None
    whole = own.solve(pipe, concept.mentions, kept, own.Config())
    half = own.solve(pipe.to(dtype), concept.mentions, kept, own.Config())
    assert altered_weights(half, whole) == altered_weights(whole, half) == []
    away = max(float((a.change() - b.change()).norm() / b.change().norm()) for a, b in zip(half, whole, strict=True))
    assert away > 0.001
