"""The functions of `import excise`: what they return, and one clear error for wrong input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import excise
from excise import ExciseError, InvalidSetting, NotFound, WrongModel
from excise.erasers.artefact.files import FILES
from excise.sae import TopKSAE, card, save
from excise.sites import Site

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")

TRAINING = {"tokens": 4096, "batch": 256, "expansion": 2, "k": 4}
PROMPTS = [f"a {thing} {place}" for thing in ("gun", "cat", "rose", "bus") for place in ("", "on grass", "on sand")]


@pytest.fixture(autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of SAEs for a user's own models."""
    folder = tmp_path_factory.mktemp("kept")
    monkeypatch.setenv("EXCISE_CACHE", str(folder))
    return folder


@pytest.fixture
def saved_sae(word_sae: TopKSAE, tiny_site: Site, tmp_path: Path) -> Path:
    """Return the folder of `word_sae`, whose card names its Site."""
    save(word_sae, tmp_path / "word-sae", {"site": {"component": "text_encoder", "path": tiny_site.path, "width": 64}})
    return tmp_path / "word-sae"


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a random pipeline's erasers are weak
        return make()


def test_erase_makes_the_eraser_that_the_command_writes(tmp_path: Path) -> None:
    from excise import reference
    from excise.cli import app

    done = CliRunner().invoke(app, ["erase", "gun", "--out", str(tmp_path / "gun")])
    assert done.exit_code == 0, done.output
    pipe = reference.load()
    eraser = excise.erase(pipe, "gun")
    assert eraser.pack() == {name: (tmp_path / "gun" / name).read_bytes() for name in FILES}
    assert excise.list_erasers(pipe) == {}
    with pytest.raises(InvalidSetting, match="k is 'two'"):
        excise.erase(pipe, "gun", k="two")
    ranking = excise.find_neurons(pipe, "gun", top=1)
    assert ranking.top(1) == tuple(eraser.edits[0].neurons)


def test_the_sae_that_was_kept_for_the_model_is_used(tiny_pipe: Any, gun: Any, word_sae: TopKSAE) -> None:
    from excise.app.training.sae_cache import planned
    from excise.sae import TrainConfig

    (folder, site), *_ = planned(tiny_pipe, PROMPTS, TrainConfig(), {}).places.items()
    folder.parent.mkdir(parents=True)
    save(word_sae, folder, {"site": {"component": site.component, "path": site.path, "width": site.width}})
    settings = {"gate": "relu", "permutations": 20}
    found = quietly(lambda: excise.erase(tiny_pipe, gun, **settings))
    given = quietly(lambda: excise.erase(tiny_pipe, gun, sae=folder, **settings))
    assert found.pack() == given.pack()


FAST = {
    "steps": 2,
    "prompts": 1,
    "batch": 16,
    "ring_a_bell": {"population": 4, "generations": 1},
    "prefix": {"iterations": 1, "batch": 1},
}
"""Enough steps to make different pictures; what they show does not matter here."""


def test_what_cannot_be_evaluated_is_refused_before_a_picture(tiny_pipe: Any, gun_eraser: excise.Eraser) -> None:
    from excise import reference

    with pytest.raises(WrongModel, match="canvas is made for the bundled model"):
        excise.evaluate(gun_eraser, tiny_pipe)
    pipe = reference.load()
    with pytest.raises(WrongModel, match="made for another model"):
        excise.evaluate(gun_eraser, pipe)
    eraser = excise.erase(pipe, "gun")
    with eraser.attach(pipe), pytest.raises(InvalidSetting, match="is loaded; unload it"):
        excise.evaluate(eraser, pipe)


@pytest.mark.slow
def test_an_eraser_is_evaluated_on_the_pipeline_itself() -> None:
    from excise import reference

    pipe = reference.load()
    eraser = excise.erase(pipe, "gun")
    found = excise.evaluate(eraser, pipe, settings=FAST)
    assert excise.list_erasers(pipe) == {}
    assert set(found["methods"]) == {"none", "snce"}
    none, snce = found["methods"]["none"], found["methods"]["snce"]
    assert none["missing"] == snce["missing"] == 0
    assert none["figures"]["pixel_error"]["value"] == 0
    assert snce["figures"]["identical"]["value"] == 1  # unrelated pictures keep every bit


