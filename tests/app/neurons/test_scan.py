from __future__ import annotations

import json
import random

import pytest
import torch
from torch import Tensor

from excise.app.neurons.scan import EDGES, Scan, Top
from excise.errors import ExciseError

NEURONS, KEEP = (7, 930), 3


def corpus(n: int, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """Codes `[n, 4, 2]`, many of them 0 and some equal, scored tokens `[n, 4]`, and prompts."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.rand(n, 4, 2, generator=draw).mul(8).round().div(4) * (torch.rand(n, 4, 2, generator=draw) < 0.3)
    scored = torch.rand(n, 4, generator=draw) < 0.8
    return codes, scored, [f"prompt {i}" for i in range(n)]


def by_hand(codes: Tensor, scored: Tensor, prompts: list[str]) -> dict[str, object]:
    """The scan as JSON, one prompt and one token at a time."""
    rows = []
    for n, neuron in enumerate(NEURONS):
        peaks, tokens = [], 0
        for i in range(len(prompts)):
            own = [float(codes[i, t, n]) for t in range(codes.shape[1]) if scored[i, t]]
            tokens += sum(code > 0 for code in own)
            peaks.append(max(own, default=0.0))
        firing = [(-peak, i) for i, peak in enumerate(peaks) if peak > 0]
        bins = []
        for low, high in zip((None, *EDGES), (*EDGES, None), strict=True):
            inside = sum((low is None or peak >= low) and (high is None or peak < high) for peak in peaks if peak > 0)
            if inside:
                bins.append({"from": low, "to": high, "prompts": inside})
        top = [{"peak": -peak, "part": 0, "row": i, "prompt": prompts[i]} for peak, i in sorted(firing)[:KEEP]]
        rows.append({"neuron": neuron, "prompts": len(firing), "tokens": tokens, "histogram": bins, "top": top})
    return {"prompts": len(prompts), "tokens": int(scored.sum()), "keep": KEEP, "neurons": rows}


def scanned(codes: Tensor, scored: Tensor, prompts: list[str], rows: list[int]) -> Scan:
    some = torch.tensor(rows, dtype=torch.long)
    return Scan.empty(NEURONS, KEEP).with_codes(codes[some], scored[some], [prompts[i] for i in rows], 0, rows)


def test_a_scan_is_what_counting_by_hand_gives() -> None:
    given = corpus(200)
    assert scanned(*given, list(range(200))).to_json() == by_hand(*given)


def test_codes_outside_the_histogram_and_on_its_edges_are_counted() -> None:
    codes = torch.tensor([1e-9, EDGES[0], 1.0, EDGES[-1], 1e9]).reshape(5, 1, 1).repeat(1, 1, 2)
    given = codes, torch.ones(5, 1, dtype=torch.bool), list("abcde")
    assert scanned(*given, list(range(5))).to_json() == by_hand(*given)
    assert [b["from"] for b in by_hand(*given)["neurons"][0]["histogram"]] == [None, EDGES[0], 1.0, EDGES[-1]]  # type: ignore[index]


def test_any_division_in_any_order_merges_to_the_same_scan() -> None:
    given, rng = corpus(150, seed=1), random.Random(0)
    whole = scanned(*given, list(range(150))).to_json()
    for _ in range(20):
        rows = rng.sample(range(150), 150)
        cuts = sorted(rng.sample(range(151), 5))
        some = [scanned(*given, rows[low:high]) for low, high in zip([0, *cuts], [*cuts, 150], strict=True)]
        while len(some) > 1:
            some.append(some.pop(rng.randrange(len(some))).merged(some.pop(rng.randrange(len(some)))))
        assert some[0].merged(Scan.empty(NEURONS, KEEP)).to_json() == whole


def test_a_scan_is_written_and_read() -> None:
    whole = scanned(*corpus(60), list(range(60)))
    assert Scan.from_json(json.loads(json.dumps(whole.to_json()))).to_json() == whole.to_json()


def test_other_neurons_and_damaged_scans_are_refused() -> None:
    one = Scan.empty(NEURONS, KEEP)
    for other in (Scan.empty((7,), KEEP), Scan.empty(NEURONS, KEEP + 1)):
        with pytest.raises(ExciseError, match="of other neurons, or keep another number"):
            one.merged(other)
    for damaged in ({}, {"neurons": [{}], "keep": 1}, {"neurons": 3, "keep": 1}, one.to_json() | {"prompts": None}):
        with pytest.raises(ExciseError, match="this is not a scan"):
            Scan.from_json(damaged)


def test_equal_codes_keep_the_order_of_the_corpus() -> None:
    assert sorted([Top(-1.0, 1, 0, "c"), Top(-1.0, 0, 9, "b"), Top(-2.0, 5, 5, "a")])[0].peak == 2.0
    codes = torch.ones(6, 1, 2)
    found = scanned(codes, torch.ones(6, 1, dtype=torch.bool), list("abcdef"), [5, 3, 4, 1, 0, 2])
    assert [top.row for top in found.tops[0]] == [0, 1, 2]
