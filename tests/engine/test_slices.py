"""Slices: which part of an array job a process is, and in which order it makes its items and the others'."""

from __future__ import annotations

import pytest

from excise.engine.slices import Slice
from excise.errors import InvalidSetting

SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}


def array(number: int, least: int, most: int, count: int, step: int = 1) -> dict[str, str]:
    """Return the variables of task `number` in one of Slurm's arrays."""
    found = {"ID": number, "MIN": least, "MAX": most, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("text", "environment", "part"),
    [
        ("2/8", {}, (2, 8)),
        ("2/8", SLURM, (2, 8)),
        ("8", SLURM, (7, 8)),
        ("7", SLURM, (0, 7)),
        ("8", {"JOB_COMPLETION_INDEX": "3"}, (3, 8)),
        ("", SLURM | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, (3, 4)),
        ("", SLURM, (3, 4)),
        ("", array(5, 3, 6, 4), (2, 4)),
        ("", array(12, 0, 12, 4, step=4), (3, 4)),
        ("", array(12, 0, 15, 4, step=4), (3, 4)),
        ("", array(3, 3, 3, 1), (0, 1)),
        ("8", array(7, 3, 7, 2), (7, 8)),
    ],
)
def test_numbers_come_from_the_name_or_from_the_job(
    text: str, environment: dict[str, str], part: tuple[int, int]
) -> None:
    assert Slice.parse(text, environment) == Slice(*part)


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        ("8", {}),
        ("", {}),
        ("", {"JOB_COMPLETION_INDEX": "3"}),
        ("0", SLURM),
        ("8/8", {}),
        ("0/0", {}),
        ("-1/8", {}),
        ("8", {"JOB_COMPLETION_INDEX": "first"}),
        ("", array(3, 3, 7, 2)),
        ("", array(7, 3, 7, 2)),
        ("", array(4, 0, 12, 3, step=4)),
    ],
)
def test_numbers_that_cannot_be_known_are_refused(text: str, environment: dict[str, str]) -> None:
    with pytest.raises(InvalidSetting):
        Slice.parse(text, environment)


@pytest.mark.parametrize("n", [0, 1, 7, 12])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_slices_are_a_partition_and_each_helps_with_all_the_rest(n: int, count: int) -> None:
    items = [f"item-{i}" for i in range(n)]
    parts = [Slice(index, count).divided(items) for index in range(count)]
    assert sorted(item for mine, _ in parts for item in mine) == sorted(items)
    for mine, others in parts:
        assert sorted(mine + others) == sorted(items)
    assert [item for item in items if item in parts[0][0]] == parts[0][0], "its own are made in order"


def test_help_begins_where_the_owner_comes_last_and_helpers_begin_apart() -> None:
    items = list(range(8))
    assert Slice(0, 4).divided(items) == ([0, 4], [5, 2, 7, 1, 6, 3])
    assert Slice(1, 4).divided(items) == ([1, 5], [6, 3, 4, 2, 7, 0])
    assert Slice(0, 2).divided(items)[1] == [7, 5, 3, 1], "where two meet, one comes from each end"


@pytest.mark.parametrize(("n", "count", "lost"), [(40, 5, 2), (24, 4, 0), (23, 4, 3), (9, 8, 1)])
def test_the_helpers_of_a_lost_slice_make_its_items_once_between_them(n: int, count: int, lost: int) -> None:
    """All are equally fast here: in each round every helper takes the first item on its list that is not made."""
    items = list(range(n))
    orders = [Slice(index, count).divided(items)[1] for index in range(count) if index != lost]
    made = {item for item in items if item % count != lost}
    left, rounds = len(items) - len(made), 0
    while len(made) < n:
        taken = [next(item for item in order if item not in made) for order in orders]
        assert len(set(taken)) == min(len(orders), n - len(made)) or n - len(made) < len(orders)
        made |= set(taken)
        rounds += 1
    assert rounds <= -(-left // len(orders)) + 1
