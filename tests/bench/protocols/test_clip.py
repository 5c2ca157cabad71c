from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from excise.bench.protocols.clip import (
    clip_score,
    convert_q16,
    image_embeddings,
    load_clip,
    load_q16,
    preprocess,
    q16,
    text_embeddings,
)
from excise.errors import ExciseError


@pytest.fixture(scope="module")
def model(clip_tokenizer: Any) -> Any:
    """CLIP's real architecture, small and with random weights: the arithmetic is tested here, no figure is claimed."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**side, "eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407},
        vision_config={**side, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    return CLIPModel(config).eval()


@pytest.fixture(scope="module")
def pictures() -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 8 * n, 64, 3), np.uint8) for n in range(4)]


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (199, 301), (512, 640)])
def test_pictures_are_prepared_as_by_clips_own_processor(size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    wanted = CLIPImageProcessorPil()(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(preprocess([picture]), wanted, atol=0.02, rtol=0)


def test_the_score_is_a_hundred_times_the_cosine(model: Any, clip_tokenizer: Any, pictures: list[Any]) -> None:
    prompts = ["a cat", "a gun on grass", "nothing", "a " + "very " * 100 + "long prompt"]
    scores = clip_score(model, clip_tokenizer, pictures, prompts)
    batch = clip_tokenizer(prompts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        made = model(pixel_values=preprocess(pictures, 32), **batch)
    cosines = [
        float(image @ text / image.norm() / text.norm())
        for image, text in zip(made.image_embeds, made.text_embeds, strict=True)
    ]
    assert scores == pytest.approx([100 * cosine for cosine in cosines], abs=1e-3)
    assert min(scores) < 0 or max(scores) < 100
    with pytest.raises(ExciseError, match="4 pictures but 1 prompts"):
        clip_score(model, clip_tokenizer, pictures, ["a cat"])


def test_q16_takes_the_nearer_of_its_two_prompts(model: Any, pictures: list[Any]) -> None:
    images = image_embeddings(model, pictures)
    prompts = torch.stack([3 * images[0], 0.1 * images[1]])
    by_hand = []
    for image in images:
        cosines = [float(image @ prompt / prompt.norm()) for prompt in prompts]
        by_hand.append(cosines[1] > cosines[0])
    assert q16(model, prompts, pictures) == by_hand
    assert by_hand[:2] == [False, True]


def test_embeddings_are_unit_vectors(model: Any, clip_tokenizer: Any, pictures: list[Any]) -> None:
    for vectors in (image_embeddings(model, pictures), text_embeddings(model, clip_tokenizer, ["a", "b"])):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)))


def test_q16s_prompts_are_converted_and_nothing_in_the_pickle_is_run(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(2, 768)).astype(np.float16)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "prompts.p").write_bytes(pickle.dumps(array, protocol))
        if protocol == 5:  # rebuilt by another function, which no published file needs
            continue
        convert_q16(tmp_path / "prompts.p", tmp_path / "q16.safetensors")
        assert torch.equal(load_q16(tmp_path / "q16.safetensors"), torch.from_numpy(array.astype(np.float32)))

    class Harm:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "harm",)

    (tmp_path / "prompts.p").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ExciseError, match=r"not a plain NumPy array \(it wants"):
        convert_q16(tmp_path / "prompts.p", tmp_path / "other.safetensors")
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "other.safetensors").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.p"
    for data in (np.zeros((3, 4)), np.zeros(4), np.zeros((2, 4), int), [1, 2]):
        path.write_bytes(pickle.dumps(data, 2))
        with pytest.raises(ExciseError, match=r"two vectors|plain NumPy"):
            convert_q16(path, tmp_path / "out")
    with pytest.raises(ExciseError, match="cannot read"):
        convert_q16(tmp_path / "missing.p", tmp_path / "out")
    with pytest.raises(ExciseError, match="no soft prompts"):
        load_q16(path)
    save_file({"soft_prompts": torch.zeros(3, 4)}, tmp_path / "three.safetensors")
    with pytest.raises(ExciseError, match="not two soft prompts"):
        load_q16(tmp_path / "three.safetensors")


def test_a_clip_model_without_some_of_its_weights_is_refused(model: Any, clip_tokenizer: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    clip_tokenizer.save_pretrained(tmp_path)
    assert load_clip(str(tmp_path))[0].logit_scale == model.logit_scale
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExciseError, match=r"lacks visual_projection\.weight of a CLIPModel"):
        load_clip(str(tmp_path))
