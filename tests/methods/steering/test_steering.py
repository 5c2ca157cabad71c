"""Concept Steerers, CASteer and ItD: what they subtract, by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.erasers.edits.base import StepInfo
from excise.erasers.edits.gated_sae import GatedSAEEdit
from excise.erasers.edits.vectors import DirectionEdit, VectorEdit
from excise.errors import ExciseError
from excise.methods import method
from excise.methods.configs.steering import CASteerConfig
from excise.methods.sae.itd import own_neurons, smallest_kept
from excise.methods.steering.casteer import mean_outputs
from excise.neurons import PromptCodes
from excise.sites import Site, capture
from excise.sites.denoiser import cross_attentions
from tests import tiny

PAIRS = (Pair("a gun on grass", "a cat on grass"), Pair("a photo of a gun", "a photo of a cup"))
CONCEPT = Concept("gun", ("gun", "pistol"), PAIRS)
STEPS = 4


def draw(pipe: Any, prompts: list[str], **how: Any) -> np.ndarray:
    generator = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    how = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np", **how}
    made: np.ndarray = pipe(prompts, generator=generator, **how).images
    return made


@pytest.fixture
def sae_folder(word_sae: Any, tmp_path: Path) -> Path:
    from excise.sae import save

    save(word_sae, tmp_path / "sae", {"site": {"component": "text_encoder", "path": "encoder.layers.2"}})
    return tmp_path / "sae"


def test_concept_steerers_subtracts_the_words_codes_from_every_prompt(
    tiny_pipe: Any, tiny_site: Site, word_sae: Any, sae_folder: Path, tmp_path: Path
) -> None:
    config = method("concept-steerers").Config(sae=str(sae_folder), lam=0.7)
    eraser = method("concept-steerers").fit(tiny_pipe, CONCEPT, config)
    assert eraser.created["config"]["sae"] == sae_folder.name
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    (edit,) = eraser.edits
    prompts = ["a cat on grass", "gun, pistol"]
    (plain,) = capture(tiny_pipe, [tiny_site], prompts)
    words = plain.states[tiny_site][1]
    wanted = torch.zeros_like(words)
    for t, h in enumerate(words):
        for i in range(word_sae.config.m):
            code = max(0.0, float((h - word_sae.b_pre) @ word_sae.W_enc[i] + word_sae.b_enc[i]))
            wanted[t] += code * word_sae.W_dec[i].detach()
    assert isinstance(edit, VectorEdit)
    torch.testing.assert_close(edit.vectors, wanted, atol=1e-4, rtol=1e-4)
    seen: list[torch.Tensor] = []
    layer = next(m for n, m in tiny_pipe.text_encoder.named_modules() if n.endswith("final_layer_norm"))
    handle = layer.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((args or tuple(kwargs.values()))[0].detach().clone()), with_kwargs=True
    )
    with eraser.attach(tiny_pipe):
        (made,) = capture(tiny_pipe, [tiny_site], prompts)
        seen.clear()
        tiny_pipe.encode_prompt("a cat on grass", "cpu", 1, True)
    handle.remove()
    for row in range(2):
        torch.testing.assert_close(made.states[tiny_site][row], plain.states[tiny_site][row] - 0.7 * edit.vectors)
    (both,) = capture(tiny_pipe, [tiny_site], ["a cat on grass", ""])
    torch.testing.assert_close(seen[0][0], both.states[tiny_site][0] - 0.7 * edit.vectors)
    torch.testing.assert_close(seen[1][0], both.states[tiny_site][1] + 0.7 * edit.vectors)


def test_casteer_s_directions_are_mean_differences(tiny_pipe: Any) -> None:
    config = CASteerConfig(pairs=2, steps=3, guidance=4.0, batch=1)
    eraser = method("casteer").fit(tiny_pipe, CONCEPT, config)
    sites = cross_attentions(tiny_pipe, "casteer")
    assert [edit.site for edit in eraser.edits] == sites
    site = sites[1]
    module = tiny_pipe.unet.get_submodule(site.path)
    kept: dict[str, list[torch.Tensor]] = {}
    for n, pair in enumerate(PAIRS):
        for side, prompt in (("loud", pair.concept), ("quiet", pair.deconcept)):
            outputs: list[torch.Tensor] = []
            handle = module.register_forward_hook(lambda m, args, out, to=outputs: to.append(out[1].detach().clone()))
            generator = torch.Generator().manual_seed(n)
            how = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
            tiny_pipe(prompt, generator=generator, **how)
            handle.remove()
            kept.setdefault(side, []).append(torch.stack([out.mean(0) for out in outputs]))
    change = torch.stack(kept["loud"]).mean(0) - torch.stack(kept["quiet"]).mean(0)
    edit = eraser.edits[1]
    assert isinstance(edit, DirectionEdit)
    for step in range(3):
        wanted = change[step] / change[step].norm()
        torch.testing.assert_close(edit.directions[step], wanted, atol=1e-3, rtol=1e-3)
    assert edit.timesteps.tolist() == [float(t) for t in tiny_pipe.scheduler.timesteps]
    together, _ = mean_outputs(tiny_pipe, [site], [pair.concept for pair in PAIRS], config)
    torch.testing.assert_close(together[site], torch.stack(kept["loud"]).mean(0), atol=1e-3, rtol=1e-3)


def test_a_sampler_that_takes_a_timestep_twice_counts_both(tiny_pipe: Any) -> None:
    from diffusers import PNDMScheduler

    tiny_pipe.scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    eraser = method("casteer").fit(tiny_pipe, CONCEPT, CASteerConfig(pairs=1, steps=3, guidance=4.0))
    edit = eraser.edits[0]
    assert isinstance(edit, DirectionEdit)
    asked = [float(timestep) for timestep in tiny_pipe.scheduler.timesteps]
    assert len(asked) == 4
    assert edit.timesteps.tolist() == sorted(set(asked), reverse=True)


def test_a_direction_is_turned_round_where_it_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    site = Site("unet", "mid_block.attentions.0.transformer_blocks.0.attn2", 5)
    directions = torch.nn.functional.normalize(torch.randn(2, 5, generator=generator), dim=1)
    edit = DirectionEdit(site, directions, torch.tensor([900.0, 100.0]), beta=2.0)
    x = torch.randn(2, 6, 5, generator=generator)
    for timesteps, rows in (((880.0,), (0, 0)), ((120.0, 700.0), (1, 0))):
        delta = edit.delta(x, 0.5, step=StepInfo(timesteps))
        assert delta is not None
        for b, n in np.ndindex(2, 6):
            s = directions[rows[b]]
            wanted = 0.5 * 2.0 * max(0.0, float(s @ x[b, n])) * s
            torch.testing.assert_close(delta[b, n], wanted)
    assert edit.delta(x, 0.0, step=StepInfo((900.0,))) is None
    whole = x - edit.delta(x, step=StepInfo((900.0,)))  # type: ignore[operator]
    assert float((whole @ directions[0]).max()) < 1e-5
    with pytest.raises(ExciseError, match="not \\[B, N, 5\\]"):
        edit.delta(x[0], step=StepInfo((900.0,)))


def test_casteer_is_saved_and_leaves_no_trace(tiny_pipe: Any, tmp_path: Path) -> None:
    config = CASteerConfig(pairs=2, steps=STEPS, guidance=4.0)
    eraser = method("casteer").fit(tiny_pipe, CONCEPT, config)
    plain = draw(tiny_pipe, ["a gun on grass"])
    eraser.save(tmp_path / "gun")
    assert all(check.passed for check in verify(tmp_path / "gun"))
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    with again.attach(tiny_pipe):
        assert not np.array_equal(draw(tiny_pipe, ["a gun on grass"]), plain)
    assert np.array_equal(draw(tiny_pipe, ["a gun on grass"]), plain)
    assert not [n for n, m in tiny_pipe.unet.named_modules() if "forward" in vars(m)]


def test_itd_s_features_are_the_concept_s_alone() -> None:
    def codes(*rows: list[tuple[int, float]]) -> PromptCodes:
        values = torch.tensor([[[value for _, value in row]] for row in rows])
        indices = torch.tensor([[[feature for feature, _ in row]] for row in rows])
        return PromptCodes(values, indices, torch.ones(len(rows), 1, dtype=torch.bool), 8)

    concept = codes([(1, 5.0), (2, 4.0), (3, 1.0)], [(4, 3.0), (1, 2.0), (5, 0.0)])
    stays = codes([(2, 9.0), (6, 1.0), (7, 0.5)], [(3, 1.0), (7, 0.9), (0, 0.1)])
    assert own_neurons(concept, stays, 3) == [1, 4]
    assert own_neurons(concept, stays, 1) == [1]
    assert own_neurons(concept, codes([(1, 1.0), (4, 1.0), (2, 0.5)]), 3) == []
    found = smallest_kept(concept, stays, indices=[1, 2])
    torch.testing.assert_close(found, torch.tensor([2.0, 4.0]))
    assert bool((found < torch.tensor([2.0, 4.0])).all())


def test_itd_spares_prompts_that_it_would_change_by_little(
    tiny_pipe: Any, tiny_site: Site, gun: Concept, sae_folder: Path, tmp_path: Path
) -> None:
    config = method("itd").Config(sae=str(sae_folder), features=4, factor=-2.0)
    eraser = method("itd").fit(tiny_pipe, gun, config)
    assert eraser.created["config"]["sae"] == sae_folder.name
    (edit,) = eraser.edits
    assert isinstance(edit, GatedSAEEdit)
    assert 5 in edit.neurons
    prompts = [gun.pairs[0].concept, gun.pairs[0].deconcept]
    (seen,) = capture(tiny_pipe, [tiny_site], prompts)
    h = seen.states[tiny_site]
    delta = edit.delta(h)
    assert delta is not None
    for row in range(2):
        wanted = torch.zeros_like(h[row])
        for t, x in enumerate(h[row]):
            for i in range(len(edit.neurons)):
                code = float((x - edit.b_pre) @ edit.W_enc[i] + edit.b_enc[i])
                if code > max(0.0, float(edit.threshold[i])):
                    wanted[t] += 3.0 * code * edit.W_dec[i]
        change = float(wanted.square().sum(1).mean())
        assert (row == 0) == (change >= edit.floor)
        torch.testing.assert_close(delta[row], wanted if row == 0 else torch.zeros_like(wanted), atol=1e-4, rtol=1e-4)
    eraser.save(tmp_path / "gun")
    assert Eraser.load(tmp_path / "gun").digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))
    plain = draw(tiny_pipe, prompts)
    with eraser.attach(tiny_pipe):
        made = draw(tiny_pipe, prompts)
    assert np.array_equal(made[1], plain[1])
    assert not np.array_equal(made[0], plain[0])


def test_bad_input_is_one_clear_line(tiny_pipe: Any, sae_folder: Path) -> None:
    with pytest.raises(ExciseError, match="no SAE was named"):
        method("concept-steerers").fit(tiny_pipe, CONCEPT)
    with pytest.raises(ExciseError, match="no SAE was named"):
        method("itd").fit(tiny_pipe, CONCEPT)
    with pytest.raises(ExciseError, match="no prompt pairs"):
        method("itd").fit(tiny_pipe, Concept("gun", ("gun",)), method("itd").Config(sae=str(sae_folder)))
    with pytest.raises(ExciseError, match="no prompt pairs"):
        method("casteer").fit(tiny_pipe, Concept("gun", ("gun",)))
    with pytest.raises(ExciseError, match=r"casteer changes a denoiser's cross-attention .* has none"):
        method("casteer").fit(tiny.build("sd3"), CONCEPT)
    for name, wrong in (("itd", {"factor": 1.0}), ("casteer", {"steps": 0}), ("concept-steerers", {"lam": -1.0})):
        with pytest.raises(ExciseError):
            method(name).Config(**wrong)
    with pytest.raises(ExciseError, match="not vectors"):
        VectorEdit(Site("text_encoder", "encoder.layers.2", 64), torch.zeros(3, 5))
    edit = VectorEdit(Site("text_encoder", "encoder.layers.2", 64), torch.zeros(3, 64))
    with pytest.raises(ExciseError, match="pad all prompts to one length"):
        edit.delta(torch.zeros(1, 4, 64))
    with pytest.raises(ExciseError, match="must decrease"):
        DirectionEdit(Site("unet", "x", 2), torch.zeros(2, 2), torch.tensor([1.0, 2.0]))


def test_itd_s_floor_is_a_share_of_the_least_change_of_a_concept_prompt(
    tiny_pipe: Any, tiny_site: Site, gun: Concept, sae_folder: Path
) -> None:
    for share in (0.99, 0.5):
        config = method("itd").Config(sae=str(sae_folder), features=4, share=share)
        eraser = method("itd").fit(tiny_pipe, gun, config)
        (edit,) = eraser.edits
        assert isinstance(edit, GatedSAEEdit)
        (seen,) = capture(tiny_pipe, [tiny_site], [pair.concept for pair in gun.pairs])
        changes = replace(edit, floor=0.0).change(seen.states[tiny_site])
        assert float(changes.max()) > 1.01 * float(changes[changes > 0].min()), "or its maximum would do as well"
        assert edit.floor == pytest.approx(share * float(changes[changes > 0].min()), rel=1e-4)
    assert method("itd").Config().share == 0.99


def test_a_prompt_that_is_changed_by_less_than_the_floor_keeps_its_bits(
    tiny_pipe: Any, tiny_site: Site, word_sae: Any, gun: Concept
) -> None:
    edit = GatedSAEEdit.from_sae(word_sae, tiny_site, [5], gate="relu", floor=0.0)
    (seen,) = capture(tiny_pipe, [tiny_site], [pair.concept for pair in gun.pairs])
    h = seen.states[tiny_site]
    change = edit.change(h)
    middle = change.sort().values[len(change) // 2]
    assert change.min() < middle < change.max()
    delta, whole = replace(edit, floor=float(middle)).delta(h), edit.delta(h)
    assert delta is not None and whole is not None
    spared = change < middle
    assert not delta[spared].any() and whole[spared].flatten(1).any(1).all()
    assert torch.equal(delta[~spared], whole[~spared])
