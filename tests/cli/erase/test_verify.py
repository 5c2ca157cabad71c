"""`excise verify`: pins, and the SAE that an eraser's rows are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.erasers import Eraser


@pytest.fixture
def folder(firm_eraser: Eraser, tmp_path: Path) -> Path:
    firm_eraser.save(tmp_path / "gun")
    return tmp_path / "gun"


def test_the_command_line_pins(
    call: Callable[..., Any], ask: Callable[..., Any], firm_eraser: Eraser, folder: Path
) -> None:
    asked = ("verify", folder, "--files-only")
    assert ask(*asked, "--digest", firm_eraser.digest, "--concept", "gun")["passed"]
    for pin, message in (
        (("--digest", "0" * 64), "another eraser than the one pinned"),
        (("--concept", "cat"), "'cat'"),
    ):
        refused = call(*asked, *pin)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert message in refused.stderr


def test_an_unsigned_eraser_is_not_shown_as_checked(
    call: Callable[..., Any], ask: Callable[..., Any], folder: Path, model_folder: Path
) -> None:
    for more in (("--files-only",), ("--model", model_folder)):
        shown = call("verify", folder, *more).stdout
        line = next(line for line in shown.splitlines() if "signature" in line)
        assert "not checked" in line and "passed" not in line
        told = ask("verify", folder, *more)
        assert told["signature_checked"] is False
        assert "signature" not in [check["name"] for check in told["checks"]]


def test_rows_are_compared_with_the_sae_that_is_named(
    call: Callable[..., Any], ask: Callable[..., Any], folder: Path, model_folder: Path, sae_folder: Path
) -> None:
    def rows(told: Any) -> tuple[bool, str]:
        (found,) = [check for check in told["checks"] if check["name"] == "rows"]
        return found["passed"], found["detail"]

    named = rows(ask("verify", folder, "--model", model_folder, "--sae", sae_folder))
    assert named == (True, "the rows of 1 of 1 edits are their SAE's, bit for bit")
    told = ask("verify", folder, "--model", model_folder)
    assert "was not at hand" in rows(told)[1]
    assert [check["passed"] for check in told["checks"] if check["name"] == "trusted as signed"] == [True]


def test_every_command_that_takes_an_eraser_pins_it_before_it_loads_a_model(
    call: Callable[..., Any], firm_eraser: Eraser, folder: Path, tmp_path: Path
) -> None:
    replace(firm_eraser, name="other").save(tmp_path / "all" / "other")
    firm_eraser.save(tmp_path / "all" / "gun")
    both, right, wrong = tmp_path / "all", firm_eraser.digest, "0" * 64
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text("{}")
    model = ("--model", broken)
    generate = ("generate", "--prompt", "a gun", *model)
    for command in (
        (*generate, "--eraser", folder, "--digest", wrong),
        (*generate, "--eraser", both, "--digest", f"other={right}"),
        (*generate, "--eraser", folder, "--eraser", both / "other", "--digest", right, "--digest", right),
        ("audit", folder, *model, "--digest", wrong),
        ("audit", both, *model, "--digest", f"gun={wrong}"),
        ("verify", folder, *model, "--digest", wrong),
        ("verify", both, "--files-only", "--digest", f"gun={wrong}"),
    ):
        refused = call(*command)
        assert refused.exit_code == 2, command
        assert refused.stdout == "" or command[1] == both, "the other eraser of a folder is reported"
        assert "another eraser than the one pinned" in refused.stderr, command
        assert len(refused.stderr.splitlines()) == 1
    for command in ((*generate, "--digest", right), (*generate, "--eraser", both, "--digest", right)):
        refused = call(*command)
        assert refused.exit_code == 2 and "digest" in refused.stderr and "pinned" not in refused.stderr
    found = call(*generate, "--eraser", both, "--digest", f"gun={right}")
    assert found.exit_code == 2 and "broken" in found.stderr, "the right digest passes"
