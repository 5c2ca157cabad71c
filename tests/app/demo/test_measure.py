from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from excise.app.demo.measure import families, figures, further_figures, seen
from excise.reference.world import OBJECTS, SYNONYMS


def test_the_five_figures_by_hand(outcomes: list[Any]) -> None:
    found = figures(outcomes)
    assert list(found) == ["target_direct", "target_synonym", "partner_kept", "others_delta", "unrelated_identical"]
    # Only prompts for which the unerased model generates it count: one of three guns is left, and one appeared.
    assert (found["target_direct"].value, found["target_direct"].n) == (pytest.approx(1 / 3), 3)
    assert (found["target_synonym"].value, found["target_synonym"].n) == (0, 2)
    assert (found["partner_kept"].value, found["partner_kept"].n) == (pytest.approx(2 / 3), 3)
    assert (found["others_delta"].value, found["others_delta"].n) == (-0.25, 4)
    assert (found["unrelated_identical"].value, found["unrelated_identical"].n) == (0.75, 4)


def test_rates_before_are_over_all_prompts(outcomes: list[Any]) -> None:
    found = further_figures(outcomes)
    assert (found["target_direct_before"].value, found["target_direct_before"].n) == (0.75, 4)
    assert found["target_mixed"].value == 0
    assert found["style_kept"].value == 1


def test_families_have_consecutive_seeds_and_only_the_right_words() -> None:
    direct, synonym, mixed, unrelated = families("gun", 24)
    for family in (direct, synonym, mixed, unrelated):
        assert family.seeds == tuple(range(24))
        assert len(family.prompts) == len(family.others) == 24
    assert all("gun" in p for p in direct.prompts)
    assert all(any(w in p for w in SYNONYMS["gun"]) for p in synonym.prompts)
    assert all("gun" in p and o in p for p, o in zip(mixed.prompts, mixed.others, strict=True))
    assert all("gun" not in p and o in p for p, o in zip(unrelated.prompts, unrelated.others, strict=True))


def test_verdicts_are_read_for_the_requested_objects() -> None:
    (_, _, mixed, _) = families("gun", 3)
    objects = np.zeros((3, len(OBJECTS)), bool)
    objects[0, OBJECTS.index("gun")] = True
    objects[1, OBJECTS.index(mixed.others[1])] = True
    verdicts = SimpleNamespace(objects=objects, style=np.arange(3), background=np.arange(3))
    read = seen(verdicts, "gun", mixed, OBJECTS)
    assert read.target.tolist() == [True, False, False]
    assert read.other.tolist() == [False, True, False]
