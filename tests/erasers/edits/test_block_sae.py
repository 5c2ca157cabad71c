"""The edit of a denoiser's block, against its formulas in loops and on a live pipeline."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from excise.bench.attacks.prefix import PrefixConfig, prefix_attack
from excise.bench.attacks.ring_a_bell import vocabulary
from excise.erasers import BlockEdit, Eraser, made_for, verify
from excise.erasers.edits.base import StepInfo
from excise.erasers.edits.block_sae import OpenGates
from excise.erasers.edits.sae_rows import preactivations
from excise.erasers.encoding import encode
from excise.errors import EraserDidNotFire, ExciseError
from excise.sae import SAEConfig, TopKSAE
from excise.sites import block_site, capture_blocks
from tests import tiny

STEPS, PROMPT = 4, "a gun on grass"


def make_sae(width: int, m: int = 24, k: int = 5) -> TopKSAE:
    sae = TopKSAE(SAEConfig(width, m, k), seed=2)
    with torch.no_grad():
        sae.b_pre.normal_(generator=torch.Generator().manual_seed(1))
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return sae


@pytest.fixture
def drawn(tiny_pipe: Any) -> list[Any]:
    site = block_site(tiny_pipe, "up_blocks.0.attentions.0")
    return list(capture_blocks(tiny_pipe, site, [PROMPT], seeds=[0], steps=STEPS))


@pytest.fixture
def sae(drawn: list[Any]) -> TopKSAE:
    return make_sae(drawn[0].states.shape[-1])


@pytest.fixture
def edit(tiny_pipe: Any, drawn: list[Any], sae: TopKSAE) -> BlockEdit:
    """Of the two latents that fire most on the first step's patches."""
    site = block_site(tiny_pipe, "up_blocks.0.attentions.0")
    values, indices = sae.encode(drawn[0].states.flatten(0, 1))
    fires = torch.zeros(sae.config.m).index_add_(0, indices.flatten(), values.detach().flatten())
    neurons = fires.topk(2).indices.tolist()
    generator = torch.Generator().manual_seed(0)
    tables = {name: torch.rand(STEPS, 2, generator=generator) for name in ("level", "gate", "cut")}
    timesteps = torch.tensor([patches.timestep for patches in drawn])
    return BlockEdit.from_sae(sae, site, neurons, timesteps=timesteps, **tables)


@pytest.fixture
def eraser(tiny_pipe: Any, edit: BlockEdit) -> Eraser:
    """At levels, gates and thresholds of their own at every step."""
    rising = torch.arange(float(STEPS))[:, None] + torch.tensor([[0.0, 0.5]])
    tables = {"level": 2 + rising, "gate": rising / 20, "cut": rising / 50}
    origin = made_for(tiny_pipe, ["unet"])
    return Eraser((replace(edit, **tables),), "gun-block", "gun", ("gun",), origin, canary=(PROMPT,), method="saeuron")


def draw(pipe: Any, steps: int = STEPS, prompt: str = PROMPT, seed: int = 3) -> np.ndarray:
    how = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "np"}
    made: np.ndarray = pipe(prompt, generator=torch.Generator().manual_seed(seed), **how).images
    return made


def by_hand(edit: BlockEdit, sae: TopKSAE, x: Tensor, step: int, strength: float) -> Tensor:
    """The edited patches from the papers' formulas, patch by patch and neuron by neuron, in Python's numbers."""
    out = x.double().clone()
    for b, n in np.ndindex(*x.shape[:2]):
        patch = x[b, n].double()
        pre = {
            int(i): sum((patch[j] - float(sae.b_pre[j])) * float(sae.W_enc[i, j]) for j in range(len(patch)))
            + float(sae.b_enc[i])
            for i in range(sae.config.m)
        }
        kept = sorted(pre, key=lambda i: -pre[i])[: sae.config.k]
        for column, i in enumerate(edit.indices.tolist()):
            silent = i not in kept if edit.codes == "topk" else pre[i] <= float(edit.cut[step, column])
            z = 0.0 if silent else max(0.0, float(pre[i]))
            turned = edit.gamma * float(edit.level[step, column]) * z if z > float(edit.gate[step, column]) else z
            out[b, n] -= strength * (z - turned) * sae.W_dec[i].double()
        if edit.compat:
            made = sum(max(0.0, float(pre[i])) * sae.W_dec[i].double() for i in kept) + sae.b_pre.double()
            out[b, n] += strength * 2 * (made - patch)
    return out.detach()


