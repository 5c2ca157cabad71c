"""The loader against bytes that were never an eraser: it loads them or raises ExciseError, and nothing else.

The manifest is rewritten for most inputs, as an adversary would. Otherwise all of them would fail at the digest.
"""

from __future__ import annotations

import copy
import json
import struct
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from excise.erasers import BlockEdit, Eraser, SAEEdit, WeightEdit
from excise.erasers.artefact import files as saved_files
from excise.erasers.artefact import formats
from excise.erasers.artefact.files import FILES
from excise.erasers.edits.text_sae import CHOICES
from excise.errors import ExciseError
from excise.sites import Site

HERE = Path("gun-eraser")
JSON, TENSORS, MANIFEST = FILES
Files = dict[str, bytes]


@cache
def whole() -> Files:
    """A valid eraser of five edits: one of each source, one of a block, and a layer's weights in either form."""
    torch.manual_seed(0)

    def edit(k: int, d: int, **options: Any) -> SAEEdit:
        shapes = ((k, d), (k,), (d,), (k, d), (k,), (k,))
        site = Site("text_encoder", "encoder.layers.2", d)
        return SAEEdit(site, torch.arange(k), *map(torch.randn, shapes), **options)

    rows = (torch.randn(2, 3), torch.randn(2), torch.randn(3), torch.randn(2, 3), torch.tensor([9.0, 4.0, 1.0]))
    tables = (torch.rand(3, 2), torch.full((3, 2), torch.inf), torch.rand(3, 2))
    block = BlockEdit(Site("unet", "up_blocks.0.attentions.0", 3), torch.arange(2), *rows, *tables)
    texts = edit(1, 3), edit(2, 3, source="concept", concept_codes=torch.randn(4, 2), align="pooled")
    layer = Site("unet", "conv_in", 2)
    changes = (
        WeightEdit(layer, delta=torch.randn(2, 1, 1, 1).half()),
        WeightEdit(layer, up=torch.randn(2, 1), down=torch.randn(1, 3)),
    )
    edits = (*texts, block, *changes)
    return Eraser(edits, "gun", "gun", ("gun",), {"a": [1]}, {"b": None}, {"c": 0.5}, ("a gun",), 0.1).pack()


def sealed(files: Files) -> Files:
    return {**files, MANIFEST: saved_files.manifest(files)}


