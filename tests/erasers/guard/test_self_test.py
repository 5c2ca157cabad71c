"""A merged eraser of many concepts is proved part by part."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.erasers import Eraser, SAEEdit, made_for, merge
from excise.erasers.edits.merged_sae import MergedSAEEdit
from excise.erasers.guard import self_test
from excise.errors import EraserDidNotFire
from excise.reference.world import OBJECTS
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site, capture

SITE = Site("text_encoder", "encoder.layers.1", 64)
CONCEPTS = OBJECTS[:20]
"""More than are proved one by one: the first alone, then batches of 16 and of 3."""
PROMPTS = [f"a {name}" for name in CONCEPTS]
EACH = pytest.mark.parametrize("part", [0, 1, 17, 19])


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "BATCH", 16)


@dataclass(frozen=True)
class Many:
    """A merged eraser, the number of each concept's neuron in its edit, and how loud every neuron is in each canary."""

    eraser: Eraser
    places: list[int]
    every: SAEEdit
    loud: Tensor

    @property
    def edit(self) -> MergedSAEEdit:
        (edit,) = self.eraser.edits
        assert isinstance(edit, MergedSAEEdit)
        return edit

    def changed(self, part: int, **rows: Any) -> Eraser:
        """The eraser with other values at one part's neuron."""
        tensors = {name: getattr(self.edit, name).clone() for name in rows}
        for name, value in rows.items():
            tensors[name][self.places[part]] = value
        return replace(self.eraser, edits=(replace(self.edit, **tensors),))


@pytest.fixture(scope="module")
def many(build_pipe: Callable[..., Any]) -> Many:
    """Each concept's neuron is one that its canary prompt activates more than the others do, and its gate between."""
    pipe = build_pipe()
    sae = TopKSAE(SAEConfig(d=64, m=2048, k=8), seed=0)
    every = SAEEdit.from_sae(sae, SITE, list(range(2048)), gate="whole", lead=1)
    (read,) = capture(pipe, [SITE], PROMPTS)
    loud = every.preacts(read.states[SITE])[:, 1:].amax(1)
    model, neurons, parts = made_for(pipe), list[int](), list[Eraser]()
    for n, name in enumerate(CONCEPTS):
        others = torch.cat([loud[:n], loud[n + 1 :]]).amax(0).clamp(min=0)
        levels = (loud[n] + others) / 2
        neurons.append(int(torch.where(loud[n] - others > 0.1, levels, 0).argmax()))  # the highest gate
        level = levels[neurons[-1:]]
        edit = SAEEdit.from_sae(
            sae, SITE, neurons[-1:], gate="whole", lead=1, lam=2.0, threshold=level, typical=loud[n, neurons[-1:]]
        )
        parts.append(Eraser((edit,), name, name, (name,), model, canary=(PROMPTS[n],), canary_shift=1e-9))
    merged = merge(parts)
    assert merged.canary == tuple(PROMPTS)
    with merged.attach(pipe) as attachment:
        merged = replace(merged, canary_shift=attachment.shift)
    found = merged.edits[0].neurons
    return Many(merged, [found.index(neuron) for neuron in neurons], every, loud)


def refused(eraser: Eraser, pipe: Any) -> None:
    """Neither a strict attach nor another one takes it."""
    for strict in (True, False):
        with pytest.raises(EraserDidNotFire, match="did not change what the denoiser reads on its canary prompt"):
            eraser.attach(pipe, strict=strict)


def test_a_batch_moves_each_canary_as_far_as_it_moves_alone(many: Many, tiny_pipe: Any) -> None:
    with many.eraser.attach(tiny_pipe) as attachment:
        alone = [self_test.moved_text(attachment, [prompt]) for prompt in PROMPTS]
        together = self_test.moved_text(attachment, PROMPTS)
    (part,) = together
    assert together[part] == pytest.approx(min(found[part] for found in alone), rel=1e-4)
    assert attachment.shift == together[part] > 0.005


@EACH
def test_a_part_that_is_not_turned_down_is_refused(many: Many, tiny_pipe: Any, part: int) -> None:
    refused(many.changed(part, lams=0.0), tiny_pipe)


@EACH
def test_a_part_that_moves_too_little_is_refused(many: Many, tiny_pipe: Any, part: int) -> None:
    with pytest.raises(EraserDidNotFire):
        many.changed(part, lams=0.05).attach(tiny_pipe)


@EACH
def test_a_part_with_another_neuron_is_refused(many: Many, tiny_pipe: Any, part: int) -> None:
    level = many.edit.threshold[many.places[part]]
    quiet = int(many.loud[part].argmin())
    assert many.loud[part, quiet] < level
    refused(many.changed(part, W_enc=many.every.W_enc[quiet], b_enc=many.every.b_enc[quiet]), tiny_pipe)


def test_neurons_of_another_sae_are_refused(many: Many, tiny_pipe: Any) -> None:
    """Although some canaries open one of their gates."""
    other = TopKSAE(SAEConfig(d=64, m=2048, k=8), seed=8)
    rows = {name: getattr(other, name).detach()[many.edit.indices].clone() for name in ("W_enc", "b_enc", "W_dec")}
    edit = replace(many.edit, **rows)
    (read,) = capture(tiny_pipe, [SITE], PROMPTS)
    opened = (edit.preacts(read.states[SITE])[:, 1:].amax(1) > edit.threshold).any(1)
    assert 0 < int(opened.sum()) < len(PROMPTS)
    refused(replace(many.eraser, edits=(edit,)), tiny_pipe)


def test_only_the_first_canary_is_encoded_with_the_unconditional_branch(
    many: Many, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, rows = self_test.denoiser_inputs, list[int]()

    def counted(pipe: Any, prompt: str | list[str], guidance: bool = True, **where: Any) -> Any:
        rows.append((1 + guidance) * (1 if isinstance(prompt, str) else len(prompt)))
        return encode(pipe, prompt, guidance, **where)

    monkeypatch.setattr(self_test, "denoiser_inputs", counted)
    many.eraser.attach(tiny_pipe).detach()
    assert rows == [2, 2, 2, 17, 17, 4, 4]  # once with the eraser and once without, and another prompt in each batch


def test_what_is_not_computed_again_changes_no_bit(many: Many, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with many.eraser.attach(tiny_pipe) as attachment:
        once = list(self_test._states(attachment, PROMPTS))
        monkeypatch.setattr(self_test, "repeats", lambda pipe: nullcontext())
        again = list(self_test._states(attachment, PROMPTS))
    for (*states, _), (*others, _) in zip(once, again, strict=True):
        pairs = zip(itertools.chain(*states), itertools.chain(*others), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_pipeline_that_encodes_the_unconditional_prompt_first_is_refused(many: Many, tiny_pipe: Any) -> None:
    """There the branches would be mistaken for one another and the prompts would go unedited."""

    def ids(texts: list[str]) -> Tensor:
        made: Tensor = tiny_pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
        return made

    def encode_prompt(prompt: Any, device: Any, num_images_per_prompt: int, do_classifier_free_guidance: bool) -> Any:
        texts = [prompt] if isinstance(prompt, str) else prompt
        without = tiny_pipe.text_encoder(ids([""] * len(texts)))[0] if do_classifier_free_guidance else None
        return tiny_pipe.text_encoder(ids(texts))[0], without

    odd = SimpleNamespace(components=tiny_pipe.components, tokenizer=tiny_pipe.tokenizer, encode_prompt=encode_prompt)
    refused(many.eraser, odd)
