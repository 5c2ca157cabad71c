"""Erasers on language models: while they read, and while they write."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.concepts import Concept, from_templates
from excise.erasers import Eraser, SAEEdit, made_for, verify
from excise.erasers.edits.orthogonal_sae import OrthogonalSAEEdit
from excise.erasers.edits.text_sae import onward_codes, whole_codes
from excise.erasers.edits.vectors import VectorEdit
from excise.erasers.hooks.context import unedited
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sites import LanguageModel, Site, capture, site_at
from tests.planted import NEURON, planted
from tests.tiny.causal import KINDS, causal

GUN, CAT = "a gun on grass", "a cat on grass"
PATH = "model.layers.1"
FAST = SNCEConfig(permutations=20, examine=2, neurons=(NEURON,))


@pytest.fixture(scope="module")
def concept() -> Concept:
    full = from_templates("gun", ("gun",), 12)
    return replace(full, pairs=full.pairs[:6], controls=full.controls[:4])


@pytest.fixture(scope="module", params=KINDS)
def fitted(request: Any, concept: Concept) -> tuple[LanguageModel, Eraser]:
    return made(request.param, concept)


def made(kind: str, concept: Concept, config: SNCEConfig = FAST) -> tuple[LanguageModel, Eraser]:
    pipe = causal(kind)
    site = site_at(pipe, PATH)
    sae = planted(pipe, site, concept)
    return pipe, fit(pipe, concept, config, sae={site: sae})


@pytest.fixture(scope="module")
def llama(concept: Concept) -> tuple[LanguageModel, Eraser]:
    """A Llama for tests that need only one kind of model. Tests leave it as it was."""
    return made("llama", concept)


def logits(pipe: LanguageModel, text: str, **options: Any) -> Tensor:
    ids, attention = pipe.tokenise([text])
    with torch.no_grad():
        out: Tensor = pipe.text_encoder(ids, attention_mask=attention, use_cache=False, **options).logits
    return out


def stepwise(pipe: LanguageModel, ids: Tensor, first: int) -> Tensor:
    """Logits `[1, T, V]` of a text whose first tokens are read at once and each of the others by itself."""
    with torch.no_grad():
        out = pipe.text_encoder(ids[:, :first], use_cache=True)
        parts = [out.logits]
        for at in range(first, ids.shape[1]):
            out = pipe.text_encoder(ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    return torch.cat(parts, 1)


def residue(pipe: LanguageModel) -> list[str]:
    wrapped = [n for n, m in pipe.text_encoder.named_modules() if {"forward", "_diffusers_hook"} & set(vars(m))]
    hooked = [n for n, m in pipe.text_encoder.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    return wrapped + hooked + (["encode_prompt"] if "encode_prompt" in vars(pipe) else [])


def test_onward_codes_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(3)
    preacts = torch.randn(3, 7, 2, generator=generator) * 3
    threshold, typical = torch.tensor([2.0, -1.0]), torch.tensor([6.0, 4.0])
    before = torch.tensor([[0.0, 0.0], [2.5, 0.0], [9.0, 1.0]])
    codes, loudest = onward_codes(preacts, threshold, typical, before)
    for b in range(3):
        for i in range(2):
            level = float(before[b, i])
            for t in range(7):
                z = max(float(preacts[b, t, i]), 0.0)
                level = max(level, z)
                gain = max(float(typical[i]) / max(level, 1e-6), 1.0)
                expected = gain * z if level > max(float(threshold[i]), 0.0) else 0.0
                assert float(codes[b, t, i]) == pytest.approx(expected, rel=1e-5)
            assert float(loudest[b, i]) == pytest.approx(level)


def test_onward_codes_are_the_same_in_however_many_stretches() -> None:
    preacts = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1)) * 2
    threshold, typical = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 5.0, 5.0])
    whole, last = onward_codes(preacts, threshold, typical, None)
    parts, before = [], None
    for stretch in preacts.split([4, 1, 1, 3], 1):
        codes, before = onward_codes(stretch, threshold, typical, before)
        parts.append(codes)
    assert torch.equal(torch.cat(parts, 1), whole)
    assert before is not None and torch.equal(before, last)
    # After the loudest state the codes are those of the whole text, and before the first that passes they are 0.
    reference = whole_codes(preacts, threshold, typical)
    at = preacts.clamp(min=0).argmax(1, keepdim=True)
    behind = torch.arange(9)[None, :, None] >= at
    assert torch.allclose(whole[behind], reference[behind])
    assert bool((whole[~(preacts.cummax(1).values > threshold)] == 0).all())


def test_only_the_concepts_text_changes_and_detach_restores_every_bit(fitted: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = fitted
    weights = {name: value.clone() for name, value in pipe.text_encoder.state_dict().items()}
    before = {text: (logits(pipe, text), pipe.generate(text, 6)) for text in (GUN, CAT)}
    assert eraser.canary_shift > 0
    assert eraser.edits[0].lead == 1  # type: ignore[union-attr]
    with eraser.attach(pipe) as attachment:
        assert torch.equal(logits(pipe, CAT), before[CAT][0]), "an unrelated text keeps every bit"
        edited = logits(pipe, GUN)
        at = next(n for n in range(edited.shape[1]) if not torch.equal(edited[0, n], before[GUN][0][0, n]))
        word = pipe.tokenizer("a", add_special_tokens=False)["input_ids"]
        assert at == 1 + len(word), "what stands before the concept's word keeps its bits"
        pipe.generate(GUN, 6)
        status = attachment.status()
        assert status["rows_edited"] > 0 and status["prompts_encoded"] == 1 and status["bypasses"] == 0
    for text, (plain, wrote) in before.items():
        assert torch.equal(logits(pipe, text), plain) and pipe.generate(text, 6) == wrote
    assert residue(pipe) == []
    assert all(torch.equal(value, weights[name]) for name, value in pipe.text_encoder.state_dict().items())


@pytest.mark.parametrize("gate", ["whole", "threshold", "relu"])
def test_a_text_is_edited_alike_however_it_is_cut_into_runs(fitted: tuple[LanguageModel, Eraser], gate: Any) -> None:
    pipe, eraser = fitted
    edit = replace(eraser.edits[0], gate=gate)  # type: ignore[arg-type]
    ids, _ = pipe.tokenise(["the cat and a gun on grass in the sky"])
    plain = logits(pipe, "the cat and a gun on grass in the sky")
    with replace(eraser, edits=(edit,)).attach(pipe, strict=False):
        whole = logits(pipe, "the cat and a gun on grass in the sky")
        assert not torch.allclose(whole, plain, atol=1e-3)
        for first in (1, 2, 5, ids.shape[1] - 1):
            assert torch.allclose(stepwise(pipe, ids, first), whole, atol=1e-3), first


def test_a_word_that_the_model_writes_itself_is_edited(fitted: tuple[LanguageModel, Eraser]) -> None:
    """The prompt says nothing of it: the text opens while it is written, and stays open."""
    pipe, eraser = fitted
    ids, _ = pipe.tokenise(["a cat and a gun"])
    start = pipe.tokenise(["a cat and a"])[0].shape[1]
    plain = stepwise(pipe, ids, start)
    with eraser.attach(pipe) as attachment, torch.no_grad():
        out = pipe.text_encoder(ids[:, :start], use_cache=True)
        assert torch.equal(out.logits, plain[:, :start]) and attachment.status()["rows_edited"] == 0
        edited = stepwise(pipe, ids, start)
        assert attachment.status()["rows_edited"] > 0
    assert not torch.allclose(edited[:, -1], plain[:, -1], atol=1e-3)


def test_what_is_written_with_a_cache_is_what_is_written_without(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    ids, attention = pipe.tokenise([GUN])
    options = {"attention_mask": attention, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
    with eraser.attach(pipe):
        cached = pipe.text_encoder.generate(ids, **options)
        assert torch.equal(cached, pipe.text_encoder.generate(ids, use_cache=False, **options))
        assert pipe.generate(GUN, 8) == pipe.tokenizer.decode(cached[0, ids.shape[1] :], skip_special_tokens=True)
    assert not torch.equal(cached, pipe.text_encoder.generate(ids, **options))


def test_texts_of_a_batch_open_each_for_itself_on_either_side_of_padding(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    texts = [GUN, "a cat on grass in the sky with a frog"]
    ids, attention = pipe.tokenise(texts)
    lengths = attention.sum(1).tolist()
    left, mask = torch.zeros_like(ids), torch.zeros_like(attention)
    for row, length in enumerate(lengths):
        left[row, -length:], mask[row, -length:] = ids[row, :length], 1

    def run(tokens: Tensor, read: Tensor) -> Tensor:
        positions = (read.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            out: Tensor = pipe.text_encoder(tokens, attention_mask=read, position_ids=positions, use_cache=False).logits
        return out

    plain = run(ids, attention), run(left, mask)
    with eraser.attach(pipe):
        edited = run(ids, attention), run(left, mask)
        alone = logits(pipe, GUN)[0]
    assert torch.equal(edited[0][1], plain[0][1]) and torch.equal(edited[1][1], plain[1][1])
    length = lengths[0]
    assert torch.allclose(edited[0][0, :length], alone, atol=1e-3)
    assert torch.allclose(edited[1][0, -length:], alone, atol=1e-3)


def test_padding_that_fires_opens_nothing(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    gun = int(pipe.tokenise(["a gun"])[0][0, -1])
    ids, attention = pipe.tokenise([CAT])
    padded = torch.cat([torch.full((1, 2), gun), ids], 1)
    mask = torch.cat([torch.zeros(1, 2, dtype=torch.long), attention], 1)
    with torch.no_grad():
        plain = pipe.text_encoder(padded, attention_mask=mask, use_cache=False).logits
        with eraser.attach(pipe) as attachment:
            edited = pipe.text_encoder(padded, attention_mask=mask, use_cache=False).logits
            assert attachment.status()["rows_edited"] == 0
            # Were it no padding, it would.
            pipe.text_encoder(padded, use_cache=False)
            assert attachment.status()["rows_edited"] > 0
    assert torch.equal(edited[:, 2:], plain[:, 2:])


def test_a_first_state_is_left_alone_only_where_it_is_no_word(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    gun = pipe.tokenise(["a gun"])[0][:, -1:]
    with torch.no_grad(), eraser.attach(pipe) as attachment:
        pipe.text_encoder(gun, use_cache=False)  # without a BOS
        assert attachment.status()["rows_edited"] > 0


def test_a_cache_that_was_filled_elsewhere_is_refused(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    ids, _ = pipe.tokenise([GUN])
    with torch.no_grad():
        foreign = pipe.text_encoder(ids[:, :-1], use_cache=True).past_key_values
        with eraser.attach(pipe) as attachment:
            with pytest.raises(EraserDidNotFire, match="was not filled under the current settings of eraser"):
                pipe.text_encoder(ids[:, -1:], past_key_values=copy.deepcopy(foreign))
            own = pipe.text_encoder(ids[:, :-1], use_cache=True).past_key_values
            pipe.text_encoder(ids[:, -1:], past_key_values=own)
            # At another strength the eraser would have edited its content differently.
            attachment.strength = 0.5
            with pytest.raises(EraserDidNotFire, match="was not filled under the current settings of eraser"):
                pipe.text_encoder(ids[:, -1:], past_key_values=own)
            with unedited():
                pipe.text_encoder(ids[:, -1:], past_key_values=copy.deepcopy(foreign))
            attachment.on_bypass = "warn"
            with pytest.warns(UserWarning, match="was not filled"):
                pipe.text_encoder(ids[:, -1:], past_key_values=copy.deepcopy(foreign))
            assert attachment.status()["bypasses"] == 3


def test_a_layer_that_runs_by_itself_or_is_unhooked_is_refused(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    layer = pipe.text_encoder.get_submodule(PATH)
    states, length = torch.randn(1, 3, 32), 3
    angles = pipe.text_encoder.model.rotary_emb(states, torch.arange(length)[None])
    with eraser.attach(pipe), torch.no_grad():
        with pytest.raises(ExciseError, match="ran by itself"):
            layer(states, position_embeddings=angles)
        wrapped = vars(layer).pop("forward")
        try:
            for read in (lambda: pipe.generate(GUN, 2), lambda: logits(pipe, GUN)):
                with pytest.raises(EraserDidNotFire, match="unhooked"):
                    read()
        finally:
            layer.forward = wrapped
        logits(pipe, GUN)
    assert residue(pipe) == []


def test_changed_weights_and_a_replaced_model_are_refused(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    weight = pipe.text_encoder.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    with eraser.attach(pipe):
        with torch.no_grad():
            weight.add_(0.5)
        for read in (lambda: pipe.generate(GUN, 2), lambda: logits(pipe, GUN)):
            with pytest.raises(EraserDidNotFire, match="changed after eraser"):
                read()
        with torch.no_grad():
            weight.copy_(before)
        logits(pipe, GUN)
        own, pipe.text_encoder = pipe.text_encoder, copy.copy(causal("llama").text_encoder)
        try:
            with pytest.raises(ExciseError, match="was replaced after eraser"):
                pipe.generate(GUN, 2)
        finally:
            pipe.text_encoder = own
    with torch.no_grad():
        weight.add_(0.5)
        with pytest.raises(ExciseError, match="made for another pipeline"):
            eraser.attach(pipe)
        weight.copy_(before)


def test_a_negative_strength_writes_the_concept_in_and_has_to_be_allowed(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    site: Site = eraser.edits[0].site
    with pytest.raises(ExciseError, match="would amplify"):
        eraser.attach(pipe, -1.0)

    def states() -> Tensor:
        (batch,) = capture(pipe, [site], [GUN])
        return batch.states[site]

    plain = states()
    with eraser.attach(pipe, 1.0):
        less = states()
    with eraser.attach(pipe, -1.0, allow_amplify=True):
        more = states()
    assert not torch.equal(less, plain)
    assert torch.allclose(more - plain, plain - less, atol=1e-2, rtol=1e-3)


def test_an_eraser_that_changes_no_prediction_is_refused(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    with pytest.raises(EraserDidNotFire, match="did not change the next-token prediction"):
        replace(eraser, canary=(CAT,)).attach(pipe)
    assert residue(pipe) == []


def test_edits_that_do_not_suit_a_growing_text_are_refused(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    edit = eraser.edits[0]
    assert isinstance(edit, SAEEdit)
    fixed = replace(edit, source="concept", gate="relu", concept_codes=torch.ones(3, 1), lead=0)
    vectors = VectorEdit(edit.site, torch.ones(3, 32))
    for other, message in ((fixed, 'source="prompt"'), (vectors, "make one with snce")):
        with pytest.raises(ExciseError, match=message):
            Eraser((other,), "other", "gun", (), made_for(pipe), canary=(GUN,)).attach(pipe)
    assert residue(pipe) == []


def test_directions_that_spare_other_neurons_suit_a_language_model_too(concept: Concept) -> None:
    pipe = causal("llama")
    site = site_at(pipe, PATH)
    sae = planted(pipe, site, concept)
    with torch.no_grad():
        sae.b_enc[:3] += 2  # they fire in every text
    eraser = fit(pipe, concept, replace(FAST, ortho=2), sae={site: sae})
    (edit,) = eraser.edits
    assert isinstance(edit, OrthogonalSAEEdit) and len(edit.coupled) == 2 and max(edit.coupled) < 3
    before = {text: logits(pipe, text) for text in (GUN, CAT)}
    with eraser.attach(pipe):
        assert torch.equal(logits(pipe, CAT), before[CAT]) and not torch.equal(logits(pipe, GUN), before[GUN])
    assert torch.equal(logits(pipe, GUN), before[GUN])
    assert residue(pipe) == []


def test_two_erasers_act_together_and_leave_no_trace(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    edit = eraser.edits[0]
    assert isinstance(edit, SAEEdit)
    half = replace(eraser, edits=(replace(edit, lam=edit.lam / 2),), name="half")
    quarter = replace(eraser, edits=(replace(edit, lam=edit.lam / 4),), name="quarter")
    plain = logits(pipe, GUN)
    with half.attach(pipe, strict=False):
        first = logits(pipe, GUN)
        with quarter.attach(pipe, strict=False):
            both = logits(pipe, GUN)
        assert torch.equal(logits(pipe, GUN), first)
    assert not torch.equal(first, plain) and not torch.equal(both, first)
    with quarter.attach(pipe, strict=False), half.attach(pipe, strict=False):
        assert torch.equal(logits(pipe, GUN), both), "whichever was attached first"
    assert residue(pipe) == [] and torch.equal(logits(pipe, GUN), plain)


def test_a_saved_eraser_verifies_and_fits_the_model_in_bfloat16(
    llama: tuple[LanguageModel, Eraser], tmp_path: Path
) -> None:
    pipe, eraser = llama
    eraser.save(tmp_path / "eraser")
    assert all(check.passed for check in verify(tmp_path / "eraser", pipe))
    half = LanguageModel(copy.deepcopy(pipe.text_encoder).to(torch.bfloat16), pipe.tokenizer)
    plain = {text: logits(half, text) for text in (GUN, CAT)}
    with Eraser.load(tmp_path / "eraser").attach(half):
        assert torch.equal(logits(half, CAT), plain[CAT])
        assert not torch.equal(logits(half, GUN), plain[GUN])


def test_the_mlps_output_is_edited_like_the_residual_stream(concept: Concept) -> None:
    pipe = causal("qwen2")
    site = site_at(pipe, "model.layers.1.mlp")
    sae = planted(pipe, site, concept)
    eraser = fit(pipe, concept, FAST, sae={site: sae})
    (batch,) = capture(pipe, [site], [GUN])
    expected = eraser.edits[0].apply(batch.states[site])  # type: ignore[union-attr]
    with eraser.attach(pipe):
        (edited,) = capture(pipe, [site], [GUN])
    assert torch.allclose(edited.states[site][:, :-1], expected[:, :-1], atol=1e-4)
    assert not torch.equal(edited.states[site], batch.states[site])


@pytest.mark.slow
def test_compiled_it_is_refused(llama: tuple[LanguageModel, Eraser]) -> None:
    pipe, eraser = llama
    ids, _ = pipe.tokenise([GUN])
    compiled = torch.compile(pipe.text_encoder, backend="eager")
    try:
        with eraser.attach(pipe), torch.no_grad(), pytest.raises(ExciseError, match="compiled"):
            compiled(ids, use_cache=False)
        with torch.no_grad():
            assert torch.equal(compiled(ids, use_cache=False).logits, logits(pipe, GUN))
    finally:
        torch._dynamo.reset()
