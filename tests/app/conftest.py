from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium is on PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The machine's own Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def make_outcome() -> Callable[..., Any]:
    """Builds an Outcome of 4 prompts: `make_outcome(name, target=(before, after), other=(before, after), same=[])`."""
    from excise.app.demo.measure import Family, Outcome, Seen

    def make(name: Any, target: Any = None, other: Any = None, same: Any = None) -> Outcome:
        n, nothing = 4, np.zeros(4, bool)
        rng = np.random.default_rng(0)
        before = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        after = before.copy()
        for i, keep in enumerate(same or [False] * n):
            if not keep:
                after[i, 0, 0, 0] ^= 1
        named = ("cat",) * n if other is not None else ("",) * n
        family = Family(name, tuple(f"<b>{name}</b> & {i}" for i in range(n)), tuple(range(n)), named)
        zeros = np.zeros(n, np.int64)
        sides = [
            Seen(
                np.array(target[side], bool) if target else nothing,
                np.array(other[side], bool) if other else nothing,
                zeros,
                zeros,
            )
            for side in (0, 1)
        ]
        return Outcome(family, before, after, *sides)

    return make


@pytest.fixture
def outcomes(make_outcome: Callable[..., Any]) -> list[Any]:
    return [
        make_outcome("direct", target=([1, 1, 1, 0], [0, 0, 1, 1])),
        make_outcome("synonym", target=([1, 1, 0, 0], [0, 0, 0, 0])),
        make_outcome("mixed", target=([1, 1, 1, 1], [0, 0, 0, 0]), other=([1, 1, 1, 0], [1, 1, 0, 1])),
        make_outcome("unrelated", other=([1, 1, 1, 1], [1, 1, 1, 0]), same=[True, True, True, False]),
    ]
