from __future__ import annotations

import copy
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Replace

from excise.erasers import Eraser
from excise.erasers.guard.model_digest import (
    _PROBES,
    encoder_digests,
    encoder_matches,
    made_for,
    mismatches,
    tokenizer_digest,
)
from excise.errors import ExciseError
from excise.sites.site import text_encoders
from tests import tiny


def test_a_pipeline_matches_itself_and_no_other(tiny_pipe: Any, build_pipe: Callable[..., Any]) -> None:
    made = made_for(tiny_pipe)
    assert made["pipeline"] == "StableDiffusionPipeline"
    assert mismatches(tiny_pipe, made) == []
    assert mismatches(build_pipe(), made) == []
    assert mismatches(build_pipe(seed=1), made) == ["text_encoder's weights differ"]
    assert mismatches(build_pipe(layers=2), made) == ["text_encoder's weights differ"]


def test_one_changed_weight_shows(tiny_pipe: Any) -> None:
    made = encoder_digests(tiny_pipe.text_encoder)
    with torch.no_grad():
        tiny.body(tiny_pipe.text_encoder).get_submodule("encoder.layers.1").mlp.fc1.bias[3] += 0.01
    assert not encoder_matches(tiny_pipe.text_encoder, made)


def test_precisions_of_one_model_know_each_other(tiny_pipe: Any) -> None:
    full = tiny_pipe.text_encoder
    half, brain = copy.deepcopy(full).half(), copy.deepcopy(full).bfloat16()
    brain_of_half = copy.deepcopy(half).bfloat16()
    made = encoder_digests(full)
    assert all(encoder_matches(model, made) for model in (full, half, brain, brain_of_half))
    made = encoder_digests(half)
    assert all(encoder_matches(model, made) for model in (full, half, brain_of_half))
    made = encoder_digests(brain)
    assert encoder_matches(brain, made)
    assert not encoder_matches(full, made), "bfloat16 alone cannot vouch for the finer weights"
    assert not encoder_matches(full, {})


def test_bfloat16_weights_are_the_same_in_a_finer_dtype(tiny_pipe: Any) -> None:
    brain = copy.deepcopy(tiny_pipe.text_encoder).bfloat16()
    made, made_of_full = encoder_digests(brain), encoder_digests(tiny_pipe.text_encoder)
    cast = copy.deepcopy(brain).float()
    assert encoder_matches(cast, made) and encoder_matches(copy.deepcopy(brain).half(), made)
    assert encoder_matches(cast, made_of_full), "as the bfloat16 model that it was cast from"
    near = copy.deepcopy(cast)
    with torch.no_grad():
        tiny.body(near).get_submodule("encoder.layers.1").mlp.fc1.weight[3, 3] *= 1 + 1e-5
    assert encoder_digests(near) == encoder_digests(cast), "it rounds to the same"
    assert not encoder_matches(near, made) and not encoder_matches(near, made_of_full)


def test_a_pipeline_that_from_pipe_casts_to_float32_keeps_its_eraser(tiny_pipe: Any, gun_edit: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = tiny_pipe.to(torch.bfloat16)
    eraser = Eraser((gun_edit,), "gun", "gun", ("gun",), made_for(pipe), canary=("a gun",))
    with eraser.attach(pipe) as attachment, torch.no_grad():
        sibling = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        assert pipe.text_encoder.dtype == torch.float32
        for each in (pipe, sibling):
            each.encode_prompt("a gun", "cpu", 1, False)
        assert attachment.status()["bypasses"] == 0


def test_missing_and_additional_encoders_are_named(tiny_pipe: Any) -> None:
    made = made_for(tiny_pipe)
    second = {**made["encoders"], "text_encoder_2": made["encoders"]["text_encoder"]}
    assert mismatches(tiny_pipe, {**made, "encoders": second}) == ["there is no text_encoder_2"]
    assert mismatches(tiny_pipe, {}) == ["it does not state which model it was made for"]
    assert mismatches(tiny_pipe, {**made, "encoders": {}}) == ["the eraser does not know text_encoder"]


def test_the_tokenizers_digest_is_its_behaviour(clip_tokenizer: Any) -> None:
    plain = tokenizer_digest(clip_tokenizer)
    other = copy.deepcopy(clip_tokenizer)
    assert tokenizer_digest(other) == plain
    other.add_tokens(["<gun-inversion>"])
    assert tokenizer_digest(other) != plain
    # The same vocabulary, and other ids for the same text.
    reading = copy.deepcopy(clip_tokenizer)
    reading._tokenizer.normalizer = Replace("gun", "cat")
    assert reading.get_vocab() == clip_tokenizer.get_vocab()
    assert tokenizer_digest(reading) != plain


def test_the_tokenizers_digest_is_that_of_its_json(clip_tokenizer: Any) -> None:
    """Of the whole vocabulary each time, although a vocabulary that was read before is not sorted again."""
    for added in ([], ["<gun-inversion>"], ["<cat-inversion>"]):
        changed = copy.deepcopy(clip_tokenizer)
        changed.add_tokens(added)
        ids = changed(list(_PROBES), truncation=True)["input_ids"]
        special = [changed.bos_token_id, changed.eos_token_id, changed.pad_token_id, changed.model_max_length]
        whole = sha256(json.dumps([sorted(changed.get_vocab().items()), special, ids]).encode()).hexdigest()
        assert [tokenizer_digest(changed) for _ in range(2)] == [whole] * 2


def test_weights_out_of_memory_are_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="before enabling offload"):
        encoder_digests(copy.deepcopy(tiny_pipe.text_encoder).to("meta"))


