"""SPM: its loss, its anchors, and the membrane that weighs every prompt."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.apply.weights_by_prompt import PromptScaledWeights
from excise.erasers.edits.weights import PromptScaledEdit, permeability
from excise.erasers.hooks.setting import LOCK
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods import method
from excise.methods.configs.trained import SPMConfig
from excise.methods.trained.sampling import encode_conditioning, frozen_unet
from excise.methods.trained.spm import anchors_near, objective, weights
from excise.methods.trained.trainer import LowRank
from tests import tiny

CONCEPT = Concept("gun", ("gun", "pistol"), (Pair("a gun on grass", "a cat on grass"),))
CONFIG = SPMConfig(iterations=4, lr=1e-2, steps=3, batch=2, anchoring=10.0, anchors=2)
PROMPTS = ["a gun on grass", "a bowl of soup", "a pistol"]


def draw(pipe: Any, prompts: list[str] = PROMPTS, **how: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np", **how}
    made: np.ndarray = pipe(prompts, generator=generator, **how).images
    return made


def test_permeability_is_the_larger_likeness() -> None:
    generator = torch.Generator().manual_seed(0)
    states, first, second = torch.randn(3, 4, 5, generator=generator)
    words = [(first, frozenset({7, 8})), (second, frozenset({9}))]
    near = [float(np.dot(states.flatten(), w.flatten()) / states.norm() / w.norm()) for w in (first, second)]
    assert permeability(states, [1, 7], words) == pytest.approx(max(0.5, *near))
    assert permeability(states, [1, 9], words) == pytest.approx(1.0)
    assert permeability(states, [1], words) == pytest.approx(max(0.0, *near), abs=1e-6)


def test_anchors_have_about_the_length_of_the_concept() -> None:
    states = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    made = anchors_near(states, 50, torch.Generator().manual_seed(2))
    lengths = made.flatten(1).norm(dim=1) / states.norm()
    assert made.shape == (50, 6, 8)
    assert 0.8 <= float(lengths.min()) < 0.9 < 1.1 < float(lengths.max()) <= 1.2
    again = anchors_near(states, 50, torch.Generator().manual_seed(2))
    assert torch.equal(made, again)


def test_the_loss_is_the_paper_s(tiny_pipe: Any) -> None:
    sides, empty = [encode_conditioning(tiny_pipe, "gun", "spm")], encode_conditioning(tiny_pipe, "", "spm")
    student = LowRank(tiny_pipe.unet, weights(tiny_pipe), {}, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for n, change in enumerate(student.changes.values()):
            change.add_(0.1 * torch.randn(change.shape, generator=torch.Generator().manual_seed(n)))
    config = replace(CONFIG, eta=20.0)  # A random model's predictions hardly depend on the text.
    made = objective(tiny_pipe, student, frozen_unet(tiny_pipe), sides, empty, torch.Generator().manual_seed(7), config)
    written = copy.deepcopy(tiny_pipe.unet)
    for site in student.changes:
        up, down = student.factors(site)
        weight = written.get_submodule(site.path).weight
        product = torch.outer(up.detach()[:, 0], down.detach()[0])
        weight.data = weight.data + product.reshape(weight.shape)
    generator = torch.Generator().manual_seed(7)
    torch.randint(1, (1,), generator=generator)
    done = int(torch.randint(3, (1,), generator=generator))
    scheduler = copy.deepcopy(tiny_pipe.scheduler)
    scheduler.set_timesteps(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    word, nothing = (tiny_pipe.encode_prompt(t, "cpu", 1, False)[0] for t in ("gun", ""))
    with torch.no_grad():
        for t in scheduler.timesteps[:done]:
            without = written(x, t, nothing.repeat(2, 1, 1)).sample
            guided = without + 3.0 * (written(x, t, word.repeat(2, 1, 1)).sample - without)
            x = scheduler.step(guided, t, x).prev_sample
        t = scheduler.timesteps[done]
        without, with_it = (tiny_pipe.unet(x, t, s.repeat(2, 1, 1)).sample for s in (nothing, word))
        erasing = F.mse_loss(written(x, t, word.repeat(2, 1, 1)).sample, without - 20 * (with_it - without))
        anchors = anchors_near(word[0], 2, generator)
        held = 0.0
        for anchor in anchors:
            pair = (unet(x[:1], t, anchor[None]).sample for unet in (written, tiny_pipe.unet))
            held += float(F.mse_loss(*pair)) / 2
    assert float(made.detach()) == pytest.approx(float(erasing) + 10.0 * held, rel=1e-3)
    assert held > 0


@pytest.mark.usefixtures("short_removal")
def test_every_prompt_weighs_the_adapters_by_itself(tiny_pipe: Any, tmp_path: Path) -> None:
    eraser = method("spm").fit(tiny_pipe, CONCEPT, CONFIG)
    plain_ones = draw(tiny_pipe)
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    shares = []
    for text in PROMPTS:
        states = tiny_pipe.encode_prompt(text, "cpu", 1, False)[0][0]
        words = [
            (
                tiny_pipe.encode_prompt(word, "cpu", 1, False)[0][0],
                frozenset(tiny_pipe.tokenizer(word, add_special_tokens=False).input_ids),
            )
            for word in CONCEPT.mentions
        ]
        shares.append(permeability(states, tiny_pipe.tokenizer(text, add_special_tokens=False).input_ids, words))
    assert shares[0] == shares[2] == pytest.approx(1.0, abs=1e-5)
    assert shares[1] < 0.999
    with again.attach(tiny_pipe):
        together = draw(tiny_pipe)
    assert np.array_equal(draw(tiny_pipe), plain_ones)
    for row, share in enumerate(shares):
        written = copy.deepcopy(tiny_pipe.unet)
        for edit in eraser.edits:
            assert isinstance(edit, PromptScaledEdit)
            weight = written.get_submodule(edit.site.path).weight
            weight.data = weight.data + round(share, 6) * edit.of(weight)
        own, tiny_pipe.unet = tiny_pipe.unet, written
        generator = [torch.Generator().manual_seed(row)]
        how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
        alone = tiny_pipe([PROMPTS[row]], generator=generator, **how).images
        tiny_pipe.unet = own
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)
        assert np.abs(together[row] - plain_ones[row]).max() > 1e-3


def test_states_of_nobody_are_refused(tiny_pipe: Any) -> None:
    eraser = method("spm").fit(tiny_pipe, CONCEPT, CONFIG)
    embeds = [tiny_pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a dog runs", "rain")]
    with eraser.attach(tiny_pipe), pytest.raises(EraserDidNotFire, match="not encoded under eraser"):
        tiny_pipe(prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1], num_inference_steps=1)


def test_bad_input_is_one_clear_line() -> None:
    with pytest.raises(ExciseError, match="choose another method"):
        method("spm").fit(tiny.build("sd3"), CONCEPT, CONFIG)
    with pytest.raises(ExciseError, match="at least 1"):
        replace(CONFIG, rank=0)


def test_attaching_holds_no_lock_while_it_encodes_words(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may begin an image meanwhile, for which it takes the lock."""
    eraser = method("spm").fit(tiny_pipe, CONCEPT, CONFIG)
    encoded, states = list[bool](), PromptScaledWeights._states

    def watched(self: PromptScaledWeights, text: str) -> torch.Tensor:
        begun = threading.Event()

        def begin() -> None:
            with LOCK:
                begun.set()

        threading.Thread(target=begin, daemon=True).start()
        encoded.append(begun.wait(20))
        return states(self, text)

    monkeypatch.setattr(PromptScaledWeights, "_states", watched)
    with eraser.attach(tiny_pipe):
        assert encoded == [True, True]
