from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.concepts import Concept
from excise.concepts.sentences import group_sentences, sentences
from excise.erasers import Eraser, verify
from excise.erasers.artefact.strength import LEAST_CARRIED
from excise.erasers.edits.sae_rows import topk_codes
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import Reading, cached_codes, carried_share, difference_ends, prompt_codes
from excise.methods.sae.finding import find
from excise.methods.sae.snce import fit
from excise.neurons import PromptCodes
from excise.sae import TopKSAE, save
from excise.sites import capture

PATH = "encoder.layers.2"
CONFIG = SNCEConfig(site=PATH, permutations=20, lam=1.5, unit="code")


def test_find_puts_the_concepts_neuron_first(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    found = find(tiny_pipe, word_sae, gun, CONFIG)
    assert found.ranking.top() == (5,)
    assert found.chosen(CONFIG) == (5,)
    assert found.chosen(replace(CONFIG, neurons=(3, 4))) == (3, 4)
    first = found.validation[0]
    assert first.index == 5
    assert first.auroc is not None
    assert first.auroc > 0.9
    assert not first.structural
    assert "gun" in {use.token for use in found.tokens[5]}
    assert found.control_codes is not None
    assert len(found.control_codes.values) == len(gun.controls)


def test_codes_are_the_saes_at_all_positions(tiny_pipe: Any, word_sae: TopKSAE, tiny_site: Any) -> None:
    prompts = ["a gun", "a cat on grass", "the gun"]
    codes, ids = prompt_codes(tiny_pipe, word_sae, tiny_site, prompts, 2)
    assert isinstance(codes, PromptCodes)
    (features,) = capture(tiny_pipe, [tiny_site], prompts)
    expected = word_sae.encode(features.states[tiny_site])
    torch.testing.assert_close(codes.values, expected.values.detach(), atol=1e-4, rtol=1e-4)
    assert torch.equal(ids, features.ids)
    assert codes.values.shape == (3, 77, 8)
    assert codes.m == 64


def test_fit_makes_an_eraser_that_spares_controls(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tmp_path: Path
) -> None:
    eraser = fit(tiny_pipe, gun, CONFIG, sae=word_sae)
    (edit,) = eraser.edits
    assert edit.indices.tolist() == [5]
    assert (edit.lam, edit.gate, edit.source, edit.lead) == (1.5, "whole", "prompt", 1)
    assert "gun" in eraser.canary[0]
    assert eraser.canary_shift > 0
    fires = eraser.measured["fires"]
    assert fires["concept"] > 0.8
    assert fires["deconcept"] == fires["controls"] == 0
    level = eraser.measured["neurons"][0]
    assert max(level["quiet"], 0) <= level["threshold"] < level["typical"]
    assert level["separable"] is True
    assert eraser.created["config"]["site"] == PATH
    json.dumps(eraser.measured, allow_nan=False)

    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with torch.no_grad():
        plain = [tiny_pipe.encode_prompt(p, "cpu", 1, False)[0] for p in (*gun.controls, "a gun")]
        with Eraser.load(tmp_path / "gun").attach(tiny_pipe):
            edited = [tiny_pipe.encode_prompt(p, "cpu", 1, False)[0] for p in (*gun.controls, "a gun")]
    same = [torch.equal(a, b) for a, b in zip(plain, edited, strict=True)]
    assert same == [True] * len(gun.controls) + [False]


def test_fit_reads_every_prompt_once(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    read: list[int] = []
    layer = tiny_pipe.text_encoder.get_submodule(PATH)
    handle = layer.register_forward_hook(lambda module, args, output: read.append(len(args[0])))
    with cached_codes():
        found = find(tiny_pipe, word_sae, gun, CONFIG)
    prompts = 2 * len(gun.pairs) + len(gun.controls)
    groups, mentioned = 1 + len({s.word for s in group_sentences()}), sentences("gun", "object")
    tried = groups + 2 * len(mentioned) * len(gun.mentions) + 3  # three tell whether a pipeline gives rows
    assert sum(read) == prompts
    read.clear()
    eraser = fit(tiny_pipe, gun, CONFIG, sae=word_sae)
    proof = sum(read) - prompts - tried
    read.clear()
    with eraser.attach(tiny_pipe):
        assert sum(read) == proof
    handle.remove()
    again = fit(tiny_pipe, gun, CONFIG, sae=word_sae, found=found)
    assert torch.equal(again.edits[0].threshold, eraser.edits[0].threshold)


def test_a_neuron_that_fires_at_the_start_of_every_prompt_is_calibrated_without_it(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tiny_site: Any
) -> None:
    quiet = [*(pair.deconcept for pair in gun.pairs), *gun.controls]
    (features,) = capture(tiny_pipe, [tiny_site], quiet, len(quiet))
    states = features.states[tiny_site]
    others = states[:, 1:].flatten(0, 1)
    bos = states[0, 0] - others.mean(0)
    # The direction in which BOS stands out and the other states hardly differ.
    toward = torch.linalg.solve(others.T.cov() + 1e-4 * torch.eye(others.shape[1]), bos)
    toward *= 40 / (toward @ bos)
    with torch.no_grad():
        word_sae.W_enc[5] += toward
        word_sae.b_enc[5] -= toward @ (others.mean(0) - word_sae.b_pre)
    z = word_sae.preactivations(states)[..., 5].detach()
    assert (z[:, 0] > z[:, 1:].max()).all(), "louder at the start than anywhere else"
    eraser = fit(tiny_pipe, gun, replace(CONFIG, neurons=(5,)), sae=word_sae)
    assert eraser.measured["neurons"][0]["quiet"] == pytest.approx(float(z[:, 1:].max()), rel=1e-4)
    assert eraser.measured["fires"]["controls"] == 0


def test_the_threshold_agrees_with_topk_where_the_concept_is(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tiny_site: Any
) -> None:
    eraser = fit(tiny_pipe, gun, replace(CONFIG, gate="threshold"), sae=word_sae)
    exact = fit(tiny_pipe, gun, replace(CONFIG, gate="topk"), sae=word_sae)
    (features,) = capture(tiny_pipe, [tiny_site], ["a gun", "the gun", "a gun on sand", "a cat"])
    h = features.states[tiny_site]
    agree = (eraser.edits[0].codes(h) > 0) == (exact.edits[0].codes(h, word_sae) > 0)
    assert agree.double().mean() > 0.9
    assert eraser.measured["neurons"][0]["agreement"] > 0.9
    with pytest.raises(ExciseError, match="needs the whole SAE"):
        exact.attach(tiny_pipe)


@pytest.mark.parametrize("gate", ["relu", "topk", "whole"])
def test_the_papers_source_takes_the_tuples_codes_by_position(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tiny_site: Any, gate: Any
) -> None:
    tuple_of_two = replace(gun, mentions=("gun", "the gun"))
    config = replace(CONFIG, source="concept", gate=gate, neurons=(5,))
    edit = fit(tiny_pipe, tuple_of_two, config, sae=word_sae).edits[0]
    (features,) = capture(tiny_pipe, [tiny_site], ["gun, the gun"])
    h = features.states[tiny_site][0]
    z = word_sae.preactivations(h)[:, 5].detach()
    expected = z.relu() if gate == "relu" else topk_codes(*word_sae.encode(h), torch.tensor([5]))[:, 0].detach()
    assert edit.concept_codes is not None
    torch.testing.assert_close(edit.concept_codes[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_pooled_alignment_is_one_mean_for_every_position(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tiny_site: Any
) -> None:
    both = replace(gun, mentions=("gun", "the gun"))
    config = replace(CONFIG, source="concept", gate="relu", align="pooled", neurons=(5,))
    edit = fit(tiny_pipe, both, config, sae=word_sae).edits[0]
    (features,) = capture(tiny_pipe, [tiny_site], list(both.mentions))
    z = word_sae.preactivations(features.states[tiny_site])[..., 5].relu().detach()
    means = [float(z[n][features.scored[n]].mean()) for n in range(2)]
    assert edit.concept_codes is not None
    assert edit.concept_codes[0, 0] == 0
    assert edit.concept_codes[1:, 0].tolist() == pytest.approx([sum(means) / 2] * 76, rel=1e-4)


def test_the_sae_and_its_site_are_read_from_a_folder(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tmp_path: Path
) -> None:
    for site in (f"text_encoder/{PATH}", PATH, {"component": "text_encoder", "path": PATH, "width": 64}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        save(word_sae, folder, {"site": site})
        snce = method("snce")
        eraser = snce.fit(tiny_pipe, gun, snce.Config(sae=str(folder), permutations=20))
        assert eraser.edits[0].site.path == PATH
    with pytest.raises(ExciseError, match=r"trained at text_encoder/encoder\.layers\.2, not at"):
        fit(tiny_pipe, gun, SNCEConfig(sae=str(folder), site="encoder.layers.1"))


def test_bad_input_is_refused(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    with pytest.raises(ExciseError, match="no SAE was named"):
        fit(tiny_pipe, gun, CONFIG)
    with pytest.raises(ExciseError, match="no Site was named"):
        fit(tiny_pipe, gun, SNCEConfig(), sae=word_sae)
    with pytest.raises(ExciseError, match=r"no module 'encoder\.layers\.7'"):
        fit(tiny_pipe, gun, SNCEConfig(site="encoder.layers.7"), sae=word_sae)
    with pytest.raises(ExciseError, match="has no prompt pairs"):
        fit(tiny_pipe, Concept("gun", ("gun",)), CONFIG, sae=word_sae)
    with pytest.raises(ExciseError, match="the SAE has 64 neurons"):
        fit(tiny_pipe, gun, replace(CONFIG, neurons=(64,)), sae=word_sae)
    with pytest.raises(ExciseError, match="at least 1"):
        SNCEConfig(k=0)


def test_a_neuron_that_does_not_carry_the_concept_is_refused(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    found = find(tiny_pipe, word_sae, gun, CONFIG)
    with torch.no_grad():
        word_sae.b_enc[9] = 50
    with pytest.raises(ExciseError, match="no neuron separates 'gun': neuron 9 is not stronger"):
        fit(tiny_pipe, gun, replace(CONFIG, neurons=(9,)), sae=word_sae, found=found)


def test_a_structural_neuron_is_warned_of(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    with pytest.warns(UserWarning, match="without the control prompts would change 100% of them"):
        find(tiny_pipe, word_sae, replace(gun, controls=("a gun on sand", "the gun")), CONFIG)


def test_reading_needs_prompts(tiny_pipe: Any, word_sae: TopKSAE, gun_eraser: Eraser) -> None:
    with pytest.raises(ExciseError, match="no deconcept prompts"):
        Reading.of(tiny_pipe, word_sae, gun_eraser.edits[0], [])


def test_fitting_reads_the_model_itself_whatever_is_attached(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, gun_eraser: Eraser
) -> None:
    alone = fit(tiny_pipe, gun, CONFIG, sae=word_sae)
    with gun_eraser.attach(tiny_pipe):
        attached = fit(tiny_pipe, gun, CONFIG, sae=word_sae)
    assert attached.digest == alone.digest


def test_the_share_that_a_neuron_carries_against_its_definition(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tiny_site: Any
) -> None:
    edit = fit(tiny_pipe, gun, CONFIG, sae=word_sae).edits[0]

    def read(prompt: str) -> tuple[list[int], Any, Any]:
        """Ids of one prompt, its states, and what the edit takes from them at λ = 1."""
        (features,) = capture(tiny_pipe, [tiny_site], [prompt])
        h = features.states[tiny_site]
        return tiny_pipe.tokenizer(prompt).input_ids, h[0].double(), (h - replace(edit, lam=1.0).apply(h))[0].double()

    def share(of: Callable[[list[int], list[int]], int]) -> float:
        """At one place, found by comparing the two prompts' ids: every pair here has equally many."""
        changes, takings = [], []
        for pair in gun.pairs:
            (ids, own, taken), (other_ids, other, _) = read(pair.concept), read(pair.deconcept)
            assert len(ids) == len(other_ids)
            at = of(ids, other_ids)
            changes.append(own[at] - other[at])
            takings.append(taken[at])
        change, taken = torch.stack(changes).mean(0), torch.stack(takings).mean(0)
        return float(taken @ change / change.square().sum())

    at_end = share(lambda ids, _: len(ids) - 1)
    at_word = share(lambda ids, others: max(n for n, (a, b) in enumerate(zip(ids, others, strict=True)) if a != b))
    least = min(at_end, at_word)
    assert carried_share(tiny_pipe, word_sae, edit, gun, 3) == pytest.approx(least, rel=1e-4)
    eraser = fit(tiny_pipe, gun, replace(CONFIG, unit="concept"), sae=word_sae)
    assert eraser.measured["carried"] == pytest.approx(least, rel=1e-4)
    calibrated = eraser.edits[0]
    assert calibrated.lam == pytest.approx(1.5 / max(least, LEAST_CARRIED), rel=1e-4)
    paper = replace(CONFIG, unit="concept", source="concept")
    assert fit(tiny_pipe, gun, paper, sae=word_sae).edits[0].lam == 1.5, "the paper's mode counts in codes"


@pytest.mark.parametrize(
    ("one", "other", "ends"),
    [
        ([1, 7, 3], [1, 8, 3], (1, 1)),
        ([1, 7, 8, 3], [1, 9, 3], (2, 1)),
        ([1, 2, 7], [1, 2, 8, 9], (2, 3)),
        ([1, 7, 7, 3], [1, 7, 3], None),
        ([1, 7, 3], [1, 3], None),
        ([1, 2], [1, 2], None),
    ],
)
def test_where_two_prompts_differ(one: list[int], other: list[int], ends: tuple[int, int] | None) -> None:
    assert difference_ends(one, other) == ends


def test_lambda_one_takes_out_the_whole_mean_change(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    """Whatever part of the concept's change a neuron carries: in units of the concept the same λ takes out as much."""
    edit = fit(tiny_pipe, gun, replace(CONFIG, unit="concept", lam=1.0), sae=word_sae).edits[0]
    carried = carried_share(tiny_pipe, word_sae, edit, gun)
    if carried > LEAST_CARRIED:
        assert edit.lam * carried == pytest.approx(1, rel=1e-4)
    with pytest.raises(ExciseError, match="unit cannot be 'word'"):
        SNCEConfig(unit="word")  # type: ignore[arg-type]


def test_the_defaults_are_the_measured_ones() -> None:
    """docs/results were made with these; another default is another eraser."""
    config = SNCEConfig()
    assert (config.lam, config.unit, config.tolerance, config.margin) == (1.25, "concept", 0.02, 0.02)
    assert LEAST_CARRIED == 0.25
    assert (config.k, config.source, config.gate, config.uncond) == (1, "prompt", "whole", "none")


@pytest.mark.parametrize(("moved", "lead"), [(0.0, 1), (5e-4, 1), (2e-2, 0), (1.0, 0)])
def test_a_first_state_counts_as_the_same_up_to_rounding(moved: float, lead: int) -> None:
    """A causal encoder's BOS is bit for bit the same in every prompt of one batch, and nearly so in another's."""
    preacts = torch.zeros(3, 4, 2)
    preacts[1, 0, 1] = moved
    scored = torch.tensor([False, True, True, False]).expand(3, -1)
    assert Reading(preacts, torch.zeros_like(preacts), scored).lead == lead
    assert Reading(preacts, torch.zeros_like(preacts), torch.ones(3, 4, dtype=torch.bool)).lead == 0


def test_a_first_state_in_half_precision_is_the_same_relative_to_the_words() -> None:
    """Pre-activations of 40 are rounded to 0.03 in half precision, and words differ by tens."""
    preacts = torch.zeros(3, 4, 1)
    preacts[:, 1, 0] = torch.tensor([0.0, 20.0, 40.0])
    scored = torch.tensor([False, True, True, False]).expand(3, -1)
    for moved, lead in ((0.03, 1), (0.39, 1), (0.42, 0)):
        preacts[1, 0, 0] = moved
        read = Reading(preacts, torch.zeros_like(preacts), scored)
        assert (read.lead, read.varying_start) == (lead, not lead)
