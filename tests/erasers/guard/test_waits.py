"""How often an attached eraser makes the program wait for the denoiser's device, on a simulated one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from excise import reference
from excise.erasers import Attachment, Eraser
from excise.erasers.telemetry import Event, on_event
from tests.erasers.old.make import HERE
from tests.second_device import There, second_device, waits_of

PROMPTS = ["a picture of a gun on grass", "a picture of a cat on grass"]
WAITS = {
    # The guard compares the text states with the copies of the first step.
    "snce": ["accepted"],
    # The timestep, which chooses the rows of an edit's tables, and whether all edited states are finite.
    "saemnesia": ["timestep", "timestep"],
    "casteer": ["timestep", "timestep"],
    "snce+saemnesia": ["accepted", "timestep", "timestep"],
    # Weights do not depend on the step.
    "uce": [],
    # The timestep, and which prompts the states belong to.
    "sld": ["unet_call", "unet_call"],
    "safree": ["unet_call", "unet_call"],
    "spm": ["unet_call"],
    "dumo": [],
}
"""Files of the code that waits in each step after the first, by eraser."""
OF_EVERY_KIND = "snce", "snce+saemnesia", "sld", "uce"
"""The others, each like one of these, are slow."""


@contextmanager
def away(name: str) -> Iterator[tuple[Any, Attachment]]:
    """Provide the bundled model on the second device with an eraser, which was proved before it was moved there."""
    pipe = reference.load()
    with Eraser.load(HERE / name).attach(pipe) as attachment, second_device() as device:
        yield pipe.to(device), attachment


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_EVERY_KIND else pytest.mark.slow) for name in WAITS]
)
def test_waits_of_a_step_after_the_first(name: str) -> None:
    marks = list[int]()
    with away(name) as (pipe, attachment), waits_of("excise/erasers") as waits:
        pipe.unet.register_forward_pre_hook(lambda *run: marks.append(len(waits)), prepend=True)
        made = pipe(PROMPTS, num_inference_steps=4, guidance_scale=4.0, output_type="latent").images
        marks.append(len(waits))
        assert isinstance(made, There)
        steps = [waits[a:b] for a, b in itertools.pairwise(marks)]
        found = [sorted(wait.partition(" at ")[2].partition(".py")[0] for wait in step) for step in steps[1:]]
        assert found == [WAITS[name]] * 3, steps[1:]
        before = len(waits)
        status = attachment.status()
        assert status["rows_edited"] > 0
        assert len(waits) > before or name in ("uce", "spm", "dumo"), "counters are read when somebody asks"


def test_a_listener_gets_the_counts_that_status_gives() -> None:
    events = list[Event]()
    with away("snce") as (pipe, attachment):
        off = on_event(events.append)
        pipe(PROMPTS, num_inference_steps=1, guidance_scale=4.0, output_type="latent")
        off()
        rows = attachment.status()["rows_edited"]
    assert rows > 0 and sum(event.rows_edited for event in events) == rows
