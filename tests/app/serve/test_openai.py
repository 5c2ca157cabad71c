"""OpenAI's own client, pointed at the service over a real socket."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from excise.app.serve.engine import Engine
from excise.erasers import Eraser
from tests.app.serve.conftest import PLAIN
from tests.app.serve.running import serving
from tests.app.serve.test_http import CAT, GUN, KEY, drawn, metric, pixels


@contextmanager
def pointed(engine: Engine, key: str = KEY) -> Iterator[tuple[Any, httpx.Client]]:
    """Yield OpenAI's client, as its users make it, and ours of the same service."""
    with (
        serving(engine, [hashlib.sha256(KEY.encode()).digest()]) as ours,
        openai.OpenAI(base_url=f"{str(ours.base_url).rstrip('/')}/v1", api_key=key) as client,
    ):
        yield client, ours


def test_its_pictures_are_the_erased_ones(build_pipe: Any, engine: Engine, gun_eraser: Eraser) -> None:
    own = build_pipe()
    with gun_eraser.attach(own):
        expected = [drawn(own, GUN, seed, width=32, height=16) for seed in (7, 8)]
    with pointed(engine) as (client, ours):
        made = client.images.generate(
            prompt=GUN,
            model="tiny",
            n=2,
            size="32x16",
            response_format="b64_json",
            quality="standard",
            background="auto",
            output_format="png",
            moderation="auto",
            user="somebody",
            safety_identifier="somebody",
            stream=False,
            extra_body={"seed": 7},
        )
        found = [pixels(base64.b64decode(one.b64_json)) for one in made.data]
        assert (np.array(found) == expected).all()
        assert [one.seed for one in made.data] == [7, 8] and made.created > 1_700_000_000
        assert made.excise["fired"] == ["gun"]
        plain = client.images.generate(prompt=CAT, model=None, n=None, size="auto", quality=None, response_format=None)
        assert len(plain.data) == 1 and plain.excise["fired"] == []
        (model,) = client.models.list()
        assert model == client.models.retrieve("tiny") and model.created <= made.created
        same = ours.post(
            "/v1/images",
            json={"prompt": GUN, "size": "32x16", "seed": 7},
            headers={"Authorization": f"Bearer {KEY}"},
        )
        assert (pixels(base64.b64decode(same.json()["data"][0]["b64_json"])) == expected[0]).all()


def test_each_refusal_is_the_error_that_its_users_catch(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of(f"{PLAIN}    when_fired: refuse")
    with pointed(engine) as (client, _):
        generate = client.images.generate
        with pytest.raises(openai.BadRequestError, match="size is 17x16") as wrong:
            generate(prompt=CAT, size="17x16")
        assert (wrong.value.code, wrong.value.param) == ("invalid_request", "size")
        assert wrong.value.type == "invalid_request_error"
        with pytest.raises(openai.BadRequestError, match="response_format: Input should be 'b64_json'"):
            generate(prompt=CAT, response_format="url")
        with pytest.raises(openai.BadRequestError, match="stream: Input should be False"):
            generate(prompt=CAT, stream=True)
        with pytest.raises(openai.PermissionDeniedError, match="about gun") as refused:
            generate(prompt=GUN)
        assert refused.value.code == "prompt_refused"
        with pytest.raises(openai.PermissionDeniedError, match="allows 0"):
            generate(prompt=CAT, extra_body={"erasers": {"gun": 0}})
        for ask in (lambda: generate(prompt=CAT, model="gpt-image-2"), lambda: client.models.retrieve("gpt-image-2")):
            with pytest.raises(openai.NotFoundError, match="has the model 'tiny' alone") as missing:
                ask()
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.NotFoundError, match="this service has POST /v1/images/generations"):
            client.images.edit(image=b"a picture", prompt=CAT)
        with pytest.raises(openai.AuthenticationError, match="give an API key"):
            client.with_options(api_key="another-key-of-the-client").images.generate(prompt=CAT)


def test_it_asks_again_only_where_that_may_help(engine: Engine, tiny_pipe: Any) -> None:
    error: BaseException = MemoryError()

    def fail(*_: object) -> None:
        raise error

    handle = tiny_pipe.unet.register_forward_pre_hook(fail)
    with pointed(engine) as (client, ours):
        with pytest.raises(openai.InternalServerError, match="too little memory"):
            client.images.generate(prompt=CAT)
        assert metric(ours, "excise_requests_total", status="503") == 1
        error = ValueError()
        with pytest.raises(openai.InternalServerError, match="could not be generated"):
            client.images.generate(prompt=CAT)
        assert metric(ours, "excise_requests_total", status="500") == 1
        handle.remove()
        engine.stopping = True
        with pytest.raises(openai.InternalServerError, match="the service is stopping") as stopping:
            client.with_options(max_retries=0).images.generate(prompt=CAT)
        assert stopping.value.response.headers["retry-after"] == "5"
        assert "x-should-retry" not in stopping.value.response.headers
        engine.stopping = False
        assert client.images.generate(prompt=CAT).data
