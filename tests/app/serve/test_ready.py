"""Readiness: one proof for all who ask, an answer at once while the worker is busy, and a failed proof is the end."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import excise
from excise.app.serve.engine import Engine
from tests import tiny
from tests.app.serve.running import WAIT, serving, until
from tests.app.serve.test_http import CAT, GUN, metric, pictures


def test_a_failed_canary_ends_it_for_good(engine: Engine, tiny_pipe: Any) -> None:
    hooked = tiny.body(tiny_pipe.text_encoder).encoder.layers[2]
    with serving(engine) as client:
        wrapper = hooked.forward
        del hooked.forward
        assert client.get("/readyz").status_code == 503
        hooked.forward = wrapper
        for answer in (client.post("/v1/images", json={"prompt": CAT}), client.get("/readyz")):
            assert answer.status_code == 503
            assert "saw no text-encoder run" in answer.text and "restart the service" in answer.text
        assert metric(client, "excise_pictures_total") == 0


def test_a_canary_that_could_not_be_encoded_says_nothing_of_the_next(engine: Engine) -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert engine.served is not None
    attachment = engine.served.attachments["gun"]
    with serving(engine) as client:
        attachment.prove = fail  # type: ignore[method-assign,assignment]
        answer = client.get("/readyz")
        assert answer.status_code == 503 and "could not be encoded (OutOfMemoryError)" in answer.text
        assert metric(client, "excise_ready") == 0
        del attachment.prove
        assert pictures(client.post("/v1/images", json={"prompt": GUN}))
        assert client.get("/readyz").status_code == 200
        assert metric(client, "excise_ready") == 1


def test_a_picture_ends_the_doubts_that_such_a_canary_left(engine: Engine) -> None:
    """Under steady traffic the worker is never idle, and no new proof begins."""

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert engine.served is not None
    attachment = engine.served.attachments["gun"]
    with serving(engine, canary_every=WAIT) as client:
        attachment.prove = fail  # type: ignore[method-assign,assignment]
        assert [client.get("/readyz").status_code for _ in range(2)] == [503, 503]
        assert pictures(client.post("/v1/images", json={"prompt": GUN}))
        assert client.get("/readyz").status_code == 200
        assert metric(client, "excise_ready") == 1
        del attachment.prove


def test_all_who_ask_at_once_share_one_proof(engine: Engine) -> None:
    assert engine.served is not None
    attachment, go_on, begun = engine.served.attachments["gun"], threading.Event(), list[int]()
    prove = attachment.prove

    def slow() -> Any:
        begun.append(1)
        go_on.wait(WAIT)
        return prove()

    with serving(engine, canary_every=WAIT) as client, ThreadPoolExecutor(3) as others:
        attachment.prove = slow  # type: ignore[method-assign]
        asked = [others.submit(client.get, "/readyz") for _ in range(3)]
        until(lambda: bool(begun))
        time.sleep(0.5)  # the others have asked
        go_on.set()
        assert [one.result().status_code for one in asked] == [200] * 3
        assert len(begun) == 1
        del attachment.prove


def test_a_picture_ends_a_step_after_its_client_and_readiness_does_not_wait(engine: Engine, tiny_pipe: Any) -> None:
    runs, go_on = list[int](), threading.Event()

    def block(*_: object) -> None:
        runs.append(1)
        if len(runs) == 2:
            go_on.wait(WAIT)

    with serving(engine) as client:
        (before,) = pictures(client.post("/v1/images", json={"prompt": GUN, "seed": 7}))
        handle = tiny_pipe.unet.register_forward_pre_hook(block)
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as asking:
            body = json.dumps({"prompt": GUN, "steps": 20, "n": 4}).encode()
            head = f"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            asking.sendall(head.encode() + body)
            until(lambda: len(runs) == 2)
        until(lambda: metric(client, "excise_requests_total", status="499") == 1)
        assert client.get("/readyz", timeout=20).status_code == 200
        assert metric(client, "excise_requests_waiting") == engine.waiting == 1
        go_on.set()
        until(lambda: engine.waiting == 0)
        assert len(runs) == 2
        handle.remove()
        assert client.get("/readyz").status_code == 200
        (after,) = pictures(client.post("/v1/images", json={"prompt": GUN, "seed": 7}))
        assert (after == before).all()


def test_metrics_tell_readiness_without_a_probe(engine: Engine, tiny_pipe: Any) -> None:
    with serving(engine) as client:
        assert metric(client, "excise_ready") == 1
        excise.disable_erasers(tiny_pipe)
        assert metric(client, "excise_ready") == 0
        excise.enable_erasers(tiny_pipe)
        assert metric(client, "excise_ready") == 1