@pytest.mark.parametrize("codes", ["threshold", "topk"])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("step", [0, 3])
def test_the_edit_is_the_papers_formula(
    edit: BlockEdit, sae: TopKSAE, drawn: Any, codes: Any, compat: bool, step: int
) -> None:
    own = replace(edit, codes=codes, compat=compat, gamma=-1.5)
    x = drawn[step].states[:, :6]
    delta = own.delta(x, 0.7, step=StepInfo((drawn[step].timestep,)), sae=sae)
    assert delta is not None
    torch.testing.assert_close((x - delta).double(), by_hand(own, sae, x, step, 0.7), atol=2e-5, rtol=1e-5)


def test_what_was_published_changes_states_that_it_does_not_edit(edit: BlockEdit, sae: TopKSAE, drawn: Any) -> None:
    """The sign of the error term: 2 x̂ - x instead of x where no neuron is above its gate."""
    x, closed = drawn[0].states, torch.full_like(edit.gate, math.inf)
    assert replace(edit, gate=closed).delta(x, step=StepInfo((drawn[0].timestep,))) is None
    delta = replace(edit, gate=closed, compat=True).delta(x, step=StepInfo((drawn[0].timestep,)), sae=sae)
    assert delta is not None
    torch.testing.assert_close(x - delta, (2 * sae(x).reconstruction - x).detach())


def test_patches_below_the_gate_keep_their_bits(edit: BlockEdit, drawn: Any) -> None:
    x = drawn[1].states
    z = edit.read(x, [1])
    high = replace(edit, gate=z.amax((0, 1)).expand(STEPS, -1) * torch.tensor([0.5, 2.0]))
    delta = high.delta(x, step=StepInfo((drawn[1].timestep,)))
    assert delta is not None
    above = (z > high.gate[1]).any(-1)
    assert bool(above.any())
    assert not bool(above.all())
    assert not bool(delta[~above].any())
    assert bool((delta[above] != 0).any(-1).all())


def test_an_attached_eraser_edits_and_a_detached_one_leaves_no_trace(tiny_pipe: Any, eraser: Eraser) -> None:
    plain = draw(tiny_pipe)
    with eraser.attach(tiny_pipe) as attachment:
        assert attachment.shift > 0
        assert not np.array_equal(draw(tiny_pipe), plain)
        assert attachment.status()["rows_edited"] > 0
        attachment.strength = 0
        assert np.array_equal(draw(tiny_pipe), plain)
        attachment.strength = 1
        attachment.enabled = False
        assert np.array_equal(draw(tiny_pipe), plain)
    assert np.array_equal(draw(tiny_pipe), plain)
    assert not [n for n, m in tiny_pipe.unet.named_modules() if "forward" in vars(m) or m._forward_pre_hooks]


def test_a_live_edit_is_the_formula_at_every_step(tiny_pipe: Any, eraser: Eraser) -> None:
    """The block's output under the eraser is its own less the edit's delta, with that step's levels; both halves."""
    (edit,) = eraser.edits
    assert isinstance(edit, BlockEdit)
    block, given, made = tiny_pipe.unet.get_submodule(edit.site.path), [], []
    with eraser.attach(tiny_pipe):
        before = block.register_forward_pre_hook(lambda m, *run: given.append(run), with_kwargs=True)
        after = block.register_forward_hook(lambda m, a, output: made.append(output[0].clone()))
        draw(tiny_pipe)
        before.remove()
        after.remove()
    assert len(made) == STEPS
    for (args, kwargs), edited, timestep in zip(given, made, edit.timesteps.tolist(), strict=True):
        with torch.no_grad():
            patches = block(*args, **kwargs)[0].flatten(2).transpose(1, 2)
        delta = edit.delta(patches, step=StepInfo((timestep,)))
        assert delta is not None
        assert len(patches) == 2
        assert bool(delta.any())
        torch.testing.assert_close(edited.flatten(2).transpose(1, 2), patches - delta)


