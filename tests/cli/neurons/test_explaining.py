"""`excise neurons explain` on a tiny pipeline, asking a real server on a local port."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.neurons.database.database import NeuronDatabase
from tests.chat_server import ChatServer
from tests.conftest import FORMS

STYLES = ("", "red ", "small ", "old ", "flat ", "tiny ")


@pytest.fixture
def given(call: Callable[..., Any], model_folder: Path, sae_folder: Path, gun: Any, tmp_path: Path) -> tuple[Any, ...]:
    """A database, and the options that lead to the model, the SAE and the prompts it was made of."""
    prompts = tmp_path / "prompts.txt"
    plain = [form.format(f"{style}gun") for form in FORMS for style in STYLES]
    prompts.write_text("\n".join(plain + [text.replace("gun", noun) for text in plain for noun in ("cat", "rose")]))
    common = ("--model", model_folder, "--sae", sae_folder, "--prompts", prompts)
    made = call("neurons", "build", "--out", tmp_path / "neurons.db", *common)
    assert made.exit_code == 0, made.output
    return ("--db", tmp_path / "neurons.db", *common)


def said(system: str, user: str) -> str:
    """A reader who sees guns: explanations say so, and a prompt fires where the word stands in it."""
    if not user.startswith("Description:"):
        return "Explanation: the word gun"
    return str([int("gun" in line) for line in user.splitlines() if line.startswith("Prompt ")])


def test_patterns_need_no_language_model(ask: Callable[..., Any], given: tuple[Any, ...], tmp_path: Path) -> None:
    (row,) = ask("neurons", "explain", 5, *given)
    assert "gun" in row["patterns"]
    assert row["precision"] > 0.8 and row["recall"] > 0.5
    with NeuronDatabase.open(tmp_path / "neurons.db") as database:
        entry = database.neuron(5)
    assert [pattern["text"] for pattern in entry.patterns] == row["patterns"]
    assert entry.scores["patterns"].detail["precision"] == row["precision"]
    assert entry.explanation is None


def test_words_come_from_a_server_and_are_kept(
    ask: Callable[..., Any], call: Callable[..., Any], given: tuple[Any, ...], tmp_path: Path
) -> None:
    with ChatServer(said) as server:
        asking = ("--backend", "openai", "--base-url", server.base_url, "--model-name", "reader", "--jobs", 1)
        (row,) = ask("neurons", "explain", 5, *given, *asking, "--scores", "detection,embedding")
        before = len(server.asked)
        shown = call("neurons", "explain", 5, *given, *asking, "--scores", "detection,embedding").stdout
        assert len(server.asked) == before  # every answer is kept
    made = row["explanation"]
    assert made["text"] == "the word gun"
    assert made["scores"]["detection"]["balanced_accuracy"] > 0.7
    assert made["scores"]["embedding"] > 0.5
    assert "the word gun" in shown and f"{made['cost']['questions']} answered from the cache" in " ".join(shown.split())
    with NeuronDatabase.open(tmp_path / "neurons.db") as database:
        entry = database.neuron(5)
        assert [found.index for found in database.search("word gun")][:1] == [5]
    assert entry.explanation is not None and "reader" in entry.explanation.by
    assert entry.scores["detection"].value == made["scores"]["detection"]["balanced_accuracy"]


def test_a_server_that_dies_costs_nothing_that_was_answered(
    ask: Callable[..., Any], given: tuple[Any, ...], tmp_path: Path
) -> None:
    with ChatServer(said) as server:
        server.dies_after = 3
        asking = ("--backend", "openai", "--base-url", server.base_url, "--model-name", "reader", "--jobs", 1)
        (first,) = ask("neurons", "explain", 5, *given, *asking)
        assert first["explanation"]["cost"]["unanswered"] > 0
        answered = len(server.asked)
        server.dies_after = None
        (second,) = ask("neurons", "explain", 5, *given, *asking)
        asked_again = len(server.asked) - answered
    assert second["explanation"]["cost"]["unanswered"] == 0
    assert second["explanation"]["cost"]["cached"] == answered == 3
    assert asked_again == second["explanation"]["cost"]["questions"] - answered


def test_bad_input_is_one_line(call: Callable[..., Any], given: tuple[Any, ...], tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("a cat\n")
    for words, complaint in (
        ((), "name neurons"),
        (("--tag", "halberd"), "is tagged 'halberd' (it has no tags)"),
        (
            (5, "--backend", "openai", "--model-name", "q", "--base-url", "http://127.0.0.1:9"),
            "no neuron was explained",
        ),
        ((9999,), "no neuron 9999"),
        ((5, "--prompts", other), "give the same prompts again"),
        ((5, "--scores", "beauty"), "no score 'beauty'"),
        ((5, "--backend", "openai"), "--model-name"),
        ((5, "--backend", "soup"), "unknown backend 'soup'"),
        ((5, "--model-name", "reader"), "none uses no model"),
    ):
        at = given.index("--prompts")
        common = (*given[:at], *given[at + 2 :]) if "--prompts" in words else given
        result = call("neurons", "explain", *common, *words)
        assert result.exit_code == 2, words
        assert complaint in result.stderr, result.stderr
        assert len(result.stderr.strip().splitlines()[-1]) < 300
