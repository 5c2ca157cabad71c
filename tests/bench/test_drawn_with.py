"""What a run's pictures were generated with: what decides their bits is named, and unlike ones are not compared."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from excise import reference
from excise.app.bench.page import render
from excise.bench import gates
from excise.bench.items.drawn_with import _hardware, drawn_with, unlike
from excise.bench.protocols.unlearncanvas import UnlearnCanvas
from excise.bench.results import results, table
from tests.bench.test_results import SUITE, written

CARD = torch.device("cuda", 1)


@pytest.fixture
def settings() -> Iterator[None]:
    """Restores torch's threads and its settings for CUDA."""
    threads, products = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    convolutions, chosen = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = convolutions, chosen


@pytest.mark.usefixtures("settings")
def test_threads_that_change_the_bits_change_the_line(tiny_pipe: Any) -> None:
    lines = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        lines.append(drawn_with(tiny_pipe))
    assert unlike(*lines) == "threads 1 against threads 2"
    assert unlike(lines[0], lines[0]) == ""
    assert ", float32 on cpu, " in lines[0] and "bfloat16" not in lines[0]
    assert torch.backends.cpu.get_cpu_capability() in lines[0]


def test_the_processor_and_its_bfloat16_units_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor : 0\nmodel name\t: Intel(R) Xeon, 6th\nflags\t\t: fpu avx512_bf16 amx_bf16\n\nprocessor : 1\n"
    monkeypatch.setattr(Path, "read_text", lambda path: text)
    cpu = torch.device("cpu")
    assert _hardware(cpu, "float32").startswith("Intel(R) Xeon 6th, ")
    assert "amx_bf16" not in _hardware(cpu, "float32")
    assert ", bfloat16 by amx_bf16 and avx512_bf16, threads " in _hardware(cpu, "bfloat16")
    monkeypatch.setattr(Path, "read_text", lambda path: "Features : fp asimd")
    assert ", bfloat16 by no unit of its own, threads " in _hardware(cpu, "bfloat16")


@pytest.mark.usefixtures("settings")
def test_the_gpu_and_its_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is what torch would say; the settings are torch's own, which no GPU is needed to set."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    torch.backends.cudnn.benchmark = False
    before = _hardware(CARD, "float32")
    assert before.startswith("card 1, products in float32, convolutions in tf32, cuDNN ")
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, False
    torch.backends.cudnn.benchmark = True
    after = _hardware(CARD, "float32")
    assert after.startswith("card 1, products in tf32, convolutions in float32, cuDNN ")
    assert after.endswith(" benchmark") and not before.endswith(" benchmark")


def test_identical_is_not_stated_across_unlike_hardware(tmp_path: Path) -> None:
    one, other = (f"Pipeline, float32 on cuda, NVIDIA {name}, none; torch 2.13.0" for name in ("H200", "A100"))
    cases = [f"{family}.{n:03}" for family in ("direct", "unrelated") for n in range(3)]
    by_none = {f"none/{case}": {"drawn_with": one} for case in cases}
    alike = by_none | {f"snce/{case}": {"drawn_with": one} for case in cases}
    apart = alike | {"snce/unrelated.002": {"drawn_with": other}}
    sure = results(written(tmp_path / "alike", alike), SUITE)
    run = written(tmp_path / "apart", apart)
    found = results(run, SUITE)
    assert (sure["drawn_with"], found["drawn_with"]) == ([one], [other, one])
    assert sure["methods"]["snce"]["unlike"] == {} == found["methods"]["none"]["unlike"]
    assert sure["methods"]["snce"]["figures"]["identical"]["n"] > 0
    snce = found["methods"]["snce"]
    assert snce["unlike"] == {"pictures": 1, "how": "NVIDIA A100 against NVIDIA H200"}
    assert snce["figures"]["identical"]["value"] is None and snce["concepts"]["gun"]["identical"] is None
    assert snce["figures"]["ua"] == sure["methods"]["snce"]["figures"]["ua"], "other figures do not compare bits"
    (gate,) = gates.parse("identical>=0", "point")
    assert not gate.holds(snce["figures"]) and gate.holds(sure["methods"]["snce"]["figures"])
    page = render(run, SUITE, found | {"machine": "", "date": ""})
    says = "1 pictures were generated otherwise than their unerased ones (NVIDIA A100 against NVIDIA H200)"
    assert f"identical is not stated: {says}" in page
    rows = [row[:4] for row in csv.reader(table(found).splitlines())]
    assert ["snce", "", "unlike hardware or software", "1"] in rows
    assert ["snce", "", "identical", ""] in rows


def test_pictures_of_earlier_versions_are_compared_among_themselves(tmp_path: Path) -> None:
    """Their records do not state what they were generated with."""
    found = results(written(tmp_path / "old", {}), SUITE)["methods"]["snce"]
    assert found["unlike"] == {} and found["figures"]["identical"]["n"] > 0
    half = written(tmp_path / "half", {"snce/direct.000": {"drawn_with": "Pipeline, float32 on cpu; torch 2.13.0"}})
    found = results(half, SUITE)["methods"]["snce"]
    assert found["unlike"]["pictures"] == 1 and "earlier version" in found["unlike"]["how"]


def test_a_suites_own_sampler_is_named() -> None:
    pipe = reference.load()
    assert ", DDIMScheduler," in drawn_with(pipe) and ", OtherScheduler," in drawn_with(pipe, "OtherScheduler")
    assert UnlearnCanvas.sampler == "DDIMScheduler"
