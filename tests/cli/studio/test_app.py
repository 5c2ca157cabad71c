from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from excise import outputs


@pytest.fixture
def eraser(gun_eraser: Any, tmp_path: Path) -> Path:
    gun_eraser.save(tmp_path / "gun")
    return tmp_path / "gun"


def test_a_taken_port_is_one_line(call: Callable[..., Any]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        result = call("app", "--port", port)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: cannot listen on port {port} of 127.0.0.1 (")
    assert result.stderr.endswith("choose another with --port, 0 for a free one\n") and result.stderr.count("\n") == 1


def test_without_gradio_it_names_the_extra(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    result = call("app")
    assert result.exit_code == 2
    assert result.stderr == "error: `excise app` needs gradio, which is not installed: pip install 'excise[app]'\n"


def test_an_eraser_of_another_model_is_refused_before_the_page_opens(
    call: Callable[..., Any], build_pipe: Callable[..., Any], eraser: Path, tmp_path: Path
) -> None:
    build_pipe(seed=1).save_pretrained(tmp_path / "other")
    result = call("app", "--model", tmp_path / "other", "--eraser", eraser, "--port", 0)
    assert result.exit_code == 2 and "open http" not in result.stdout
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_says_its_address_and_a_signal_closes_it(model_folder: Path, eraser: Path, how: signal.Signals) -> None:
    import httpx

    words = ("app", "--model", str(model_folder), "--eraser", str(eraser), "--port", "0", "--steps", "2", "--json")
    started = subprocess.Popen(
        [sys.executable, "-m", "excise", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(eraser.parent)},
    )  # fmt: skip
    assert started.stdout is not None and started.stderr is not None
    text = ""
    while not text.endswith("}\n"):
        line = started.stdout.readline()
        assert line, started.stderr.read()
        text += line
    said = json.loads(text)
    assert said["erasers"] == ["gun-test"] and said["address"].startswith("http://127.0.0.1:")
    assert "Excise studio" in httpx.get(said["address"]).text
    assert list(eraser.parent.glob("excise-studio-*"))
    alive = said["address"] + "/gradio_api/heartbeat/tab"
    with httpx.stream("GET", alive) as tab:  # as an open page does
        parts = tab.iter_text()  # kept: without it httpx closes the connection
        assert "ALIVE" in next(parts)
        started.send_signal(how)
        assert started.wait(120) == 0
    assert not list(eraser.parent.glob("excise-studio-*")), "pictures are deleted"
    assert "Traceback" not in started.stderr.read()
