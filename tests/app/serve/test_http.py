"""Requests over a real socket: what they give, and one line of JSON for what they may not."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from excise.app.serve.engine import Engine
from excise.erasers import Eraser
from excise.settings import SEEDS
from tests.app.serve.conftest import PLAIN
from tests.app.serve.running import serving, until

GUN, CAT = "a gun on grass", "a cat on grass"
KEY = "a-key-of-more-than-16-characters"


def pixels(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def pictures(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    return [pixels(base64.b64decode(one["b64_json"])) for one in answer.json()["data"]]


def drawn(pipe: Any, prompt: str, seed: int = 7, **options: Any) -> Any:
    """Generate as the service should, without it."""
    generator = torch.Generator().manual_seed(seed)
    how = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "np", "generator": generator}
    return (pipe(prompt, **{**how, **options}).images[0] * 255).round().astype("uint8")


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = [s for family in families for s in family.samples if s.name == name and s.labels == labels]
    return samples[0].value if samples else 0.0


def test_pictures_are_those_that_the_eraser_gives_and_the_answer_says_how(
    build_pipe: Any, engine: Engine, gun_eraser: Eraser
) -> None:
    own = build_pipe()
    plain = {prompt: drawn(own, prompt) for prompt in (GUN, CAT)}
    with gun_eraser.attach(own) as attached:
        erased = drawn(own, GUN)
        second, wide = drawn(own, GUN, 8), drawn(own, GUN, width=32, height=16)
        attached.strength = 0.5
        half = drawn(own, GUN)
    assert not (erased == plain[GUN]).all() and not (erased == half).all()
    with serving(engine) as client:

        def asked(**body: Any) -> httpx.Response:
            return client.post("/v1/images", json={"prompt": GUN, "seed": 7, **body})

        answer = asked(n=2, model="tiny", user="somebody")
        assert (np.array(pictures(answer)) == [erased, second]).all()
        said = answer.json()
        assert [one["seed"] for one in said["data"]] == [7, 8]
        about = {"gun": {"digest": gun_eraser.digest, "strength": 1.0}}
        assert said["excise"] == {"erasers": about, "fired": ["gun"], "flagged": [], "not_read": ""}
        (silent,) = pictures(answer := asked(prompt=CAT))
        assert (silent == plain[CAT]).all() and answer.json()["excise"]["fired"] == []
        (weaker,) = pictures(asked(erasers={"gun": 0.5}))
        assert (weaker == half).all()
        (wider,) = pictures(asked(size="32x16"))
        assert wider.shape == (16, 32, 3) and (wider == wide).all()
        png = asked(response_format="png")
        assert png.headers["content-type"] == "image/png" and (pixels(png.content) == erased).all()
        assert json.loads(png.headers["x-excise"])["fired"] == ["gun"] and png.headers["x-excise-seed"] == "7"
        with Image.open(io.BytesIO(png.content)) as image:
            assert json.loads(image.text["excise"])["erasers"] == {"gun": gun_eraser.digest}
            assert "grass" not in str(image.text)
        unseeded = [asked(seed=None, n=1).json()["data"][0]["seed"] for _ in range(2)]
        assert unseeded[0] != unseeded[1] and max(unseeded) < SEEDS
        assert client.get("/readyz").json() == {"ready": True, "reasons": [], "erasers": {"gun": gun_eraser.digest}}
        assert metric(client, "excise_pictures_total") == 8
        assert metric(client, "excise_requests_total", status="200") == 7
        assert metric(client, "excise_fired_total", eraser="gun") == 6
        assert metric(client, "excise_request_seconds_count") == 7
        assert metric(client, "excise_ready") == 1


WRONG: dict[str, tuple[Any, int, str]] = {
    "no JSON": (b"prompt", 400, "not JSON"),
    "not UTF-8": (b'{"prompt": "\xff"}', 400, "not JSON in UTF-8"),
    "a list": ([], 400, "the body must be a JSON object"),
    "no prompt": ({}, 400, "prompt: it is missing"),
    "null for a prompt": ({"prompt": None}, 400, "prompt: it is missing"),
    "an empty prompt": ({"prompt": " \n"}, 400, "prompt is empty"),
    "a list of prompts": ({"prompt": [CAT]}, 400, "prompt: "),
    "a long prompt": ({"prompt": "x" * 2001}, 400, "prompt has 2001 characters; at most 2000"),
    "embeddings": ({"prompt": CAT, "prompt_embeds": [[0.0]]}, 400, "prompt_embeds: there is no such key"),
    "a negative prompt": (
        {"prompt": CAT, "negative_prompt": "x"},
        400,
        "negative_prompt: there is no such key",
    ),
    "no picture": ({"prompt": CAT, "n": 0}, 400, "n: "),
    "many pictures": ({"prompt": CAT, "n": 5}, 400, "n is 5; at most 4"),
    "two as PNG": ({"prompt": CAT, "n": 2, "response_format": "png"}, 400, "gives one picture"),
    "true for a number": ({"prompt": CAT, "n": True}, 400, "n: "),
    "many steps": ({"prompt": CAT, "steps": 51}, 400, "steps is 51; at most 50"),
    "an odd size": ({"prompt": CAT, "size": "17x16"}, 400, "must be multiples of 8"),
    "no size": ({"prompt": CAT, "size": "large"}, 400, "must be WIDTHxHEIGHT"),
    "a large size": ({"prompt": CAT, "size": "4096x4096"}, 400, "at most 1048576 pixels"),
    "a seed below 0": ({"prompt": CAT, "seed": -1}, 400, "seed: "),
    "seeds too large": ({"prompt": CAT, "seed": 2**64 - 1, "n": 2}, 400, "exceed"),
    "a seed above all": ({"prompt": CAT, "seed": 2**64}, 400, "seed: "),
    "an address of a picture": ({"prompt": CAT, "response_format": "url"}, 400, "response_format: Input should be"),
    "another quality": ({"prompt": CAT, "quality": "hd"}, 400, "quality: Input should be 'auto' or 'standard'"),
    "another format": ({"prompt": CAT, "output_format": "webp"}, 400, "output_format: Input should be 'png'"),
    "no background": ({"prompt": CAT, "background": "transparent"}, 400, "background: Input should be"),
    "a style": ({"prompt": CAT, "style": "vivid"}, 400, "style: there is no such key"),
    "a stream": ({"prompt": CAT, "stream": True}, 400, "stream: Input should be False"),
    "less moderation": ({"prompt": CAT, "moderation": "low"}, 400, "moderation: Input should be 'auto'"),
    "infinite guidance": (b'{"prompt": "a cat", "guidance_scale": 1e999}', 400, "not JSON"),
    "another model": ({"prompt": CAT, "model": "dall-e-3"}, 404, "has the model 'tiny' alone"),
    "an unknown eraser": ({"prompt": CAT, "erasers": {"cat": 1.0}}, 403, "there is no eraser 'cat'"),
    "an eraser off": ({"prompt": CAT, "erasers": {"gun": 0}}, 403, "allows 0.5 to 1"),
    "an eraser amplified": ({"prompt": CAT, "erasers": {"gun": -1.0}}, 403, "allows 0.5 to 1"),
    "a long body": (b" " * 70_000, 413, "more than 65536 bytes"),
    "nesting": (b'{"prompt": ' + b"[" * 30_000, 400, "not JSON"),
}


def test_what_may_not_be_asked_is_one_line_and_nothing_is_generated(engine: Engine, tiny_pipe: Any) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("something was generated")

    handle = tiny_pipe.unet.register_forward_pre_hook(fail)
    with serving(engine) as client:
        for what, (body, status, message) in WRONG.items():
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.post("/v1/images", content=content)
            assert answer.status_code == status, (what, answer.text)
            assert set(answer.json()) == {"error"} and "\n" not in answer.text, what
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, what
            assert message in answer.json()["error"]["message"], (what, answer.text)
        missing = client.get("/nothing").json()["error"]["message"]
        assert missing.startswith("Not Found; this service has POST /v1/images/generations, ")
        assert client.get("/v1/images").status_code == 405
        for page in ("/docs", "/openapi.json"):
            assert client.get(page).status_code == 404
        assert metric(client, "excise_pictures_total") == 0
        assert metric(client, "excise_requests_total", status="403") == 3
        assert client.get("/healthz").json() == {"alive": True}
    handle.remove()


def test_a_service_with_keys_answers_their_holders_alone(engine: Engine) -> None:
    other = hashlib.sha256(b"another-key-of-the-service").digest()
    with serving(engine, [other, hashlib.sha256(KEY.encode()).digest()]) as client:
        for header in ("", KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer"):
            headers = {"Authorization": header} if header else {}
            for answer in (
                client.post("/v1/images", json={"prompt": CAT}, headers=headers),
                client.get("/v1/models", headers=headers),
            ):
                assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        headers = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/models", headers=headers).json()["data"][0]["id"] == "tiny"
        assert client.post("/v1/images", json={"prompt": CAT}, headers=headers).status_code == 200
        assert client.get("/readyz").status_code == 200


def test_a_rule_refuses_or_flags_a_prompt_that_fires(engine_of: Callable[..., Engine]) -> None:
    with serving(engine := engine_of(f"{PLAIN}    when_fired: refuse")) as client:
        answer = client.post("/v1/images", json={"prompt": GUN, "erasers": {"gun": 0.5}})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "prompt_refused"
        assert "about gun" in answer.json()["error"]["message"]
        assert metric(client, "excise_refused_total", eraser="gun") == 1
        assert pictures(client.post("/v1/images", json={"prompt": CAT}))
        (engine.path).write_text(f"{PLAIN}    when_fired: flag")
        engine.submit(engine.reload).result()
        answers = [client.post("/v1/images", json={"prompt": prompt}) for prompt in (GUN, CAT, GUN)]
        assert [answer.json()["excise"]["flagged"] for answer in answers] == [["gun"], [], ["gun"]]


def test_more_requests_than_may_wait_are_sent_away(engine_of: Callable[..., Engine]) -> None:
    engine, go_on = engine_of(f"{PLAIN}limits: {{waiting: 1}}"), threading.Event()
    with serving(engine) as client, ThreadPoolExecutor(1) as other:
        engine.submit(go_on.wait)
        first = other.submit(client.post, "/v1/images", json={"prompt": CAT})
        while not engine.waiting:
            time.sleep(0.01)
        full = client.post("/v1/images", json={"prompt": CAT})
        assert full.status_code == 429 and full.headers["retry-after"]
        assert client.get("/readyz").status_code == 200  # without waiting for the worker
        go_on.set()
        assert first.result().status_code == 200
        assert client.post("/v1/images", json={"prompt": CAT}).status_code == 200


def test_a_request_of_a_client_that_has_gone_is_not_generated(engine: Engine, tiny_pipe: Any) -> None:
    runs: list[int] = []
    handle = tiny_pipe.unet.register_forward_pre_hook(lambda *_: runs.append(1))
    go_on = threading.Event()
    with serving(engine) as client:
        engine.submit(go_on.wait)
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/images", json={"prompt": CAT}, timeout=0.2)
        while engine.waiting:
            time.sleep(0.01)
        go_on.set()
        engine.submit(lambda: None).result()
        assert runs == []
        assert metric(client, "excise_requests_total", status="499") == 1
    handle.remove()


def test_a_client_that_goes_while_it_sends_is_no_error_of_the_service(engine: Engine) -> None:
    with serving(engine) as client:
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as sending:
            sending.sendall(b'POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{"prompt"')
        until(lambda: metric(client, "excise_requests_total", status="499") == 1)


def test_no_log_line_holds_a_prompt(engine: Engine, tiny_pipe: Any, capfd: pytest.CaptureFixture[str]) -> None:
    secret = "zanzibar"

    def fail(*_: object) -> None:
        raise ValueError(f"no {secret}")

    with serving(engine) as client:
        for prompt in (f"a {secret}", f"a gun and {secret}", f"{'a cat ' * 60}{secret}", "x" * 3000 + secret):
            client.post(
                "/v1/images", json={"prompt": prompt, secret: 1} if prompt == f"a {secret}" else {"prompt": prompt}
            )
        handle = tiny_pipe.unet.register_forward_pre_hook(fail)
        broken = client.post("/v1/images", json={"prompt": f"a {secret}"})
        handle.remove()
        lost = client.post("/v1/images", json={"prompt": f"{'a cat ' * 60}{secret}"}).json()["excise"]["not_read"]
        assert lost.endswith(secret)
    assert broken.status_code == 500 and secret not in broken.text
    out, err = capfd.readouterr()
    assert secret not in out + err
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["event"] == "request"] == [400, 200, 200, 400, 500, 200]
    assert "ValueError at" in next(line for line in lines if line.get("status") == 500)["reason"]


def test_a_policy_is_exchanged_as_a_whole_or_not_at_all(
    engine: Engine, folder: Path, build_pipe: Any, gun_eraser: Eraser
) -> None:
    both = "erasers: {gun: {folder: gun-2}, other: {folder: gun}}"
    second = Eraser.load(folder / "gun-2")
    other_model = {**gun_eraser.made_for, "tokenizers": {"text_encoder": "0" * 64}}
    foreign = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], lam=0.4),), made_for=other_model)  # type: ignore[type-var]
    foreign.save_pretrained(folder / "foreign")
    with serving(engine) as client:

        def erasers() -> Any:
            return client.get("/readyz").json()["erasers"]

        refused = {
            "erasers: {gun: {folder: gun-2}, knife: {folder: knife}}": "knife",
            f"erasers: {{gun: {{folder: gun-2, digest: {gun_eraser.digest}}}}}": "digest",
            "erasers: {gun: {folder: gun-2}, other: {folder: gun-2}}": "are the same",
            "erasers: {gun: {folder: gun-2}, other: {folder: foreign}}": "made for another pipeline",
            "erasers: {}": "erasers",
            "erasers: {gun: {folder: gun-2}}\nsigned_by: {public_key: none.pem}": "gun",
        }
        for text, message in refused.items():
            engine.path.write_text(text)
            with pytest.raises(Exception, match=message):
                engine.submit(engine.reload).result()
            assert erasers() == {"gun": gun_eraser.digest}
            assert client.post("/v1/images", json={"prompt": GUN, "erasers": {"gun": 0.5}}).status_code == 200
        engine.path.write_text(both)
        engine.submit(engine.reload).result()
        assert erasers() == {"gun": second.digest, "other": gun_eraser.digest}
        own = build_pipe()
        with second.attach(own, name="a"), gun_eraser.attach(own, name="b"):
            expected = drawn(own, GUN)
        (found,) = pictures(client.post("/v1/images", json={"prompt": GUN, "seed": 7}))
        assert (found == expected).all()
        engine.path.write_text(PLAIN)
        engine.submit(engine.reload).result()
        assert erasers() == {"gun": gun_eraser.digest}