def test_pictures_at_timesteps_of_their_own_are_edited_at_those(tiny_pipe: Any, eraser: Eraser) -> None:
    """White-box attacks call the denoiser with timesteps in any order. None keeps gates open for another."""
    (edit,) = eraser.edits
    assert isinstance(edit, BlockEdit)
    whole = replace(edit, codes="whole")
    near = [edit.step_of(t, drawing=False) for t in (700.0, 3.0, 420.0)]
    x = torch.randn(3, 7, edit.site.width, generator=torch.Generator().manual_seed(4)) * 3
    opened = OpenGates()
    opened.joined(torch.ones(3, 2, dtype=torch.bool), 999.0)
    for own in (edit, whole, replace(edit, compat=False, gamma=-2.0)):
        made = own.delta(x, step=StepInfo((700.0, 3.0, 420.0), drawing=False), opened=opened)
        assert made is not None
        for n, row in enumerate(near):
            alone = own.delta(x[n:][:1], step=StepInfo((float(edit.timesteps[row]),)))
            assert alone is not None
            torch.testing.assert_close(made[n], alone[0])
    with pytest.raises(ExciseError, match="2 timesteps for 3 images"):
        edit.delta(x, step=StepInfo((700.0, 3.0), drawing=False))


def test_a_white_box_attack_goes_through_it(tiny_pipe: Any, eraser: Eraser) -> None:
    words = vocabulary(tiny_pipe.tokenizer, ("gun",))
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    budgets = [PrefixConfig(length=2, iterations=2, batch=n, lr=0.3) for n in (1, 3)]
    plain = [prefix_attack(tiny_pipe, PROMPT, picture, words, budget)[1] for budget in budgets]
    with eraser.attach(tiny_pipe) as attachment:
        found = [prefix_attack(tiny_pipe, PROMPT, picture, words, budget)[1] for budget in budgets]
        assert attachment.status()["rows_edited"] > 0
    assert all(a != b for a, b in zip(found, plain, strict=True))


def test_another_number_of_steps_is_refused_in_a_line(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe), pytest.raises(ExciseError, match=r"is not among the 4 that unet/up_blocks\.0"):
        draw(tiny_pipe, steps=7)
    near = replace(eraser, edits=(replace(eraser.edits[0], steps="nearest"),))
    plain = draw(tiny_pipe, steps=7)
    with near.attach(tiny_pipe):
        assert not np.array_equal(draw(tiny_pipe, steps=7), plain)


def test_the_nearest_timestep(edit: BlockEdit) -> None:
    own = replace(edit, steps="nearest", timesteps=torch.tensor([900.0, 600.0, 300.0, 0.0]))
    for timestep, wanted in ((1000, 0), (900, 0), (751, 0), (749, 1), (300, 2), (1, 3), (-5, 3)):
        assert own.step_of(timestep) == wanted
    with pytest.raises(ExciseError, match="timestep 751 is not among the 4"):
        replace(own, steps="exact").step_of(751)


def test_a_torn_off_hook_renders_nothing(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe):
        del tiny_pipe.unet.get_submodule(eraser.edits[0].site.path).forward
        with pytest.raises(EraserDidNotFire, match=r"saw no run of unet/up_blocks\.0"):
            draw(tiny_pipe)


def test_another_block_or_denoiser_renders_nothing(
    tiny_pipe: Any, build_pipe: Callable[..., Any], eraser: Eraser
) -> None:
    blocks = tiny_pipe.unet.up_blocks[0].attentions
    with eraser.attach(tiny_pipe):
        own, blocks[0] = blocks[0], copy.copy(blocks[0])
        with pytest.raises(ExciseError, match="unet was replaced"):
            draw(tiny_pipe)
        blocks[0] = own
        tiny_pipe.unet = build_pipe(1).unet
        with pytest.raises(ExciseError, match="unet was replaced"):
            draw(tiny_pipe)


def test_weights_of_the_denoiser_written_to_render_nothing(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe):
        draw(tiny_pipe)
        tiny_pipe.unet.conv_in.weight.data.mul_(1.01)
        with pytest.raises(EraserDidNotFire, match="the denoiser changed after"):
            draw(tiny_pipe)
    with pytest.raises(ExciseError, match="unet's weights differ"):
        eraser.attach(tiny_pipe)


def test_a_pipeline_of_the_same_components_is_erased_too(tiny_pipe: Any, eraser: Eraser) -> None:
    from diffusers import StableDiffusionPipeline

    sibling = StableDiffusionPipeline(**tiny_pipe.components, requires_safety_checker=False)
    sibling.set_progress_bar_config(disable=True)
    plain = draw(sibling)
    with eraser.attach(tiny_pipe):
        assert np.array_equal(draw(sibling), draw(tiny_pipe))
        assert not np.array_equal(draw(sibling), plain)


