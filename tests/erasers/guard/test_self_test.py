"""A merged eraser of many concepts is proved part by part."""

from __future__ import annotations

from collections.abc import Callable
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


def part(pipe: Any, n: int, site: Site = SITE, **options: Any) -> tuple[Eraser, SAEEdit, Tensor]:
    """Return the n-th concept's eraser, an edit of all neurons of its SAE, and how loud each is in every canary.

    Its neuron is one that its canary prompt activates more than the others do, and its gate is between.
    """
    sae = TopKSAE(SAEConfig(d=64, m=2048, k=8), seed=0)
    every = SAEEdit.from_sae(sae, site, list(range(2048)), gate="whole", lead=1)
    (read,) = capture(pipe, [site], PROMPTS)
    loud = every.preacts(read.states[site])[:, 1:].amax(1)
    others = torch.cat([loud[:n], loud[n + 1 :]]).amax(0).clamp(min=0)
    levels = (loud[n] + others) / 2
    neuron = int(torch.where(loud[n] - others > 0.1, levels, 0).argmax())  # the highest gate
    gate: dict[str, Any] = {"gate": "whole", "threshold": levels[[neuron]], "typical": loud[n, [neuron]]}
    edit = SAEEdit.from_sae(sae, site, [neuron], lead=1, lam=2.0, **gate, **options)
    name = CONCEPTS[n]
    made = Eraser((edit,), name, name, (name,), made_for(pipe), canary=(PROMPTS[n],), canary_shift=1e-9)
    return made, every, loud


@pytest.fixture(scope="module")
def many(build_pipe: Callable[..., Any]) -> Many:
    pipe = build_pipe()
    parts, alike, louds = zip(*(part(pipe, n) for n in range(len(CONCEPTS))), strict=True)
    merged = merge(parts)
    assert merged.canary == tuple(PROMPTS)
    with merged.attach(pipe) as attachment:
        merged = replace(merged, canary_shift=attachment.shift)
    found = merged.edits[0].neurons
    return Many(merged, [found.index(one.edits[0].neurons[0]) for one in parts], alike[0], louds[0])


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


def ids(pipe: Any, texts: list[str]) -> Tensor:
    made: Tensor = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return made


def odd(pipe: Any, encode_prompt: Callable[..., Any]) -> Any:
    """The pipeline with another `encode_prompt`."""
    return SimpleNamespace(components=pipe.components, tokenizer=pipe.tokenizer, encode_prompt=encode_prompt)


def unconditional_first(pipe: Any) -> Any:
    """There the branches are mistaken for one another, and prompts go unedited."""

    def encode_prompt(prompt: Any, device: Any, num_images_per_prompt: int, do_classifier_free_guidance: bool) -> Any:
        texts = [prompt] if isinstance(prompt, str) else prompt
        without = pipe.text_encoder(ids(pipe, [""] * len(texts)))[0] if do_classifier_free_guidance else None
        return pipe.text_encoder(ids(pipe, texts))[0], without

    return odd(pipe, encode_prompt)


def test_a_pipeline_that_encodes_the_unconditional_prompt_first_is_refused(many: Many, tiny_pipe: Any) -> None:
    refused(many.eraser, unconditional_first(tiny_pipe))


def test_so_it_is_if_the_first_concepts_edit_acts_on_both_branches(tiny_pipe: Any) -> None:
    """Its canary moves there; the others' would without guidance."""
    first, _, _ = part(tiny_pipe, 0, uncond="same")
    below = Site("text_encoder", "encoder.layers.0", 64)
    merged = merge([first, *(part(tiny_pipe, n, below)[0] for n in range(1, len(CONCEPTS)))])
    assert [edit.uncond for edit in merged.text_edits] == ["same", "none"]
    refused(merged, unconditional_first(tiny_pipe))
    assert merged.attach(tiny_pipe).shift > 0.005


def test_a_pipeline_that_encodes_a_long_prompt_in_chunks_is_refused(many: Many, tiny_pipe: Any) -> None:
    """With guidance the second chunk is taken for the unconditional prompt. Only the first canary has one chunk."""

    def encode_prompt(prompt: Any, device: Any, num_images_per_prompt: int, do_classifier_free_guidance: bool) -> Any:
        texts = [prompt] if isinstance(prompt, str) else prompt
        every = [text.split("|") for text in texts]
        chunks = [[(row + [""] * n)[n] for row in every] for n in range(max(map(len, every)))]
        states = torch.cat([tiny_pipe.text_encoder(ids(tiny_pipe, chunk))[0] for chunk in chunks], 1)
        if not do_classifier_free_guidance:
            return states, None
        empty = ids(tiny_pipe, [""] * len(texts))
        return states, torch.cat([tiny_pipe.text_encoder(empty)[0] for _ in chunks], 1)

    long = (many.eraser.canary[0], *(f"the sky|{prompt}" for prompt in many.eraser.canary[1:]))
    refused(replace(many.eraser, canary=long), odd(tiny_pipe, encode_prompt))
