"""Counters for whoever listens, with OpenTelemetry's real SDK."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
import torch

import excise
from excise.erasers import Eraser, telemetry
from excise.erasers.telemetry import Event, emit, on_event
from excise.errors import ExciseError
from tests.erasers.edits.test_block_sae import drawn, edit, eraser, sae

__all__ = ["drawn", "edit", "eraser", "sae"]

ENCODED = Event("encoded", "0123456789ab", "gun", calls=1, rows_edited=12, mean_delta_norm=1.5)


def draw(pipe: Any, **options: Any) -> None:
    how = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    pipe("a gun on grass", generator=torch.Generator().manual_seed(3), **how, **options)


@pytest.fixture(autouse=True)
def _nobody_listens_before_and_after() -> Iterator[None]:
    assert not telemetry.listening()
    yield
    assert not telemetry.listening()


def test_callbacks_are_told_until_they_are_removed() -> None:
    seen: list[Event] = []
    remove, again = excise.on_event(seen.append), excise.on_event(seen.append)
    emit(ENCODED)
    assert seen == [ENCODED, ENCODED]
    remove()
    remove()
    emit(replace(ENCODED, kind="bypass"))
    assert [event.kind for event in seen] == ["encoded", "encoded", "bypass"]
    again()
    emit(ENCODED)
    assert len(seen) == 3


def test_an_event_has_room_for_counters_and_nothing_else() -> None:
    """Its fields are numbers and two short names, so that no prompt and no tensor has a place in it."""
    kinds = {name: type(value) for name, value in asdict(ENCODED).items()}
    assert set(kinds.values()) <= {str, int, float}
    assert [name for name, kind in kinds.items() if kind is str] == ["kind", "eraser", "name"]
    assert json.loads(json.dumps(asdict(ENCODED))) == asdict(ENCODED)
    with pytest.raises(FrozenInstanceError):
        ENCODED.calls = 2  # type: ignore[misc]


def test_a_callback_that_raises_breaks_nothing_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []

    def bad(event: Event) -> None:
        raise RuntimeError("the metrics server is gone")

    removers = [on_event(bad), on_event(seen.append)]
    with caplog.at_level(logging.WARNING, logger="excise"):
        for _ in range(3):
            emit(ENCODED)
    assert seen == [ENCODED] * 3
    assert [record.message for record in caplog.records] == [
        "a telemetry callback failed; later failures are not reported"
    ]
    for remove in removers:
        remove()


def test_prompts_are_counted_for_the_erasers_of_every_pipeline_that_has_the_encoder(
    tiny_pipe: Any, gun_eraser: Eraser
) -> None:
    """Whichever of the pipelines encodes them, and once each."""
    from diffusers import StableDiffusionPipeline

    sibling = StableDiffusionPipeline.from_pipe(tiny_pipe)
    other = replace(gun_eraser, name="other", edits=(replace(gun_eraser.edits[0], lam=2.0),))
    with gun_eraser.attach(tiny_pipe) as own, other.attach(sibling) as theirs, torch.no_grad():
        for n, pipe in enumerate((tiny_pipe, sibling), 1):
            pipe.encode_prompt(["a cat", "a gun"], "cpu", 1, True, ["dull", "grey"])
            assert [a.status()["prompts_encoded"] for a in (own, theirs)] == [2 * n] * 2
        excise.encode(tiny_pipe, "dull", negative=True)
        assert [a.status()["prompts_encoded"] for a in (own, theirs)] == [4] * 2


def test_ctrl_c_in_a_callback_is_no_failure_of_the_callback() -> None:
    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    remove = on_event(stop)
    with pytest.raises(KeyboardInterrupt):
        emit(ENCODED)
    remove()


def test_callbacks_may_come_and_go_while_events_are_told() -> None:
    seen: list[Event] = []
    removers: list[Any] = []

    def once(event: Event) -> None:
        removers.pop()()
        seen.append(event)

    removers.append(on_event(once))
    emit(ENCODED)
    emit(ENCODED)
    assert len(seen) == 1
    total: list[Event] = []
    remove = on_event(total.append)

    def churn() -> None:
        for _ in range(200):
            extra = on_event(lambda event: None)
            emit(ENCODED)
            extra()

    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    remove()
    assert len(total) == 800


def test_opentelemetry_counts_by_eraser() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    stop = telemetry.opentelemetry_exporter(provider.get_meter("test"))
    emit(replace(ENCODED, kind="attached", calls=0, rows_edited=0))
    emit(ENCODED)
    emit(replace(ENCODED, rows_edited=0, mean_delta_norm=0.0))
    emit(replace(ENCODED, rows_edited=3, mean_delta_norm=0.5))
    emit(Event("encoded", "ba9876543210", "knife", calls=2, rows_edited=1, mean_delta_norm=2.0))
    emit(Event("bypass", "0123456789ab", "gun", calls=2))  # another thread has encoded two prompts meanwhile
    emit(replace(ENCODED, kind="strength", strength=0.5))
    stop()
    emit(ENCODED)
    counted: dict[str, dict[str, Any]] = {}
    for metric in metrics_of(reader):
        for point in metric.data.data_points:
            assert set(point.attributes) == {"excise.eraser", "excise.eraser.name"}
            value = point.value if hasattr(point, "value") else (point.count, point.sum)
            counted.setdefault(metric.name, {})[point.attributes["excise.eraser.name"]] = value
    provider.shutdown()
    assert counted == {
        "excise.prompts": {"gun": 6, "knife": 2},
        "excise.rows_edited": {"gun": 27, "knife": 1},
        "excise.bypasses": {"gun": 1},
        "excise.delta_norm": {"gun": (3, 3.5), "knife": (1, 2.0)},
    }


def test_rows_of_denoising_steps_come_with_the_next_event(tiny_pipe: Any, eraser: Eraser) -> None:
    """An edit of the U-Net acts after the prompt's event."""
    seen: list[Event] = []
    attachment = eraser.attach(tiny_pipe)
    remove = on_event(seen.append)
    draw(tiny_pipe)
    attachment.strength = 0.5
    draw(tiny_pipe)
    rows = attachment.status()["rows_edited"]
    attachment.detach()
    assert [(event.kind, event.rows_edited > 0) for event in seen] == [
        ("encoded", False), ("strength", True), ("encoded", False), ("detached", True),
    ]  # fmt: skip
    assert sum(event.rows_edited for event in seen) == rows == attachment.status()["rows_edited"]
    seen.clear()
    attachment = eraser.attach(tiny_pipe)
    draw(tiny_pipe, callback_on_step_end=lambda pipe, step, time, kept: attachment.detach() or kept)
    gc.collect()
    assert [event.kind for event in seen] == ["attached", "encoded", "detached", "encoded"]
    assert sum(event.rows_edited for event in seen) == attachment.status()["rows_edited"]
    assert seen[-1].rows_edited > seen[-2].rows_edited > 0
    remove()