@pytest.mark.parametrize(
    ("how", "when"),
    [
        pytest.param("wrapped", "before", marks=pytest.mark.slow),
        ("in place", "after"),
        pytest.param("wrapped", "after", marks=pytest.mark.slow),
        pytest.param("in place", "before", marks=pytest.mark.slow),
    ],
)
def test_compiled_in_one_graph(tiny_pipe: Any, eraser: Eraser, when: str, how: str) -> None:
    """`fullgraph=True` raises at any graph break. The timestep, the gate and the levels are looked up in each run."""
    torch._dynamo.reset()

    def compiled() -> None:
        if how == "in place":
            tiny_pipe.unet.compile(backend="aot_eager", fullgraph=True)
        else:
            tiny_pipe.unet = torch.compile(tiny_pipe.unet, backend="aot_eager", fullgraph=True)

    plain = draw(tiny_pipe)
    with eraser.attach(tiny_pipe):
        erased = draw(tiny_pipe)
    if when == "before":
        compiled()
    with eraser.attach(tiny_pipe) as attachment:
        if when == "after":
            compiled()
        np.testing.assert_allclose(draw(tiny_pipe), erased, atol=1e-4)
        attachment.strength = 0.0
        np.testing.assert_allclose(draw(tiny_pipe), plain, atol=1e-4)
        attachment.strength = 1.0
        np.testing.assert_allclose(draw(tiny_pipe), erased, atol=1e-4)
    assert not np.allclose(erased, plain, atol=1e-3)
    np.testing.assert_allclose(draw(tiny_pipe), plain, atol=1e-4)


def test_a_picture_is_open_or_silent_as_a_whole(edit: BlockEdit) -> None:
    x = torch.randn(5, 7, edit.site.width, generator=torch.Generator().manual_seed(4))
    every = replace(edit, codes="whole", cut=torch.zeros(STEPS, 2)).read(x, [0])
    cut = every.mean(1).median(0, keepdim=True).values.expand(STEPS, 2)
    made = replace(edit, codes="whole", cut=cut).read(x, [0])
    opened = 0
    for b in range(5):
        for i in range(2):
            pre = [
                sum(float(edit.W_enc[i, j] * (patch[j] - edit.b_pre[j])) for j in range(len(patch)))
                + float(edit.b_enc[i])
                for patch in x[b]
            ]
            column = [max(0.0, value) for value in pre]
            opens = sum(column) / 7 > float(cut[0, i]) + 1e-6
            opened += opens
            assert made[b, :, i].tolist() == pytest.approx(column if opens else [0.0] * 7, abs=1e-5)
    assert opened == 4


def test_silent_pictures_of_a_batch_keep_their_bits(edit: BlockEdit) -> None:
    x = torch.randn(3, 7, edit.site.width, generator=torch.Generator().manual_seed(4))
    whole = replace(edit, codes="whole", cut=torch.zeros(STEPS, 2), gate=torch.zeros(STEPS, 2))
    means = whole.read(x, [0]).mean(1)
    whole = replace(whole, cut=means.amax(0, keepdim=True).expand(STEPS, 2) * torch.tensor([0.999, 1.001]))
    loud = int(means[:, 0].argmax())
    timestep = float(edit.timesteps[0])
    delta = whole.delta(x, step=StepInfo((timestep,)))
    assert delta is not None
    assert [bool((picture != 0).any()) for picture in delta] == [n == loud for n in range(3)]
    alone = whole.delta(x[loud:][:1], step=StepInfo((timestep,)))
    assert alone is not None
    torch.testing.assert_close(alone[0], delta[loud])


def masks(*rows: str) -> list[Tensor]:
    return [torch.tensor([[c == "1"] for c in row]) for row in rows]


