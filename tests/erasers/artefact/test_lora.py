"""Erasers as LoRA files: diffusers gives the same pictures by one as by the eraser, and others are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from excise import reference
from excise.erasers import Eraser, WeightEdit
from excise.erasers.artefact.lora import WARNING, lora
from excise.errors import WrongModel
from excise.sites import Site

OLD = Path(__file__).parents[1] / "old"


def drawn(pipe: Any, prompt: str) -> Any:
    generator = torch.Generator().manual_seed(7)
    return pipe(prompt, num_inference_steps=3, guidance_scale=4.0, generator=generator, output_type="pt").images


def test_diffusers_gives_the_same_pictures_by_the_file(tmp_path: Path) -> None:
    pipe, eraser = reference.load(), Eraser.load(OLD / "uce")
    (tmp_path / "gun.safetensors").write_bytes(lora(eraser))
    plain = drawn(pipe, "a gun on grass")
    with eraser.attach(pipe):
        erased = drawn(pipe, "a gun on grass")
    pipe.load_lora_weights(tmp_path, weight_name="gun.safetensors", local_files_only=True)
    beside = drawn(pipe, "a gun on grass")  # W x + B (A x), which rounds otherwise than (W + B A) x
    pipe.fuse_lora()
    fused = drawn(pipe, "a gun on grass")
    assert (erased - plain).abs().max() > 0.1
    assert (beside - erased).abs().max() < 1e-4
    assert torch.equal(fused, erased)


def test_the_file_is_the_change_of_every_layer_and_says_what_it_is(tmp_path: Path) -> None:
    eraser = Eraser.load(OLD / "rece")
    (tmp_path / "lora.safetensors").write_bytes(lora(eraser))
    tensors = load_file(tmp_path / "lora.safetensors")
    assert len(tensors) == 3 * len(eraser.edits)
    for edit in eraser.edits:
        name = f"lora_unet_{edit.site.path.replace('.', '_')}"
        up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
        by_hand = torch.stack([sum(u * d for u, d in zip(row, down, strict=True)) for row in up])
        assert torch.allclose(by_hand * tensors[f"{name}.alpha"] / len(down), edit.change(), atol=1e-6)
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        about = file.metadata()
    assert about["excise.digest"] == eraser.digest and about["excise.warning"] == WARNING
    assert (about["ss_network_dim"], about["ss_network_alpha"]) == ("3", "3")
    first = eraser.edits[0]
    of_text = replace(first, site=Site("text_encoder", "encoder.layers.0.self_attn.k_proj", first.site.width))
    names = load(lora(replace(eraser, edits=(of_text,))))
    assert "lora_te_text_model_encoder_layers_0_self_attn_k_proj.lora_up.weight" in names


REFUSED = {
    "snce": "depends on the prompt and changes no weights",
    "snce+saemnesia": "depends on the prompt and changes no weights",
    "spm": "depends on the prompt or the step",
    "dumo": "depends on the prompt",
    "mace": "is a whole matrix",
    "esd-u": "is a whole matrix",
    "sld": "changes no weights; use the eraser itself",
    "concept-steerers": "changes no weights; use the eraser itself",
}


@pytest.mark.parametrize("method", REFUSED)
def test_what_is_no_lora_is_refused_with_the_reason(method: str) -> None:
    with pytest.raises(WrongModel, match=REFUSED[method]):
        lora(Eraser.load(OLD / method))


def test_a_layer_without_a_common_name_or_of_unknown_shape_is_refused() -> None:
    eraser = Eraser.load(OLD / "uce")
    first = eraser.edits[0]
    assert isinstance(first, WeightEdit)
    for component, path, message in (
        ("transformer", first.site.path, "no common name for the layers of a transformer"),
        ("unet", "conv_in", "may be a convolution"),
    ):
        other = replace(first, site=Site(component, path, first.site.width))
        with pytest.raises(WrongModel, match=message):
            lora(replace(eraser, edits=(*eraser.edits, other)))
