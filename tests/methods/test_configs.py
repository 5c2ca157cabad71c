"""Every method's settings: what they take is declared once, and impossible values are refused before any fitting."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import excise
from excise.app.erase.methods import chosen_on_the_bundled_model, departures_table
from excise.app.models.resolve import bundled_settings
from excise.errors import ExciseError
from excise.methods import typed
from excise.methods.catalogue import METHODS
from excise.methods.configs.registry import CONFIGS
from excise.methods.configs.sae import SNCEConfig
from excise.methods.lookup import configured, declared, parsed
from excise.neurons import SCORES
from excise.settings import UNSTATED, described, settings_in

ABSURD = ("nan", "inf", "-inf", "1e30", "-1e30", str(10**20), str(-(10**20)), "half")


def numeric(name: str) -> list[str]:
    """The settings that are numbers, or numbers joined by +."""
    return [key for key, setting in declared(name).items() if setting.bare in (int, float)]


@pytest.mark.parametrize("name", [*METHODS, "snce+uce"])
def test_absurd_numbers_are_refused(name: str) -> None:
    for key in numeric(name):
        for value in ABSURD:
            with pytest.raises(ExciseError) as refused:
                print(parsed(f"{name}:{key}={value}"))
            assert key in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [*METHODS, "snce+uce"])
def test_a_value_of_a_wrong_type_is_refused(name: str) -> None:
    """In Python too, as one line that names the setting: a dict is a value of none."""
    for key in declared(name):
        for value in ({}, b"x", [None], object()):
            with pytest.raises(ExciseError, match=key) as refused:
                excise.method_config(name, **{key: value})
            assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", list(METHODS))
def test_every_setting_says_what_it_means_and_takes_its_default(name: str) -> None:
    for key, setting in declared(name).items():
        assert setting.help[-1] == ".", key
        assert setting.check(setting.default) == setting.default
        if setting.paper is not UNSTATED:
            assert setting.check(setting.paper) == setting.paper
    assert configured(name, vars(CONFIGS[name]())) == CONFIGS[name]()


def test_defaults_are_read_from_text_as_they_are() -> None:
    for name in METHODS:
        for key, setting in declared(name).items():
            text = "none" if setting.default is None else str(setting.default)
            if isinstance(setting.default, bool | tuple):
                text = "+".join(map(str, setting.default)) if isinstance(setting.default, tuple) else text.lower()
            assert parsed(f"{name}:{key}={text}") == (name, {key: setting.default})


def test_a_library_call_is_bounded_too() -> None:
    for make in (lambda **given: SNCEConfig(**given), lambda **given: excise.method_config("snce", **given)):
        with pytest.raises(ExciseError, match="lam is nan; it must be a number, at least 0 and at most 1000000"):
            make(lam=float("nan"))
        assert make(lam=0.0).lam == 0, "a column of figure 7"
        with pytest.raises(ExciseError, match=r"k is '2'; it must be a whole number, at least 1"):
            make(k="2")
        with pytest.raises(ExciseError, match=r"k is True; it must be a whole number"):
            make(k=True)
        with pytest.raises(ExciseError, match=r"gate cannot be 'open'; it is one of whole, threshold, relu, topk"):
            make(gate="open")


def test_paths_and_lists_are_taken_as_what_they_stand_for() -> None:
    given: Any = {"sae": Path("saes") / "text", "neurons": [3, 5]}
    assert SNCEConfig(**given) == SNCEConfig(sae=str(Path("saes/text")), neurons=(3, 5))


def test_a_bound_that_is_not_a_value_is_refused() -> None:
    for name, given in (("esd-x", {"lr": 0.0}), ("itd", {"factor": 1}), ("dumo", {"alpha_first": 1.0})):
        with pytest.raises(ExciseError, match=r"(above 0|below 1)"):
            configured(name, given)
    assert configured("esd-x", {"lr": 1}).lr == 1


def test_what_a_subclass_leaves_out_is_as_its_base_class_says() -> None:
    keep = described(CONFIGS["rece"])["keep"]
    assert (keep.default, keep.paper) == (0.1, 0.1)
    assert keep.help == described(CONFIGS["uce"])["keep"].help
    assert declared("esd-x")["lr"].bounds == (0, 1)
    assert all(setting.paper is UNSTATED for setting in declared("saemnesia-text").values())


def test_the_scores_are_those_that_there_are() -> None:
    assert declared("snce")["score"].choices == tuple(SCORES)


def test_the_papers_settings() -> None:
    config = excise.method_config("snce", preset="paper", k=3)
    paper = {"lam": 0.8, "unit": "code", "source": "concept", "gate": "topk", "tolerance": 0.0}
    assert config == SNCEConfig(k=3, **paper)
    joined = excise.method_config("snce+uce", preset="paper", **{"uce.lam": 2.0})
    assert vars(joined)["snce.unit"] == "code" and vars(joined)["uce.lam"] == 2.0
    with pytest.raises(ExciseError, match="there is no preset 'authors'; there is paper"):
        excise.method_config("snce", preset="authors")
    with pytest.raises(ExciseError, match="no paper states settings for saemnesia-text"):
        excise.method_config("saemnesia-text", preset="paper")


def test_an_entry_of_a_run_takes_a_preset() -> None:
    name, settings = parsed("snce:k=3,preset=paper,lam=1.2")
    assert configured(name, settings) == excise.method_config("snce", preset="paper", k=3, lam=1.2)
    assert settings["source"] == "concept" and settings["unit"] == "code" and settings["tolerance"] == 0
    with pytest.raises(ExciseError, match="there is no preset 'authors'"):
        parsed("snce:preset=authors")


def test_with_a_preset_the_bundled_models_own_values_are_left_out() -> None:
    chosen, places = bundled_settings()["saeuron"], bundled_settings("paper")["saeuron"]
    assert chosen == {**places, "k": 26}
    assert "k" not in places


def test_defaults_that_were_chosen_on_the_bundled_model_are_named_with_the_papers() -> None:
    chosen = "were chosen on the bundled model, and may not be the best for another"
    assert chosen_on_the_bundled_model("snce", {}) == (
        f"lam 1.25 (the paper: 0.8), tolerance 0.02 (the paper: 0), "
        f"margin {SNCEConfig().margin:g} (the paper states none) {chosen}"
    )
    paper = excise.method_config("snce", preset="paper")
    assert chosen_on_the_bundled_model("snce", vars(paper)) == (
        f"margin {SNCEConfig().margin:g} (the paper states none) {chosen.replace('were', 'was')}"
    )
    assert chosen_on_the_bundled_model("snce", {"lam": 1.0, "tolerance": 0.1, "margin": 0.9}) is None
    assert (
        chosen_on_the_bundled_model("saeuron", {"margin": 0.1})
        == f"k 13 (the paper: 1) {chosen.replace('were', 'was')}"
    )
    assert "snce.lam 1.25 (the paper: 0.8)" in (chosen_on_the_bundled_model("snce+uce", {}) or "")
    for name in METHODS:
        for key, own in declared(name).items():
            assert "hosen on Canvas" not in own.help or own.tuned, f"{name}: {key}"


def test_every_departure_from_a_paper_is_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    assert departures_table() in page, f"put this table into docs/reference/methods.md:\n{departures_table()}"


def test_the_signature_is_documented_by_the_declaration() -> None:
    assert "lam: λ, the weight of the layer's original weights. A number, above 0" in str(CONFIGS["uce"].__doc__)
    assert "rounds: Rounds of finding and erasing embeddings" in str(CONFIGS["rece"].__doc__)


def test_plain_settings_of_a_plugin_are_listed_and_checked() -> None:
    @dataclass(frozen=True)
    class Theirs:
        share: float = -0.5
        words: str = ""

    share, words = settings_in(Theirs()).values()
    assert (share.parse("-2"), words.parse("a=b")) == (-2.0, "a=b")
    with pytest.raises(ExciseError, match="share cannot be 'much'; it must be a number"):
        share.parse("much")
    with pytest.raises(ExciseError, match="share is nan"):
        share.check(float("nan"))


def test_every_methods_configuration_has_its_own_type() -> None:
    tree = ast.parse(Path(typed.__file__).read_text(encoding="utf-8"))
    types: dict[str, str] = {}
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list):
        kind = function.args.args[0].annotation
        named = [leaf.value for leaf in ast.walk(kind) if isinstance(leaf, ast.Constant)] if kind is not None else []
        types |= {str(name): ast.unparse(function.returns or function) for name in named}
    assert types == {name: config.__name__ for name, config in CONFIGS.items()} | {"esd": "ESDConfig"}
