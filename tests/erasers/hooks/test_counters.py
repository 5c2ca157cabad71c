"""What an edit counts, against plain loops, however often it is read meanwhile."""

from __future__ import annotations

import threading

import pytest
import torch

from excise.erasers.hooks import counters


def test_rows_and_norms_add_up_over_runs_reads_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_THREADS", 2)
    made = counters.Counters()
    generator = torch.Generator().manual_seed(0)
    rows, norm = 0, 0.0
    for run in range(6):
        delta = torch.randn(2, 3, 4, generator=generator)
        delta[run % 2, 1] = 0
        for row in delta.flatten(0, 1):
            rows += bool((row != 0).any())
            norm += sum(float(value) ** 2 for value in row) ** 0.5
        if run < 3:
            made.add_delta(delta)
        else:
            thread = threading.Thread(target=made.add_delta, args=(delta,))
            thread.start()
            thread.join()
        if run in (1, 4):
            assert made.total() == (rows, pytest.approx(norm, rel=1e-6))
    made.add(7)
    made.add(2, torch.tensor([[1.5], [0.25]]))
    assert made.total() == (rows + 9, pytest.approx(norm + 1.75, rel=1e-6))
