"""SD.Next's double around the tiny pipeline, and a folder with an eraser for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import excise
from excise.erasers import Eraser
from tests.integrations.sdnext import double


@pytest.fixture
def erasers(gun_eraser: Eraser, tmp_path: Path) -> Path:
    """Return the folder `models/erasers` with one eraser."""
    gun_eraser.save(tmp_path / "models" / "erasers" / "gun")
    return tmp_path / "models" / "erasers"


@pytest.fixture
def there(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Yield SD.Next's double."""
    monkeypatch.delenv("EXCISE_ERASERS", raising=False)
    yield double.install(monkeypatch, tiny_pipe, tmp_path / "models")
    excise.unload_eraser(tiny_pipe)
