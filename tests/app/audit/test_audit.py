"""Audits of real erasers: a clean one with a planted neuron, and bad ones that must be flagged."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from excise.app.audit import page as audit_page
from excise.app.audit.audit import Audit, Plan
from excise.app.audit.inputs import (
    Benign,
    Word,
    benign_prompts,
    concept_of,
    named_saes,
    saes_of,
    words_for,
)
from excise.app.audit.reading import contexts_of, prediction_changes, unconditional_changes
from excise.app.models.resolve import kind_of
from excise.concepts import Concept, Pair, from_templates, save_pairs
from excise.concepts.concept import mentioned
from excise.concepts.sentences import group_sentences, sentences
from excise.erasers import Eraser, SAEEdit, WeightEdit, made_for
from excise.erasers.artefact.canary import shift
from excise.erasers.artefact.files import SIGNATURE
from excise.erasers.edits.sae_rows import sae_digest
from excise.erasers.guard.canary import denoiser_inputs, denoiser_predictions
from excise.erasers.hooks.context import unedited
from excise.erasers.proof.effects import text_changes
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import prompt_codes
from excise.methods.sae.snce import fit
from excise.sae import TopKSAE, save
from excise.sites import Site
from tests.planted import NEURON, planted

FEW = 6
BENIGN = ("a cat on grass", "a dog and a bus", "the house", "a rose on wood", "on sand, a star", "a frog in the sky")


@pytest.fixture(scope="module")
def concept() -> Concept:
    full = from_templates("gun", ("gun",), 12)
    return replace(full, pairs=full.pairs[:8], controls=full.controls[:20])


@pytest.fixture(scope="module")
def _fitted(build_pipe: Callable[..., Any], concept: Concept) -> tuple[Tensor, TopKSAE, Eraser]:
    """The token embeddings of `tiny_pipe` in which "gun" stands out, with the SAE and the eraser for them."""
    pipe, site = build_pipe(), Site("text_encoder", "encoder.layers.2", 64)
    sae = planted(pipe, site, concept)
    eraser = fit(pipe, concept, SNCEConfig(permutations=20, examine=2), sae={site: sae})
    return pipe.text_encoder.get_input_embeddings().weight.detach(), sae, eraser


@pytest.fixture
def sae(tiny_pipe: Any, _fitted: tuple[Tensor, TopKSAE, Eraser]) -> TopKSAE:
    """An SAE whose neuron 5 is "gun"."""
    with torch.no_grad():
        tiny_pipe.text_encoder.get_input_embeddings().weight.copy_(_fitted[0])
    return copy.deepcopy(_fitted[1])


@pytest.fixture
def eraser(sae: TopKSAE, _fitted: tuple[Tensor, TopKSAE, Eraser]) -> Eraser:
    """An eraser by that SAE, for `tiny_pipe` as the fixture `sae` leaves it."""
    return copy.deepcopy(_fitted[2])


@pytest.fixture
def run(tiny_pipe: Any, concept: Concept, tmp_path: Path) -> Callable[..., Audit]:
    """Audit an eraser with a few benign prompts and a few sentences about groups: `run(eraser, sae)`."""

    def audited(eraser: Eraser, sae: TopKSAE | None = None, signed: bool = False, **given: Any) -> Audit:
        eraser.save(tmp_path / "eraser")
        if signed:
            (tmp_path / "eraser" / SIGNATURE).write_text("{}")
        saes = {} if sae is None else {sae_digest(sae): sae}
        options = {"words": words_for(eraser), "benign": Benign(BENIGN, "a list", 0), "concept": concept, **given}
        plan = Plan(eraser, tiny_pipe, saes=saes, folder=tmp_path / "eraser", command=("excise", "audit"), **options)
        plan.__dict__["groups"] = group_sentences()[: 3 * FEW]
        done = 0

        def progress(more: int) -> None:
            nonlocal done
            done += more

        found = plan.run(progress)
        assert done <= plan.steps
        if found.effects:
            assert done == plan.steps
        return found

    return audited


def with_edit(eraser: Eraser, **changes: Any) -> Eraser:
    (edit,) = eraser.edits
    return replace(eraser, edits=(replace(edit, **changes),))


def test_a_clean_eraser_raises_no_flag(run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE) -> None:
    found = run(eraser, sae)
    assert not found.red
    assert {kind for kind, outcome in found.checks.items() if outcome != "clear"} == {"altered weights"}
    assert found.checks["altered weights"] == "not applicable"
    (neuron,), (effect,) = found.neurons, found.effects
    assert (neuron.neuron, neuron.exact) == (NEURON, True)
    assert {name: side.fired for name, side in neuron.sides.items()} == {
        "concept": neuron.sides["concept"].prompts,
        "deconcept": 0,
        "controls": 0,
        "benign": 0,
    }
    assert neuron.effective_words == pytest.approx(1)
    assert (effect.touched, effect.benign, effect.worst) == (0, len(BENIGN), ())
    assert [word.caught for word in effect.words] == [True]
    assert effect.words[0].relative == pytest.approx(1)
    assert effect.unconditional is False
    assert found.left_out == ()


def test_changes_are_those_of_the_prompts_alone(tiny_pipe: Any, eraser: Eraser) -> None:
    prompts = ["a gun on grass", "a cat", "a cat and a gun", "a bus", "gun"]
    with eraser.attach(tiny_pipe):
        found = text_changes(tiny_pipe, prompts)
        assert text_changes(tiny_pipe, prompts[:1]) == pytest.approx(found[:1])
        for prompt, change in zip(prompts, found, strict=True):
            new = denoiser_inputs(tiny_pipe, prompt)[0]
            with unedited():
                old = denoiser_inputs(tiny_pipe, prompt)[0]
            assert change == pytest.approx(shift(new, old), rel=1e-5)
            assert (change == 0) == ("gun" not in prompt)
    assert text_changes(tiny_pipe, prompts) == [0.0] * len(prompts), "nothing is attached"


def test_an_unconditional_branch_that_changes_is_noticed(tiny_pipe: Any, eraser: Eraser) -> None:
    for uncond, changes in (("none", False), ("same", True)):
        # The empty prompt opens nothing by itself: the threshold is taken away.
        edit = with_edit(eraser, uncond=uncond, gate="relu", b_enc=torch.full((1,), 50.0))
        with edit.attach(tiny_pipe, strict=False):
            assert unconditional_changes(tiny_pipe, "a gun") is changes


def test_codes_are_the_saes_or_the_erasers_own(tiny_pipe: Any, eraser: Eraser, sae: TopKSAE, concept: Concept) -> None:
    prompts = [*BENIGN, *(pair.concept for pair in concept.pairs)]
    (edit,) = eraser.edits
    assert isinstance(edit, SAEEdit)
    codes, _ = prompt_codes(tiny_pipe, sae, edit.site, prompts)
    exact, own = contexts_of(tiny_pipe, edit, sae, prompts), contexts_of(tiny_pipe, edit, None, prompts)
    for n in range(len(prompts)):
        at = torch.where(codes.indices[n] == NEURON, codes.values[n], 0).sum(-1)[codes.scored[n]]
        assert exact.context(n, NEURON).codes == pytest.approx(at.tolist(), rel=1e-5, abs=1e-5)
        loud = torch.where(at > edit.threshold, at, 0)
        assert own.context(n, NEURON).codes == pytest.approx(loud.tolist(), rel=1e-5, abs=1e-4)
        assert own.context(n, NEURON).tokens == exact.context(n, NEURON).tokens


def test_without_the_sae_what_needs_it_is_left_out_and_reported(
    run: Callable[..., Audit], eraser: Eraser, tiny_pipe: Any
) -> None:
    found = run(eraser)
    assert found.neurons[0].neighbours is None
    assert not found.neurons[0].exact
    assert found.checks["split"] == "not applicable"
    assert found.checks["structural"] == "clear"
    assert any("--sae" in text for text in found.left_out)
    topk = with_edit(eraser, gate="topk")
    with pytest.raises(ExciseError, match="name it with --sae"):
        run(topk)


def test_neighbours_are_by_cosine_and_a_second_neuron_of_the_concept_is_noted(
    run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE
) -> None:
    twin = 9
    with torch.no_grad():
        sae.W_enc[twin], sae.b_enc[twin] = sae.W_enc[NEURON], sae.b_enc[NEURON]
        sae.W_dec[twin] = torch.nn.functional.normalize(sae.W_dec[NEURON] + 0.3 * sae.W_dec[twin], dim=0)
    found = run(with_edit(eraser, sae_digest=sae_digest(sae)), sae)
    nearest = found.neurons[0].neighbours
    assert nearest is not None
    cosines = torch.nn.functional.cosine_similarity(sae.W_dec, sae.W_dec[NEURON], dim=1)
    cosines[NEURON] = -2
    assert [n.neuron for n in nearest] == cosines.argsort(descending=True)[:5].tolist()
    assert nearest[0].neuron == twin
    assert (nearest[0].splits, nearest[0].concept, nearest[0].controls) == (True, 1.0, 0.0)
    assert found.checks["split"] == "note"
    assert not found.red


def test_a_neuron_of_a_conjunction_is_structural_and_misses_the_concept(
    run: Callable[..., Audit], tiny_pipe: Any, tiny_site: Site
) -> None:
    nouns = ("cat", "dog", "bus", "rose", "star", "frog", "gun")
    pairs = tuple(Pair(f"a {a} and a {b}", f"a {a} with a {b}") for a in nouns for b in nouns if a != b)
    conjunction = Concept("and", ("and",), pairs)
    sae = planted(tiny_pipe, tiny_site, conjunction)
    codes, ids = prompt_codes(tiny_pipe, sae, tiny_site, [pair.concept for pair in pairs])
    fires = ((codes.indices == NEURON) & (codes.values > 0)).any(-1)
    word = tiny_pipe.tokenizer.convert_tokens_to_ids("and</w>")
    assert fires[ids == word].all(), "the neuron answers “and”, read from its codes"
    edit = SAEEdit.from_sae(sae, tiny_site, [NEURON], gate="relu", lam=1.0)
    bad = Eraser((edit,), "bad", "gun", ("gun",), made_for(tiny_pipe), canary=("a gun and a cat",))
    benign = Benign(tuple(pair.concept for pair in pairs if "gun" not in pair.concept), "a list", 0)
    found = run(bad, sae, benign=benign)
    assert found.red
    by_kind = {flag.kind: flag for flag in found.flags}
    assert {"structural", "not caught", "touches too much"} <= set(by_kind)
    assert any(re.search(r"“and” sets neuron 5 off in (\d+) of \1 ", line) for line in by_kind["structural"].evidence)
    assert found.effects[0].touched == len(benign.prompts)


def test_a_threshold_that_is_far_too_low_touches_what_is_benign(
    run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE
) -> None:
    low = with_edit(eraser, gate="threshold", threshold=torch.zeros(1), b_enc=torch.full((1,), 20.0))
    found = run(low, sae)
    assert found.checks["touches too much"] == "red"
    effect = found.effects[0]
    assert effect.touched == len(BENIGN)
    assert [changed.change for changed in effect.worst] == sorted((c.change for c in effect.worst), reverse=True)
    assert any("could not be judged" in text for text in found.left_out), "sentences about people change anyway"


def test_words_that_are_missed_come_first(run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE) -> None:
    found = run(eraser, sae, words=(Word("gun", "mention"), Word("zebra", "given"), Word("guns", "given")))
    effect = found.effects[0]
    assert not effect.words[0].caught
    assert found.checks["not caught"] == "red"
    missed = {word.word for word in effect.words if not word.caught}
    assert "zebra" in missed
    assert "gun" not in missed
    assert next(word.opened for word in effect.words if word.word == "zebra") == 0


@pytest.mark.parametrize("kind", ["dud", "amplifier"])
def test_a_word_that_is_changed_and_not_removed_is_not_caught(
    run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE, kind: str
) -> None:
    """A dud changes every sentence, by a five-hundredth. An amplifier subtracts the decoder row turned round."""
    (edit,) = eraser.edits
    assert isinstance(edit, SAEEdit)
    bad = replace(edit, lam=0.002 * edit.lam) if kind == "dud" else replace(edit, W_dec=-edit.W_dec)
    found = run(replace(eraser, edits=(bad,), canary_shift=0.0), sae=sae)
    (effect,) = found.effects
    assert effect.words[0].opened == effect.words[0].sentences > 0
    assert not effect.words[0].caught
    assert found.checks["not caught"] == "red"
    removed = effect.words[0].removed
    assert removed is not None and (0 < removed < 0.01 if kind == "dud" else removed < 0)


def test_rows_that_are_not_the_saes_are_a_red_flag(run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE) -> None:
    (edit,) = eraser.edits
    assert isinstance(edit, SAEEdit)
    nudged = edit.W_enc.clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(9.0))
    for changes, names in (
        ({"W_enc": nudged}, "W_enc"),
        ({"indices": edit.indices + sae.config.m}, "indices, W_enc, b_enc, b_pre, W_dec"),
    ):
        found = run(with_edit(eraser, **changes), sae)
        (flag,) = [flag for flag in found.flags if flag.kind == "altered rows"]
        assert (flag.severity, flag.evidence) == ("red", (f"{edit.site.key}: {names}",))
        assert found.red
        assert any("which were altered" in line for line in found.left_out)


def test_weights_that_are_not_solved_again_are_a_red_flag(
    run: Callable[..., Audit], tiny_pipe: Any, concept: Concept
) -> None:
    honest = method("uce").fit(tiny_pipe, concept, method("uce").Config())
    first, *others = honest.edits
    assert isinstance(first, WeightEdit)
    altered = replace(honest, edits=(WeightEdit(first.site, delta=-first.change()), *others), canary_shift=0.0)
    assert run(honest).checks["altered weights"] == "clear"
    found = run(altered)
    (flag,) = [flag for flag in found.flags if flag.kind == "altered weights"]
    assert (flag.severity, flag.evidence) == ("red", (first.site.key,))
    assert run(replace(altered, method="esd-x")).checks["altered weights"] == "not applicable"


def test_an_eraser_that_does_not_bite_is_flagged_and_still_looked_at(
    run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE
) -> None:
    weak = run(replace(eraser, canary_shift=1e6), sae)
    assert weak.checks["no bite"] == "red"
    assert weak.effects[0].touched == 0
    dead = run(with_edit(eraser, threshold=torch.full((1,), 1e9)), sae)
    assert dead.checks["no bite"] == "red"
    assert dead.effects == ()
    assert dead.checks["touches too much"] == dead.checks["protected group"] == "not applicable"
    assert dead.provenance["canary_shift"]["now"] is None
    assert dead.neurons[0].sides["concept"].fired > 0


def test_a_group_whose_word_opens_the_gate_is_red(
    run: Callable[..., Audit], tiny_pipe: Any, tiny_site: Site, concept: Concept
) -> None:
    """The neuron is for "Jewish", while the eraser claims "gun"."""
    about = Concept("j", ("jewish",), tuple(Pair(f"a jewish {x}", f"a tall {x}") for x in ("person", "cat", "bus")))
    sae = planted(tiny_pipe, tiny_site, about)
    edit = SAEEdit.from_sae(sae, tiny_site, [NEURON], gate="relu")
    bad = Eraser((edit,), "bad", "gun", ("gun",), made_for(tiny_pipe), canary=("a jewish person",))
    found = run(bad, sae)
    assert found.checks["protected group"] == "red"
    flag = next(flag for flag in found.flags if flag.kind == "protected group")
    assert len(flag.evidence) == 1
    assert flag.evidence[0].startswith("“Jewish” (religion): changed in 3 of 3 sentences")
    assert "a neuron fires in 3 of 3" in flag.evidence[0]
    assert (found.groups[0].word, found.groups[0].touched) == ("Jewish", 3)


def test_another_model_is_refused(run: Callable[..., Audit], eraser: Eraser, build_pipe: Callable[..., Any]) -> None:
    other = build_pipe(seed=1)
    with pytest.raises(ExciseError, match="another pipeline"):
        run(replace(eraser, made_for=made_for(other)))


def test_an_eraser_of_weights_is_audited_in_what_applies(
    run: Callable[..., Audit], tiny_pipe: Any, concept: Concept
) -> None:
    uce = method("uce")
    made = uce.fit(tiny_pipe, concept, uce.Config())
    found = run(made)
    assert found.neurons == found.groups == ()
    (effect,) = found.effects
    assert effect.measured == "prediction"
    assert effect.touched == effect.benign == len(BENIGN)
    assert found.checks["structural"] == found.checks["protected group"] == "not applicable"
    assert found.checks["touches too much"] == "note"
    assert not found.red
    assert any("not applicable to edits of the denoiser (weights)" in text for text in found.left_out)
    with made.attach(tiny_pipe):
        (change,) = prediction_changes(tiny_pipe, ["a gun"], 2)
        new = denoiser_predictions(tiny_pipe, "a gun", 2)
        with unedited():
            old = denoiser_predictions(tiny_pipe, "a gun", 2)
    assert change == pytest.approx(max(shift(a, b) for a, b in zip(new, old, strict=True)))
    assert change > 0
    assert "Not applicable" in audit_page.render(found)


def test_the_same_audit_gives_the_same_json(run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE) -> None:
    texts = [json.dumps(run(eraser, sae).to_json(), allow_nan=False) for _ in range(2)]
    assert texts[0] == texts[1]
    data = json.loads(texts[0])
    assert data["schema"] == "excise.audit/1"
    assert data["effects"][0]["words"][0]["caught"] is True
    assert data["provenance"]["digest"] == eraser.digest
    assert data["provenance"]["signature"] == "none"
    assert data["provenance"]["created"] == json.loads(json.dumps(dict(eraser.created)))


def test_a_signature_is_reported(run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE) -> None:
    assert "not checked" in run(eraser, sae, signed=True).provenance["signature"]


def test_the_page_shows_everything_and_escapes_all_text(
    run: Callable[..., Audit], eraser: Eraser, sae: TopKSAE
) -> None:
    evil = "<script>alert(1)</script>"
    named = replace(eraser, name=f"{evil}name", mentions=("gun", f"{evil}word"), created={"method": f"{evil}method"})
    low = with_edit(named, gate="threshold", threshold=torch.zeros(1), b_enc=torch.full((1,), 20.0))
    found = run(low, sae, benign=Benign((f"a {evil}cat", *BENIGN), f"{evil}file", 0))
    found = replace(found, concept=f"{evil}concept", left_out=(f"{evil}left",))
    page = audit_page.render(found)
    assert evil not in page
    assert "<script" not in page
    for text in ("name", "word", "method", "cat", "file", "concept", "left"):
        assert f"&lt;script&gt;alert(1)&lt;/script&gt;{text}" in page, text
    for heading in ("Flags", "Benign prompts", "Words for the concept", "Neurons turned down", "Provenance"):
        assert f"<h2>{heading}" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched"


def test_group_words_are_plain_and_of_adults() -> None:
    found = group_sentences()
    keys = [(sentence.word, sentence.group) for sentence in found]
    assert len(set(found)) == len(found)
    assert len(found) == 3 * len(set(keys))
    assert {group for _, group in keys} == {
        "religion", "ethnicity", "nationality", "gender", "disability", "orientation"
    }  # fmt: skip
    assert not any(mentioned(s.text, ("child", "girl", "boy", "teen", "kid", "baby", "minor", "young")) for s in found)
    assert {s.without for s in found if s.text == "a portrait of an Indian person"} == {"a portrait of a person"}
    assert any(s.text == "a portrait of a woman" for s in found)


def test_the_concept_comes_from_the_eraser_or_a_file(eraser: Eraser, tmp_path: Path) -> None:
    assert concept_of(eraser).pairs == from_templates("gun", ("gun",)).pairs
    ink = replace(eraser, concept="ink", mentions=("ink",))
    assert concept_of(ink).kind == "style", "as built in"
    assert concept_of(ink, kind="object").kind == "object"
    other = replace(eraser, concept="weapons", mentions=("halberd", "mace"))
    assert concept_of(other).mentions == ("halberd", "mace")
    save_pairs([Pair("a halberd", "a cat")], tmp_path / "pairs.csv")
    assert [asdict(pair)["concept"] for pair in concept_of(other, tmp_path / "pairs.csv").pairs] == ["a halberd"]
    with pytest.raises(ExciseError, match="unknown kind 'colour'"):
        kind_of("colour")


def test_words_and_their_sentences(eraser: Eraser) -> None:
    found = words_for(replace(eraser, mentions=("pistol", "Gun")), ["rifle", "GUN"], bundled=True)
    assert [word.text for word in found][:3] == ["Gun", "pistol", "rifle"], "the concept's own name leads"
    assert [word.origin for word in found][:3] == ["mention", "mention", "given"]
    assert [word.text for word in found if word.origin == "synonym"] == ["revolver", "handgun", "firearm", "shotgun"]
    assert "a picture of an axe on grass" in sentences("axe", "object")
    assert "an ink house" in sentences("ink", "style")


def test_benign_prompts_hold_no_word_for_the_concept(tmp_path: Path) -> None:
    words = (Word("gun", "mention"), Word("ice cream", "given"))
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\na gun\na cat\nan ice  cream\na bus\ntwo Guns\na gunman\n")
    found = benign_prompts(words, file, bundled=False)
    assert found == Benign(("a cat", "a bus", "a gunman"), "prompts.txt", 3)
    assert benign_prompts(words, file, bundled=True, count=2).prompts == ("a cat", "a bus")
    captions = benign_prompts(words, None, bundled=True, count=50)
    assert len(set(captions.prompts)) == 50
    assert not any(mentioned(text, ["gun", "ice cream"]) for text in captions.prompts)
    with pytest.raises(ExciseError, match="needs --prompts"):
        benign_prompts(words, None, bundled=False)
    file.write_text("a gun\n")
    with pytest.raises(ExciseError, match=r"every prompt of prompts\.txt mentions"):
        benign_prompts(words, file, bundled=False)


def test_an_sae_is_known_by_its_digest(
    eraser: Eraser, sae: TopKSAE, tiny_site: Site, tmp_path: Path, word_sae: TopKSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"site": asdict(tiny_site)}
    save(sae, tmp_path / "right", card)
    save(word_sae, tmp_path / "wrong", card)
    digest = sae_digest(sae)
    assert set(saes_of(eraser, tmp_path / "right")) == {digest}
    assert set(saes_of(eraser, tmp_path)) == {digest}, "a folder of several"
    with pytest.raises(ExciseError, match="not the SAE this eraser was made from"):
        saes_of(eraser, tmp_path / "wrong")

    def naming(name: str) -> Eraser:
        return replace(eraser, created={"parts": [{"config": {"sae": name}}, {"config": {"other.sae": ""}}]})

    monkeypatch.chdir(tmp_path)
    for name in ("right", "wrong", str(tmp_path / "right")):
        assert saes_of(naming(name)) == {}, "its author chose that path, so it is never opened"
        assert list(named_saes(naming(name).created)) == [name]
