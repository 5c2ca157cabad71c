"""Sizes that a model can make, and the limit on pixels where a request names no size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from excise.app.serve import sizes
from excise.app.serve.engine import Engine
from excise.errors import InvalidSetting
from tests import tiny
from tests.app.serve.conftest import PLAIN
from tests.app.serve.running import serving
from tests.app.serve.test_http import CAT, pictures
from tests.tiny.denoisers import kl

REAL = {"sd1": 8, "sdxl": 8, "sd3": 16, "flux": 16, "lumina2": 16, "z-image": 16}
"""What a width must be a multiple of, by family, where the VAE divides each side by 8."""


def _made(family: str, pipe: Any, **options: Any) -> tuple[int, int]:
    """Return width and height of a picture."""
    height, width = tiny.call(family, pipe, "a gun", output_type="np", **options)[0].shape[:2]
    return width, height


def _of_real_scale(family: str) -> Any:
    if missing := tiny.missing(family):
        pytest.skip(missing)
    pipe = tiny.build(family)
    made = type(pipe)(**{**pipe.components, "vae": kl(pipe.vae.config.latent_channels, 4)})
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("family", REAL)
def test_every_multiple_is_a_size_and_half_a_one_is_not(family: str) -> None:
    pipe, step = _of_real_scale(family), REAL[family]
    assert sizes.multiple(pipe) == step
    assert _made(family, pipe, width=step, height=2 * step) == (step, 2 * step)
    between = {"width": step + step // 2, "height": step}
    with suppress(ValueError, RuntimeError):
        assert _made(family, pipe, **between) != tuple(between.values())


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux", "lumina2"])
def test_the_pipelines_own_size_is_known(family: str) -> None:
    if missing := tiny.missing(family):
        pytest.skip(missing)
    pipe = tiny.build(family)
    assert sizes.own(pipe) == _made(family, pipe, width=None, height=None)


def test_a_size_that_only_a_picture_tells_is_not_known() -> None:
    assert sizes.own(tiny.build("z-image")) is None
    sizes.refuse_below(None, 64)


def test_a_policy_below_the_models_own_size_is_refused(engine_of: Callable[..., Engine]) -> None:
    message = "limits.pixels is 255, and the model's own size is 16x16; allow at least 256"
    with pytest.raises(InvalidSetting, match=message):
        engine_of(f"{PLAIN}limits: {{pixels: 255}}")
    with serving(engine := engine_of(f"{PLAIN}limits: {{pixels: 256}}")) as client:
        before = engine.policy
        engine.path.write_text(f"{PLAIN}limits: {{pixels: 255}}")
        with pytest.raises(InvalidSetting, match=message):
            engine.submit(engine.reload).result()
        assert engine.policy is before
        (found,) = pictures(client.post("/v1/images", json={"prompt": CAT}))
        assert found.shape == (16, 16, 3)


class StableDiffusionOtherwise(StableDiffusionPipeline):
    """Makes pictures of 16x16, whatever its attributes say and whatever is asked for; and takes no function."""

    default_sample_size = 4

    def __call__(self, prompt: str, *, width: int = 0, height: int = 0, **options: Any) -> Any:
        assert "callback_on_step_end" not in options
        return super().__call__(prompt, width=16, height=16, **options)


def test_a_picture_of_another_size_is_not_sent(engine_of: Callable[..., Engine], tiny_pipe: Any) -> None:
    tiny_pipe.__class__ = StableDiffusionOtherwise
    with serving(engine := engine_of(f"{PLAIN}limits: {{pixels: 255}}")) as client:
        runs = list[int]()
        for _ in range(2):  # the second time, the size is known
            answer = client.post("/v1/images", json={"prompt": CAT})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "size"
            assert "the model's own size is 16x16; ask for one of at most 255 pixels" in answer.text
            handle = tiny_pipe.unet.register_forward_pre_hook(lambda *_: runs.append(1))
        assert runs == []
        handle.remove()
        answer = client.post("/v1/images", json={"prompt": CAT, "size": "16x8"})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "size"
        assert "the model makes 16x16 of this size" in answer.text
        engine.path.write_text(PLAIN)
        engine.submit(engine.reload).result()
        assert pictures(client.post("/v1/images", json={"prompt": CAT, "size": "16x16"}))
