"""SNCE with OrthoEraser's projection: which neurons are coupled, by counting, and the eraser on a tiny pipeline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.concepts import Concept
from excise.erasers import Eraser, verify
from excise.erasers.edits.orthogonal_sae import OrthogonalSAEEdit, orthogonal
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import carried_share
from excise.methods.sae.coupling import coupled, coupling
from excise.methods.sae.finding import find
from excise.methods.sae.snce import fit
from excise.neurons import PromptCodes
from excise.sae import TopKSAE, save

PATH = "encoder.layers.2"
CONFIG = SNCEConfig(site=PATH, permutations=20, lam=1.5, unit="code", neurons=(5,), ortho=3)


def codes(seed: int, prompts: int, m: int = 10) -> PromptCodes:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.stack([torch.randperm(m, generator=generator)[:3] for _ in range(prompts * 4)])
    values = torch.rand(prompts, 4, 3, generator=generator)
    scored = torch.rand(prompts, 4, generator=generator) > 0.3
    return PromptCodes(values, indices.reshape(prompts, 4, 3), scored, m)


def test_the_coupling_is_the_mean_code_times_the_largest_cosine() -> None:
    W_dec = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    sides = [codes(1, 5), codes(2, 3)]
    found = coupling([2, 6], sides, W_dec)
    for j in range(10):
        total, places = 0.0, 0
        for side in sides:
            for p in range(len(side.values)):
                for t in range(4):
                    if side.scored[p, t]:
                        places += 1
                        total += sum(float(side.values[p, t, c]) for c in range(3) if int(side.indices[p, t, c]) == j)
        cosines = [
            abs(float(W_dec[i] @ W_dec[j])) / math.sqrt(float(W_dec[i] @ W_dec[i]) * float(W_dec[j] @ W_dec[j]))
            for i in (2, 6)
        ]
        wanted = 0.0 if j in (2, 6) else total / places * max(cosines)
        assert float(found[j]) == pytest.approx(wanted, abs=1e-6)
    order = sorted(range(10), key=lambda j: -float(found[j]))
    assert coupled([2, 6], sides, W_dec, 4) == tuple(order[:4])
    assert len(coupled([2, 6], sides, W_dec, 100)) == int((found > 0).sum())
    with pytest.raises(ExciseError, match="no neuron is coupled with 2, 6 in the prompts to keep; use ortho=0"):
        coupled([2, 6], [replace_scored(side) for side in sides], W_dec, 4)


def replace_scored(side: PromptCodes) -> PromptCodes:
    return side._replace(scored=torch.zeros_like(side.scored))


def test_the_eraser_writes_nothing_along_the_neurons_of_the_prompts_to_keep(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tmp_path: Path
) -> None:
    found = find(tiny_pipe, word_sae, gun, CONFIG)
    assert found.control_codes is not None
    kept = coupled([5], [found.deconcept_codes, found.control_codes], word_sae.W_dec, 3)
    alone = fit(tiny_pipe, gun, replace(CONFIG, ortho=0), sae=word_sae, found=found)
    eraser = fit(tiny_pipe, gun, CONFIG, sae=word_sae, found=found)
    (edit,), (plain,) = eraser.edits, alone.edits
    assert isinstance(edit, OrthogonalSAEEdit) and not isinstance(plain, OrthogonalSAEEdit)
    assert edit.coupled == kept and 5 not in kept
    W_dec = word_sae.W_dec.detach()
    torch.testing.assert_close(edit.W_dec, orthogonal(W_dec[[5]], W_dec[list(kept)]))
    assert eraser.measured["left"] == pytest.approx([float(edit.W_dec.norm() / W_dec[5].norm())])
    assert torch.equal(edit.threshold, plain.threshold) and torch.equal(edit.typical, plain.typical)
    assert eraser.created["config"]["ortho"] == 3 and "left" not in alone.measured

    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    with torch.no_grad():
        prompts = [*gun.controls, "a gun"]
        before = [tiny_pipe.encode_prompt(p, "cpu", 1, False)[0] for p in prompts]
        with Eraser.load(tmp_path / "gun").attach(tiny_pipe):
            after = [tiny_pipe.encode_prompt(p, "cpu", 1, False)[0] for p in prompts]
        with alone.attach(tiny_pipe):
            otherwise = tiny_pipe.encode_prompt("a gun", "cpu", 1, False)[0]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True] * len(gun.controls) + [False], "unrelated prompts keep every bit"
    assert not torch.equal(after[-1], otherwise)


def test_in_units_of_the_concept_lambda_makes_up_for_what_the_projection_takes(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept
) -> None:
    edit = fit(tiny_pipe, gun, replace(CONFIG, unit="concept"), sae=word_sae).edits[0]
    assert isinstance(edit, OrthogonalSAEEdit)
    carried = carried_share(tiny_pipe, word_sae, edit, gun)
    assert edit.lam == pytest.approx(1.5 / max(carried, 0.25), rel=1e-4)


def test_with_the_concepts_own_codes_too(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept) -> None:
    paper = replace(CONFIG, source="concept")
    one, other = (fit(tiny_pipe, gun, config, sae=word_sae).edits[0] for config in (paper, replace(paper, ortho=0)))
    assert isinstance(one, OrthogonalSAEEdit) and one.concept_codes is not None
    assert torch.equal(one.concept_codes, other.concept_codes)  # type: ignore[union-attr]


def test_it_is_a_setting_by_name(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tmp_path: Path) -> None:
    folder = tmp_path / "sae"
    save(word_sae, folder, {"site": f"text_encoder/{PATH}"})
    snce = method("snce")
    eraser = snce.fit(tiny_pipe, gun, snce.Config(sae=str(folder), permutations=20, neurons=(5,), ortho=2))
    assert len(eraser.edits[0].coupled) == 2  # type: ignore[union-attr]
    with pytest.raises(ExciseError, match="ortho is -1; it must be a whole number, at least 0"):
        SNCEConfig(ortho=-1)
