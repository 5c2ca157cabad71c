"""`excise export lora`: a file once, with a warning, or one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file

from excise.erasers import Eraser
from excise.erasers.artefact.lora import lora

OLD = Path(__file__).parents[2] / "erasers" / "old"


def test_the_command_writes_it_once_and_warns(call: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "gun.safetensors"
    done = call("export", "lora", OLD / "uce", "--out", out)
    assert done.exit_code == 0 and "nothing checks" in done.stderr
    written, expected = load_file(out), load(lora(Eraser.load(OLD / "uce")))
    assert written.keys() == expected.keys() and all(torch.equal(written[name], expected[name]) for name in written)
    again = call("export", "lora", OLD / "uce", "--out", out)
    assert again.exit_code == 2 and "there already" in again.stderr
    for folder, name, message in (
        (OLD / "snce", "b.safetensors", "cannot be a LoRA"),
        (OLD / "uce", "b.bin", "must end in"),
    ):
        refused = call("export", "lora", folder, "--out", tmp_path / name)
        assert refused.exit_code == 2 and message in refused.stderr
        assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / name).exists()
