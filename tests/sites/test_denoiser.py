from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from excise.errors import ExciseError
from excise.sites.activations.blocks import Patches, capture_blocks
from excise.sites.denoiser import as_patches, block_site, from_patches
from tests import tiny

PROMPTS = ("a gun on grass", "a cat on grass", "a dog")


@pytest.fixture
def site(tiny_pipe: Any) -> Any:
    return block_site(tiny_pipe, "up_blocks.0.attentions.0")


def captured(pipe: Any, site: Any, **how: Any) -> list[Patches]:
    return list(capture_blocks(pipe, site, PROMPTS, seeds=range(3), **{"steps": 3, "batch_size": 2, **how}))


def test_patches_are_the_blocks_output_of_the_conditional_branch(tiny_pipe: Any, site: Any) -> None:
    kept = []
    block = tiny_pipe.unet.get_submodule(site.path)
    handle = block.register_forward_hook(lambda m, a, output: kept.append(output[0].clone()))
    generator = [torch.Generator().manual_seed(seed) for seed in range(2)]
    tiny_pipe(list(PROMPTS[:2]), num_inference_steps=3, generator=generator, guidance_scale=7.0, output_type="latent")
    handle.remove()
    first = captured(tiny_pipe, site, options={"guidance_scale": 7.0})[:3]
    for step, (patches, output) in enumerate(zip(first, kept, strict=True)):
        conditional = output.chunk(2)[1]
        assert patches.states.shape == (2, 64 // 4, 16)
        assert torch.equal(patches.states[1, 5], conditional[1, :, 5 // 4, 5 % 4])
        assert patches.step == step
    assert [p.timestep for p in first] == sorted((p.timestep for p in first), reverse=True)
    assert not [n for n, m in tiny_pipe.unet.named_modules() if m._forward_hooks or m._forward_pre_hooks]


def test_batches_and_chosen_steps(tiny_pipe: Any, site: Any) -> None:
    whole = captured(tiny_pipe, site)
    assert [(p.step, p.numbers) for p in whole] == [(s, n) for n in ((0, 1), (2,)) for s in range(3)]
    runs = []
    handle = tiny_pipe.unet.register_forward_hook(lambda *_: runs.append(1))
    some = captured(tiny_pipe, site, wanted=[1])
    handle.remove()
    assert len(runs) == 2 * 2, "nothing is drawn after the last step that is wanted"
    assert [torch.equal(a.states, b.states) for a, b in zip(some, (whole[1], whole[4]), strict=True)] == [True, True]


def test_a_sampler_that_takes_a_timestep_twice(tiny_pipe: Any, site: Any) -> None:
    from diffusers import PNDMScheduler

    tiny_pipe.scheduler = PNDMScheduler.from_config(tiny_pipe.scheduler.config, skip_prk_steps=True)
    kept = []
    block = tiny_pipe.unet.get_submodule(site.path)
    handle = block.register_forward_hook(lambda m, a, output: kept.append(as_patches(output).clone()))
    made = captured(tiny_pipe, site)[:3]
    handle.remove()
    timesteps = [float(t) for t in tiny_pipe.scheduler.timesteps]
    assert len(timesteps) == 4
    assert [p.timestep for p in made] == sorted(set(timesteps), reverse=True)
    for patches in made:
        assert torch.equal(patches.states, kept[timesteps.index(patches.timestep)][-2:]), "the first of two runs counts"


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 12, 6)])
def test_patches_and_back(shape: tuple[int, ...]) -> None:
    state, text = torch.randn(shape), torch.randn(2, 5, 6)
    for output in (state, (state,), (text, state), [state]):
        patches = as_patches(output)
        assert patches.shape == (2, 12, 6)
        again = from_patches(2 * patches, output)
        assert type(again) is type(output)
        assert torch.equal(again if isinstance(again, torch.Tensor) else again[-1], 2 * state)
        if len(output) == 2 and isinstance(output, tuple):
            assert again[0] is text


def test_a_model_output_is_given_back_as_one() -> None:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    output = Transformer2DModelOutput(sample=torch.randn(2, 6, 3, 4))
    again = from_patches(as_patches(output) + 1, output)
    assert isinstance(again, Transformer2DModelOutput)
    assert torch.allclose(again.sample, output.sample + 1)


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("sdxl", None),
        ("sd3", "transformer_blocks.1"),
        ("flux", "transformer_blocks.0"),
        ("flux", "single_transformer_blocks.0"),
        ("pixart", "transformer_blocks.0"),
    ],
)
def test_blocks_of_other_families(family: str, path: str | None) -> None:
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe = tiny.build(family)
    denoiser: nn.Module = getattr(pipe, "unet", None) or pipe.transformer
    named = denoiser.named_modules()
    path = path or next(n for n, m in named if type(m).__name__ == "Transformer2DModel")
    site = block_site(pipe, path)
    kept: list[Any] = []
    denoiser.get_submodule(path).register_forward_hook(lambda m, a, output: kept.append(as_patches(output).clone()))
    options = tiny.options(family)
    (patches,) = capture_blocks(
        pipe, site, PROMPTS[:1], seeds=[0], steps=2, wanted=[1], options={"guidance_scale": 1.0, **options}
    )
    assert patches.states.shape[-1] == site.width
    assert torch.equal(patches.states, kept[1][-1:])


def test_a_sampler_that_asks_between_the_steps_is_refused(tiny_pipe: Any, site: Any) -> None:
    from diffusers import HeunDiscreteScheduler, KDPM2DiscreteScheduler

    tiny_pipe.scheduler = HeunDiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    made = captured(tiny_pipe, site)
    assert [p.step for p in made] == [0, 1, 2] * 2
    assert len({p.timestep for p in made}) == 3
    tiny_pipe.scheduler = KDPM2DiscreteScheduler.from_config(tiny_pipe.scheduler.config)
    with pytest.raises(ExciseError, match="KDPM2DiscreteScheduler calls the denoiser at 5 timesteps in 3 steps"):
        captured(tiny_pipe, site)


def test_a_pipeline_that_starts_from_a_picture_is_refused(tiny_pipe: Any, site: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline(**tiny_pipe.components, requires_safety_checker=False)
    with pytest.raises(ExciseError, match="starts from an image; capture with the text-to-image pipeline"):
        captured(pipe, site)


def test_what_cannot_be_captured_is_refused(tiny_pipe: Any, site: Any) -> None:
    with pytest.raises(ExciseError, match=r"unet has no block 'up_blocks.9'; it has .*up_blocks.0.attentions.0"):
        block_site(tiny_pipe, "up_blocks.9")
    with pytest.raises(ExciseError, match="the width of unet/conv_in is unknown"):
        block_site(tiny_pipe, "conv_in")
    with pytest.raises(ExciseError, match="has no transformer"):
        block_site(tiny_pipe, "blocks.0", "transformer")
    with pytest.raises(ExciseError, match=r"steps \[3\] are not among the 3"):
        captured(tiny_pipe, site, wanted=[3])
    with pytest.raises(ExciseError, match="fewer seeds than prompts"):
        list(capture_blocks(tiny_pipe, site, PROMPTS, seeds=[0], steps=1))
    if tiny.missing("wan") is None:
        wan = tiny.build("wan")
        block = block_site(wan, "blocks.0")
        options = tiny.options("wan")
        with pytest.raises(ExciseError, match="twice per step"):
            list(capture_blocks(wan, block, ["a gun"], seeds=[0], steps=2, options={"guidance_scale": 5.0, **options}))
