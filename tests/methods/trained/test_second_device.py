"""Every method on a pipeline that is not on the CPU: nothing it makes is left behind there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.bench.attacks.inversion import WORD, InversionConfig, invert
from excise.bench.attacks.prefix import PrefixConfig, prefix_attack
from excise.bench.attacks.ring_a_bell import RingABellConfig, ring_a_bell, vocabulary
from excise.concepts import Concept
from excise.erasers import Eraser
from excise.methods import method
from excise.sae import save
from excise.sentences import sentence_vectors
from tests.second_device import DEVICE, MPS, There, second_device

PROMPT = "a gun on grass"
TRAINED = {"iterations": 2, "steps": 2}
METHODS: dict[str, dict[str, Any]] = {
    "safety-filter": {"threshold": 0.3},
    "uce": {},
    "rece": {"rounds": 2},
    "esd-x": TRAINED,
    "esd-u": TRAINED,
    "sld": {"level": "max"},
    "ca": {**TRAINED, "pictures": 2, "batch": 2},
    "sa": {**TRAINED, "pictures": 2, "fisher": 2, "timesteps": 1, "batch": 2},
    "spm": {**TRAINED, "anchors": 1},
    "mace": {**TRAINED, "pictures": 2},
    "dumo": {**TRAINED, "pairs": 2, "bins": 2, "alpha_iterations": 2},
    "advunlearn": {**TRAINED, "attack_steps": 2, "retain": 2},
    "hirm": {"iterations": 2},
    "receler": {**TRAINED, "rank": 2, "attack_steps": 2},
    "speed": {"limit": 100.0},
    "adavd": {"midpoint": 0.5},
    "leace": {},
    "cgce": {"iterations": 60, "batch": 4, "noise": 0.0},
    "stg": {"pairs": 2, "steps": 2, "iterations": 2, "batch": 2, "threshold": 1e-6},
    "safree": {"most": 0},
    "casteer": {"pairs": 4, "steps": 2},
    "snce": {},
    "itd": {},
    "concept-steerers": {},
}
OF_EVERY_KIND = ("uce", "esd-x", "spm", "safree", "snce")
"""Weights solved for and trained, adapters with the prompt's text, attention, an SAE. The others, each like one of
these in what it hooks and saves, are slow."""
ON_AN_SAE = ("snce", "itd", "concept-steerers")


@pytest.fixture
def away(
    tiny_pipe: Any, word_sae: Any, tiny_site: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Any, Path]]:
    """The tiny pipeline on the second device, and the folder of its SAE."""
    save(word_sae, tmp_path / "sae", {"site": asdict(tiny_site)})
    sentence_vectors(["read before"])
    with second_device(getattr(request, "param", DEVICE)) as device:
        yield tiny_pipe.to(device), tmp_path / "sae"


@pytest.fixture(scope="module")
def words(clip_tokenizer: Any) -> torch.Tensor:
    """The tokens that an attack may use."""
    return vocabulary(clip_tokenizer, ("gun",))


def draw(pipe: Any, prompt: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    made: torch.Tensor = pipe(prompt, num_inference_steps=2, generator=generator, output_type="latent").images
    assert isinstance(made, There)
    return made.cpu()


def test_the_second_device_refuses_what_a_card_refuses() -> None:
    with second_device() as device:
        here, there = torch.ones(2, 2), torch.ones(2, 2, device=device)
        assert there.device == DEVICE and torch.zeros_like(there).device == DEVICE
        with pytest.raises(RuntimeError, match="of the CPU"):
            there @ here
        with pytest.raises(RuntimeError, match="of the CPU"):
            torch.where(here > 0, there, there)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert torch.equal((there @ here.to(device)).cpu(), torch.full((2, 2), 2.0))
        assert torch.equal(there[torch.tensor([1])].cpu(), torch.ones(1, 2))
        assert (2.0 * there * torch.tensor(3.0)).tolist() == [[6.0, 6.0], [6.0, 6.0]]
        leaf = torch.ones(2, device=device, requires_grad=True)
        leaf.cpu().square().sum().backward()
        assert leaf.grad is not None and leaf.grad.device == DEVICE and leaf.grad.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_EVERY_KIND else pytest.mark.slow) for name in METHODS]
)
def test_methods_fit_draw_and_are_attacked_off_the_cpu(
    away: tuple[Any, Path], words: torch.Tensor, gun: Concept, name: str, tmp_path: Path
) -> None:
    pipe, sae = away
    before = draw(pipe, PROMPT)
    chosen = method(name)
    settings = METHODS[name] | ({"sae": str(sae)} if name in ON_AN_SAE else {})
    chosen.fit(pipe, gun, chosen.Config(**settings)).save(tmp_path / "gun")
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with Eraser.load(tmp_path / "gun").attach(pipe):
        assert not torch.equal(draw(pipe, PROMPT), before)
        prefix_attack(pipe, PROMPT, picture, words, PrefixConfig(length=2, iterations=1, batch=2))
        learnt = invert(pipe, "gun", [f"a {WORD} on grass"], picture, InversionConfig(iterations=1, batch=2))
        assert learnt.device == DEVICE
    assert torch.equal(draw(pipe, PROMPT), before)


def test_a_mac_has_no_float64() -> None:
    with second_device(MPS) as device:
        there = torch.ones(2, device=device)
        assert there.device == MPS
        with pytest.raises(TypeError, match="float64"):
            there.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64, device=device)


@pytest.mark.parametrize("away", [MPS], indirect=True)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_EVERY_KIND else pytest.mark.slow) for name in METHODS]
)
def test_methods_fit_and_draw_on_a_mac(away: tuple[Any, Path], gun: Concept, name: str, tmp_path: Path) -> None:
    pipe, sae = away
    before = draw(pipe, PROMPT)
    chosen = method(name)
    settings = METHODS[name] | ({"sae": str(sae)} if name in ON_AN_SAE else {})
    chosen.fit(pipe, gun, chosen.Config(**settings)).save(tmp_path / "gun")
    with Eraser.load(tmp_path / "gun").attach(pipe):
        assert not torch.equal(draw(pipe, PROMPT), before)
    assert torch.equal(draw(pipe, PROMPT), before)


def test_ring_a_bell_searches_off_the_cpu(away: tuple[Any, Path], gun: Concept) -> None:
    pipe, _ = away
    assert len(ring_a_bell(pipe, gun, [PROMPT], RingABellConfig(population=8, generations=2))) == 1
