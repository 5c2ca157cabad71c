"""Faults injected into a running service: nothing leaves it unerased, and `/readyz` says why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise.app.serve.engine import Engine
from excise.erasers import Eraser
from tests import tiny
from tests.app.serve.running import serving
from tests.app.serve.test_http import CAT, GUN, drawn, metric, pictures


def _replace(pipe: Any, other: Any) -> None:
    pipe.text_encoder = other.text_encoder


def _swap_forward(pipe: Any, other: Any) -> None:
    pipe.text_encoder.forward = other.text_encoder.forward


def _tear_off(pipe: Any, other: Any) -> None:
    del tiny.body(pipe.text_encoder).encoder.layers[2].forward


def _write(pipe: Any, other: Any) -> None:
    tiny.body(pipe.text_encoder).encoder.layers[1].mlp.fc1.weight.data.add_(0.1)


def _overwrite(pipe: Any, other: Any) -> None:
    pipe.encode_prompt = other.encode_prompt


FAULTS: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "encoder replaced": (_replace, "text_encoder was replaced"),
    "encoder's forward replaced": (_swap_forward, "code changed"),
    "hook removed": (_tear_off, "saw no text-encoder run"),
    "weights changed": (_write, "the text encoder changed"),
    "encode_prompt replaced": (_overwrite, "encode_prompt was replaced"),
    "erasers off": (lambda pipe, other: excise.disable_erasers(pipe), "is disabled"),
    "eraser weaker": (lambda pipe, other: excise.set_erasers(pipe, "gun", 0.25), "has the strength 0.25"),
    "eraser unloaded": (lambda pipe, other: excise.unload_eraser(pipe), "is not loaded"),
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("asked_first", ["picture", "readiness"])
def test_a_service_that_was_altered_generates_nothing(
    engine: Engine, tiny_pipe: Any, build_pipe: Any, what: str, asked_first: str
) -> None:
    with serving(engine) as client:
        assert client.get("/readyz").status_code == 200
        fault, message = FAULTS[what]
        fault(tiny_pipe, build_pipe())
        for asked in (asked_first, "picture", "readiness"):
            if asked == "picture":
                answer = client.post("/v1/images", json={"prompt": GUN})
                assert answer.status_code == 503 and answer.json()["error"]["code"] == "not_ready", answer.text
                assert "retry-after" in answer.headers
            else:
                answer = client.get("/readyz")
                assert answer.status_code == 503
            assert message in answer.text
        assert metric(client, "excise_pictures_total") == metric(client, "excise_ready") == 0


def test_a_bypass_ends_it_for_good(engine: Engine, tiny_pipe: Any) -> None:
    hooked = tiny.body(tiny_pipe.text_encoder).encoder.layers[2]
    with serving(engine) as client:
        wrapper = hooked.forward
        del hooked.forward
        assert client.post("/v1/images", json={"prompt": CAT}).status_code == 503
        hooked.forward = wrapper
        for answer in (client.post("/v1/images", json={"prompt": CAT}), client.get("/readyz")):
            assert answer.status_code == 503 and "restart the service" in answer.text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["Python", "GPU", "CPU"],
)
def test_too_little_memory_ends_a_request_and_not_the_service(engine: Engine, tiny_pipe: Any, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    with serving(engine) as client:
        before = pictures(client.post("/v1/images", json={"prompt": GUN, "seed": 7}))
        handle = tiny_pipe.unet.register_forward_pre_hook(fail)
        answer = client.post("/v1/images", json={"prompt": GUN, "seed": 7, "n": 2})
        handle.remove()
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "out_of_memory"
        after = pictures(client.post("/v1/images", json={"prompt": GUN, "seed": 7}))
        assert (before[0] == after[0]).all()
        assert client.get("/readyz").status_code == 200


def test_a_broken_picture_is_not_sent(engine: Engine, tiny_pipe: Any) -> None:
    handle = tiny_pipe.vae.decoder.register_forward_hook(lambda module, args, output: output * float("nan"))
    with serving(engine) as client:
        answer = client.post("/v1/images", json={"prompt": CAT, "seed": 3})
        handle.remove()
        assert answer.status_code == 500 and "not finite" in answer.text
        assert metric(client, "excise_pictures_total") == 0


def test_an_eraser_replaced_on_the_disk_changes_nothing_until_a_policy_takes_it(
    engine: Engine, folder: Path, build_pipe: Any, gun_eraser: Eraser
) -> None:
    own = build_pipe()
    with gun_eraser.attach(own):
        expected = drawn(own, GUN)
    with serving(engine) as client:
        shutil.rmtree(folder / "gun")
        (folder / "gun-2").rename(folder / "gun")
        (found,) = pictures(client.post("/v1/images", json={"prompt": GUN, "seed": 7}))
        assert (found == expected).all()
        (folder / "gun" / "eraser.safetensors").write_bytes(b"broken")
        with pytest.raises(excise.Tampered):
            engine.submit(engine.reload).result()
        (found,) = pictures(client.post("/v1/images", json={"prompt": GUN, "seed": 7}))
        assert (found == expected).all()
        assert client.get("/readyz").json()["erasers"] == {"gun": gun_eraser.digest}
