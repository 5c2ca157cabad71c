"""STG: its detector and its steps by hand, and a picture in which nothing is seen keeps every bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from excise.concepts import Concept, Pair
from excise.erasers import Attachment, Eraser, verify
from excise.erasers.apply import pictures as acting
from excise.erasers.edits.pictures import PictureEdit, clean, detected
from excise.erasers.loaded import steer_guidance
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods import method
from excise.methods.configs.steering import STGConfig
from excise.methods.steering.stg import FIRST_SEED, frames, trained
from excise.sites import Site
from tests import tiny

PAIRS = (
    Pair("a gun on grass", "a cat on grass"),
    Pair("a soldier with a gun", "a soldier with a flower"),
    Pair("a photo of a gun", "a photo of a cup"),
)
CONCEPT = Concept("gun", ("gun",), PAIRS)
CONFIG = STGConfig(pairs=3, steps=4, iterations=3, batch=2, threshold=1e-6, rho=0.2, guidance=4.0)
SITE = Site("unet", "", 4)
PROMPTS = ["a gun on grass", "a photo of a cup"]


def parts(bias: float = 0.0) -> tuple[Tensor, ...]:
    """Kernels, weights and biases of a detector with 2, 3 and 2 channels."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 3, 3), (3, 2, 3, 3), (2, 3, 3, 3), (4,), (8,))
    made = [torch.randn(shape, generator=generator) / 2 for shape in shapes]
    made[-1][-1] = bias
    return tuple(made)


def edit(bias: float = 0.0, **changes: Any) -> PictureEdit:
    saved = {"threshold": 0.5, "rho": 0.2, "guidance": 100.0, "start": 900.0, "stop": 100.0}
    return PictureEdit(SITE, *parts(bias), **{**saved, **changes})


