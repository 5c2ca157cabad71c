"""A service under load: four tenants in eight threads, while an operator changes everything that can be changed.

`EXCISE_SOAK` is how many seconds it takes: 3 in `make test`, an hour in `make test-all`.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

import excise
from excise.erasers import Eraser, WeightEdit, made_for
from excise.errors import EraserDidNotFire
from excise.sites import Site
from tests.erasers import test_settings
from tests.erasers.test_settings import own_pipeline

PROMPTS = "a gun on grass", "a cat on grass", "a photo of a gun", "two cats in the rain"
TENANTS: tuple[dict[str, float], ...] = ({"gun": 1.0}, {"gun": 0.5}, {"gun": 1.0, "weights": 1.0}, {})

IMAGES = 8
"""The fewest that show anything."""

draw = partial(test_settings.draw, num_inference_steps=2)


class Outage(RuntimeError):
    """An error in the middle of an image, as any service has them."""


class Service:
    """The pipeline, its erasers on disk, and what every tenant's image looks like when it is generated alone."""

    def __init__(self, pipe: Any, gun: Eraser, folder: Path) -> None:
        self.pipe, self.folder = pipe, folder
        path = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
        delta = torch.randn(pipe.unet.get_submodule(path).weight.shape, generator=torch.Generator().manual_seed(0))
        edit, origin = WeightEdit(Site("unet", path, len(delta)), delta=delta), made_for(pipe, ["unet"])
        weights = Eraser((edit,), "weights", "cat", ("cat",), origin, canary=(PROMPTS[1],), method="uce")
        scaled = {lam: replace(gun, edits=(replace(gun.edits[0], lam=lam),)) for lam in (2.5, 0.4)}  # type: ignore[type-var]
        for name, eraser in (("gun", gun), ("gun-2", scaled[2.5]), ("other", scaled[0.4]), ("weights", weights)):
            eraser.save_pretrained(folder / name)
        for name in ("weights", "gun"):
            excise.load_eraser(pipe, folder / name, name)
        self.alone: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
        """By tenant and prompt: with the one and the other eraser called gun."""
        for name in ("gun-2", "gun"):
            excise.replace_eraser(pipe, "gun", folder / name)
            for n, wish in enumerate(TENANTS):
                with excise.using(pipe, wish):
                    for prompt in PROMPTS:
                        self.alone[n, prompt].append(draw(pipe, prompt))
        self.counts: Counter[str] = Counter()
        self.chance, self.second = random.Random(0), False
        self.wrong: list[str] = []
        self.done = threading.Event()

    def work(self, n: int) -> None:
        """Generate images for one tenant until the end."""
        pipe, chance, tenant = own_pipeline(self.pipe), random.Random(n), n % len(TENANTS)
        while not self.done.is_set():
            prompt, fails = chance.choice(PROMPTS), chance.random() < 0.1

            def step(pipe: Any, i: int, timestep: Any, kwargs: dict[str, Any], fails: bool = fails) -> dict[str, Any]:
                if fails:
                    raise Outage
                return kwargs

            try:
                with excise.using(self.pipe, TENANTS[tenant]):
                    made = draw(pipe, prompt, callback_on_step_end=step)
            except Outage:
                self.counts["outages"] += 1
            except EraserDidNotFire as error:
                self.wrong.append(f"tenant {tenant} was refused: {error}")
            except Exception as error:
                self.wrong.append(f"tenant {tenant}: {error!r}")
            else:
                self.counts["images"] += 1
                if not any(torch.equal(made, image) for image in self.alone[tenant, prompt]):
                    unedited = torch.equal(made, self.alone[3, prompt][0])
                    self.wrong.append(f"tenant {tenant} got {'an unedited' if unedited else 'another'} image")

    def operate(self, until: float) -> None:
        """Load, replace, scale, switch and drop erasers at random."""
        pipe = own_pipeline(self.pipe)
        while time.monotonic() < until and not self.wrong:
            what = self.chance.choice(("replace", "scale", "switch", "same", "load", "drop"))
            self.counts[what] += 1
            if what == "replace":
                self.second = not self.second
                excise.replace_eraser(pipe, "gun", self.folder / ("gun-2" if self.second else "gun"))
            elif what == "scale":
                excise.set_erasers(
                    pipe, ["gun", "weights"], [self.chance.choice((0.25, 1.0)), self.chance.choice((0.5, 1.0))]
                )
            elif what == "switch":
                self.chance.choice((excise.enable_erasers, excise.disable_erasers))(pipe)
            elif what == "same":
                active = excise.get_active_erasers(pipe)
                excise.set_erasers(pipe, active, [excise.list_erasers(pipe)[name]["strength"] for name in active])
            elif what == "load" and "other" not in excise.list_erasers(pipe):
                excise.load_eraser(pipe, self.folder / "other", "other")
            elif what == "drop" and "other" in excise.list_erasers(pipe):
                excise.unload_eraser(pipe, "other")


def run(service: Service, seconds: float) -> list[float]:
    """Run it for so long. Returns resident memory in MB at the end of each tenth."""
    threads = [threading.Thread(target=service.work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    memory, began = list[float](), time.monotonic()
    try:
        for tenth in range(1, 11):
            service.operate(began + seconds * tenth / 10)
            gc.collect()
            memory.append(psutil.Process().memory_info().rss / 2**20)
        while service.counts["images"] < IMAGES and time.monotonic() < began + seconds + 300:  # on a busy machine
            service.operate(time.monotonic() + 0.5)
    finally:
        service.done.set()
        for thread in threads:
            thread.join()
    return memory


def check(pipe: Any, gun: Eraser, folder: Path, seconds: float) -> list[float]:
    plain = {prompt: draw(pipe, prompt) for prompt in PROMPTS}
    service = Service(pipe, gun, folder)
    memory = run(service, seconds)
    print(dict(service.counts), [round(size) for size in memory])
    assert service.wrong == []
    assert service.counts["images"] >= IMAGES
    assert all(status["bypasses"] == 0 for status in excise.list_erasers(pipe).values())
    excise.unload_eraser(pipe)
    assert all(torch.equal(draw(pipe, prompt), image) for prompt, image in plain.items())
    assert "_diffusers_hook" not in vars(pipe.unet) and not pipe.unet._forward_pre_hooks
    return memory


def test_tenants_get_what_they_would_get_alone(tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path) -> None:
    check(tiny_pipe, gun_eraser, tmp_path, float(os.environ.get("EXCISE_SOAK", 3)))


@pytest.mark.slow
def test_an_hour_of_service(tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path) -> None:
    memory = check(tiny_pipe, gun_eraser, tmp_path, float(os.environ.get("EXCISE_SOAK", 3600)))
    assert memory[-1] < 1.05 * memory[4], "memory grows in the second half"
