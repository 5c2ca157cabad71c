"""Warnings about concepts in the truncated part of a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from excise.cli.cutting import note_lost
from excise.erasers import Eraser
from excise.sites.truncation import Cut


@pytest.mark.parametrize(
    ("lost", "warned"),
    [("a gun.", True), ("two Guns", True), ("a hand gun", True), ("it has begun", False), ("", False)],
)
def test_a_lost_concept_is_warned_about_by_whole_words(
    gun_eraser: Eraser, capsys: Any, lost: str, warned: bool
) -> None:
    other = replace(gun_eraser, concept="knife", mentions=("knife",))
    note_lost([Cut(f"a cat, {lost}", lost, 77), Cut("it has begun", "gun", 77)], [gun_eraser, other])
    shown = capsys.readouterr().err
    assert ("“gun” is in a truncated part of a prompt" in shown) is warned
    assert "knife" not in shown
