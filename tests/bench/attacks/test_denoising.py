from __future__ import annotations

from typing import Any

import pytest
import torch

import excise
from excise import reference
from excise.bench.attacks import ring_a_bell, vocabulary
from excise.bench.attacks.denoising import noised
from excise.bench.canvas.suite import SEARCHED_WORDS, WHITE_BOX, Canvas
from tests.tiny.denoisers import narrow


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_noise_of_every_timestep(tiny_pipe: Any, dtype: torch.dtype) -> None:
    n = 4096  # the first timesteps are among them, whose signal half precision rounds to 1
    clean = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    made, times, wanted = noised(tiny_pipe, clean.expand(n, -1, -1, -1), torch.Generator().manual_seed(1))

    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, 4, 4, 4, generator=generator)
    drawn = torch.randint(1000, (n,), generator=generator)
    share = tiny_pipe.scheduler.alphas_cumprod[drawn].reshape(-1, 1, 1, 1)
    oracle = share.sqrt() * clean.float() + (1 - share).sqrt() * noise
    assert times.equal(drawn) and made.dtype == dtype and wanted.equal(noise) and times.min() < 3
    assert torch.allclose(made.float(), oracle, rtol=2**-8, atol=2**-8)


def test_every_white_box_attack_of_canvas_runs_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = narrow(reference.load(dtype=torch.bfloat16))
    # Every word would take a processor without bfloat16 minutes.
    monkeypatch.setattr(vocabulary, "vocabulary", lambda *given: ring_a_bell.vocabulary(*given)[::64])
    budget = {"iterations": 1, "batch": 1}
    canvas = Canvas.from_json({"steps": 2, "batch": 1, "words": 1, "prefix": budget, "inversion": budget})
    with excise.erase(pipe, canvas.concept("gun")).attach(pipe):
        found = canvas.attack(pipe, "gun", "standard")
        assert {case.family for case in found} == {*WHITE_BOX, *SEARCHED_WORDS, "inversion"}
        drawn = canvas.draw(pipe, [case for case in found if case.family == "inversion"][:1])
        assert not any(drawn.faults)
