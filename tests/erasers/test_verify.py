"""`verify` on the bundled model: honest erasers pass, and valid folders that erase nothing, amplify or swap do not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise import reference
from excise.erasers import Eraser, SAEEdit, verify
from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.edits.sae_rows import ROWS, altered_rows
from excise.erasers.edits.weights import WeightEdit
from excise.erasers.verify import TRUSTED
from excise.sae import TopKSAE, load

SLOW = pytest.mark.slow
CONCEPTS = ("dog", pytest.param("apple", marks=SLOW), pytest.param("pastel", marks=SLOW))


@pytest.fixture(scope="module")
def pipe(one_bundled_pipe: Any) -> Any:
    return one_bundled_pipe


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    return load(reference.sae_folder())


class Made(dict[str, Eraser]):
    """Erasers by concept, made when they are asked for."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.pipe = pipe

    def __missing__(self, name: str) -> Eraser:
        self[name] = excise.erase(self.pipe, name)
        return self[name]


@pytest.fixture(scope="module")
def made(pipe: Any) -> Made:
    return Made(pipe)


@pytest.fixture
def failed(pipe: Any, sae: TopKSAE, tmp_path: Path) -> Callable[..., list[str]]:
    """Names of the checks that an eraser's folder fails; the SAE is at hand unless `alone`."""

    def of(eraser: Eraser, alone: bool = False) -> list[str]:
        eraser.save(tmp_path / "eraser")
        checks = verify(tmp_path / "eraser", pipe, sae=None if alone else sae)
        assert [c.passed for c in checks[:6] if c.name != "rows"] == [True] * (len(checks[:6]) - 1), checks
        return [check.name for check in checks if not check.passed]

    return of


def with_edit(eraser: Eraser, **changes: Any) -> Eraser:
    (edit,) = eraser.edits
    return replace(eraser, edits=(replace(edit, **changes),), canary_shift=0.0)


def edit_of(eraser: Eraser) -> SAEEdit:
    (edit,) = eraser.edits
    assert isinstance(edit, SAEEdit)
    return edit


def test_an_eraser_that_is_loaded_passes_and_stays_loaded(
    pipe: Any, made: dict[str, Eraser], failed: Callable[..., list[str]]
) -> None:
    with made["dog"].attach(pipe, strength=0.5) as loaded, made["apple"].attach(pipe, name="other"):
        assert failed(made["dog"]) == []
        assert (loaded.active, loaded.strength, list(excise.list_erasers(pipe))) == (True, 0.5, ["dog-snce", "other"])
        with pytest.raises(excise.InvalidSetting, match="attached to this pipeline already"):
            made["dog"].attach(pipe)


@pytest.mark.parametrize("name", CONCEPTS)
def test_honest_erasers_pass(made: dict[str, Eraser], failed: Callable[..., list[str]], name: str) -> None:
    assert failed(made[name]) == []
    assert failed(made[name], alone=True) == []


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_dud_does_not(made: dict[str, Eraser], failed: Callable[..., list[str]], name: str) -> None:
    """λ times 0.002: the canary moves, and the dog is drawn as ever."""
    dud = with_edit(made[name], lam=0.002 * edit_of(made[name]).lam)
    assert failed(dud) == failed(dud, alone=True) == ["removal"]


@pytest.mark.parametrize("name", CONCEPTS)
def test_an_amplifier_does_not(made: dict[str, Eraser], failed: Callable[..., list[str]], name: str) -> None:
    """The decoder row turned round adds what should be taken away."""
    amplifier = with_edit(made[name], W_dec=-edit_of(made[name]).W_dec)
    assert failed(amplifier) == ["rows", "removal"]
    assert failed(amplifier, alone=True) == ["removal"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("dog", "apple"),
        pytest.param("apple", "dog", marks=SLOW),
        pytest.param("pastel", "dog", marks=SLOW),
    ],
)
def test_a_trojan_does_not(made: dict[str, Eraser], failed: Callable[..., list[str]], name: str, other: str) -> None:
    """It reads one concept's neuron and writes with another's decoder row."""
    row = edit_of(made[other]).W_dec
    for trojan in (with_edit(made[name], W_dec=row), with_edit(made[name], W_dec=-row)):
        assert failed(trojan) == ["rows", "removal"]
        assert failed(trojan, alone=True) == ["removal"]


def test_another_concepts_eraser_does_not(made: dict[str, Eraser], failed: Callable[..., list[str]]) -> None:
    """All its rows are the SAE's, and its canary is its own; what it claims to erase it leaves alone."""
    renamed = replace(made["apple"], concept="dog", mentions=("dog",))
    assert failed(renamed) == failed(renamed, alone=True) == ["removal"]


