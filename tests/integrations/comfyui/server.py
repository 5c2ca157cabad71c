"""A real ComfyUI server for tests: started from the tree that EXCISE_COMFYUI names, and asked over HTTP.

EXCISE_COMFYUI_PYTHON names the Python that has ComfyUI's requirements, by default this one.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PACK = ROOT / "integrations" / "comfyui"
STUB = Path(__file__).parent / "stub"
TREE = os.environ.get("EXCISE_COMFYUI", "")
PYTHON = os.environ.get("EXCISE_COMFYUI_PYTHON", sys.executable)
needs_comfyui = pytest.mark.skipif(not TREE, reason="EXCISE_COMFYUI names no ComfyUI tree")
LONGEST = 300
"""Seconds after which a start or a workflow has failed."""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process with ComfyUI, the pack and Excise on its path."""
    path = os.pathsep.join([str(STUB), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


class Server:
    """A running ComfyUI with the pack and a folder of its own."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.erasers = folder / "models" / "erasers"
        self.erasers.mkdir(parents=True, exist_ok=True)
        (folder / "custom_nodes").mkdir(exist_ok=True)
        if not (link := folder / "custom_nodes" / "excise").exists():
            link.symlink_to(PACK)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "log.txt"
        command = [
            PYTHON, "-s", str(Path(TREE) / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--disable-auto-launch", "--disable-api-nodes", "--base-directory", str(folder),
            "--database-url", "sqlite:///:memory:",
        ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=TREE, env=environment(**environ), stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def wait(self) -> Server:
        """Return once it answers. Raise AssertionError if it ends before."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                self.get("/system_stats")
            except OSError:
                time.sleep(0.2)
            else:
                return self
        raise AssertionError(f"ComfyUI did not start in {LONGEST} s: {self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)

    def put(self, eraser: Path, name: str) -> None:
        """Copy an eraser to its models/erasers, in place of the one of that name."""
        shutil.rmtree(self.erasers / name, ignore_errors=True)
        shutil.copytree(eraser, self.erasers / name)

    def get(self, path: str) -> Any:
        """Return the JSON that it answers."""
        with urllib.request.urlopen(self.url + path, timeout=LONGEST) as answer:
            return json.loads(answer.read())

    def bytes_of(self, path: str) -> bytes:
        """Return the bytes that it answers."""
        with urllib.request.urlopen(self.url + path, timeout=LONGEST) as answer:
            return bytes(answer.read())

    def run(self, graph: dict[str, Any]) -> Result:
        """Queue a workflow in the API's format and wait for its end."""
        data = json.dumps({"prompt": graph}).encode()
        request = urllib.request.Request(f"{self.url}/prompt", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=LONGEST) as answer:
                number = json.loads(answer.read())["prompt_id"]
        except urllib.error.HTTPError as error:
            return Result({"status": {"status_str": f"HTTP {error.code}", "messages": []}}, error.read().decode())
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            if history := self.get(f"/history/{number}"):
                return Result(history[number])
            time.sleep(0.05)
        raise AssertionError(f"the workflow did not end in {LONGEST} s")

    def image(self, result: Result, node: str) -> Any:
        """Return the picture that a Save Image node made, `[H, W, 3]` from 0 to 255."""
        import io

        import numpy as np
        from PIL import Image

        (about,) = result.outputs[node]["images"]
        query = "&".join(f"{key}={about[key]}" for key in ("filename", "subfolder", "type"))
        return np.asarray(Image.open(io.BytesIO(self.bytes_of(f"/view?{query}"))).convert("RGB"), dtype=np.int16)


class Result:
    """How a workflow ended."""

    def __init__(self, history: dict[str, Any], refused: str = "") -> None:
        self.status: str = history["status"]["status_str"]
        self.outputs: dict[str, Any] = history.get("outputs", {})
        messages = history["status"]["messages"]
        errors = [about["exception_message"].strip() for kind, about in messages if kind == "execution_error"]
        self.error: str = refused or "".join(errors)
        self.cached: list[str] = sorted(
            node for kind, about in messages if kind == "execution_cached" for node in about["nodes"]
        )
