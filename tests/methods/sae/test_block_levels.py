"""SAEuron and SAEmnesia on a tiny pipeline: their statistics against loops, and erasers that attach."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise.concepts import Concept, from_templates
from excise.erasers import BlockEdit, Eraser, verify
from excise.erasers.edits.block_replacement import ReplacementEdit
from excise.errors import ExciseError
from excise.methods import METHODS, method
from excise.methods.configs.sae import SAEmnesiaConfig, SAEuronConfig
from excise.methods.sae.block_levels import edit_of, levels, opening
from excise.neurons.timesteps import score
from excise.sae import SAEConfig, Supervision, TopKSAE, save
from excise.sites import block_site, capture_blocks

STEPS = 3
SMALL: dict[str, Any] = {"steps": STEPS, "pictures": 4, "batch_size": 3, "guidance": 2.0}


@pytest.fixture
def concept() -> Concept:
    full = from_templates("gun", ("gun",), 12)
    return replace(full, pairs=full.pairs[:6], controls=full.controls[:2])


@pytest.fixture
def site(tiny_pipe: Any) -> Any:
    return block_site(tiny_pipe, "up_blocks.0.attentions.0")


@pytest.fixture
def sae(site: Any) -> TopKSAE:
    sae = TopKSAE(SAEConfig(site.width, 40, 4), seed=2)
    with torch.no_grad():
        sae.b_enc.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    return sae


@pytest.fixture
def folder(sae: TopKSAE, site: Any, tmp_path: Path) -> str:
    own = Supervision(("cat", "gun"), (0, 0), (7, 11))
    where = {"component": site.component, "path": site.path, "width": site.width}
    save(sae, tmp_path / "sae", {"site": where, "supervision": own.to_json()})
    return str(tmp_path / "sae")


def test_levels_are_means_over_every_patch(tiny_pipe: Any, site: Any, sae: TopKSAE, concept: Concept) -> None:
    found = levels(tiny_pipe, site, sae, concept, SAEuronConfig(**SMALL))
    spread = [concept.pairs[n] for n in (0, 1, 3, 4)]
    sides: list[torch.Tensor] = []
    means = []
    for start, prompts in ((0, [p.concept for p in spread]), (4, [p.deconcept for p in spread])):
        features = torch.zeros(STEPS, 4, 16, site.width, dtype=torch.float64)
        dense = torch.zeros(STEPS, 4, 16, 40, dtype=torch.float64)
        seeds = range(start, start + 4)
        options = {"guidance_scale": 2.0}
        for patches in capture_blocks(
            tiny_pipe, site, prompts, seeds=seeds, steps=STEPS, batch_size=3, options=options
        ):
            features[patches.step, list(patches.numbers)] = patches.states.double()
            for row, number in enumerate(patches.numbers):
                for n, patch in enumerate(patches.states[row]):
                    values, indices = sae.encode(patch)
                    dense[patches.step, number, n, indices] = values.double().detach()
        sides.append(dense)
        means.append(features.mean((1, 2)))
    torch.testing.assert_close(found.change.double(), means[0] - means[1], atol=1e-6, rtol=1e-5)
    own, others = (side.mean((1, 2)) for side in sides)
    torch.testing.assert_close(found.own, own)
    torch.testing.assert_close(found.others, others)
    kinds = len({tuple(set(p.deconcept.split()) - set(p.concept.split())) for p in spread})
    torch.testing.assert_close(found.usual, (own + kinds * others) / (kinds + 1))
    positive = torch.where(sides[0] > 0, sides[0], math.inf).amin(-1)
    full = (sides[0] > 0).sum(-1) == 4
    torch.testing.assert_close(found.kept, torch.where(full, positive, 0.0).mean((1, 2)))


@pytest.mark.usefixtures("short_removal")
def test_saeuron_edits_at_each_step_what_scores_there(
    tiny_pipe: Any, site: Any, sae: TopKSAE, folder: str, concept: Concept, tmp_path: Path
) -> None:
    config = SAEuronConfig(sae=folder, k=3, gamma=-2.0, **SMALL)
    eraser = method("saeuron").fit(tiny_pipe, concept, config)
    (edit,) = eraser.edits
    assert isinstance(edit, BlockEdit)
    found = levels(tiny_pipe, site, sae, concept, config)
    scores = score(found.own, found.others)
    for step in range(STEPS):
        best = set(scores[step].topk(3).indices.tolist())
        edited = {int(i) for i, gate in zip(edit.indices, edit.gate[step], strict=True) if math.isfinite(gate)}
        assert edited == best
    unit = math.sqrt(found.variance)
    torch.testing.assert_close(edit.level.double(), found.own[:, edit.indices] / unit, atol=1e-6, rtol=1e-5)
    raw = method("saeuron").fit(tiny_pipe, concept, replace(config, units="raw")).edits[0]
    torch.testing.assert_close(raw.level, edit.level * unit)
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    with again.attach(tiny_pipe) as attachment:
        assert attachment.shift > 0


@pytest.mark.parametrize("codes", ["threshold", "whole"])
def test_in_units_of_the_concept_one_gamma_writes_its_opposite(
    tiny_pipe: Any, site: Any, sae: TopKSAE, folder: str, concept: Concept, codes: Any
) -> None:
    """What is left along the concept's change, after an edit of every patch as the typical one: γ times that change."""
    config = SAEmnesiaConfig(sae=folder, **SMALL, gamma=-0.7, units="concept", codes=codes)
    found = levels(tiny_pipe, site, sae, concept, config)
    found = replace(found, negatives=torch.zeros_like(found.negatives))  # below all pictures
    neurons = found.own.sum(0).topk(3).indices.tolist()
    edit = edit_of(sae, site, neurons, found, config)
    typical = found.own if codes == "threshold" else found.positives.mean(1)
    for step in range(STEPS):
        change, written = found.change[step].double(), torch.zeros(site.width, dtype=torch.float64)
        for i in neurons:
            written += float(typical[step, i]) * sae.W_dec[i].double().detach()
        along = change / change.norm()
        share = float(written @ along / change.norm())
        level = float(edit.level[step, 0])
        assert edit.level[step].tolist() == [level] * 3
        if share > 0.25:
            assert float(level * -0.7 * written @ along) == pytest.approx(-0.7 * float(change.norm()), rel=1e-4)
        else:
            assert level == 4.0