ODD = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 10**400, 2**63, 2**64, "", " ", "gun", "\ud800", "a\nb\x1b[2J", "\0",
    [], {}, [[]], [1], ["gun"], {"a": 1}, "F32", "I64", "BF16", "F8_E4M3", "U64", "C64", "F4", "BOOL", [0], [1, 3],
    [0, 0], [2**62, 4], [0, 4], [4, 0], [-1, 4], "0.W_enc", "2.W_enc", "whole", "relu", "topk", "concept",
    "excise.eraser/2",
)  # fmt: skip
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
anything = st.sampled_from(ODD).map(copy.deepcopy) | st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a json value."""
    for key, value in list(data.items() if isinstance(data, dict) else enumerate(data)):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def altered(draw: st.DrawFn, original: Any) -> Any:
    """A json value with one to three places replaced, removed, renamed, doubled or moved."""
    data = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(data))
        if not found:
            break
        container, key = draw(st.sampled_from(range(len(found))).map(found.__getitem__))
        what = draw(st.sampled_from(("replace", "replace", "remove", "add", "swap")))
        if what == "replace":
            container[key] = draw(anything)
        elif what == "remove":
            del container[key]
        elif what == "add":
            value = draw(anything)
            if isinstance(container, dict):
                container[draw(st.text(max_size=5) | st.sampled_from(("0.W_enc", "0.", "lam", "__metadata__")))] = value
            else:
                container.insert(key, value)
        else:
            other, there = draw(st.sampled_from(range(len(found))).map(found.__getitem__))
            try:
                container[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(container[key])
            except (KeyError, IndexError):
                continue
    return data


@st.composite
def spliced(draw: st.DrawFn, original: bytes) -> bytes:
    """Bytes with a piece cut out and another put in its place."""
    start = draw(st.integers(0, len(original)))
    end = draw(st.integers(start, min(len(original), start + 12)))
    tokens = (b"1e999", b"NaN", b"-Infinity", b'"\\ud800"', b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"\xff", b"\x00")
    return original[:start] + draw(st.sampled_from(tokens) | st.binary(max_size=12)) + original[end:]


def written(data: Any) -> bytes:
    return json.dumps(data).encode()


def with_header(header: bytes, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length % 2**64) + header + body


def random_bytes() -> st.SearchStrategy[Files]:
    def each(name: str) -> st.SearchStrategy[bytes]:
        return st.just(whole()[name]) | st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"{" + b + b"}")

    files = st.fixed_dictionaries({name: each(name) for name in FILES})
    return files | files.map(sealed)


def descriptions() -> st.SearchStrategy[Files]:
    good = json.loads(whole()[JSON])
    texts = altered(good).map(written) | altered(good).map(written) | spliced(whole()[JSON])
    return texts.map(lambda text: sealed({**whole(), JSON: text}))


def tensors() -> st.SearchStrategy[Files]:
    data = whole()[TENSORS]
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    texts = altered(json.loads(header)).map(written) | spliced(header)
    bodies = st.just(body) | st.just(body) | spliced(body)
    lengths = st.none() | st.none() | st.integers(-(2**63), 2**63) | st.integers(0, 2000)
    made = st.builds(with_header, texts, bodies, lengths) | st.builds(with_header, st.just(header), spliced(body))
    return made.map(lambda made: sealed({**whole(), TENSORS: made}))


INPUTS: dict[str, Callable[[], st.SearchStrategy[Files]]] = {
    "random bytes": random_bytes,
    "descriptions": descriptions,
    "tensors": tensors,
}


def load(files: Files) -> Eraser:
    """`Eraser.load` without a disk."""
    saved_files.check_manifest(HERE, files)
    return Eraser(**formats.unpack(HERE, files))


def survives(kind: str, examples: int, run: int = 0) -> tuple[int, int]:
    """How many inputs were tried, and how many of them the loader took."""
    tried = taken = 0

    @seed(run)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(INPUTS[kind]())
    def attempt(files: Files) -> None:
        nonlocal tried, taken
        tried += 1
        try:
            eraser = load(files)
        except ExciseError as error:
            message = str(error)
            assert message.isprintable() and len(message) < 500, "one line that a terminal can show"
            return
        taken += 1
        again = eraser.pack()
        assert load(again).pack() == again, "what is taken can be saved, and is then itself"

    attempt()
    return tried, taken


@pytest.mark.parametrize("kind", INPUTS)
def test_only_the_documented_error_leaves_the_loader(kind: str) -> None:
    tried, _ = survives(kind, 350)
    assert tried >= 350


@pytest.mark.slow
def test_100_000_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    began, total = time.monotonic(), 0
    for kind in INPUTS:
        counts = [survives(kind, 2000, run) for run in range(1, 18)]
        tried, taken = (sum(column) for column in zip(*counts, strict=True))
        total += tried
        with capsys.disabled():
            print(f"\n{kind}: {tried} inputs, {taken} of them taken", end="")
    with capsys.disabled():
        print(f"\n{total} inputs in {time.monotonic() - began:.0f} s")
    assert total >= 100_000


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.text(max_size=12)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def edits(draw: st.DrawFn) -> SAEEdit:
    k, d = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    chosen: dict[str, Any] = {
        name: draw(st.sampled_from(allowed)) for name, allowed in CHOICES.items() if name != "source"
    }

    def some(*shape: int) -> torch.Tensor:
        size = torch.Size(shape).numel()
        return torch.tensor(draw(st.lists(finite, min_size=size, max_size=size)), dtype=torch.float32).reshape(shape)

    if draw(st.booleans()):
        chosen |= {"source": "concept", "concept_codes": some(draw(st.integers(0, 3)), k)}
    return SAEEdit(
        Site(draw(names), draw(names), d),
        torch.tensor(draw(st.lists(st.integers(0, 2**63 - 1), min_size=k, max_size=k, unique=True))),
        *(some(*shape) for shape in ((k, d), (k,), (d,), (k, d), (k,), (k,))),
        lam=draw(st.integers(0, 10) | st.floats(0, allow_infinity=False)),
        lead=draw(st.integers(0, 9)),
        sae_digest=draw(names),
        **chosen,
    )


@st.composite
def erasers(draw: st.DrawFn) -> Eraser:
    described = st.dictionaries(names, plain_json, max_size=3)
    canary = (*draw(st.lists(names, max_size=2)), draw(names.filter(str.strip)))
    return Eraser(
        tuple(draw(st.lists(edits(), min_size=1, max_size=3))),
        draw(names),
        draw(names),
        tuple(draw(st.lists(names, max_size=3))),
        draw(described),
        draw(described),
        draw(described),
        canary,
        draw(st.integers(0, 3) | st.floats(0, allow_infinity=False)),
        draw(names),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(erasers())
def test_any_eraser_comes_back_as_it_was(eraser: Eraser) -> None:
    files = eraser.pack()
    back = load(files)
    for name in ("name", "concept", "mentions", "made_for", "created", "measured", "canary", "canary_shift", "method"):
        assert getattr(back, name) == getattr(eraser, name), name
    assert len(back.edits) == len(eraser.edits)
    for one, other in zip(back.edits, eraser.edits, strict=True):
        for name in ("site", "lam", "lead", "sae_digest", *CHOICES):
            assert getattr(one, name) == getattr(other, name), name
        assert one.tensors().keys() == other.tensors().keys()
        for name, tensor in one.tensors().items():
            assert tensor.dtype == other.tensors()[name].dtype
            assert torch.equal(tensor, other.tensors()[name]), name
    assert back.pack() == files, "to the byte, so the digest stays"
    assert back.digest == eraser.digest
