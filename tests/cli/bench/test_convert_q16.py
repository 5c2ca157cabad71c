"""`excise bench convert-q16`: soft prompts from the published pickle, which runs no code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from excise.bench.protocols.clip import load_q16


def test_the_published_pickle_becomes_safetensors(
    call: Callable[..., Any], ask: Callable[..., Any], tmp_path: Path
) -> None:
    array = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float16)
    source, out = tmp_path / "prompts.p", tmp_path / "q16.safetensors"
    source.write_bytes(pickle.dumps(array, 2))
    assert ask("bench", "convert-q16", source, "--out", out) == {"out": str(out)}
    assert torch.equal(load_q16(out), torch.from_numpy(array.astype(np.float32)))
    assert "q16.safetensors" in call("bench", "convert-q16", source, "--out", out, "--force").stdout


def test_a_pickle_that_would_run_code_is_refused(call: Callable[..., Any], tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    source, out = tmp_path / "prompts.p", tmp_path / "q16.safetensors"
    source.write_bytes(pickle.dumps(Harm()))
    for name, message in (("prompts.p", "a plain NumPy array"), ("missing.p", "cannot read")):
        refused = call("bench", "convert-q16", tmp_path / name, "--out", out)
        assert refused.exit_code == 2
        assert message in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    assert not out.exists() and not (tmp_path / "harm").exists()
