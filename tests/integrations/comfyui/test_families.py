"""ComfyUI's own encoder classes give the states that diffusers reads, plain and erased."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.comfyui.server import PYTHON, TREE, environment, needs_comfyui

PROGRAM = Path(__file__).parent / "families.py"
FAMILIES = (
    "Stable Diffusion 1", "Stable Diffusion 2", "SDXL", "Stable Diffusion 3", "FLUX.1", "Qwen-Image", "Z-Image",
    "Lumina 2", "Wan",
)  # fmt: skip
pytestmark = needs_comfyui


@pytest.fixture(scope="module")
def measured() -> Any:
    """Return what the program measured of every family."""
    done = subprocess.run([PYTHON, "-s", str(PROGRAM)], cwd=TREE, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_its_states_are_those_of_diffusers_plain_and_erased(family: str, measured: Any) -> None:
    found = measured[family]
    assert found.pop("differences") == [], "the digests are of canonical names"
    assert found.pop("tag")
    assert found.pop("known")
    assert found, family
    for component, figures in found.items():
        assert figures["plain"] < 1e-4, (component, figures)
        assert figures["erased"] < 1e-4, (component, figures)
        assert figures["changed"] > 1e-2, (component, figures)
        assert figures["other_identical"], component
        assert figures["restored"], component