def metrics_of(reader: Any) -> list[Any]:
    data = reader.get_metrics_data()
    return [m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics]


def test_without_a_meter_the_global_provider_is_fed() -> None:
    """Run in a separate process, since a global provider can be set only once."""
    code = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from excise.erasers import telemetry
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
telemetry.opentelemetry_exporter()
telemetry.emit(telemetry.Event("encoded", "0123456789ab", "gun", calls=7))
(scope,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
print(scope.scope.name, {m.name: m.data.data_points[0].value for m in scope.metrics}["excise.prompts"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["excise", "7"]


def test_without_opentelemetry_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    with pytest.raises(ExciseError, match=r"pip install 'excise\[otel\]'"):
        telemetry.opentelemetry_exporter()


def test_prompts_of_pipelines_of_the_same_components_are_counted(tiny_pipe: Any, gun_eraser: Any) -> None:
    """Counted like the pipeline's own: prompts once, negative ones not, and with threads none is lost."""
    from diffusers import StableDiffusionPipeline

    how = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 3.0, "negative_prompt": "dull"}
    seen: list[Event] = []
    with gun_eraser.attach(tiny_pipe) as attachment:
        sibling = StableDiffusionPipeline.from_pipe(tiny_pipe)
        sibling.set_progress_bar_config(disable=True)
        remove = on_event(seen.append)
        for pipe in (tiny_pipe, sibling):
            pipe("a gun", **how)
            pipe(["a gun", "a cat"], **{**how, "negative_prompt": ["dull", "grey"]})
        threads = [threading.Thread(target=encode, args=(sibling,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        remove()
        assert attachment.status()["prompts_encoded"] == 2 * 3 + 24
        assert attachment.status()["bypasses"] == 0
        assert sum(event.rows_edited for event in seen) == attachment.status()["rows_edited"] > 0
    assert {event.kind for event in seen} == {"encoded"}
    assert sum(event.calls for event in seen) == 2 * 3 + 24


def encode(pipe: Any) -> None:
    import torch

    with torch.no_grad():
        for n in range(4):
            pipe.encode_prompt(f"a cat {n}", "cpu", 1, True, "dull")


def test_nobody_listening_costs_next_to_nothing() -> None:
    import timeit

    assert min(timeit.repeat(lambda: emit(ENCODED), number=1000, repeat=5)) < 0.01


def test_an_erasers_name_forges_no_line_of_a_log(
    tiny_pipe: Any, gun_eraser: Eraser, caplog: pytest.LogCaptureFixture
) -> None:
    evil = replace(gun_eraser, name="gun\nINFO eraser cat: detached\x1b[2J\u2028\x9b31m")
    with caplog.at_level(logging.INFO, logger="excise"), evil.attach(tiny_pipe):
        pass
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 2
    assert all(line.isprintable() and line.splitlines() == [line] for line in lines)