def test_a_picture_that_opened_stays_open_until_another_is_drawn() -> None:
    opened = OpenGates()
    made = [opened.joined(mask, t) for mask, t in zip(masks("010", "001", "000"), (9, 5, 1), strict=True)]
    assert [m[:, 0].tolist() for m in made] == [[0, 1, 0], [0, 1, 1], [0, 1, 1]]
    (again,) = masks("000")
    assert not opened.joined(again, 9).any(), "a timestep above the last one begins another drawing"
    opened.joined(masks("111")[0], 9)
    opened.begin()
    assert not opened.joined(again, 9).any()


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        pytest.param("9:0 9:1 5:0 5:0", "0 1 0 1", id="branches of guidance in runs of their own"),
        pytest.param("9:1 5:0 5:0 1:0", "1 1 1 1", id="PNDM takes its second timestep twice"),
        pytest.param("9:0 9:1 5:0 5:0 5:0 5:0", "0 1 0 1 0 1", id="Heun, with branches in runs of their own"),
        pytest.param("9:01 5:00 1:0 0:0", "01 01 1 1", id="guidance switched off midway: the unconditional half goes"),
        pytest.param("9:0100 5:00 1:01", "0100 00 01", id="the same, of two pictures whose unconditional ones open"),
        pytest.param("9:00 5:00 5:1 1:00 1:0", "00 00 1 01 1", id="SD 3's skip-layer guidance: one more run"),
        pytest.param("9:01 5:0000", "01 1111", id="a batch of yet another size: whatever is open anywhere"),
        pytest.param("9:1 5:0 9:0 5:0", "1 1 0 0", id="a timestep above the last one begins another drawing"),
        pytest.param("9:1 5:0 7:0 5:0", "1 1 0 0", id="of other timesteps too"),
    ],
)
def test_each_run_goes_on_from_its_own(runs: str, wanted: str) -> None:
    opened = OpenGates()
    made = []
    for run in runs.split():
        timestep, _, bits = run.partition(":")
        mask = torch.tensor([[bit == "1"] for bit in bits])
        made.append("".join(str(int(row)) for row in opened.joined(mask, float(timestep))[:, 0]))
    assert made == wanted.split()


def test_drawings_of_one_step_do_not_pile_up() -> None:
    opened = OpenGates()
    for _ in range(3 * OpenGates.MOST_RUNS):
        opened.joined(torch.ones(1, 1, dtype=torch.bool), 999.0)
    assert len(opened._masks) <= OpenGates.MOST_RUNS


def test_open_pictures_stay_open_on_a_live_pipeline(tiny_pipe: Any, eraser: Eraser) -> None:
    (edit,) = eraser.edits
    first = torch.full((STEPS, 2), 1e9)
    first[0] = -1.0
    early = replace(eraser, edits=(replace(edit, codes="whole", cut=torch.full((STEPS, 2), -1.0)),))
    latched = replace(eraser, edits=(replace(edit, codes="whole", cut=first),))
    plain = draw(tiny_pipe)
    with early.attach(tiny_pipe):
        wanted = draw(tiny_pipe)
    with latched.attach(tiny_pipe):
        assert np.array_equal(draw(tiny_pipe), wanted)
        assert np.array_equal(draw(tiny_pipe), wanted), "the second picture starts with closed gates"
    assert not np.array_equal(wanted, plain)


def test_a_picture_made_over_is_erased(tiny_pipe: Any, eraser: Eraser) -> None:
    """Image-to-image has a picture to start from, and fewer steps."""
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline

    grey, white = Image.new("RGB", (16, 16), 0x808080), Image.new("L", (16, 16), 255)
    for kind, also in ((StableDiffusionImg2ImgPipeline, {}), (StableDiffusionInpaintPipeline, {"mask_image": white})):
        pipe = kind(**tiny_pipe.components, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)

        def again(pipe: Any = pipe, also: Any = also) -> np.ndarray:
            how = {"num_inference_steps": STEPS, "strength": 0.5, "output_type": "np", "height": 16, "width": 16}
            how = how if also else {name: value for name, value in how.items() if name not in ("height", "width")}
            made: np.ndarray = pipe(PROMPT, grey, generator=torch.Generator().manual_seed(3), **how, **also).images
            return made

        plain = again()
        with eraser.attach(pipe) as attachment:
            assert attachment.shift > 0
            assert not np.array_equal(again(), plain)
        assert np.array_equal(again(), plain)


def test_guidance_may_be_off_and_pictures_several(tiny_pipe: Any, eraser: Eraser) -> None:
    def several(scale: float) -> np.ndarray:
        generator = [torch.Generator().manual_seed(n) for n in (3, 4)]
        how = {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "np"}
        made: np.ndarray = tiny_pipe(PROMPT, num_images_per_prompt=2, generator=generator, **how).images
        return made

    (edit,) = eraser.edits
    whole = replace(eraser, edits=(replace(edit, codes="whole"),))
    for own in (eraser, whole):
        for scale in (1.0, 3.0):
            plain = several(scale)
            with own.attach(tiny_pipe):
                made = several(scale)
            assert all(not np.array_equal(a, b) for a, b in zip(made, plain, strict=True))
        with own.attach(tiny_pipe):
            np.testing.assert_allclose(made[0], draw(tiny_pipe)[0], atol=1e-5)


