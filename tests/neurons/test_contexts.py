"""What neurons do on a corpus, against looking through the codes one by one."""

from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons import PromptCodes
from excise.neurons.contexts import Context, Contexts

P, T, K, M = 30, 6, 3, 10


@pytest.fixture
def codes() -> PromptCodes:
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(P, T, K, generator=generator) - 0.4).clamp(min=0)
    indices = torch.stack([torch.randperm(M, generator=generator)[:K] for _ in range(P * T)]).reshape(P, T, K)
    scored = torch.rand(P, T, generator=generator) < 0.8
    return PromptCodes(values, indices, scored, M)


@pytest.fixture
def contexts(codes: PromptCodes) -> Contexts:
    return Contexts(codes, [[f" w{p}.{t}" for t in range(T)] for p in range(P)])


def fired(codes: PromptCodes, neuron: int) -> dict[tuple[int, int], float]:
    """The neuron's code by prompt and token."""
    return {
        (p, t): float(codes.values[p, t, j])
        for p in range(P)
        for t in range(T)
        for j in range(K)
        if codes.scored[p, t] and codes.indices[p, t, j] == neuron and codes.values[p, t, j] > 0
    }


@pytest.mark.parametrize("neuron", range(M))
def test_every_figure_by_hand(codes: PromptCodes, contexts: Contexts, neuron: int) -> None:
    there = fired(codes, neuron)
    assert sorted(contexts.values(neuron).tolist()) == pytest.approx(sorted(there.values()))
    assert float(contexts.density[neuron]) == pytest.approx(len(there) / int(codes.scored.sum()))
    peaks: dict[int, float] = {}
    for (p, _), code in there.items():
        peaks[p] = max(code, peaks.get(p, 0.0))
    prompts, values = contexts.peaks(neuron)
    assert dict(zip(prompts.tolist(), values.tolist(), strict=True)) == pytest.approx(peaks)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    counts, top = contexts.histogram(neuron, 5)
    assert sum(counts) == len(there)
    assert top == pytest.approx(max(there.values()))


def test_a_context_has_the_scored_tokens_and_the_codes_there(codes: PromptCodes, contexts: Contexts) -> None:
    prompt = int(contexts.peaks(4)[0][0])
    context, there = contexts.context(prompt, 4), fired(codes, 4)
    kept = [t for t in range(T) if codes.scored[prompt, t]]
    assert context.tokens == tuple(f" w{prompt}.{t}" for t in kept)
    assert context.codes == pytest.approx([there.get((prompt, t), 0.0) for t in kept], abs=1e-6)
    assert context.text == " ".join(f"w{prompt}.{t}" for t in kept)
    assert context.peak == max(context.codes)
    assert Context((" a", " gun", "⟨end⟩", ""), (0.0, 1.0, 2.0, 0.0)).text == "a gun"


def test_top_spread_and_silent(contexts: Contexts) -> None:
    top, spread, silent = contexts.top(4, 5), contexts.spread(4, 5), contexts.silent(4, 5)
    prompts, peaks = contexts.peaks(4)
    assert [context.peak for context in top] == pytest.approx(peaks[:5].tolist(), abs=1e-6)
    parts = torch.tensor_split(peaks, 5)
    for context, part in zip(spread, parts, strict=True):
        assert float(part.min()) - 1e-6 <= context.peak <= float(part.max()) + 1e-6
    assert all(context.peak == 0 for context in silent)
    assert len(contexts.silent(4, 1000)) <= P - len(prompts)
    assert contexts.spread(4, 5) == spread and contexts.spread(4, 5, seed=1) != spread


def test_the_same_text_is_shown_once() -> None:
    codes = PromptCodes(torch.ones(3, 1, 1), torch.zeros(3, 1, 1, dtype=torch.long), torch.ones(3, 1).bool(), 2)
    twice = Contexts(codes, [["a"], ["a"], ["b"]])
    assert [context.text for context in twice.top(0, 5)] == ["a", "b"]
    assert twice.top(1, 5) == [] and twice.histogram(1) == ([0] * 20, 0.0)


def test_what_does_not_fit_is_refused(codes: PromptCodes, contexts: Contexts) -> None:
    with pytest.raises(ExciseError, match="from 0 on"):
        contexts.values(M)
    with pytest.raises(ExciseError, match="tokens of 2"):
        Contexts(codes, [["a"], ["b"]])
    with pytest.raises(ExciseError, match="no token is scored"):
        Contexts(codes._replace(scored=torch.zeros(P, T).bool()), [["a"] * T] * P)
    with pytest.raises(ExciseError, match="2 tokens but 1 codes"):
        Context(("a", "b"), (1.0,))
