from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.app.serve.engine import Engine
from excise.erasers import Eraser

PLAIN = """
erasers:
  gun:
    folder: gun
    allow: [0.5, 1.0]
"""


@pytest.fixture
def folder(gun_eraser: Eraser, tmp_path: Path) -> Path:
    """Return a folder with the erasers gun and gun-2, and policy.yaml, which serves gun."""
    gun_eraser.save_pretrained(tmp_path / "gun")
    replace(gun_eraser, edits=(replace(gun_eraser.edits[0], lam=2.5),)).save_pretrained(tmp_path / "gun-2")
    (tmp_path / "policy.yaml").write_text(PLAIN)
    return tmp_path


@pytest.fixture
def engine_of(tiny_pipe: Any, folder: Path) -> Iterator[Callable[..., Engine]]:
    """Return a function that starts an engine on `tiny_pipe` under a policy, by default policy.yaml."""
    started: list[Engine] = []

    def start(text: str = PLAIN, pipe: Any = tiny_pipe) -> Engine:
        (folder / "policy.yaml").write_text(text)
        engine = Engine(lambda: pipe, folder / "policy.yaml", steps=2, guidance=4.0)
        started.append(engine)
        engine.submit(engine.start).result()
        return engine

    yield start
    for engine in started:
        engine.stop()
        for attachment in engine.served.attachments.values() if engine.served else ():
            attachment.detach()  # a test that draws alone must not find an eraser that acts elsewhere


@pytest.fixture
def engine(engine_of: Callable[..., Engine]) -> Engine:
    return engine_of()
