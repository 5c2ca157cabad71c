"""The extension on a double of SD.Next: weighted prompts are erased, and what cannot be erased is not drawn."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.errors import EraserDidNotFire, InvalidSetting
from tests.integrations.sdnext import double
from tests.integrations.sdnext.double import arguments, load_script

CAT, GUN = "a (cat:1.3) on grass", "a (gun:1.4) on grass"


def draw(pipe: Any, given: dict[str, Any]) -> Tensor:
    how: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent"}
    made: Tensor = pipe(**given, generator=torch.Generator().manual_seed(3), **how).images
    return made


def model_loaded(there: SimpleNamespace) -> None:
    there.callbacks.call(there.callbacks.loaded, there.pipe)
    assert not there.callbacks.errors


@torch.no_grad()
def test_weighted_prompts_are_erased_and_others_keep_every_bit(there: SimpleNamespace, erasers: Path) -> None:
    plain = {prompt: draw(there.pipe, arguments(there, prompt)) for prompt in (CAT, GUN)}
    load_script()
    model_loaded(there)
    assert excise.get_active_erasers(there.pipe) == ["gun-test"]
    assert torch.equal(draw(there.pipe, arguments(there, CAT)), plain[CAT])
    assert not torch.equal(draw(there.pipe, arguments(there, GUN)), plain[GUN])
    status = excise.list_erasers(there.pipe)["gun-test"]
    assert status["bypasses"] == 0 and not there.callbacks.errors


@torch.no_grad()
def test_nothing_is_erased_from_a_negative_prompt(there: SimpleNamespace, erasers: Path) -> None:
    plain, away = arguments(there, GUN), arguments(there, CAT, GUN)
    expected = draw(there.pipe, away)
    load_script()
    model_loaded(there)
    given = arguments(there, CAT, GUN)
    assert torch.equal(given["negative_prompt_embeds"], plain["prompt_embeds"])
    assert torch.equal(draw(there.pipe, given), expected)
    swapped = {"prompt_embeds": given["negative_prompt_embeds"], "negative_prompt_embeds": given["prompt_embeds"]}
    with pytest.raises(EraserDidNotFire):
        draw(there.pipe, swapped)


@torch.no_grad()
def test_without_the_hook_weighted_embeddings_are_refused(there: SimpleNamespace, erasers: Path) -> None:
    load_script()
    model_loaded(there)
    made = double.get_weighted_text_embeddings(there.pipe, GUN, "", 1)
    with pytest.raises(EraserDidNotFire):
        draw(there.pipe, {"prompt_embeds": made[0], "negative_prompt_embeds": made[3]})


@torch.no_grad()
def test_what_was_encoded_before_is_forgotten_and_refused(there: SimpleNamespace, erasers: Path) -> None:
    early = arguments(there, GUN)
    load_script()
    model_loaded(there)
    assert not there.parser.cache
    with pytest.raises(EraserDidNotFire):
        draw(there.pipe, early)


@torch.no_grad()
def test_a_clip_skip_to_before_the_eraser_draws_nothing(there: SimpleNamespace, erasers: Path) -> None:
    load_script()
    model_loaded(there)
    layers = len(there.pipe.text_encoder.encoder.layers)
    allowed = layers - 2  # the eraser is at the third layer
    draw(there.pipe, arguments(there, CAT, clip_skip=allowed))
    assert not there.callbacks.errors
    given = arguments(there, CAT, clip_skip=allowed + 1)
    assert "prompt" in given and isinstance(there.callbacks.errors[0], InvalidSetting)
    with pytest.raises(InvalidSetting, match="reads the text encoder before"):
        draw(there.pipe, given)


@pytest.mark.parametrize("clip_skip", [0, 0.5, -1])
@torch.no_grad()
def test_a_clip_skip_below_1_is_refused(clip_skip: float, there: SimpleNamespace, erasers: Path) -> None:
    load_script()
    there.parser.get_weighted_text_embeddings(there.pipe, CAT, "", 0)  # no eraser yet
    model_loaded(there)
    with pytest.raises(InvalidSetting, match="give at least 1"):
        there.parser.get_weighted_text_embeddings(there.pipe, CAT, "", clip_skip)
    for allowed in (None, 1):
        there.parser.get_weighted_text_embeddings(there.pipe, CAT, "", allowed)


@torch.no_grad()
def test_xhinker_is_refused_before_it_changes_the_encoder(there: SimpleNamespace, erasers: Path) -> None:
    load_script()
    assert there.parser.get_xhinker_text_embeddings(there.pipe, CAT, "", 1)
    model_loaded(there)
    with pytest.raises(RuntimeError, match="choose another prompt attention parser"):
        there.parser.get_xhinker_text_embeddings(there.pipe, CAT, "", 1)


@torch.no_grad()
def test_a_model_that_was_loaded_earlier_and_a_second_run_of_the_script(there: SimpleNamespace, erasers: Path) -> None:
    there.shared.sd_loaded = True
    load_script()
    assert excise.get_active_erasers(there.pipe) == ["gun-test"]
    hooked = there.parser.get_weighted_text_embeddings
    load_script()
    assert there.parser.get_weighted_text_embeddings is hooked
    model_loaded(there)
    assert excise.get_active_erasers(there.pipe) == ["gun-test"]
    draw(there.pipe, arguments(there, GUN))


@torch.no_grad()
def test_a_model_that_came_without_a_callback_gets_its_erasers(there: SimpleNamespace, erasers: Path) -> None:
    load_script()
    arguments(there, CAT)
    assert excise.get_active_erasers(there.pipe) == ["gun-test"]


@pytest.mark.parametrize("tab", [0, 1])
@torch.no_grad()
def test_a_video_tabs_model_gets_its_erasers_or_draws_nothing(tab: int, there: SimpleNamespace, erasers: Path) -> None:
    load = there.videos[tab].load_model
    load_script()
    assert load(there.pipe) == "loaded" and not excise.get_active_erasers(there.pipe), "as without the extension"
    for _ in range(2):  # the second time, the model is there already
        assert there.videos[tab].load_model(there.pipe) == "loaded"
        assert excise.get_active_erasers(there.pipe) == ["gun-test"]
    hooked = there.videos[tab].load_model
    load_script()
    assert there.videos[tab].load_model is hooked
    excise.unload_eraser(there.pipe)
    there.pipe.text_encoder.encoder.layers[0].mlp.fc1.weight.data.mul_(2)
    with pytest.raises(ValueError, match="no memory"):
        there.videos[tab].load_model(there.pipe, fails=True)  # FramePack's leaves the model in place then
    for part in (there.pipe.unet, there.pipe.text_encoder):  # these tabs call parts themselves
        with pytest.raises(RuntimeError, match="lets nothing be drawn"):
            part(torch.zeros(1))
    there.videos[tab].load_model(None)


@pytest.mark.parametrize("way", ["nested", "no copy", "no folder", "empty", "altered", "another model", "no Excise"])
@torch.no_grad()
def test_without_its_erasers_a_model_draws_nothing(
    way: str, there: SimpleNamespace, erasers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"no folder": "no folder", "empty": "eraser", "altered": "eraser", "another model": "made for"}
    named |= {"nested": "weapons is not an eraser", "no copy": "knife is not an eraser"}
    if way == "no folder":
        monkeypatch.setenv("EXCISE_ERASERS", str(erasers / "nowhere"))
    elif way == "nested":
        shutil.copytree(erasers / "gun", erasers / "weapons" / "knife")
    elif way == "no copy":
        (erasers / "knife").mkdir()
    elif way == "empty":
        (erasers / "gun").rename(erasers.parent / "elsewhere")
    elif way == "altered":
        with (erasers / "gun" / "eraser.safetensors").open("ab") as file:
            file.write(b"x")
    elif way == "another model":
        there.pipe.text_encoder.encoder.layers[0].mlp.fc1.weight.data.mul_(2)
    else:
        real = builtins.__import__

        def without(name: str, *args: Any) -> Any:
            if name.partition(".")[0] == "excise":
                raise ImportError("No module named 'excise'")
            return real(name, *args)

        with monkeypatch.context() as patched:
            patched.setattr(builtins, "__import__", without)
            load_script()
    if way != "no Excise":
        load_script()
    model_loaded(there)
    told = capsys.readouterr().out
    assert "lets nothing be drawn" in told and named.get(way, "cannot be imported") in told
    for given in ({"prompt": "a cat"}, {"prompt": "a gun"}):
        with pytest.raises(RuntimeError, match="lets nothing be drawn"):
            draw(there.pipe, given)
    for part in (there.pipe.unet, there.pipe.text_encoder):
        with pytest.raises(RuntimeError, match="lets nothing be drawn"):
            part(torch.zeros(1))
    arguments(there, CAT)
    assert capsys.readouterr().out == "", "a blocked model is not tried again"
    sibling = type(there.pipe).__mro__[1](**there.pipe.components)
    with pytest.raises(RuntimeError, match="lets nothing be drawn"):
        draw(sibling, {"prompt": "a gun"})


class Wrapper:
    """An object around a pipeline, as SD.Next has some."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe


@torch.no_grad()
def test_parts_of_odd_pipelines_are_blocked_too(there: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(pipe: Any) -> Any:
        raise ValueError("the components do not fit the configuration")

    script = load_script()
    with monkeypatch.context() as patched:
        patched.setattr(type(there.pipe), "components", property(odd))
        for pipe in (Wrapper(there.pipe), there.pipe):
            script.attach(pipe)
            with pytest.raises(RuntimeError, match="lets nothing be drawn"):
                there.pipe.unet(torch.zeros(1))
        with pytest.raises(RuntimeError, match="lets nothing be drawn"):
            there.pipe("a gun")