def by_hand(picture: Tensor, first: Tensor, second: Tensor, third: Tensor, weights: Tensor, biases: Tensor) -> float:
    """Of one picture `[3, 64, 64]`, pixel by pixel."""
    x, at = picture.double(), 0
    for kernel in (first, second, third):
        side, own = x.shape[1] // 2, biases[at : at + len(kernel)].double()
        at += len(kernel)
        wide, made = F.pad(x, (1, 1, 1, 1)), torch.zeros(len(kernel), side, side, dtype=torch.float64)
        for row, column in np.ndindex(side, side):
            patch = wide[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            made[:, row, column] = (kernel.double() * patch).sum((1, 2, 3)) + own
        x = made / (1 + (-made).exp())
    pooled = [*(float(one.max()) for one in x), *(float(one.sum()) / one.numel() for one in x)]
    return sum(float(w) * value for w, value in zip(weights, pooled, strict=True)) + float(biases[at])


def test_the_logit_is_that_of_three_convolutions() -> None:
    large = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    made = detected(large, parts()[:3], *parts(0.3)[3:])
    for picture, logit in zip(large, made, strict=True):
        small = torch.stack([picture[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)
        assert float(logit) == pytest.approx(by_hand(small, *parts(0.3)), rel=1e-4)


def test_a_prediction_stands_for_clean_latents() -> None:
    generator = torch.Generator().manual_seed(2)
    x, noise = torch.randn(2, 2, 4, 4, 4, generator=generator)
    share = torch.tensor([0.3, 0.9])[:, None, None, None]
    noised = share**0.5 * x + (1 - share) ** 0.5 * noise
    velocity = share**0.5 * noise - (1 - share) ** 0.5 * x
    for kind, predicted in (("epsilon", noise), ("v_prediction", velocity), ("sample", x)):
        torch.testing.assert_close(clean(noised, predicted, share, kind), x, atol=1e-5, rtol=1e-4)


def test_a_step_goes_down_the_logit_by_a_share_of_the_states_norm() -> None:
    generator = torch.Generator().manual_seed(3)
    states, slope = torch.randn(2, 1, 5, 6, generator=generator)
    made = edit().step(states, slope)
    wanted = -0.2 * math.sqrt(float(states[0].square().sum())) * slope[0] / math.sqrt(float(slope[0].square().sum()))
    torch.testing.assert_close(made[0], wanted)
    torch.testing.assert_close(edit().step(states, 1e-30 * slope), made)
    for bad in (0 * slope, slope / 0):
        with pytest.raises(ExciseError, match="its detector's gradient is 0 or not finite"):
            edit().step(states, bad)


def test_a_picture_that_is_not_finite_is_not_taken_for_one_without_the_concept() -> None:
    dark = torch.zeros(2, 3, 64, 64)
    assert edit(-1e3).shows(dark) == []
    dark[1, 0, 3, 3] = torch.nan
    with pytest.raises(ExciseError, match="not finite"):
        edit(-1e3).shows(dark)


def test_only_some_timesteps_are_looked_at() -> None:
    assert [edit().looks(t) for t in (901, 900, 500, 101, 100, 1)] == [False, True, True, True, False, False]


def generated(
    pipe: Any, own: PictureEdit, steps: int, logits: list[list[float]] | None = None
) -> tuple[Tensor, list[list[bool]]]:
    """The latents of the two prompts as STG writes them out, and in which steps each shows the concept."""
    scheduler, unet = copy.deepcopy(pipe.scheduler), pipe.unet
    scheduler.set_timesteps(steps)
    shares = scheduler.alphas_cumprod
    x = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)])
    c = [pipe.encode_prompt(prompt, "cpu", 1, False)[0] for prompt in PROMPTS]
    nothing, seen = pipe.encode_prompt("", "cpu", 1, False)[0], []
    for t in scheduler.timesteps:
        flags, predicted, levels = list[bool](), list[Tensor](), list[float]()
        for n in range(2):
            with torch.no_grad():
                without = unet(x[n : n + 1], t, nothing).sample
            states = c[n].detach().requires_grad_()
            own_prediction = unet(x[n : n + 1], t, states).sample
            guided = without + own.guidance * (own_prediction - without)
            latents = (x[n : n + 1] - (1 - shares[t]).sqrt() * guided) / shares[t].sqrt()
            picture = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
            logit = own.logits(picture)[0]
            levels.append(float(logit.detach()))
            flags.append(bool(logit > 0) and 100 < int(t) <= 900)
            guided = without + 4.0 * (own_prediction - without)
            if flags[-1]:
                (slope,) = torch.autograd.grad(logit, states)
                c[n] = (states - own.rho * states.norm() * slope / slope.norm()).detach()
                with torch.no_grad():
                    guided = without + 4.0 * (unet(x[n : n + 1], t, c[n]).sample - without)
            predicted.append(guided.detach())
        seen.append(flags)
        if logits is not None:
            logits.append(levels)
        x = scheduler.step(torch.cat(predicted), t, x).prev_sample
    return x, seen