def test_guidance_switched_off_midway(tiny_pipe: Any, eraser: Eraser) -> None:
    """What opened at the first step stays open in the half of the batch that is left."""
    (edit,) = eraser.edits
    first = torch.full((STEPS, 2), 1e9)
    first[0] = -1.0
    always, latched = (
        replace(eraser, edits=(replace(edit, codes="whole", cut=cut),)) for cut in (torch.full((STEPS, 2), -1.0), first)
    )

    def off(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    def cut_short() -> np.ndarray:
        how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"}
        how |= {"callback_on_step_end": off, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        made: np.ndarray = tiny_pipe(PROMPT, generator=torch.Generator().manual_seed(3), **how).images
        return made

    plain = cut_short()
    with always.attach(tiny_pipe):
        wanted = cut_short()
    with latched.attach(tiny_pipe):
        assert np.array_equal(cut_short(), wanted)
    assert not np.array_equal(wanted, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(build_pipe: Callable[..., Any], dtype: torch.dtype, drawn: list[Any], eraser: Eraser) -> None:
    """The edit is computed and subtracted in single precision, and the block's output keeps its dtype."""
    (edit,) = eraser.edits
    assert isinstance(edit, BlockEdit)
    x = drawn[1].states.to(dtype)
    made = edit.delta(x, step=StepInfo((drawn[1].timestep,)))
    wanted = edit.delta(x.float(), step=StepInfo((drawn[1].timestep,)))
    assert made is not None
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, wanted)
    if dtype is torch.bfloat16:  # the processor has no convolutions in float16
        pipe = build_pipe().to(dtype=dtype)
        own = replace(eraser, made_for=made_for(pipe, ["unet"]))
        plain = draw(pipe)
        with own.attach(pipe):
            assert not np.array_equal(draw(pipe), plain)
        assert np.array_equal(draw(pipe), plain)


def test_a_prompt_may_be_encoded_elsewhere_under_it(tiny_pipe: Any, eraser: Eraser) -> None:
    with eraser.attach(tiny_pipe):
        made = encode(tiny_pipe, lambda: tiny_pipe.encode_prompt(PROMPT, "cpu", 1, False)[0])
        assert torch.isfinite(made).all()


def test_a_block_run_by_hand_has_no_timestep(tiny_pipe: Any, eraser: Eraser) -> None:
    block = tiny_pipe.unet.get_submodule(eraser.edits[0].site.path)
    with eraser.attach(tiny_pipe), pytest.raises(ExciseError, match="ran by itself"):
        block(torch.randn(1, 16, 4, 4), encoder_hidden_states=torch.randn(1, 3, 64))


def test_an_edit_that_does_nothing_is_refused(tiny_pipe: Any, eraser: Eraser) -> None:
    (edit,) = eraser.edits
    with pytest.raises(EraserDidNotFire, match="did not change what the denoiser"):
        replace(eraser, edits=(replace(edit, cut=torch.full((STEPS, 2), 1e6)),)).attach(tiny_pipe)


def test_two_erasers_at_one_block_in_either_order(tiny_pipe: Any, eraser: Eraser) -> None:
    other = replace(eraser, name="other", edits=(replace(eraser.edits[0], gamma=-0.25),))
    made = []
    for first, second in ((eraser, other), (other, eraser)):
        with first.attach(tiny_pipe), second.attach(tiny_pipe):
            made.append(draw(tiny_pipe))
    assert np.array_equal(*made)


@pytest.mark.usefixtures("short_removal")
def test_it_is_saved_and_verified_as_any_other(tiny_pipe: Any, eraser: Eraser, tmp_path: Path) -> None:
    with eraser.attach(tiny_pipe) as attachment:
        whole = replace(eraser, canary_shift=attachment.shift)
    whole.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == whole.digest
    assert sum(f.stat().st_size for f in (tmp_path / "gun").iterdir()) < 10_000
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with whole.attach(tiny_pipe):
        wanted = draw(tiny_pipe)
    with again.attach(tiny_pipe):
        assert np.array_equal(draw(tiny_pipe), wanted)


def test_an_edit_that_needs_the_sae_says_so(tiny_pipe: Any, eraser: Eraser, sae: TopKSAE) -> None:
    exact = replace(eraser, edits=(replace(eraser.edits[0], codes="topk"),))
    with pytest.raises(ExciseError, match="needs the whole SAE"):
        exact.attach(tiny_pipe)
    with exact.attach(tiny_pipe, sae=sae) as attachment:
        assert attachment.shift > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gamma": math.nan}, "γ is nan"),
        ({"codes": "some"}, "codes cannot be 'some'"),
        ({"steps": "some"}, "steps cannot be 'some'"),
        ({"level": torch.rand(STEPS - 1, 2)}, r"level has shape \(3, 2\), not \(4, 2\)"),
        ({"level": torch.full((STEPS, 2), math.inf)}, "level holds values that are not finite"),
        ({"gate": torch.full((STEPS, 2), math.nan)}, "gate holds values that are not numbers"),
        ({"timesteps": torch.tensor([1.0, 2.0, 3.0, 4.0])}, "each below the one before"),
        ({"indices": torch.tensor([1, 1])}, "each named once"),
    ],
)
def test_an_impossible_edit_is_refused(edit: BlockEdit, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ExciseError, match=match):
        replace(edit, **change)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_block_of_another_family(family: str) -> None:
    """Transformers' blocks return their text first. The edit is of the image's tokens."""
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe = tiny.build(family)
    path = {"sdxl": "up_blocks.0.attentions.0", "sd3": "transformer_blocks.0", "flux": "transformer_blocks.0"}[family]
    site = block_site(pipe, path)
    options = {
        k: v for k, v in tiny.options(family).items() if k not in ("num_inference_steps", "output_type", "generator")
    }
    (patches,) = capture_blocks(pipe, site, [PROMPT], seeds=[0], steps=2, wanted=[0], options=options)
    sae = make_sae(site.width)
    tables = {"level": torch.full((1, 3), 5.0), "gate": torch.zeros(1, 3), "cut": torch.zeros(1, 3)}
    edit = BlockEdit.from_sae(
        sae, site, [0, 1, 2], timesteps=torch.tensor([patches.timestep]), steps="nearest", **tables
    )
    origin = made_for(pipe, [site.component])
    eraser = Eraser((edit,), "gun", "gun", (), origin, canary=(PROMPT,), method="saeuron")
    plain = tiny.call(family, pipe, PROMPT)
    with eraser.attach(pipe) as attachment:
        assert attachment.shift > 0
        assert not np.array_equal(np.asarray(tiny.call(family, pipe, PROMPT)), np.asarray(plain))
    assert np.array_equal(np.asarray(tiny.call(family, pipe, PROMPT)), np.asarray(plain))


