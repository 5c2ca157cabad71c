"""Checkpoints in one file: loaded without a network, equal to the pipeline's folder, or refused."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from excise.app.models import single_file
from excise.app.models.resolve import load_pipeline
from excise.app.models.single_file import CONFIGS, Header, header_of, kind_of
from excise.erasers import Eraser, made_for
from excise.errors import ExciseError, NotFound, WrongModel
from tests.app.models.original_names import checkpoint

KNOWN = json.loads(CONFIGS.read_text())


@pytest.fixture
def tiny_configs(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the configuration of Stable Diffusion 1 by that of `tiny_pipe`."""
    files = {**KNOWN["v1"]["files"]}
    for name in ("unet", "vae", "text_encoder"):
        files[f"{name}/config.json"] = (
            json.loads(getattr(tiny_pipe, name).config.to_json_string())
            if (name == "text_encoder")
            else dict(getattr(tiny_pipe, name).config)
        )
    place = tmp_path / "configs.json"
    place.write_text(json.dumps({"v1": {**KNOWN["v1"], "files": files}}))
    monkeypatch.setattr(single_file, "CONFIGS", place)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def file(tiny_pipe: Any, tmp_path: Path) -> Path:
    save_file(checkpoint(tiny_pipe), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.mark.usefixtures("tiny_configs", "no_network")
def test_a_checkpoint_is_the_pipeline_of_its_folder(tiny_pipe: Any, file: Path, gun_eraser: Eraser) -> None:
    pipe = load_pipeline(str(file))
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = (getattr(one, name).state_dict() for one in (pipe, tiny_pipe))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    recorded = made_for(pipe)
    assert recorded["encoders"] == made_for(tiny_pipe)["encoders"]
    assert recorded["tokenizers"] == made_for(tiny_pipe)["tokenizers"]
    assert recorded["files"] == {"tiny.safetensors": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert recorded["model"] is None
    with gun_eraser.attach(pipe), gun_eraser.attach(tiny_pipe):  # strict: made for these weights
        assert torch.equal(*(one.encode_prompt("a gun", "cpu", 1, False)[0] for one in (pipe, tiny_pipe)))


@pytest.mark.usefixtures("tiny_configs")
def test_the_command_line_takes_one(file: Path, gun_eraser: Eraser, tmp_path: Path) -> None:
    from excise.cli import app

    def call(*words: object) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    gun_eraser.save_pretrained(tmp_path / "gun")
    done = call("generate", "--prompt", "a gun", "--eraser", tmp_path / "gun", "--model", file, "--steps", "1",
                "--out", tmp_path / "gun.png")  # fmt: skip
    assert done.exit_code == 0, done.output
    for option in ("--variant", "--revision"):
        refused = call("generate", "--prompt", "a gun", "--model", file, option, "x", "--out", tmp_path / "b.png")
        assert refused.exit_code == 2 and option in refused.stderr


@pytest.mark.usefixtures("tiny_configs")
@pytest.mark.parametrize("part", ["model.diffusion_model.output_blocks", "first_stage_model", "cond_stage_model"])
def test_an_incomplete_checkpoint_is_refused(file: Path, part: str) -> None:
    tensors = load_file(file)
    last = [name for name in tensors if (name.startswith(part) and tensors[name].ndim == 2) or "norm_out" in name][-1]
    save_file({name: tensor for name, tensor in tensors.items() if name != last}, file)
    with pytest.raises(ExciseError):
        load_pipeline(str(file))


@pytest.mark.usefixtures("tiny_configs")
def test_the_stated_prediction_type_counts(tiny_pipe: Any, file: Path) -> None:
    for stated, kind in (("epsilon", "epsilon"), ("v", "v_prediction")):
        save_file(checkpoint(tiny_pipe), file, {"modelspec.prediction_type": stated})
        assert load_pipeline(str(file)).scheduler.config.prediction_type == kind


FIRST = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
CROSS = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
XL = {"conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,)}


def header(shapes: dict[str, tuple[int, ...]]) -> Header:
    return Header(shapes, dict.fromkeys(shapes, "F16"), {})


def test_the_kind_is_told_from_names_and_shapes() -> None:
    path = Path("x.safetensors")
    assert kind_of(path, header(FIRST)) == "v1"
    assert kind_of(path, header({**FIRST, CROSS: (320, 768)})) == "v1"
    assert kind_of(path, header({**FIRST, CROSS: (320, 1024)})) == "v2"
    assert kind_of(path, header({**FIRST, **XL})) == "xl_base"
    inpainting = {"model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}
    for shapes, message in (
        (inpainting, "of the kind inpainting"),
        ({**inpainting, **XL}, "of the kind xl_inpaint"),
        ({"lora_unet_conv_in.lora_up.weight": (320, 4)}, "but another model, a LoRA or a part"),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "but another model"),
        ({}, "but another model"),
    ):
        with pytest.raises(WrongModel, match=message):
            kind_of(path, header(shapes))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x10", b"\xff" * 64, (9).to_bytes(8, "little") + b"[1, 2, 3]", (6).to_bytes(8, "little") + b'{"a":1}'],
)
def test_a_file_that_is_damaged_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(ExciseError, match="not a safetensors file, or it is damaged"):
        header_of(tmp_path / "x.safetensors")
    with pytest.raises(NotFound, match="there is no"):
        load_pipeline(str(tmp_path / "y.safetensors"))


PUBLISHED = {
    "v1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "v2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "xl_base": {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    },
}  # fmt: skip
"""Numbers of parameters of the published models."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_configurations_are_of_the_published_sizes(kind: str) -> None:
    files = KNOWN[kind]["files"]
    for name, wanted in PUBLISHED[kind].items():
        config = files[f"{name}/config.json"]
        library, cls = files["model_index.json"][name]
        with torch.device("meta"):
            model: nn.Module
            if library == "transformers":
                model = getattr(transformers, cls)(transformers.CLIPTextConfig(**config))
            else:
                model = getattr(diffusers, cls).from_config(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == wanted, name
