"""Every family, end to end: an SAE for each encoder, the eraser, the pictures, and its bypasses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise.app.erase.finding import erase
from excise.app.training.text import places_of, train_sae
from excise.concepts import Concept, from_templates
from excise.erasers import Eraser
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sae import TopKSAE, TrainConfig
from excise.sites import Site, default_site, encode_prompt, family_of, sites_of, to_cover
from excise.sites.denoiser import denoisers
from excise.sites.encoding import tensors_of
from excise.sites.site import layer_count, taps_of, text_encoders
from tests import tiny
from tests.planted import planted, stand_out

pytestmark = pytest.mark.usefixtures("few_groups")

GUN, CAT = "a gun on grass", "a cat on grass"
SEVERAL = ("sdxl", "sd3", "flux", "kandinsky5")
FAST = SNCEConfig(permutations=20, examine=2)
OF_EVERY_ENCODER = ("sd1", "sd3", "flux2", "sana", "qwen-image", "z-image", "pixart", "wan")
"""The others have no text encoder of another kind, and are slow in the two tests that take longest."""
EVERY_ENCODER = pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in OF_EVERY_ENCODER else pytest.mark.slow) for name in tiny.FAMILIES],
    indirect=True,
)


@pytest.fixture(params=tiny.FAMILIES)
def family(request: Any) -> str:
    reason = tiny.missing(request.param)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="module")
def concept() -> Concept:
    full = from_templates("gun", ("gun",), 12)
    return replace(full, pairs=full.pairs[:6], controls=full.controls[:4])


def saes_for(pipe: Any, concept: Concept) -> dict[Site, TopKSAE]:
    sites = [default_site(pipe, component) for component in to_cover(pipe)]
    return {site: planted(pipe, site, concept) for site in sites}


def residue(pipe: Any) -> list[str]:
    """Return the wrapped modules, which may include those wrapped by a transformer's cache."""
    modules = (*text_encoders(pipe).values(), *denoisers(pipe))
    return [n for module in modules for n, m in module.named_modules() if {"forward", "_diffusers_hook"} & set(vars(m))]


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_only_the_concepts_pictures_change_and_detach_restores_all(family: str, concept: Concept) -> None:
    pipe = tiny.build(family)
    saes = saes_for(pipe, concept)
    before = {prompt: tiny.call(family, pipe, prompt) for prompt in (GUN, CAT)}
    wrapped = residue(pipe)
    foreign = list(tensors_of(encode_prompt(pipe, GUN)))
    eraser = fit(pipe, concept, FAST, sae=saes)
    assert [edit.site for edit in eraser.edits] == list(saes)
    with eraser.attach(pipe) as attachment:
        assert not same(tiny.call(family, pipe, GUN), before[GUN])
        assert same(tiny.call(family, pipe, CAT), before[CAT]), "an unrelated picture keeps every bit"
        status = attachment.status()
        assert status["rows_edited"] > 0
        assert status["bypasses"] == 0
        if family not in ("kandinsky5", "hunyuan-image"):  # these want masks in addition to the states
            key = "prompt_embeds"
            with pytest.raises((EraserDidNotFire, ValueError)):
                tiny.call(family, pipe, None, **{key: foreign[0]})
    assert same(tiny.call(family, pipe, GUN), before[GUN])
    assert residue(pipe) == wrapped


def test_the_registry_knows_where_the_layers_are_and_what_is_read(family: str) -> None:
    pipe = tiny.build(family)
    known = family_of(pipe)
    assert known is not None
    for component, encoder in text_encoders(pipe).items():
        entry = known.encoder(component)
        assert entry is not None, component
        stack = {site.path.rpartition(".")[0] for site in sites_of(pipe) if site.component == component}
        assert any(path.endswith(entry.layers) for path in stack), stack
        taps = taps_of(pipe, component)
        assert taps and all(0 < tap <= layer_count(encoder) for tap in taps)


@EVERY_ENCODER
def test_an_edit_behind_the_earliest_tap_is_refused(family: str, concept: Concept) -> None:
    pipe = tiny.build(family)
    component = to_cover(pipe)[0]
    layers = [s for s in sites_of(pipe) if s.component == component and s.path[-1].isdigit()]
    tap = min(taps_of(pipe, component))
    if tap == len(layers):
        pytest.skip("it reads the last layer, which nothing lies behind")
    others = {default_site(pipe, c): planted(pipe, default_site(pipe, c), concept) for c in to_cover(pipe)[1:]}
    with pytest.raises(ExciseError, match=f"also reads the state after {tap} layers of {component}"):
        fit(pipe, concept, FAST, sae={layers[tap]: planted(pipe, layers[tap], concept), **others})


@pytest.mark.parametrize("family", SEVERAL)
def test_an_encoder_without_an_edit_is_refused(family: str, concept: Concept) -> None:
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe = tiny.build(family)
    saes = saes_for(pipe, concept)
    first = next(iter(saes))
    with pytest.raises(ExciseError, match="also reads text_encoder_2"):
        fit(pipe, concept, FAST, sae={first: saes[first]})


@EVERY_ENCODER
def test_an_sae_for_every_encoder_is_trained_and_erased_with(family: str, concept: Concept, tmp_path: Path) -> None:
    """What `excise sae train` and `excise erase` do, on a pipeline that is in memory."""
    pipe = tiny.build(family)
    for component in to_cover(pipe):
        stand_out(pipe, component, concept, default_site(pipe, component))
    prompts = [text for pair in concept.pairs for text in (pair.concept, pair.deconcept)]
    places = places_of(pipe, tmp_path / "saes")
    for folder, site in places.items():
        sizes = TrainConfig(expansion=8, k=8, tokens=4_000, batch=256)
        train_sae(pipe, site, prompts, sizes, folder, card={"corpus": "pairs"})
    # In a random encoder's SAE every neuron also fires without the concept. Here any neuron will do.
    config = SNCEConfig(sae=str(tmp_path / "saes"), permutations=20, tolerance=0.5, gate="relu")
    eraser, _ = erase(pipe, concept, config)
    eraser.save(tmp_path / "eraser")
    with Eraser.load(tmp_path / "eraser").attach(pipe) as attachment:
        assert attachment.status()["canary_shift"] > 0
        with torch.no_grad():
            encode_prompt(pipe, GUN)
        assert attachment.status()["rows_edited"] > 0
