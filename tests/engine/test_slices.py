"""Slices: which part of an array job a process is, and in which order it makes its items and the others'."""

from __future__ import annotations

import pytest

from excise.engine.slices import Slice
from excise.errors import InvalidSetting

SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4"}


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
    assert Slice(0, 4).divided(items) == ([0, 4], [5, 6, 7, 1, 2, 3])
    assert Slice(1, 4).divided(items) == ([1, 5], [6, 7, 4, 2, 3, 0])
