"""`excise neurons`, from nothing to a page, on a tiny random pipeline on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise import reference
from excise.cli.neurons.neurons import captions_of, corpus_of
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Measured


@pytest.fixture
def call(call: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `excise neurons` in this process."""
    return lambda *args: call("neurons", *args)


@pytest.fixture
def common(model_folder: Path, sae_folder: Path) -> tuple[Any, ...]:
    return ("--model", model_folder, "--sae", sae_folder)


@pytest.fixture
def database(call: Callable[..., Any], common: tuple[Any, ...], gun: Any, tmp_path: Path) -> Path:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(text for pair in gun.pairs for text in (pair.concept, pair.deconcept)))
    result = call("build", "--out", tmp_path / "neurons.db", "--prompts", prompts, *common)
    assert result.exit_code == 0, result.output
    assert "of 64 neurons fire on 96 prompts of prompts.txt; saved in" in result.stdout.replace("\n", " ")
    return tmp_path / "neurons.db"


def test_from_prompts_to_a_page(
    ask: Callable[..., Any], call: Callable[..., Any], database: Path, common: tuple[Any, ...], gun: Any, tmp_path: Path
) -> None:
    with (tmp_path / "gun.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "concept", "deconcept", "template"))
        rows.writerows(("gun", pair.concept, pair.deconcept, pair.template) for pair in gun.pairs)
    tagged = ask("tag", tmp_path / "gun.csv", "--db", database, "--top", 1, *common)
    assert [(row["concept"], row["neuron"], row["tagged"]) for row in tagged] == [("gun", 5, True)]
    shown = ask("show", 5, "--db", database)
    assert shown["tags"][0]["concept"] == "gun"
    assert "gun" in shown["contexts"][0]["text"]
    assert ask("search", "gun", "--db", database, "--top", 1)[0]["neuron"] == 5
    assert ask("export", "--db", database, "--out", tmp_path / "out.jsonl")["neurons"] == len(
        (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    )
    page = Path(ask("browse", "--db", database, "--out", tmp_path / "site")["page"])
    assert '"tags":[["gun"' in page.read_text(encoding="utf-8")


def test_what_people_read(call: Callable[..., Any], database: Path) -> None:
    with NeuronDatabase.open(database) as opened:
        opened.set_explanation(5, "the word [bold]gun[/bold]", "a person", "2026-01-02T03:04:05")
        opened.set_scores(5, {"detection": Measured(0.875), "fuzzing": Measured(None)})
        opened.set_patterns(5, ["a [gun]", {"text": "gun on", "support": 2}])
    shown = " ".join(call("show", "5", "--db", database, "--contexts", 2).stdout.split())
    for said in (
        "Neuron 5",
        "the word [bold]gun[/bold] (a person, 2026-01-02)",
        "detection 0.875, fuzzing -",
        "a [gun]; gun on",
        "nearest tokens",
        "Strongest contexts",
        "»",
    ):
        assert said in shown
    assert "Neurons for “word”" in call("search", "word", "--db", database).stdout
    nothing = call("search", "nowhere", "--db", database)
    assert nothing.exit_code == 1
    assert json.loads(call("search", "nowhere", "--db", database, "--json").stdout) == []


def test_a_second_build_of_the_same_is_told_so(
    call: Callable[..., Any], database: Path, common: tuple[Any, ...], tmp_path: Path
) -> None:
    again = call("build", "--out", database, "--prompts", tmp_path / "prompts.txt", *common)
    assert again.exit_code == 0
    assert "there already in" in " ".join(again.stdout.split())
    (tmp_path / "other.txt").write_text("a dog\n")
    other = call("build", "--out", database, "--prompts", tmp_path / "other.txt", *common)
    assert other.exit_code == 2
    assert "describes another SAE or corpus" in other.stderr
    (tmp_path / "text.db").write_text("no database")
    strange = call("build", "--out", tmp_path / "text.db", "--prompts", tmp_path / "other.txt", *common)
    assert strange.exit_code == 2
    assert "choose another name or remove it" in strange.stderr


def test_an_sae_is_not_watched_at_another_layer(
    call: Callable[..., Any], common: tuple[Any, ...], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a gun\na cat\n")
    given = ("--out", tmp_path / "n.db", "--prompts", tmp_path / "prompts.txt", *common)
    odd = call("build", "--site", "encoder.layers.0", *given)
    assert odd.exit_code == 2
    assert "was trained at text_encoder/encoder.layers.2, not at text_encoder/encoder.layers.0" in odd.stderr
    assert not (tmp_path / "n.db").exists()


def test_a_search_that_finds_nothing_says_so(call: Callable[..., Any], database: Path) -> None:
    result = call("search", "halberd", "--db", database)
    assert result.exit_code == 1
    assert "no neuron in" in result.stderr and not result.stdout.strip()


@pytest.mark.parametrize("english", [0, 1_200])
def test_captions_are_known_by_what_is_said_of_them(english: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "sae_corpus", lambda captions, english: ["a gun"])
    _, said = corpus_of(None, "prompt", 10_500, english, None)
    assert captions_of(said) == (10_500, english)
    assert captions_of("96 prompts of prompts.txt") is None


def test_import_and_show(ask: Callable[..., Any], tmp_path: Path) -> None:
    entry = {"explanation": "Detects ***.", "correlation_score": 0.5, "tag_list": ["politics"]}
    (tmp_path / "en_db.json").write_text(json.dumps({"17_3": entry}))
    assert ask("import", tmp_path / "en_db.json", "--out", tmp_path / "n.db") == {"databases": [str(tmp_path / "n.db")]}
    shown = ask("show", 3, "--db", tmp_path / "n.db")
    assert shown["explanation"] == {"text": "Detects ***.", "by": "Safe-SAIL", "at": ""}
    assert shown["scores"] == {"correlation": {"value": 0.5, "detail": None}}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("show", "5", "--db", "none.db"), "there is no neuron database none.db"),
        (("search", "gun", "--db", "text.db"), "is not a neuron database"),
        (("export", "--db", "text.db", "--out", "x.csv"), "is not a neuron database"),
        (("browse", "--db", "none.db", "--out", "site"), "there is no neuron database"),
        (("import", "none.json", "--out", "n.db"), "cannot read none.json"),
        (("tag", "gun", "--db", "none.db"), "there is no neuron database"),
        (("tag", "gnu", "--db", "none.db"), "did you mean gun"),
        (("build", "--out", "n.db", "--model", "none"), "--model needs --sae"),
    ],
)
def test_mistakes_end_in_one_line(
    words: tuple[str, ...], complaint: str, call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.db").write_text("no database")
    result = call(*words)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.db"]


def test_a_model_of_one_s_own_needs_prompts(call: Callable[..., Any], common: tuple[Any, ...], tmp_path: Path) -> None:
    result = call("build", "--out", tmp_path / "n.db", *common)
    assert result.exit_code == 2
    assert "needs --prompts FILE" in result.stderr
