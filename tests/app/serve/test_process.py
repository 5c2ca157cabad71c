"""`excise serve` in its own process: load, reload, drain, and a process that is killed.

`EXCISE_SERVE_SOAK` is how many seconds two clients ask: 4 in `make test`, five minutes in `make test-all`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from excise.erasers import Eraser
from tests.app.serve.conftest import PLAIN
from tests.app.serve.running import WAIT, Process
from tests.app.serve.test_http import CAT, GUN, KEY, drawn, pictures

SEEDS = 1, 2
SECOND = "erasers: {gun: {folder: gun-2}}"


@pytest.fixture
def model(build_pipe: Callable[..., Any], tmp_path: Path) -> Path:
    build_pipe().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def known(build_pipe: Callable[..., Any], folder: Path, gun_eraser: Eraser) -> dict[tuple[str, str, int], bytes]:
    """Return every picture that may or must not leave, by eraser ("" for none), prompt and seed."""
    pipe, found = build_pipe(), {}
    for name, eraser in (("", None), ("gun", gun_eraser), ("gun-2", Eraser.load(folder / "gun-2"))):
        attachment = eraser.attach(pipe) if eraser is not None else None
        for prompt in (GUN, CAT):
            for seed in SEEDS:
                found[name, prompt, seed] = drawn(pipe, prompt, seed).tobytes()
        if attachment is not None:
            attachment.detach()
    assert len({found[name, GUN, 1] for name in ("", "gun", "gun-2")}) == 3
    return found


class Clients:
    """Two clients that ask until they are stopped, and what they got."""

    def __init__(self, process: Process, known: dict[tuple[str, str, int], bytes]) -> None:
        self.process, self.known = process, known
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.done = threading.Event()
        self._pool = ThreadPoolExecutor(2)
        self._working = [self._pool.submit(self._work, n) for n in range(2)]

    def _work(self, n: int) -> None:
        with self.process.client(KEY) as client:
            while not self.done.is_set():
                n += 1
                prompt, seed = (GUN, CAT)[n % 2], SEEDS[n // 2 % 2]
                try:
                    answer = client.post("/v1/images", json={"prompt": prompt, "seed": seed})
                except httpx.TransportError:  # it was killed
                    return
                self.counts[str(answer.status_code)] += 1
                if answer.status_code == 200:
                    self._look(answer, prompt, seed)
                else:
                    self.wrong.append(answer.text)

    def _look(self, answer: httpx.Response, prompt: str, seed: int) -> None:
        (picture,) = pictures(answer)
        by = [name for name in ("gun", "gun-2") if picture.tobytes() == self.known[name, prompt, seed]]
        self.counts.update(f"{prompt} by {name}" for name in by)
        if not by:
            unerased = picture.tobytes() == self.known["", prompt, seed]
            self.wrong.append(f"{prompt}, {seed}: {'unerased' if unerased else 'another picture'}")

    def until(self, reached: Callable[[Counter[str]], bool], least: float = 0) -> None:
        """Wait until the counts satisfy a condition and so many seconds have passed."""
        end, give_up = time.monotonic() + least, time.monotonic() + least + WAIT
        while not (reached(self.counts) and time.monotonic() > end) and not self.wrong:
            assert time.monotonic() < give_up, self.counts
            time.sleep(0.05)

    def end(self) -> None:
        self.done.set()
        self.broken_off()

    def broken_off(self) -> None:
        """Wait until both clients have ended, after a kill: each by the request that it broke off."""
        for working in self._working:
            working.result(WAIT)
        self._pool.shutdown()


def _served(folder: Path, model: Path, known: dict[tuple[str, str, int], bytes], seconds: float) -> None:
    """Serve under load while the policy changes, kill the process, serve again, and stop it in order."""
    policy, words = folder / "policy.yaml", ("--model", str(folder / "model"), "--steps", "2", "--guidance", "4")
    env = {"EXCISE_API_KEYS": f"{KEY},another-key-of-the-service"}
    with Process(policy, *words, env=env) as process:
        clients, reloads = Clients(process, known), 0

        def reload(text: str, event: str) -> None:
            before = sum(f'"{event}"' in line for line in tuple(process.lines))
            policy.write_text(text)
            process.running.send_signal(signal.SIGHUP)
            process.logged(event, before + 1)

        clients.until(lambda counts: counts[f"{GUN} by gun"] > 0)
        begun = time.monotonic()
        while not reloads or time.monotonic() - begun < seconds:
            seen = clients.counts[f"{GUN} by gun-2"]
            reload(SECOND, "policy in force")
            clients.until(lambda counts, seen=seen: counts[f"{GUN} by gun-2"] > seen)  # type: ignore[misc]
            reload("erasers: {gun: {folder: none}}", "policy refused; the one before stays")
            seen = clients.counts[f"{GUN} by gun"]
            reload(PLAIN, "policy in force")
            clients.until(lambda counts, seen=seen: counts[f"{GUN} by gun"] > seen)  # type: ignore[misc]
            reloads += 1
        process.running.kill()
        clients.broken_off()
        assert clients.wrong == []
        process.running.wait(WAIT)
    assert GUN not in "".join(process.lines)
    with Process(policy, *words, env=env) as process:
        clients = Clients(process, known)
        clients.until(lambda counts: counts["200"] > 2)
        clients.end()
        assert clients.wrong == []
        with process.client(KEY) as client, ThreadPoolExecutor(1) as other:
            body = {"prompt": GUN, "seed": 1, "n": 4, "steps": 50}
            last = other.submit(client.post, "/v1/images", json=body)
            while "excise_requests_waiting 0" in client.get("/metrics").text and not last.done():
                time.sleep(0.01)
            process.running.send_signal(signal.SIGTERM)
            assert len(pictures(last.result(WAIT))) == 4  # it was drained
        assert process.running.wait(WAIT) == 0
        process.logged("stopped")


def test_nothing_unerased_leaves_whatever_happens_to_the_process(
    folder: Path, model: Path, known: dict[tuple[str, str, int], bytes]
) -> None:
    _served(folder, model, known, float(os.environ.get("EXCISE_SERVE_SOAK", 4)))


@pytest.mark.slow
def test_nothing_unerased_leaves_in_five_minutes(
    folder: Path, model: Path, known: dict[tuple[str, str, int], bytes]
) -> None:
    _served(folder, model, known, 300)