def test_saemnesia_edits_the_neuron_that_was_assigned(
    tiny_pipe: Any, folder: str, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    eraser = method("saemnesia").fit(
        tiny_pipe, concept, SAEmnesiaConfig(sae=folder, **SMALL, gamma=-30.0, codes="threshold")
    )
    assert eraser.edits[0].indices.tolist() == [11]
    assert eraser.measured["neuron"] == 11
    how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"}

    def draw() -> Any:
        return tiny_pipe("a gun on grass", generator=torch.Generator().manual_seed(0), **how).images

    plain = draw()
    with eraser.attach(tiny_pipe):
        assert not np.array_equal(draw(), plain)
    assert np.array_equal(draw(), plain)


@pytest.mark.parametrize("name", ["saeuron", "saemnesia"])
def test_patches_are_replaced_where_the_same_edit_would_scale_codes(
    tiny_pipe: Any, folder: str, concept: Concept, name: str
) -> None:
    settings = {"sae": folder, **SMALL, "codes": "threshold", "seed": 5}
    config = method(name).Config(**settings)
    (scaled,) = method(name).fit(tiny_pipe, concept, config).edits
    eraser = method(name).fit(tiny_pipe, concept, replace(config, edit="replace"))
    (edit,) = eraser.edits
    assert isinstance(edit, ReplacementEdit) and not isinstance(scaled, ReplacementEdit)
    assert edit.seed == 5 and eraser.created["config"]["edit"] == "replace"
    assert edit.neurons == scaled.neurons and torch.equal(edit.gate, scaled.gate) and torch.equal(edit.cut, scaled.cut)
    with pytest.raises(ExciseError, match="compat is about an edit of codes; leave it out with edit=replace"):
        method(name).fit(tiny_pipe, concept, replace(config, edit="replace", compat=True))


def test_what_it_was_fitted_on_is_drawn_without_other_erasers(tiny_pipe: Any, folder: str, concept: Concept) -> None:
    config = SAEmnesiaConfig(sae=folder, **SMALL, gamma=-30.0, codes="threshold")
    alone = method("saemnesia").fit(tiny_pipe, concept, config)
    with method("saeuron").fit(tiny_pipe, concept, SAEuronConfig(sae=folder, k=4, **SMALL)).attach(tiny_pipe):
        attached = method("saemnesia").fit(tiny_pipe, concept, config)
    assert attached.digest == alone.digest


def test_what_cannot_be_fitted_is_said(
    tiny_pipe: Any, site: Any, sae: TopKSAE, folder: str, concept: Concept, tmp_path: Path
) -> None:
    def refused(name: str, match: str, config: Any, of: Concept = concept) -> None:
        with pytest.raises(ExciseError, match=match):
            method(name).fit(tiny_pipe, of, config)

    assert {"saeuron", "saemnesia"} <= set(METHODS)
    knife = from_templates("knife", ("knife",), 4)
    refused(
        "saemnesia", "was not supervised for 'knife'; it knows 2 concepts", SAEmnesiaConfig(sae=folder, **SMALL), knife
    )
    save(sae, tmp_path / "plain", {})
    plain = str(tmp_path / "plain")
    refused("saemnesia", "trained without labels", SAEmnesiaConfig(sae=plain, **SMALL))
    refused("saeuron", "no block was named", SAEuronConfig(sae=plain, **SMALL))
    refused("saeuron", "no SAE was named", SAEuronConfig(**SMALL))
    refused("saeuron", "trained at unet/up_blocks.0", SAEuronConfig(sae=folder, site="mid_block.attentions.0", **SMALL))
    refused("saeuron", "k is 40; it lies from 1 to 39", SAEuronConfig(sae=folder, k=40, **SMALL))
    refused("saeuron", "has no prompt pairs", SAEuronConfig(sae=folder, **SMALL), Concept("gun", ("gun",), (), ()))
    for wrong in ({"codes": "some"}, {"at_other_steps": "some"}, {"units": "some"}, {"pictures": 0}):
        with pytest.raises(ExciseError, match=r"cannot be 'some'|at least 1"):
            SAEuronConfig(**{**SMALL, **wrong})


def test_a_picture_opens_between_the_quiet_ones_and_the_typical_one() -> None:
    generator = torch.Generator().manual_seed(0)
    positives, negatives = torch.rand(3, 5, 2, generator=generator) + 0.4, torch.rand(3, 4, 2, generator=generator)
    made = opening(positives, negatives, 0.3)
    for step in range(3):
        for i in range(2):
            q, typical = max(negatives[step, :, i].tolist()), sorted(positives[step, :, i].tolist())[2]
            assert float(made[step, i]) == pytest.approx(q + 0.3 * max(typical - q, 0.0))


def test_saemnesia_opens_pictures_at_levels_read_without_topk(
    tiny_pipe: Any, site: Any, sae: TopKSAE, folder: str, concept: Concept
) -> None:
    config = SAEmnesiaConfig(sae=folder, codes="whole", margin=0.0, **SMALL)
    found = levels(tiny_pipe, site, sae, concept, config)
    options: dict[str, Any] = {"steps": STEPS, "batch_size": 3, "options": {"guidance_scale": 2.0}}
    prompts = [concept.pairs[n].concept for n in (0, 1, 3, 4)]
    for patches in capture_blocks(tiny_pipe, site, prompts, seeds=range(4), **options):
        dense = ((patches.states - sae.b_pre) @ sae.W_enc.T + sae.b_enc).relu().mean(1).detach()
        torch.testing.assert_close(found.positives[patches.step, list(patches.numbers)], dense)
    assert found.positives.shape == found.negatives.shape == (STEPS, 4, 40)
    apart = found.positives[0].median(0).values > found.negatives[0].amax(0)
    for neuron in range(40):
        if apart[neuron]:
            edit = edit_of(sae, site, [neuron], found, config)
            assert edit.codes == "whole"
            torch.testing.assert_close(edit.cut, found.negatives[..., [neuron]].amax(1))
        else:
            with pytest.raises(ExciseError, match="is not louder in pictures of the concept"):
                edit_of(sae, site, [neuron], found, config)
    assert 0 < int(apart.sum()) < 40
