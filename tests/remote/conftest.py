"""An S3 server for the tests of this folder: the small one here, or moto's where EXCISE_MOTO_PYTHON names a Python."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.remote.s3_server import Store

URL = "s3://bucket/some/run"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The small server, which can refuse requests."""
    store = Store()
    _point_to(store.endpoint, monkeypatch)
    yield store
    store.close()


@pytest.fixture(scope="session")
def _moto() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ["EXCISE_MOTO_PYTHON"], "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(endpoint).close()
            break
        except urllib.error.URLError:
            time.sleep(0.1)
    yield endpoint
    server.terminate()
    server.wait()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of an empty bucket on the small server or moto's; pyarrow finds the server by the environment."""
    if "EXCISE_MOTO_PYTHON" not in os.environ:
        request.getfixturevalue("store")
        return "bucket"
    endpoint = request.getfixturevalue("_moto")
    _point_to(endpoint, monkeypatch)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
    return "bucket"


def _point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise import remote

    remote._opened.cache_clear()  # it keeps the server of the last test
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
