"""AdvUnlearn: its loss and its attack by hand, and changed weights in a text encoder."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, WeightEdit, verify
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods import method
from excise.methods.configs.trained import AdvUnlearnConfig
from excise.methods.trained.advunlearn import Task
from tests import tiny

PAIRS = (Pair("a gun on grass", "a cat on grass"), Pair("a photo of a gun", "a photo of a cup"))
CONCEPT = Concept("gun", ("gun",), PAIRS)
CONFIG = AdvUnlearnConfig(iterations=4, lr=1e-3, steps=3, retain=2, attack_steps=3, attack_lr=0.1)


def draw(pipe: Any, prompt: str = "a gun on grass", **how: Any) -> np.ndarray:
    how = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np", **how}
    made: np.ndarray = pipe(prompt, generator=torch.Generator().manual_seed(3), **how).images
    return made


@pytest.mark.parametrize("attack_steps", [0, 3])
def test_the_loss_is_the_paper_s(tiny_pipe: Any, attack_steps: int) -> None:
    task = Task(tiny_pipe, CONCEPT, replace(CONFIG, attack_steps=attack_steps, keep=0.5))
    with torch.no_grad():
        for n, change in enumerate(task.student.changes.values()):
            change.normal_(0, 0.05, generator=torch.Generator().manual_seed(n))
    made = task.loss(torch.Generator().manual_seed(5))
    trained = copy.deepcopy(tiny_pipe.text_encoder)
    body = getattr(trained, "text_model", trained)
    for site, change in task.student.changes.items():
        body.get_submodule(site.path).weight.data += change.detach()
    generator = torch.Generator().manual_seed(5)
    torch.randint(1, (1,), generator=generator)
    done = int(torch.randint(3, (1,), generator=generator))
    scheduler, unet = copy.deepcopy(tiny_pipe.scheduler), tiny_pipe.unet
    scheduler.set_timesteps(3)
    x = torch.randn(1, 4, 8, 8, generator=generator)

    def states(encoder: Any, text: str, first: torch.Tensor | None = None) -> torch.Tensor:
        """With `first` as the embedding of the first word."""
        ids = tiny_pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        rows = encoder.get_input_embeddings()(ids)[0]
        rows = rows if first is None else torch.stack([rows[0], first, *rows[2:]])
        handle = encoder.get_input_embeddings().register_forward_hook(lambda *_: rows[None])
        found: torch.Tensor = encoder(ids).last_hidden_state
        handle.remove()
        return found

    def worst(x: torch.Tensor, t: Any, wanted: torch.Tensor) -> torch.Tensor:
        """Of a token before the word, what brings the concept back."""
        table = tiny_pipe.text_encoder.get_input_embeddings().weight.detach()
        token = table[int(torch.randint(len(table), (1,), generator=generator))].clone().requires_grad_()
        adam = torch.optim.Adam([token], lr=0.1)
        for _ in range(attack_steps):
            adam.zero_grad()
            F.mse_loss(unet(x, t, states(trained, "cat gun", token)).sample, wanted).backward()
            adam.step()
        return states(trained, "cat gun", token.detach())

    with torch.no_grad():
        word, nothing = (states(tiny_pipe.text_encoder, text) for text in ("gun", ""))
        for t in scheduler.timesteps[:done]:
            without = unet(x, t, nothing).sample
            x = scheduler.step(without + 3.0 * (unet(x, t, word).sample - without), t, x).prev_sample
        t = scheduler.timesteps[done]
        without, with_it = unet(x, t, nothing).sample, unet(x, t, word).sample
    attacked = worst(x, t, with_it) if attack_steps else states(trained, "gun")
    with torch.no_grad():
        wanted = F.mse_loss(unet(x, t, attacked).sample, 2 * without - with_it)
        for pair in PAIRS:
            sides = (
                unet(x, t, states(encoder, pair.deconcept)).sample for encoder in (trained, tiny_pipe.text_encoder)
            )
            wanted += 0.5 * F.mse_loss(*sides) / 2
    assert float(made.detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_the_attack_s_token_stands_before_the_word(tiny_pipe: Any) -> None:
    task = Task(tiny_pipe, CONCEPT, CONFIG)
    table = tiny_pipe.text_encoder.get_input_embeddings().weight
    other = tiny_pipe.tokenizer("cat", add_special_tokens=False).input_ids[0]
    ids = task.words[0][1]
    with torch.no_grad():
        made = task.states(ids[None], table[other])
        batch = tiny_pipe.tokenizer("cat gun", padding="max_length", max_length=77, return_tensors="pt")
        wanted = tiny_pipe.text_encoder(batch.input_ids).last_hidden_state
    torch.testing.assert_close(made, wanted)


def test_the_attack_brings_the_concept_back(tiny_pipe: Any) -> None:
    """Its token makes the U-Net's prediction nearer to the concept's than where it began."""
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor(500)
    far = {}
    for steps in (1, 40):
        task = Task(tiny_pipe, CONCEPT, replace(CONFIG, attack_steps=steps, attack_lr=0.05))
        word, ids = task.words[0]
        wanted = tiny_pipe.unet(x, t, word.states).sample.detach()
        token = task._worst(x, t, ids, wanted, word, torch.Generator().manual_seed(2))
        with torch.no_grad():
            far[steps] = float(F.mse_loss(task._predicted(x, t, task.states(ids[None], token), word), wanted))
    assert far[40] < far[1]


@pytest.mark.usefixtures("short_removal")
def test_it_is_an_eraser_of_the_text_encoder(tiny_pipe: Any, tmp_path: Path) -> None:
    plain = draw(tiny_pipe)
    before = {name: p.detach().clone() for name, p in tiny_pipe.text_encoder.named_parameters()}
    eraser = method("advunlearn").fit(tiny_pipe, CONCEPT, CONFIG)
    assert {edit.site.component for edit in eraser.edits} == {"text_encoder"}
    assert all(torch.equal(p, before[name]) for name, p in tiny_pipe.text_encoder.named_parameters())
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    written = copy.deepcopy(tiny_pipe.text_encoder)
    body = getattr(written, "text_model", written)
    for edit in eraser.edits:
        assert isinstance(edit, WeightEdit)
        weight = body.get_submodule(edit.site.path).weight
        weight.data = weight.data + edit.of(weight)
    ids = tiny_pipe.tokenizer("a gun on grass", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with again.attach(tiny_pipe) as attachment:
        made, states = draw(tiny_pipe), tiny_pipe.encode_prompt("a gun on grass", "cpu", 1, False)[0]
        torch.testing.assert_close(states, written(ids).last_hidden_state, atol=1e-5, rtol=1e-4)
        attachment.strength = 0.0
        assert np.array_equal(draw(tiny_pipe), plain)
        attachment.strength = 1.0
        foreign = [torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(n)) for n in range(2)]
        with pytest.raises(EraserDidNotFire):
            tiny_pipe(prompt_embeds=foreign[0], negative_prompt_embeds=foreign[1], num_inference_steps=1)
    assert not np.array_equal(made, plain)
    assert np.array_equal(draw(tiny_pipe), plain)
    assert not [n for n, m in tiny_pipe.text_encoder.named_modules() if "forward" in vars(m)]


def test_some_layers_alone_can_be_trained(tiny_pipe: Any) -> None:
    task = Task(tiny_pipe, CONCEPT, replace(CONFIG, layers=1))
    assert task.student.changes
    assert all(site.path.startswith("encoder.layers.0.") for site in task.student.changes)


def test_bad_input_is_one_clear_line(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="choose another method"):
        method("advunlearn").fit(tiny.build("sd3"), CONCEPT, CONFIG)
    with pytest.raises(ExciseError, match="no prompt pairs"):
        method("advunlearn").fit(tiny_pipe, Concept("gun", ("gun",)), CONFIG)
    with pytest.raises(ExciseError, match="at least"):
        replace(CONFIG, retain=0)
    with pytest.raises(ExciseError, match="attack_lr"):
        replace(CONFIG, attack_lr=0.0)