def draw(pipe: Any, steps: int = 6, prompts: list[str] = PROMPTS, seed: int = 0, **how: Any) -> Tensor:
    generator = [torch.Generator().manual_seed(seed + n) for n in range(len(prompts))]
    how = {"num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "latent", **how}
    made: Tensor = pipe(prompts, generator=generator, **how).images
    return made


def put(attachment: Attachment, own: PictureEdit) -> None:
    """Have this edit in place of the fitted one, which passed the self-test: it need not see anything."""
    (hook,) = attachment.hooks
    hook.edit = hook.on_device = own


def test_pictures_are_generated_as_the_paper_says(tiny_pipe: Any) -> None:
    """With a detector that sees the concept in some steps of one picture or the other."""
    plain = draw(tiny_pipe)
    logits: list[list[float]] = []
    generated(tiny_pipe, edit(-1e3), 6, logits)
    looked = [row for row, t in zip(logits, _times(tiny_pipe, 6), strict=True) if 100 < t <= 900]
    levels = sorted(value + 1e3 for row in looked for value in row)
    assert len(levels) >= 6
    edits = [edit(-(low + high) / 2) for low, high in pairwise(levels)]
    written = [generated(tiny_pipe, own, 6) for own in edits]
    with method("stg").fit(tiny_pipe, CONCEPT, CONFIG).attach(tiny_pipe) as attachment:
        for own, (wanted, seen) in zip(edits, written, strict=True):
            put(attachment, own)
            made = draw(tiny_pipe)
            torch.testing.assert_close(made, wanted, atol=1e-3, rtol=1e-3)
            for n in range(2):
                assert torch.equal(made[n], plain[n]) is not any(flags[n] for flags in seen)
        attachment.strength = 0.0
        assert torch.equal(draw(tiny_pipe), plain)


def test_a_picture_in_which_nothing_is_seen_keeps_every_bit(tiny_pipe: Any) -> None:
    eraser = method("stg").fit(tiny_pipe, CONCEPT, CONFIG)
    plain = draw(tiny_pipe)
    with eraser.attach(tiny_pipe) as attachment:
        assert not torch.equal(draw(tiny_pipe), plain), "the threshold is next to nothing"
        assert steer_guidance(tiny_pipe), "attacks pass both branches"
        with pytest.raises(ExciseError, match="guidance_scale above 1"):
            draw(tiny_pipe, guidance_scale=1.0)
        (own,) = eraser.edits
        assert isinstance(own, PictureEdit)
        put(attachment, replace(own, threshold=1 - 1e-9))
        assert torch.equal(draw(tiny_pipe), plain)


def test_the_detector_learns_what_the_model_draws(tiny_pipe: Any) -> None:
    config = replace(CONFIG, steps=4)
    prompts = [*PROMPTS, "a gun"]  # the third one is in another batch
    made = frames(tiny_pipe, prompts, config, 900.0, 400.0)
    times = [t for t in _times(tiny_pipe, 4) if 400 < t <= 900]
    assert made.shape == (3, len(times), 3, 64, 64) and 0 < len(times) < 3
    seen: list[Tensor] = []
    shares = tiny_pipe.scheduler.alphas_cumprod

    def look(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        t = int(args[1])
        if 400 < t <= 900:
            without, own = output[0].chunk(2)
            latents = (args[0][:3] - (1 - shares[t]).sqrt() * (without + 4 * (own - without))) / shares[t].sqrt()
            seen.append(tiny_pipe.vae.decode(latents / tiny_pipe.vae.config.scaling_factor).sample)

    handle = tiny_pipe.unet.register_forward_hook(look, with_kwargs=True)
    draw(tiny_pipe, 4, prompts, seed=FIRST_SEED)
    handle.remove()
    for n, pictures in enumerate(seen):
        wanted = pictures.repeat_interleave(4, 2).repeat_interleave(4, 3)  # 16 pixels a side become 64
        torch.testing.assert_close(made[:, n], wanted, atol=1e-4, rtol=1e-4)


def _times(pipe: Any, steps: int) -> list[int]:
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    return [int(t) for t in scheduler.timesteps]


def test_it_tells_pictures_apart() -> None:
    generator = torch.Generator().manual_seed(4)
    grey = torch.rand(2, 24, 3, 64, 64, generator=generator) - 0.5
    grey[0, :, 0, 20:40, 20:40] += 1  # a red square
    kernels, weights, biases = trained(grey[0, :16], grey[1, :16], STGConfig(iterations=60, batch=8))
    shown, other = (detected(side[16:], kernels, weights, biases) for side in grey)
    assert float(shown.min()) > 0 > float(other.max())
    again, *_ = trained(grey[0, :16], grey[1, :16], STGConfig(iterations=60, batch=8))
    assert torch.equal(again[0], kernels[0])


def test_it_is_an_eraser_as_any_other(tiny_pipe: Any, tmp_path: Path) -> None:
    eraser = method("stg").fit(tiny_pipe, CONCEPT, CONFIG)
    assert eraser.measured["pictures"] == 6 and eraser.measured["seen"] == 1.0
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    plain = draw(tiny_pipe)
    with again.attach(tiny_pipe):
        made = draw(tiny_pipe)
        with torch.inference_mode():
            torch.testing.assert_close(draw(tiny_pipe), made, atol=1e-4, rtol=1e-4)
    assert not torch.equal(made, plain)
    assert torch.equal(draw(tiny_pipe), plain)


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="stg needs two"):
        method("stg").fit(tiny_pipe, replace(CONCEPT, pairs=PAIRS[:1]), CONFIG)
    with pytest.raises(ExciseError, match="raise steps"):
        method("stg").fit(tiny_pipe, CONCEPT, replace(CONFIG, steps=1))
    with pytest.raises(ExciseError, match="stop must be below start"):
        STGConfig(start=50.0)
    own = edit()
    with pytest.raises(ExciseError, match="are not kernels"):
        replace(own, second=own.first)
    with pytest.raises(ExciseError, match="rho above 0"):
        replace(own, rho=0.0)
    if tiny.missing("sd3") is None:
        with pytest.raises(ExciseError, match="stg needs a U-Net that reads one text encoder"):
            method("stg").fit(tiny.build("sd3"), CONCEPT, CONFIG)


def test_in_half_precision_every_picture_that_shows_it_is_led_away(tiny_pipe: Any) -> None:
    pipe = tiny_pipe.to(torch.float16)
    with method("stg").fit(pipe, CONCEPT, CONFIG).attach(pipe):
        made = draw(pipe)
    plain = draw(pipe)
    assert not any(torch.equal(one, other) for one, other in zip(made, plain, strict=True))


def test_it_opens_no_way_round_another_eraser(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """The negative prompt's states are spared, and must not pass as a prompt's because others in the batch changed."""
    spared = tiny_pipe.encode_prompt("a gun on grass", "cpu", 1, False)[0]
    with gun_eraser.attach(tiny_pipe), method("stg").fit(tiny_pipe, CONCEPT, CONFIG).attach(tiny_pipe):
        draw(tiny_pipe, prompts=["a gun"], negative_prompt=["a gun on grass"])
        with pytest.raises(EraserDidNotFire):
            tiny_pipe(prompt_embeds=spared, negative_prompt_embeds=spared, num_inference_steps=2, output_type="latent")


def test_words_that_were_a_negative_prompt_need_guidance_too(tiny_pipe: Any) -> None:
    with method("stg").fit(tiny_pipe, CONCEPT, CONFIG).attach(tiny_pipe):
        draw(tiny_pipe, prompts=["a cat"], negative_prompt=["a gun on grass"])
        with pytest.raises(ExciseError, match="guidance_scale above 1"):
            draw(tiny_pipe, prompts=["a gun on grass"] * 2, guidance_scale=1.0)
        draw(tiny_pipe, prompts=["a gun"], negative_prompt=["a gun"])


def test_what_does_not_go_together_is_refused_when_it_is_attached(tiny_pipe: Any) -> None:
    one = method("stg").fit(tiny_pipe, CONCEPT, CONFIG)
    sld = method("sld").fit(tiny_pipe, CONCEPT)
    for first, second in ((one, sld), (sld, one), (one, replace(one, name="again"))):
        with first.attach(tiny_pipe), pytest.raises(ExciseError, match="cannot be attached together"):
            second.attach(tiny_pipe)
    with one.attach(tiny_pipe), Attachment(one, tiny_pipe, trial=True) as again:  # which acts in no image
        assert again.shift > 0
        with pytest.raises(ExciseError, match="cannot be attached together"):
            sld.attach(tiny_pipe)
    with Attachment(one, tiny_pipe, trial=True), sld.attach(tiny_pipe):
        pass
    tiny_pipe.vae._hf_hook = object()
    with pytest.raises(ExciseError, match="do not offload them"):
        one.attach(tiny_pipe)


def test_offloading_is_looked_for_once_an_image(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse, looks = acting.refuse_offloading, list[Any]()

    def counted(pipe: Any) -> None:
        looks.append(pipe)
        refuse(pipe)

    with method("stg").fit(tiny_pipe, CONCEPT, CONFIG).attach(tiny_pipe):
        monkeypatch.setattr(acting, "refuse_offloading", counted)
        for images in (1, 2):
            draw(tiny_pipe)
            assert len(looks) == images