def test_verify_reads_the_files_once_and_asks_once_for_saes(
    tiny_pipe: Any, gun_eraser: excise.Eraser, word_sae: TopKSAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise.erasers import verify
    from excise.erasers.artefact import files

    folder, read = tmp_path / "gun", list[Path]()
    gun_eraser.save(folder)
    plain = files.read
    monkeypatch.setattr(files, "read", lambda place: read.append(place) or plain(place))  # type: ignore[func-returns-value]
    asked = list[str]()

    def saes(eraser: excise.Eraser) -> list[TopKSAE]:
        asked.append(eraser.digest)
        return [word_sae]

    assert verify(folder, tiny_pipe, sae=saes) == verify(folder, tiny_pipe, sae=word_sae)
    assert (asked, len(read)) == ([gun_eraser.digest], 2)
    excise.verify(folder, tiny_pipe)
    assert len(read) == 3
    verify(folder, sae=saes)  # without a pipeline
    (folder / "eraser.json").write_bytes(b"{}")
    assert not verify(folder, tiny_pipe, sae=saes)[-1].passed
    assert len(asked) == 1


def test_a_safety_checker_is_put_back(tiny_pipe: Any) -> None:
    from excise.drawn import checker_of, restore_checker, without_checker

    checker = torch.nn.Identity()
    tiny_pipe.register_modules(safety_checker=checker)
    tiny_pipe.register_to_config(requires_safety_checker=True)
    before = checker_of(tiny_pipe)
    assert checker_of(without_checker(tiny_pipe)) == (None, False)
    restore_checker(tiny_pipe, *before)
    assert checker_of(tiny_pipe) == (checker, True)
    assert checker_of(object()) == (None, None)


def test_an_sae_is_given_as_a_folder_or_as_itself(tiny_pipe: Any, gun: Any, saved_sae: Path) -> None:
    settings = {"gate": "relu", "permutations": 20}
    one = quietly(lambda: excise.erase(tiny_pipe, gun, sae=saved_sae, **settings))
    two = quietly(lambda: excise.erase(tiny_pipe, gun, sae=str(saved_sae), **settings))
    sae = excise.TopKSAE.from_pretrained(saved_sae)
    three = quietly(lambda: excise.erase(tiny_pipe, gun, sae=sae, **settings))
    assert one.pack() == two.pack()
    assert one.edits[0].neurons == three.edits[0].neurons == [5]
    for given in (sae, saved_sae, str(saved_sae)):
        assert quietly(lambda given=given: excise.find_neurons(tiny_pipe, gun, given, permutations=20)).top(1) == (5,)


def test_find_neurons_takes_a_list_of_neurons_and_words_without_an_entry(tiny_pipe: Any, saved_sae: Path) -> None:
    eraser = quietly(lambda: excise.erase(tiny_pipe, "gun", sae=saved_sae, neurons=[5], gate="relu", permutations=20))
    assert eraser.edits[0].neurons == [5]


def test_methods_without_an_sae_and_their_settings(tiny_pipe: Any, gun: Any) -> None:
    eraser = quietly(lambda: excise.erase(tiny_pipe, gun, method="uce", lam=1))
    assert eraser.method == "uce"
    assert excise.erase(tiny_pipe, gun, method="uce", lam=3.0).pack() != eraser.pack()
    assert {"snce", "uce", "esd-x", "none"} < set(excise.list_methods())
    for name in excise.list_methods():
        excise.method_config(name)
    assert excise.method_config("uce").lam == 0.5
    assert vars(excise.method_config("snce+uce", **{"snce.k": 2, "uce.lam": 2}))["snce.k"] == 2


def test_training_gives_an_sae_that_finds_and_erases(tiny_pipe: Any, tmp_path: Path) -> None:
    sae = excise.train_sae(tiny_pipe, PROMPTS, out=tmp_path / "sae", **TRAINING)
    assert isinstance(sae, TopKSAE)
    assert (sae.config.d, sae.config.m, sae.config.k) == (64, 128, 4)
    assert sae.card == card(tmp_path / "sae")
    assert sae.card["site"]["component"] == "text_encoder"
    other = excise.train_sae(tiny_pipe, iter(PROMPTS), site="encoder.layers.0", device="cpu", **TRAINING)
    assert other.card["site"]["path"] == "encoder.layers.0"
    assert not torch.equal(other.W_dec, sae.W_dec)


WRONG: list[tuple[type[ExciseError], str, Callable[[Any, Path], Any]]] = [
    (WrongModel, "'a-model' is not a pipeline", lambda pipe, sae: excise.erase("a-model", "gun")),  # type: ignore[arg-type]
    (WrongModel, "a NoneType is not a pipeline", lambda pipe, sae: excise.find_neurons(None, "gun", sae)),  # type: ignore[arg-type]
    (WrongModel, "a Module is not a pipeline", lambda pipe, sae: excise.train_sae(torch.nn.Module(), ["a gun"])),  # type: ignore[arg-type]
    (InvalidSetting, "not 7", lambda pipe, sae: excise.erase(pipe, 7)),  # type: ignore[arg-type]
    (ExciseError, "has no name", lambda pipe, sae: excise.erase(pipe, " ", sae=sae)),
    (NotFound, "there is no method 'nce'; try snce", lambda pipe, sae: excise.erase(pipe, "gun", "nce")),
    (InvalidSetting, "not by 5", lambda pipe, sae: excise.erase(pipe, "gun", 5)),  # type: ignore[arg-type]
    (NotFound, "no SAE was given", lambda pipe, sae: excise.find_neurons(pipe, "gun")),
    (NotFound, "no SAE was given", lambda pipe, sae: excise.erase(pipe, "gun")),
    (NotFound, "cannot read", lambda pipe, sae: excise.erase(pipe, "gun", sae="nowhere")),
    (InvalidSetting, "5 is not a folder", lambda pipe, sae: excise.erase(pipe, "gun", sae=5)),  # type: ignore[arg-type]
    (InvalidSetting, "'' is not a folder", lambda pipe, sae: excise.find_neurons(pipe, "gun", "")),
    (InvalidSetting, "uce needs no SAE", lambda pipe, sae: excise.erase(pipe, "gun", "uce", sae=sae)),
    (
        InvalidSetting,
        "uce has no setting 'lamb'; did you mean lam",
        lambda pipe, sae: excise.erase(pipe, "gun", "uce", lamb=1),
    ),
    (InvalidSetting, "lam is '1'; it must be a number", lambda pipe, sae: excise.erase(pipe, "gun", "uce", lam="1")),
    (InvalidSetting, "lam is True; it must be a number", lambda pipe, sae: excise.method_config("uce", lam=True)),
    (
        InvalidSetting,
        "k is 1.5; it must be a whole",
        lambda pipe, sae: excise.erase(pipe, "gun", sae=sae, k=1.5),
    ),
    (InvalidSetting, "k is None", lambda pipe, sae: excise.find_neurons(pipe, "gun", sae, k=None)),
    (InvalidSetting, "gate cannot be 3; it is one of", lambda pipe, sae: excise.erase(pipe, "gun", sae=sae, gate=3)),
    (InvalidSetting, "gate cannot be 'ajar'", lambda pipe, sae: excise.erase(pipe, "gun", sae=sae, gate="ajar")),
    (InvalidSetting, "neurons is", lambda pipe, sae: excise.erase(pipe, "gun", sae=sae, neurons=["5"])),
    (InvalidSetting, "neurons is 5", lambda pipe, sae: excise.erase(pipe, "gun", sae=sae, neurons=5)),
    (InvalidSetting, "examine is 'x'", lambda pipe, sae: excise.find_neurons(pipe, "gun", sae, top="x")),  # type: ignore[arg-type]
    (
        InvalidSetting,
        "lam is nan; it must be a number",
        lambda pipe, sae: excise.erase(pipe, "gun", sae=sae, lam=float("nan")),
    ),
    (InvalidSetting, r"uce.lam is \[\]", lambda pipe, sae: excise.erase(pipe, "gun", "snce+uce", **{"uce.lam": []})),
    (InvalidSetting, "prompts are several texts", lambda pipe, sae: excise.train_sae(pipe, "a gun")),
    (InvalidSetting, "prompts are several texts", lambda pipe, sae: excise.train_sae(pipe, [1, 2])),  # type: ignore[list-item]
    (InvalidSetting, "prompts are several texts", lambda pipe, sae: excise.train_sae(pipe, 3)),  # type: ignore[arg-type]
    (InvalidSetting, "no setting 'token'", lambda pipe, sae: excise.train_sae(pipe, PROMPTS, token=5)),
    (
        InvalidSetting,
        "tokens is '5'",
        lambda pipe, sae: excise.train_sae(pipe, PROMPTS, tokens="5"),
    ),
    (InvalidSetting, "lr is -1; it must be", lambda pipe, sae: excise.train_sae(pipe, PROMPTS, lr=-1)),
    (NotFound, "no device 'gpu9'", lambda pipe, sae: excise.train_sae(pipe, PROMPTS, device="gpu9")),
    (NotFound, "has no module 'layer.9'", lambda pipe, sae: excise.train_sae(pipe, PROMPTS, site="layer.9")),
]


@pytest.mark.parametrize(("kind", "message", "call"), WRONG, ids=[message for _, message, _ in WRONG])
def test_wrong_input_is_one_clear_error(
    kind: type[ExciseError],
    message: str,
    call: Callable[[Any, Path], Any],
    tiny_pipe: Any,
    saved_sae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        call(tiny_pipe, saved_sae)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["word-sae"]
