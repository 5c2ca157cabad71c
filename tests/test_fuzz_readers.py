"""SAEs and runs against bytes that were never one: each loads, or raises ExciseError."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from excise.bench.run import Run, Unit
from excise.errors import ExciseError
from excise.files import sha256
from excise.sae import SAEConfig, TopKSAE, load
from excise.sae.storage import pack

TOKENS: tuple[bytes, ...] = (
    b"1e400", b"NaN", b"-Infinity", b'"\\ud800"', b"[" * 3000, b'{"a":' * 3000, b"9" * 5000, b"\xff", b"\0", b"null",
    b"true", b"[]", b"{}", b"-1", b"0", b'"nan"', b"1000000000000", b"\n", b",", b'"',
)  # fmt: skip
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 0.5, 10**12, 10**30, 10**400, 1e308, float("inf"), float("nan"), "", "nan", "\ud800", [], {},
    [[1]], {"a": 1}, "x" * 1000,
)  # fmt: skip
Case = Callable[[Path, random.Random], None]


def spliced(data: bytes, rng: random.Random) -> bytes:
    """Bytes with a piece replaced by a token or by random bytes."""
    start = rng.randrange(len(data) + 1)
    token = rng.choice(TOKENS) if rng.random() < 0.6 else rng.randbytes(rng.randrange(9))
    return data[:start] + token + data[start + rng.randrange(12) :]


def altered(content: Any, rng: random.Random) -> Any:
    """A copy of json content with one value replaced or one key removed."""
    content = json.loads(json.dumps(content))
    places = []

    def walk(part: Any) -> None:
        for key, value in list(part.items() if isinstance(part, dict) else enumerate(part)):
            places.append((part, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(content)
    part, key = rng.choice(places)
    if rng.random() < 0.2:
        del part[key]
    else:
        part[key] = rng.choice(ODD)
    return content


def some(content: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return json.dumps(altered(content, rng)).encode()
    return spliced(json.dumps(content).encode(), rng)


@cache
def an_sae() -> dict[str, bytes]:
    sae = TopKSAE(SAEConfig(d=3, m=5, k=2))
    return pack(sae.config, sae.state_dict(), {"site": None})


def sae(folder: Path, rng: random.Random) -> None:
    config, weights = json.loads(an_sae()["cfg.json"]), an_sae()["sae.safetensors"]
    if rng.random() < 0.5:
        weights = spliced(weights, rng)
        config["sha256"]["sae.safetensors"] = sha256(weights)
        text = json.dumps(config).encode()
    else:
        text = some(config, rng)
    (folder / "cfg.json").write_bytes(text)
    (folder / "sae.safetensors").write_bytes(weights)
    load(folder)


def run(folder: Path, rng: random.Random) -> None:
    plan = {"schema": "excise.run/1", "suite": "canvas", "size": "small", "methods": {"none": {}}}
    record = {"method": "none", "case": "gun-1", "concept": "gun", "seen": {"target": True}}
    (folder / "records").mkdir(exist_ok=True)
    (folder / "tries").mkdir(exist_ok=True)
    (folder / "todo").mkdir(exist_ok=True)
    (folder / "todo" / "none=gun").touch()
    (folder / "run.json").write_bytes(some(plan, rng) if rng.random() < 0.4 else json.dumps(plan).encode())
    (folder / "records" / "none=gun@1.jsonl").write_bytes(some(record, rng) + b"\n")
    (folder / "tries" / "none=gun@1.json").write_bytes(some({"error": "it broke"}, rng))
    opened = Run(folder)
    opened.records()
    opened.records(Unit("none", "gun"))
    opened.errors()


CASES: dict[str, tuple[Case, int]] = {"sae": (sae, 400), "run": (run, 300)}


def fuzz(case: Case, folder: Path, n: int, seed: int) -> int:
    refused = 0
    for number in range(n):
        try:
            case(folder, random.Random(f"{seed} {number}"))
        except ExciseError as error:
            refused += 1
            message = str(error)
            assert len(message.splitlines()) == 1, (number, message)
            assert len(message) < 3000, (number, message[:300])
        except Exception as error:
            raise AssertionError(f"input {number} of seed {seed}") from error
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_any_input_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    case, n = CASES[name]
    assert 0 < fuzz(case, tmp_path, n, 0) < n


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_hundred_thousand_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    fuzz(CASES[name][0], tmp_path, 100_000, 1)