def test_weights_on_disk_are_refused(
    tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers leaves memory that nothing was written to in their place."""
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    if torch.accelerator.current_accelerator() is None:  # diffusers 0.38 asks it for its type all the same
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cpu)
    with gun_eraser.attach(tiny_pipe):
        apply_group_offloading(
            tiny_pipe.text_encoder, cpu, cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
        )
        with pytest.raises(ExciseError, match="without offload_to_disk_path"):
            tiny_pipe("a gun on grass", num_inference_steps=1)
    with pytest.raises(ExciseError, match="without offload_to_disk_path"):
        gun_eraser.attach(tiny_pipe)


def test_it_says_which_files_the_text_encoder_came_from(tiny_pipe: Any, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    assert made_for(tiny_pipe)["files"] == {}
    tiny_pipe.save_pretrained(tmp_path / "model")
    made = made_for(StableDiffusionPipeline.from_pretrained(tmp_path / "model"))
    weights = tmp_path / "model/text_encoder/model.safetensors"
    assert made["files"] == {"text_encoder/model.safetensors": sha256(weights.read_bytes()).hexdigest()}
    assert made["model"] is None, "a path on the author's machine is private"


@pytest.mark.parametrize("family", ["sdxl", "flux", "wan", "qwen-image", "flux2", "flux2-klein", "lumina2", "z-image"])
def test_digests_are_of_names_that_no_program_adds_to(family: str) -> None:
    if reason := tiny.missing(family):
        pytest.skip(reason)
    pipe = tiny.build(family)
    made = made_for(pipe)
    assert mismatches(pipe, made) == []
    for component, encoder in text_encoders(pipe).items():
        state = {name: tensor for name, tensor in encoder.state_dict().items() if "visual" not in name}
        by_hand = sha256()
        seen = set()
        for name, tensor in sorted(((canonical_by_hand(name), t) for name, t in state.items()), key=lambda at: at[0]):
            if name and name not in seen:
                seen.add(name)
                by_hand.update(f"{name}{tuple(tensor.shape)}".encode())
                by_hand.update(tensor.half().contiguous().numpy().tobytes())
        assert made["encoders"][component]["float16"] == [by_hand.hexdigest()], component


def canonical_by_hand(name: str) -> str:
    """Return the name of a weight of a text tower, or nothing for another part of the model."""
    if "position_ids" in name or any(part in name for part in ("vision", "projector", "lm_head")):
        return ""
    if name in ("encoder.embed_tokens.weight", "shared.weight"):
        return "shared.weight"
    for prefix in ("text_model.", "model.language_model.", "model."):
        name = name.removeprefix(prefix)
    return name


def test_erasers_say_which_names_their_digests_are_of() -> None:
    for family, lengths in {"sdxl": None, "flux": {"text_encoder_2": 512}, "sd3": {"text_encoder_3": 256}}.items():
        made = made_for(tiny.build(family))
        assert made.get("lengths") == lengths
        assert ("names" in made) is (lengths is not None)
    pipe = tiny.build("flux")
    made = made_for(pipe)
    old = {name: encoder_digests(encoder) for name, encoder in text_encoders(pipe).items()}
    assert old["text_encoder_2"] != made["encoders"]["text_encoder_2"], "T5 lists its embeddings twice"
    assert old["text_encoder"] == made["encoders"]["text_encoder"], "CLIP's names stay"
    former = {name: value for name, value in made.items() if name not in ("names", "lengths")} | {"encoders": old}
    assert mismatches(pipe, former) == [], "erasers of the format 1 are recognised"
    assert mismatches(pipe, {**former, "names": "canonical"}) == ["text_encoder_2's weights differ"]
