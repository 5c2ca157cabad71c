"""Signals to `serve`: in this thread, as `excise serve` calls it, and in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from excise.app.serve import server
from excise.app.serve.engine import Engine
from tests.app.serve.conftest import PLAIN
from tests.app.serve.running import WAIT, Process, until
from tests.app.serve.test_http import CAT, GUN, metric, pictures
from tests.app.serve.test_process import SECOND


@pytest.fixture(autouse=True)
def _spared() -> Iterator[None]:
    """An unhandled SIGHUP ends the test and not the tests."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError("SIGHUP ended the service")

    before = signal.signal(signal.SIGHUP, fail)
    yield
    signal.signal(signal.SIGHUP, before)


def _serve(engine: Engine, visit: Callable[[httpx.Client], None]) -> None:
    """Serve in this thread while another one visits; then stop."""
    port = _free_port()
    failed, over = list[BaseException](), threading.Event()

    def come() -> None:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:
                until(lambda: over.is_set() or _answers(client))
                visit(client)
        except BaseException as error:
            failed.append(error)
        finally:
            if not over.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    visitor = threading.Thread(target=come)
    visitor.start()
    try:
        server.serve(engine, name="tiny", host="127.0.0.1", port=port, drain=5)
    finally:
        over.set()
        visitor.join(WAIT)
    if failed:
        raise failed[0]


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def _hang_up() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def test_a_hangup_while_the_model_loads_reloads_once_it_serves(folder: Path, tiny_pipe: Any) -> None:
    def load() -> Any:
        engine.path.write_text(SECOND)
        _hang_up()
        time.sleep(0.2)
        return tiny_pipe

    engine = Engine(load, folder / "policy.yaml", steps=2, guidance=4.0)
    assert engine.policy.erasers["gun"].folder.endswith("gun")

    def visit(client: httpx.Client) -> None:
        until(lambda: metric(client, "excise_policy_reloads_total", result="done") == 1)
        assert engine.policy.erasers["gun"].folder.endswith("gun-2")

    _serve(engine, visit)


def test_any_error_of_a_reload_leaves_the_policy_and_says_so(
    folder: Path, tiny_pipe: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = Engine(lambda: tiny_pipe, folder / "policy.yaml", steps=2, guidance=4.0)
    before = engine.policy

    def visit(client: httpx.Client) -> None:
        engine.path.write_text(SECOND)
        handle = tiny_pipe.text_encoder.register_forward_pre_hook(fail)
        _hang_up()
        until(lambda: metric(client, "excise_policy_reloads_total", result="refused") == 1)
        handle.remove()
        assert engine.policy is before
        assert pictures(client.post("/v1/images", json={"prompt": GUN}))
        _hang_up()
        until(lambda: metric(client, "excise_policy_reloads_total", result="done") == 1)

    _serve(engine, visit)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (refused,) = (line for line in lines if line["event"] == "policy refused; the one before stays")
    assert refused["reason"].startswith("OutOfMemoryError at ")


def test_what_drain_leaves_is_cut_off_and_answered_and_no_log_holds_a_prompt(
    folder: Path, build_pipe: Callable[..., Any], tmp_path: Path
) -> None:
    build_pipe().save_pretrained(tmp_path / "model")
    (folder / "policy.yaml").write_text(f"{PLAIN}limits: {{steps: 1000, pictures: 100}}")
    words = ("--model", str(tmp_path / "model"), "--steps", "2", "--drain", "1")
    verbose = {"DIFFUSERS_VERBOSITY": "info", "TRANSFORMERS_VERBOSITY": "info"}
    with Process(folder / "policy.yaml", *words, env=verbose) as process, process.client() as client:
        made = client.post("/v1/images", json={"prompt": f"{'a cat ' * 60}zanzibar"})
        assert made.json()["excise"]["not_read"].endswith("zanzibar")
        with ThreadPoolExecutor(3) as others:
            body = {"prompt": CAT, "n": 100, "steps": 1000}
            asked = [others.submit(client.post, "/v1/images", json=body) for _ in range(3)]
            until(lambda: metric(client, "excise_requests_waiting") == 3)
            process.running.send_signal(signal.SIGTERM)
            for one in asked:
                assert one.result(60).status_code == 503
                assert "the service is stopping" in one.result().text
        assert process.running.wait(60) == 0
        process.logged("stopped")
        logged = [json.loads(line) for line in process.lines if '"request"' in line]
        assert [line["status"] for line in logged] == [200, 503, 503, 503]
        assert logged[1]["reason"] == "the service is stopping"
        assert "zanzibar" not in "".join(process.lines)
