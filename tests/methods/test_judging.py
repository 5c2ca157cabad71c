"""The verdict: what a fitted eraser is found to do, and the limits below which it is weak."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.concepts import Concept, Pair, builtin
from excise.concepts.sentences import group_sentences, sentences
from excise.erasers import Eraser, verify
from excise.erasers.artefact.formats import manifest
from excise.erasers.artefact.strength import in_words as strength_in_words
from excise.erasers.artefact.verdict import WeakEraser, in_words
from excise.erasers.proof.effects import text_changes
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.judging import Figures, _weak, prompts_by_mention, protected, with_verdict
from excise.methods.sae.finding import find
from excise.methods.sae.snce import fit
from excise.neurons.validation import STRUCTURAL_SHARE, activations
from excise.sae import TopKSAE

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")

CONFIG = SNCEConfig(site="encoder.layers.2", tolerance=0.5, permutations=20, examine=3)
WORKS = Figures(pairs=100, carried=0.66, auroc=1.0, opened=1.0, controls=(0, 60), protected=((), 59))


def test_a_fit_says_which_mention_it_misses_and_proves_the_others(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tmp_path: Path
) -> None:
    both = replace(gun, mentions=("gun", "crown"))
    with pytest.warns(WeakEraser, match="“crown” (is|are) missed"):
        eraser = fit(tiny_pipe, both, CONFIG, sae=word_sae)
    rows = {row["word"]: row for row in eraser.verdict["mentions"]}
    with eraser.attach(tiny_pipe):
        changed = {word: sum(by > 0 for by in text_changes(tiny_pipe, sentences(word, "object"))) for word in rows}
    assert {word: row["changed"] for word, row in rows.items()} == changed
    assert rows["gun"]["changed"] > 0 and not rows["crown"]["caught"]
    assert any("gun" in prompt for prompt in eraser.canary)
    assert not any("crown" in prompt for prompt in eraser.canary), "a prompt that does not move proves nothing"
    eraser.save(tmp_path / "both")
    assert [check.name for check in verify(tmp_path / "both", tiny_pipe) if not check.passed] == ["removal", "verdict"]


def test_every_mention_that_moves_is_a_canary_and_one_that_stops_moving_is_refused(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept
) -> None:
    pairs = (*gun.pairs, *(Pair(f"{p.concept} and gun", f"{p.deconcept} and gun", p.template) for p in gun.pairs[:2]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eraser = fit(tiny_pipe, replace(gun, mentions=("gun", "a gun"), pairs=pairs[:48]), CONFIG, sae=word_sae)
    assert len(eraser.canary) >= 1
    eraser.attach(tiny_pipe).detach()
    with pytest.raises(EraserDidNotFire):
        replace(eraser, canary=(*eraser.canary, "a crown on wood")).attach(tiny_pipe)


def test_the_loudest_prompt_with_a_mention_is_its_canary_and_a_sentence_where_none_has_it() -> None:
    pairs = (Pair("a gun", "a cat"), Pair("the gun, a dog", "the cat, a dog"), Pair("a rifle", "a cat"))
    found = prompts_by_mention(Concept("gun", ("gun", "rifle", "pistol"), pairs), [1.0, 2.0, 0.5])
    assert found == {"gun": "the gun, a dog", "rifle": "a rifle", "pistol": "a picture of a pistol on grass"}


def test_words_for_people_are_touched_only_because_of_themselves(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, gun_edit: Any
) -> None:
    first = {s.word: s for s in reversed(group_sentences())}
    touched, number = protected(tiny_pipe, gun_edit, word_sae)
    assert number == len(first)
    eraser = Eraser((gun_edit,), "all", "gun", ("gun",), canary=("a gun",))
    with eraser.attach(tiny_pipe, strict=False):
        by = {text: text_changes(tiny_pipe, [text])[0] for s in first.values() for text in (s.text, s.without)}
    assert set(touched) == {word for word, s in first.items() if by[s.text] and not by[s.without]}


@pytest.mark.parametrize(
    ("worse", "says"),
    [
        ({"pairs": 4}, "only 4 pairs"),
        ({"carried": 0.19}, "carries 19 %"),
        ({"auroc": 0.89}, "AUROC 0.89"),
        ({"opened": 0.89}, "acts on 89 %"),
        ({"controls": (4, 60)}, "4 of 60 control prompts"),
        ({"protected": (tuple(map(str, range(30))), 59)}, "30 of 59 words"),
    ],
)
def test_each_limit(worse: dict[str, Any], says: str) -> None:
    assert _weak(WORKS) == []
    (reason,) = _weak(replace(WORKS, **worse))
    assert says in reason


def test_what_lies_on_a_limit_meets_it_and_what_was_not_measured_is_not_judged() -> None:
    edge = Figures(5, carried=0.2, auroc=0.9, opened=0.9, controls=(3, 60), protected=(tuple("ab"), 4))
    assert _weak(edge) == []
    assert _weak(Figures(5)) == []
    assert _weak(replace(WORKS, controls=(60, 60), protected=(tuple("abc"), 3), spares=False)) == []


def test_a_verdict_is_saved_and_an_eraser_without_one_still_loads(gun_eraser: Eraser, tmp_path: Path) -> None:
    verdict = {"mentions": [{"word": "gun", "caught": True, "changed": 4, "sentences": 4}], "weak": ["too little"]}
    replace(gun_eraser, verdict=verdict).save(tmp_path / "new")
    new = Eraser.load(tmp_path / "new")
    assert (new.verdict, new.weak) == (verdict, ("too little",))
    assert list(in_words(new.verdict)) == [("“gun”", "caught: 4 of 4 sentences change")]
    gun_eraser.save(tmp_path / "old")
    assert "verdict" not in json.loads((tmp_path / "old" / "eraser.json").read_text())
    assert Eraser.load(tmp_path / "old").weak == ()


@pytest.mark.parametrize("odd", [[], {"weak": "x"}, {"weak": [1]}, {"mentions": [{"word": "gun"}]}, {"nice": 1}])
def test_a_verdict_that_is_none_is_refused(gun_eraser: Eraser, odd: Any, tmp_path: Path) -> None:
    gun_eraser.save(tmp_path / "odd")
    saved = json.loads((tmp_path / "odd" / "eraser.json").read_text())
    files = {"eraser.json": (json.dumps({**saved, "verdict": odd}) + "\n").encode()}
    files["eraser.safetensors"] = (tmp_path / "odd" / "eraser.safetensors").read_bytes()
    for name, data in {**files, "manifest.json": manifest(files)}.items():
        (tmp_path / "odd" / name).write_bytes(data)
    with pytest.raises(ExciseError, match="not a valid eraser"):
        Eraser.load(tmp_path / "odd")


def test_an_eraser_by_any_method_says_which_mentions_it_moves(tiny_pipe: Any, gun_eraser: Eraser, gun: Concept) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        found = with_verdict(attachment, gun)
        changes = text_changes(tiny_pipe, sentences("gun", "object"))
    (row,) = found.verdict["mentions"]
    assert (row["word"], row["changed"], row["caught"]) == ("gun", sum(by > 0 for by in changes), all(changes))
    assert found.weak == (() if row["caught"] else ("“gun” is missed",))
    assert found.canary_shift <= attachment.shift


def test_strength_is_one_number_with_what_it_means_in_codes() -> None:
    created = {"config": {"lam": 1.25, "unit": "concept", "source": "prompt", "k": 1}}
    reason = strength_in_words(1.88513, "site", created, {"carried": 0.663})
    assert reason == "strength 1.25 (1.89 in codes: the neuron carries 66 % of the change)"
    capped = strength_in_words(5.0, "site", created, {"carried": 0.08})
    assert capped.endswith("carries 8 % of the change, and 25 % are assumed, which limits the strength)")
    several = {"encoders": {"site": {"carried": 0.5}, "other": {"carried": 0.3}}}
    assert "carries 50 %" in strength_in_words(2.5, "site", created, several)
    joined = {"method": "snce+uce", "parts": [{"method": "snce", **created}, {"method": "uce", "config": {"lam": 0.5}}]}
    assert "strength 1.25 (2.50" in strength_in_words(2.5, "site", joined, {"snce": {"carried": 0.5}, "uce": {}})
    for config in (
        {"lam": 3.0, "unit": "code", "source": "prompt"},
        {"lam": 3.0, "unit": "concept", "source": "concept"},
    ):
        assert strength_in_words(3.0, "site", {"config": config}, {"carried": 0.5}) == "strength 3 in codes"


def test_a_neuron_is_structural_by_the_erasers_threshold_not_by_stray_codes(one_bundled_pipe: Any) -> None:
    """vintage's neuron has some TopK code in a fifth of the controls; its eraser acts on none of them."""
    from excise import reference
    from excise.sae import load

    folder = reference.sae_folder()
    config = SNCEConfig(sae=str(folder), permutations=1, examine=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = find(one_bundled_pipe, load(Path(folder)), builtin("vintage", 40), config)
    assert found.control_codes is not None
    first = found.validation[0]
    assert not first.structural
    assert (activations(found.control_codes)[:, first.index] > 0).double().mean() > STRUCTURAL_SHARE


def test_controls_are_judged_by_an_eraser_that_has_not_seen_them(one_bundled_pipe: Any) -> None:
    """Calibrated on the controls it changes none of them: a limit on those could not be missed."""
    from excise import reference
    from excise.sae import load

    folder, pipe = reference.sae_folder(), one_bundled_pipe
    sae, config = load(folder), SNCEConfig(sae=str(folder), permutations=1, examine=1)
    few = builtin("gun", 4)
    with pytest.warns(UserWarning, match="calibrated without the control prompts would change") as warned:
        found = find(pipe, sae, few, config)
    with pytest.warns(WeakEraser, match="if it were not calibrated on them"):
        eraser = fit(pipe, few, config, sae=sae, found=found)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)
        alone = fit(pipe, replace(few, controls=()), config, sae=sae)
    with alone.attach(pipe):
        unseen = sum(by > 0 for by in text_changes(pipe, few.controls))
    with eraser.attach(pipe):
        assert not any(text_changes(pipe, few.controls))
    assert unseen > STRUCTURAL_SHARE * len(few.controls)
    assert eraser.verdict["controls"] == {"touched": unseen, "of": len(few.controls)}
    assert found.validation[0].control_share == pytest.approx(unseen / len(few.controls))
    assert any(f"would change {unseen} of {len(few.controls)} control prompts" in why for why in eraser.weak)
    assert dict(in_words(eraser.verdict))["control prompts"].startswith(f"{unseen} of {len(few.controls)} change")
    assert any(f"{unseen / len(few.controls):.0%}" in str(w.message) for w in warned)
