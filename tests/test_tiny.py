"""The tiny pipelines run from text to picture, and the text matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests import tiny
from tests.tiny import families


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if reason := tiny.missing(name):
        pytest.skip(reason)
    return name


def test_a_seed_and_a_prompt_make_the_latents(family: str) -> None:
    pipe = tiny.build(family)
    gun = tiny.call(family, pipe, "a gun on grass")
    assert torch.isfinite(gun).all()
    assert torch.equal(gun, tiny.call(family, pipe, "a gun on grass"))
    assert torch.equal(gun, tiny.call(family, tiny.build(family), "a gun on grass")), "the same weights again"
    assert not torch.equal(gun, tiny.call(family, pipe, "a gun on grass", seed=1))
    cat = tiny.call(family, pipe, "a cat on grass")
    assert (gun - cat).abs().max() > 0.01 * gun.std()


def test_latents_become_a_picture(family: str) -> None:
    picture = tiny.call(family, tiny.build(family), ["a gun", "a cat on grass"], output_type="np")
    assert picture.shape[0] == 2 and picture.shape[-1] == 3
    assert np.isfinite(picture).all() and picture.std() > 0.01


def test_weights_leave_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tiny.build("sd1")
    assert torch.equal(torch.rand(4), expected)


def test_a_family_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts() -> dict[str, Any]:
        raise AssertionError("nothing is built to find out")

    monkeypatch.setitem(families._BY_NAME, "new", families.Family("NoSuchPipeline", (), parts))
    assert "diffusers has no NoSuchPipeline" in (tiny.missing("new") or "")
    needs = families.Family("FluxPipeline", ("NoSuchEncoder",), parts)
    monkeypatch.setitem(families._BY_NAME, "newer", needs)
    assert "transformers has no NoSuchEncoder" in (tiny.missing("newer") or "")
