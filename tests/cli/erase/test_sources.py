"""Erasers on a hub on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.erasers import Eraser
from excise.erasers.artefact.files import FILES
from tests.hub_server import Hub

NAME = "someone/gun-eraser"
PROMPTED = ("generate", "--prompt", "a cat", "--steps", 1, "--eraser")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_eraser_on_the_hub_is_verified_and_used_at_a_revision(
    call: Callable[..., Any], ask: Callable[..., Any], hub: Hub, firm_eraser: Eraser, model_folder: Path
) -> None:
    commit = firm_eraser.push_to_hub(NAME).split("/")[-1]
    hub.alter(NAME, {"eraser.json": b"{}"})
    altered = hub.repositories[NAME].branches["main"]
    refused = call("verify", NAME, "--files-only")
    assert refused.exit_code == 2 and "was altered" in refused.stderr
    assert f"{NAME} is at commit {altered}; {NAME}@{altered} pins it" in refused.stderr
    pinned = call("verify", f"{NAME}@{commit}", "--model", model_folder)
    assert pinned.exit_code == 0, pinned.output
    assert "pins it" not in pinned.stderr
    made = ask(*PROMPTED, f"{NAME}@{commit}", "--model", model_folder)
    assert made["erasers"] == [firm_eraser.name]


def test_a_folder_goes_before_the_hub(call: Callable[..., Any], hub: Hub, firm_eraser: Eraser) -> None:
    firm_eraser.save(NAME)
    assert call("verify", NAME, "--files-only").exit_code == 0
    assert not hub.asked
    refused = call("verify", f"{NAME}@main", "--files-only")
    assert refused.exit_code == 2 and f"{NAME} is a folder, which has no revisions" in refused.stderr
    firm_eraser.push_to_hub("someone/other")
    assert "someone/other@main is at commit" in call("verify", "someone/other@main", "--files-only").stderr
    absent = call("verify", "someone/other@none", "--files-only")
    assert absent.exit_code == 2 and "no eraser was found on the hub (no such revision)" in absent.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("verify",),
        ("audit",),
        PROMPTED,
        ("neurons", "browse", "--out", "page", "--eraser"),
    ],
    ids=["verify", "audit", "generate", "browse"],
)
def test_every_command_that_takes_an_eraser_looks_on_the_hub(
    call: Callable[..., Any], hub: Hub, tmp_path: Path, command: tuple[Any, ...]
) -> None:
    refused = call(*command, "someone/nothing")
    (line,) = refused.stderr.splitlines()
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert line.startswith("error: someone/nothing is not a folder, and no eraser was found on the hub (no such repo")
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".png" or path.name == "page"]


def test_a_path_that_is_no_repository_stays_off_the_network(call: Callable[..., Any], hub: Hub, tmp_path: Path) -> None:
    for place in (tmp_path / "nothing", "nothing", "../some/thing", "a/b/c", "a@b/c"):
        refused = call("verify", place, "--files-only")
        assert refused.exit_code == 2 and f"{FILES[0]}: No such file" in refused.stderr
    assert not hub.asked