def test_every_mention_has_to_be_removed(made: dict[str, Eraser], failed: Callable[..., list[str]]) -> None:
    assert failed(replace(made["dog"], mentions=("dog", "apple"))) == ["removal"]
    assert failed(replace(made["dog"], mentions=("apple",))) == ["removal"]
    assert failed(replace(made["dog"], mentions=())) == [], "a built-in concept's name is always measured"


def test_rows_are_the_saes_to_the_bit(made: dict[str, Eraser], sae: TopKSAE, failed: Callable[..., list[str]]) -> None:
    edit = edit_of(made["dog"])
    assert altered_rows(edit, sae) == []
    for name in ("W_enc", "b_enc", "b_pre", "W_dec"):
        rows = getattr(edit, name).clone()
        rows.view(torch.int32).view(-1)[0] ^= 1
        assert altered_rows(replace(edit, **{name: rows}), sae) == [name]
    nought = replace(edit, b_enc=torch.zeros_like(edit.b_enc))
    with torch.no_grad():
        zeroed = type(sae)(sae.config)
        zeroed.load_state_dict(sae.state_dict())
        zeroed.b_enc[edit.indices] = -0.0
    assert altered_rows(nought, zeroed) == ["b_enc"], "-0.0 is not 0.0"
    assert altered_rows(replace(edit, indices=torch.tensor([len(sae.W_enc)])), sae) == [*ROWS]
    assert failed(replace(made["dog"], edits=(replace(edit, indices=edit.indices + 1),))) == ["rows"]


def test_another_sae_than_the_one_it_names_is_refused(
    made: dict[str, Eraser], pipe: Any, word_sae: TopKSAE, tmp_path: Path
) -> None:
    made["dog"].save(tmp_path / "dog")
    rows = next(check for check in verify(tmp_path / "dog", pipe, sae=word_sae) if check.name == "rows")
    assert not rows.passed
    assert "not the one this eraser names" in rows.detail


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "saemnesia-text",
        "itd",
        "concept-steerers",
        "uce",
        "rece",
        "safree",
        "sld",
        "safety-filter",
        "mace",
        "adavd",
        "speed",
        "hirm",
        "leace",
        "cgce",
    ],
)
def test_other_methods_erasers_pass_and_another_concepts_do_not(
    pipe: Any, failed: Callable[..., list[str]], method: str
) -> None:
    own, other = (excise.erase(pipe, name, method) for name in ("dog", "frog"))
    assert failed(own, alone=True) in ([], ["verdict"])
    assert "removal" in failed(replace(other, concept="dog", mentions=("dog",)), alone=True)


@pytest.mark.slow
def test_weights_of_a_closed_form_that_pass_for_removal_are_solved_again(pipe: Any, tmp_path: Path) -> None:
    """UCE's weights turned round remove the dog too, but they are not UCE's."""
    honest = excise.erase(pipe, "dog", "uce")
    turned = tuple(WeightEdit(edit.site, delta=-edit.change()) for edit in honest.edits if isinstance(edit, WeightEdit))
    for eraser, failed in ((honest, []), (replace(honest, edits=turned, canary_shift=0.0), ["weights"])):
        eraser.save(tmp_path / "eraser")
        checks = excise.verify(tmp_path / "eraser", pipe)
        assert [check.name for check in checks if not check.passed] == failed


def test_random_rows_of_a_block_are_refused_where_the_sae_is_at_hand(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SAEuron's decoder rows at random remove what they write over (docs/results/floors.md). Only its SAE tells."""
    monkeypatch.setattr(sys.modules["excise.erasers.verify"], "_removal", lambda *_: [])  # it takes 100 predictions
    old = Eraser.load(Path(__file__).parent / "old" / "saeuron")
    (edit,) = old.edits
    assert isinstance(edit, BlockEdit)
    rows = torch.randn(edit.W_dec.shape, generator=torch.Generator().manual_seed(0))
    rows *= edit.W_dec.norm(dim=1, keepdim=True) / rows.norm(dim=1, keepdim=True)
    dud = replace(old, edits=(replace(edit, W_dec=rows),), canary_shift=0.0)
    dud.save(tmp_path / "dud")
    found = {check.name: check for check in excise.verify(tmp_path / "dud", pipe)}
    assert not found["rows"].passed and "W_dec" in found["rows"].detail
    alone = {check.name: check for check in verify(tmp_path / "dud", pipe)}
    assert alone["rows"].passed and "was not at hand" in alone["rows"].detail
    assert f"that the rows of {edit.site.key} are an SAE's" in alone[TRUSTED].detail