def test_a_neuron_is_left_alone_at_a_step_whose_gate_is_infinite(edit: BlockEdit, sae: TopKSAE, drawn: Any) -> None:
    """As SAEuron leaves neurons out at the steps at which they do not score."""
    gate = edit.gate.clone()
    gate[0] = math.inf
    gate[1, 0] = math.inf
    own = replace(edit, gate=gate, cut=torch.zeros_like(edit.cut))
    at = [StepInfo((patches.timestep,)) for patches in drawn]
    assert own.delta(drawn[0].states, step=at[0]) is None
    both = own.delta(torch.cat([drawn[0].states, drawn[1].states]), step=StepInfo(at[0].timesteps + at[1].timesteps))
    second = own.delta(drawn[1].states, step=at[1])
    assert both is not None and second is not None
    assert not both[0].any()
    torch.testing.assert_close(both[1:], second)
    z = preactivations(drawn[1].states, edit.W_enc, edit.b_enc, edit.b_pre).clamp(min=0)[..., 1:]
    left = torch.where(z > gate[1, 1], edit.gamma * edit.level[1, 1] * z, z)
    torch.testing.assert_close(second, (z - left) @ edit.W_dec[1:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ExciseError, match="cut holds values that are not finite"):
        replace(edit, cut=torch.full_like(edit.cut, math.inf))


def test_a_silent_picture_does_not_open_whatever_its_cut(edit: BlockEdit, drawn: Any) -> None:
    own = replace(edit, codes="whole", cut=torch.full_like(edit.cut, -1.0), b_enc=torch.full_like(edit.b_enc, -1e3))
    masks: list[Tensor] = []
    z = own.read(drawn[0].states, [0], opened=lambda mask: masks.append(mask) or mask)
    assert not z.any()
    assert not masks[0].any()
