from __future__ import annotations

from dataclasses import replace

import pytest

from excise.concepts import Pair, builtin, check


def problems(*pairs: Pair, **changes: object) -> str:
    gun = builtin("gun")
    return "\n".join(check(replace(gun, pairs=(*gun.pairs, *pairs), **changes)))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair("a gun on a car", "two guns"), "the deconcept side of 'two guns' holds a mention"),
        (Pair("a pistol", "a cat"), "the concept side of 'a pistol' holds no mention"),
        (builtin("gun").pairs[0], "occurs more than once"),
    ],
)
def test_one_bad_pair(pair, message):
    assert message in problems(pair)


def test_bad_control_and_too_few():
    assert "the control 'a gun'" in problems(controls=("a gun",))
    gun = builtin("gun")
    assert "only 5 pairs" in check(replace(gun, pairs=gun.pairs[:5]))[0]
    assert check(replace(gun, pairs=())) == ["only 0 pairs: at least 20 are needed, the paper has 100"]


def test_structure_must_stand_on_both_sides():
    gun = builtin("gun")
    removed = tuple(Pair(f"a gun and {p.deconcept}", p.deconcept) for p in gun.pairs if " and " not in p.deconcept)
    found = check(replace(gun, pairs=removed))
    assert any(f.startswith("'and' is in") for f in found)
    assert any("shorter" in f for f in found)
    assert check(gun) == []


def test_the_papers_own_pairs_are_found_wanting():
    assert any("shorter in 4 of 5" in p for p in check(builtin("paper-knife")))
    assert any("bloody" in p for p in check(builtin("paper-violence")))
