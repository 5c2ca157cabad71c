"""The studio's server, without a browser."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from diffusers.utils import logging as diffusers_logging

from excise.app.studio import server
from excise.app.studio.studio import Candidate, Studio


@pytest.fixture
def studio(tiny_pipe: Any, gun_eraser: Any, tmp_path: Path) -> Studio:
    candidates = {"gun": Candidate(gun_eraser, tmp_path)}
    return Studio(tiny_pipe, candidates, bundled=False, model="tiny", steps=2, guidance=None)


def test_another_site_cannot_use_the_visitors_browser_and_no_log_holds_a_prompt(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "info")
    logged, failed, handler = list[str](), list[BaseException](), logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: logged.append(record.getMessage()))
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_info()
    diffusers_logging.add_handler(handler)

    def visit(address: str) -> None:
        try:
            with httpx.Client(base_url=address, timeout=60) as client:
                assert client.get("/").status_code == 200
                assert client.get("/", headers={"Origin": "https://other.example"}).status_code == 403
                assert client.get("/", headers={"Host": "other.example"}).status_code == 403
            studio.plain(f"{'a cat ' * 60}zanzibar", 1)
        except BaseException as error:
            failed.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with server.listening(0) as listener:
            server.serve(studio, listener, lambda address: threading.Thread(target=visit, args=[address]).start())
    finally:
        diffusers_logging.remove_handler(handler)
        diffusers_logging.set_verbosity(level)
    if failed:
        raise failed[0]
    assert "zanzibar" not in "".join(logged)
