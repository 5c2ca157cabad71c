"""Without keys, programs and pages of this machine alone may ask: no web page can use its visitor's browser."""

from __future__ import annotations

import hashlib
import json

import pytest

from excise.app.serve.engine import Engine
from excise.app.serve.visitors import foreign
from tests.app.serve.running import serving
from tests.app.serve.test_http import CAT, KEY, metric

OURS: list[dict[str, str]] = [
    {},
    {"Host": "localhost:8000"},
    {"Host": "LOCALHOST"},
    {"Host": "[::1]:8000"},
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "http://localhost"},
    {"Origin": "http://[::1]:80"},
]
FOREIGN = [
    {"Host": "other.example"},
    {"Host": "127.0.0.1.other.example:8000"},
    {"Host": "127.0.0.1:8000@other.example"},
    {"Host": "10.0.0.1"},
    {"Host": "[::1"},
    {"Host": ""},
    {"Origin": "https://other.example"},
    {"Origin": "http://localhost.other.example"},
    {"Origin": "http://[other"},
    {"Origin": "null"},
    {"Origin": ""},
]


@pytest.mark.parametrize("headers", [*OURS, *FOREIGN], ids=str)
def test_a_request_is_foreign_by_its_host_or_its_origin(headers: dict[str, str]) -> None:
    lower = {"host": "127.0.0.1:8000", **{name.lower(): value for name, value in headers.items()}}
    why = foreign(lower)
    assert bool(why) == (headers in FOREIGN) and "\n" not in why


def test_a_request_without_a_host_is_of_no_browser() -> None:
    assert foreign({}) == ""


def test_without_keys_no_route_answers_another_site(engine: Engine) -> None:
    with serving(engine) as client:
        for headers in ({"Origin": "https://other.example"}, {"Host": "other.example"}):
            # As `fetch(address, {mode: "no-cors", method: "POST", body: ...})` sends it.
            sent = {**headers, "Content-Type": "text/plain;charset=UTF-8"}
            for answer in (
                client.post("/v1/images", content=json.dumps({"prompt": CAT}), headers=sent),
                client.post("/v1/images/generations", content=json.dumps({"prompt": CAT}), headers=sent),
                *(client.get(page, headers=headers) for page in ("/v1/models", "/v1/models/tiny")),
                *(client.get(page, headers=headers) for page in ("/healthz", "/readyz", "/metrics")),
            ):
                assert answer.status_code == 403, answer.request.url
                assert answer.json()["error"]["code"] == "foreign_page" and "'" in answer.json()["error"]["message"]
        assert metric(client, "excise_pictures_total") == 0
        assert metric(client, "excise_requests_total", status="403") == 4
        ours = {"Origin": f"http://localhost:{client.base_url.port}"}
        assert client.post("/v1/images", json={"prompt": CAT}, headers=ours).status_code == 200


def test_with_keys_a_proxy_may_keep_the_host(engine: Engine) -> None:
    with serving(engine, [hashlib.sha256(KEY.encode()).digest()]) as client:
        headers = {"Authorization": f"Bearer {KEY}", "Host": "pictures.example", "Origin": "https://app.example"}
        assert client.post("/v1/images", json={"prompt": CAT}, headers=headers).status_code == 200
        assert client.get("/readyz", headers=headers).status_code == 200
