"""The pack on a double of ComfyUI, and erasers for the double's text encoder."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.weight_digest import canonical, weights_digest
from excise.erasers.edits.text_sae import SAEEdit
from excise.sites.site import Site
from tests.integrations.comfyui import double

PACK = "integrations.comfyui"


def forget() -> None:
    """Forget the pack's modules, so that the next import runs them again."""
    for name in [name for name in sys.modules if name == PACK or name.startswith(f"{PACK}.")]:
        del sys.modules[name]


@pytest.fixture
def erasers(tmp_path: Path) -> Path:
    """Return an empty folder models/erasers."""
    folder = tmp_path / "models" / "erasers"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch, erasers: Path) -> Iterator[SimpleNamespace]:
    """Yield the pack's modules by name, imported on the double."""
    monkeypatch.delenv("EXCISE_ENFORCE", raising=False)
    double.install(monkeypatch, erasers)
    forget()
    importlib.import_module(PACK)
    names = ("apply", "denoiser", "folders", "guard", "injection", "layouts", "nodes", "report", "service", "weights")
    yield SimpleNamespace(**{name: importlib.import_module(f"{PACK}.{name}") for name in names})
    double.Patcher.loaded.clear()
    forget()


@pytest.fixture
def clip(pack: SimpleNamespace) -> Any:
    """Return a CLIP with one random encoder."""
    return make_clip()


def make_clip(seed: int = 0, **parts: Any) -> Any:
    """Return a CLIP of the double with random weights."""
    torch.manual_seed(seed)
    stage = double.Stage(**(parts or {"clip_l": double.Part()}))
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            parameter.normal_(std=1.0 if "words" in name else 0.1)
    return sys.modules["comfy.sd"].CLIP(stage)  # type: ignore[attr-defined]


Make = Callable[..., Artefact]


@pytest.fixture
def make() -> Make:
    """Return a function that makes an eraser of a word for a CLIP."""
    return eraser_of


def eraser_of(
    clip: Any, word: str = "gun", layer: int = 1, places: dict[str, tuple[str, str]] | None = None, **made_for: Any
) -> Artefact:
    """Return an eraser whose neuron reads the direction in which `word` differs from other words after a layer.

    `places` are the part's name and the Site's path without the layer's number, by component.
    """
    edits, known = [], {}
    for component, (name, path) in (places or {"text_encoder": ("clip_l", "encoder.layers")}).items():
        part = getattr(clip.cond_stage_model, name)
        with torch.no_grad():
            others = [other for other in double.WORDS[2:] if other != word]
            ids = [[0, 2, double.WORDS.index(each), 1, 1, 1, 1, 1] for each in (word, *others)]
            states = part.transformer(torch.tensor(ids))[layer]
        direction = states[0, 2] - states[1:, 2].mean(0)
        direction = direction / direction.norm()
        rest, top = (states[1:, 1:] @ direction).amax(), states[0, 2] @ direction
        assert top > rest, "the neuron would fire for other words"
        bias = -(rest + top) / 2
        width = len(direction)
        edits.append(
            SAEEdit(
                Site(component, f"{path}.{layer}", width),
                torch.tensor([7]),
                direction[None],
                bias[None],
                torch.zeros(width),
                direction[None],
                threshold=torch.zeros(1),
                typical=(top + bias)[None],
                gate="whole",
                lead=1,
                lam=2.0,
            )
        )
        state = part.transformer.state_dict()
        known[component] = {"float16": [weights_digest(canonical(state), lambda n, s=state: s[n])]}
    return Artefact(
        tuple(edits),
        f"{word}-eraser",
        word,
        (word,),
        made_for={"pipeline": "Double", "model": None, "encoders": known, "tokenizers": {}, **made_for},
        canary=(f"a {word}",),
        canary_shift=0.01,
    )
