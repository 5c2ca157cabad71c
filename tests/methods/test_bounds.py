"""Absurd numbers for every method's every numeric setting, refused before any fitting."""

from __future__ import annotations

import pytest

from excise.errors import ExciseError
from excise.methods.catalogue import METHODS
from excise.methods.lookup import method, parsed

ABSURD = ("nan", "inf", "-inf", "1e30", "-1e30", str(10**20), str(-(10**20)))


def numeric(name: str) -> list[str]:
    """The settings that are numbers, or numbers joined by +."""
    return [
        key
        for key, value in vars(method(name).Config()).items()
        if value is None or (isinstance(value, int | float | tuple) and not isinstance(value, bool))
    ]


@pytest.mark.parametrize("name", [*METHODS, "snce+uce"])
def test_absurd_numbers_are_refused(name: str) -> None:
    for key in numeric(name):
        for value in ABSURD:
            with pytest.raises(ExciseError) as refused:
                print(parsed(f"{name}:{key}={value}"))
            assert key in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", list(METHODS))
def test_defaults_lie_within_the_bounds(name: str) -> None:
    given = {key: vars(method(name).Config())[key] for key in numeric(name)}
    said = ",".join(f"{key}={value}" for key, value in given.items() if value not in (None, ()))
    assert parsed(f"{name}:{said}")[0] == name


def test_a_library_call_is_bounded_too() -> None:
    snce = method("snce")
    with pytest.raises(ExciseError, match="snce: lam is nan; it lies between 0 and"):
        snce.fit(None, None, snce.Config(lam=float("nan")))  # type: ignore[arg-type]
