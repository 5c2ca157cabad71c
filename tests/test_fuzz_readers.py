"""Every reader against bytes that were never what it reads: it reads them, or raises ExciseError in one line."""

from __future__ import annotations

import csv
import io
import json
import random
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch

from excise.bench import suite
from excise.bench.run import Run, Unit
from excise.concepts import load_pairs, save_pairs
from excise.concepts.answers import parse
from excise.concepts.formats import COLUMNS, read_labelled
from excise.errors import ExciseError, one_line
from excise.files import sha256
from excise.neurons.context import Context
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Explanation, Measured, Provenance, Tag
from excise.sae import SAEConfig, TopKSAE, load
from excise.sae.exchange.importers import read_published
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
    if not content or not isinstance(content, dict | list):
        return rng.choice(ODD)
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
    plan = {"schema": "excise.run/1", "suite": "canvas", "size": "small", "methods": ["none"], "concepts": ["gun"]}
    plan |= {"settings": {"steps": 3}, "model": None, "sae": None, "configurations": {"none": {}}}
    found = {"id": "gun-1", "concept": "gun", "family": "direct", "prompt": "a gun", "seed": 3, "keeps": ["a"]}
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
    assert all(isinstance(value, str) for value in opened.named.values())
    (folder / "searched.json").write_bytes(some([found], rng))
    [suite.Case.from_json(row) for row in suite.read_saved(folder / "searched.json", list)]


@cache
def some_pairs() -> tuple[bytes, bytes]:
    rows = [
        ("a gun on grass", "a toy on grass", "t1"),
        ('a "red, gun"', "a toy", ""),
        ("a gun\tand a cat", "a cat", ""),
    ]
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows]
    table = io.StringIO()
    csv.writer(table).writerows((COLUMNS, *rows))
    return "\n".join(lines).encode(), table.getvalue().encode()


def pairs(folder: Path, rng: random.Random) -> None:
    lines, table = some_pairs()
    path = folder / rng.choice(("pairs.jsonl", "pairs.csv"))
    if path.suffix == ".jsonl" and rng.random() < 0.5:
        rows = lines.split(b"\n")
        n = rng.randrange(len(rows))
        rows[n] = json.dumps(altered(json.loads(rows[n]), rng)).encode()
        data = b"\n".join(rows)
    else:
        data = spliced(lines if path.suffix == ".jsonl" else table, rng)
    path.write_bytes(data)
    found = load_pairs(path)
    assert all(pair.concept.strip() and pair.deconcept.strip() for pair in found)
    save_pairs(found, folder / "again.jsonl")
    assert load_pairs(folder / "again.jsonl") == found
    list(read_labelled(path, COLUMNS[1:], COLUMNS[0]))


@cache
def a_database() -> bytes:
    about = Provenance("ab", "text_encoder/it", 64, "some prompts", 3, "cd", "2026-01-01", {"excise": "1"}, {"top": 3})
    context = Context(("a", " gun"), (0.0, 1.5))
    entry = Entry(
        3, 0.5, 1.5, (1, 2), (context,), (context,), (("gun", 0.9),), ((4, 0.5),), (Tag("gun", 0.5, 0.9),),
        Explanation("guns", "me", "2026"), {"detection": Measured(0.5, {"n": 3})}, ({"text": "gun", "share": 0.5},),
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        with NeuronDatabase.create(Path(folder, "it.db"), about) as made:
            made.add([entry, Entry(4)])
        return Path(folder, "it.db").read_bytes()


CELLS: tuple[Any, ...] = (
    None, 0, -1, 2**63 - 1, 0.5, float("inf"), float("-inf"), "", "nan", "x" * 1000, "\x1b[2J", b"", b"\xff\0", "[]",
    "{}", "null", "1e400", "[NaN]", '"\\ud800"', "[" * 3000, "[[1]]", '[[["a"],[1,2]]]', "9" * 5000,
)  # fmt: skip


def database(folder: Path, rng: random.Random) -> None:
    path = folder / "it.db"
    path.write_bytes(a_database())
    if rng.random() < 0.6:
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA ignore_check_constraints=ON")
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for _ in range(rng.randrange(1, 3)):
                table = rng.choice(tables)
                columns = connection.execute(f"PRAGMA table_info('{table}')").fetchall()
                column, value = rng.choice(columns)[1], rng.choice(CELLS)
                held = connection.execute(f'SELECT "{column}" FROM "{table}" LIMIT 1').fetchone()
                if held and isinstance(held[0], str) and rng.random() < 0.5:
                    with suppress(ValueError, IndexError, RecursionError):  # not JSON, or without a place to alter
                        value = some(json.loads(held[0]), rng).decode("utf-8", "replace")
                connection.execute(f'UPDATE "{table}" SET "{column}" = ?', (value,))
            connection.commit()
        except (sqlite3.Error, OverflowError):
            pass  # the alteration is not possible; what came before it is
        finally:
            connection.close()
    else:
        data = bytearray(a_database())
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(200)] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
    with NeuronDatabase.open(path) as opened:
        found = list(opened.entries())
        json.dumps([entry.row() for entry in found], allow_nan=False).encode()
        opened.search("gun")
        opened.add_tag(3, Tag("cat"))


@cache
def published(kind: str) -> tuple[str, str, Any, dict[str, torch.Tensor]]:
    """Config's and weights' names, settings and tensors of an SAE as one library writes it: d = 3, m = 5, k = 2."""
    torch.manual_seed(0)
    encoder, decoder, bias, centre = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5), torch.randn(3)
    ours = {"encoder.weight": encoder, "encoder.bias": bias, "b_dec": centre}
    if kind == "sparsify":
        settings: Any = {"d_in": 3, "num_latents": 5, "k": 2, "activation": "topk", "normalize_decoder": True}
        return "cfg.json", "sae.safetensors", settings, ours | {"W_dec": decoder}
    if kind == "k-sparse":
        tensors = {"encoder.weight": encoder, "latent_bias": bias, "decoder.weight": decoder.T, "pre_bias": centre}
        return "config.json", "state_dict.pth", {"d_model": 3, "n_dirs_local": 5, "k": 2, "auxk": 1}, tensors
    if kind == "SAELens":
        tensors = {"W_enc": encoder.T.contiguous(), "b_enc": bias, "W_dec": decoder, "b_dec": centre}
        settings = {"architecture": "topk", "d_in": 3, "d_sae": 5, "k": 2, "activation_fn_kwargs": {"k": 2}}
        settings |= {"apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True, "metadata": {"a": [1]}}
        return "cfg.json", "sae_weights.safetensors", settings, tensors
    trainer = {"dict_class": "AutoEncoderTopK", "activation_dim": 3, "dict_size": 5, "k": 2, "lr": 0.1}
    more = {"decoder.weight": decoder.T.contiguous(), "k": torch.tensor(2), "threshold": torch.tensor(-1.0)}
    return "config.json", "ae.pt", {"trainer": trainer, "buffer": {"io": "out"}}, ours | more


def a_published_sae(kind: str) -> Case:
    @cache
    def weights() -> bytes:
        _, name, _, tensors = published(kind)
        return dumped(name, tensors)

    def case(folder: Path, rng: random.Random) -> None:
        config, name, settings, tensors = published(kind)
        text, data, how = json.dumps(settings).encode(), weights(), rng.random()
        if how < 0.5:
            text = some(settings, rng)
        elif how < 0.8:
            data = spliced(data, rng)
        else:
            data = dumped(name, odd_tensors(tensors, rng))
        (folder / config).write_bytes(text)
        (folder / name).write_bytes(data)
        sae = read_published(folder)
        assert sae.config.d == 3 and all(torch.isfinite(tensor).all() for tensor in sae.state_dict().values())

    return case


def dumped(name: str, tensors: Mapping[str, Any]) -> bytes:
    if name.endswith(".safetensors"):
        return safetensors.torch.save({key: value.contiguous() for key, value in tensors.items()})
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer)
    return buffer.getvalue()


def odd_tensors(tensors: Mapping[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """The tensors with one of another shape, kind or value, without one, or with one more."""
    changed = dict(tensors)
    name = rng.choice(sorted(changed))
    whole = changed[name]
    ways: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: whole.reshape(-1), lambda: whole[..., :1] if whole.ndim else whole[None],
        lambda: whole.T if whole.ndim == 2 else whole[None],
        lambda: torch.tensor(1.0), lambda: torch.empty(0), whole.int, whole.half, whole.bool,
        lambda: torch.full_like(whole, float("nan") if whole.is_floating_point() else 7),
        lambda: torch.zeros_like(whole), lambda: whole.double() * 1e300,
    )  # fmt: skip
    kind = rng.randrange(len(ways) + 2)
    if kind < len(ways):
        changed[name] = ways[kind]()
    elif kind == len(ways):
        del changed[name]
    else:
        changed["another"] = whole.clone()
    return changed


ANSWERS = (
    '[{"concept": "a gun", "deconcept": "a toy"}, ["a gun on grass", "a toy on grass"]]',
    "1. a gun | a toy\n2. a red gun → a red toy\n| a gun | a toy |\nconcept: a gun\ndeconcept: a toy",
    '<think>so</think>```json\n{"pairs": [{"concept": "a gun", "deconcept": "a toy"}]}\n```',
)
PIECES = ("[", "{", '"', "]", "}", "|", "\n", "\t", "->", "<think>", "</think>", "concept:", "\\ud83d",
          "\x1b]52;c;AA\x07", "\u2028", "null", "[" * 3000, "NaN", "\0", "1. ", "```")  # fmt: skip


def answer(folder: Path, rng: random.Random) -> None:
    text = rng.choice(ANSWERS)
    for _ in range(rng.randrange(1, 6)):
        start = rng.randrange(len(text) + 1)
        text = text[:start] + rng.choice(PIECES) + text[start + rng.randrange(20) :]
    found, broken = parse(text)
    for piece in (*broken, *(side for candidate in found for side in (candidate.concept, candidate.deconcept))):
        piece.encode()
    if not found:
        raise ExciseError("no pair in it")


CASES: dict[str, tuple[Case, int]] = {
    "sae": (sae, 400), "run": (run, 300), "pairs": (pairs, 400), "database": (database, 150), "answer": (answer, 400),
    **{kind: (a_published_sae(kind), 200) for kind in ("sparsify", "k-sparse", "SAELens", "dictionary_learning")},
}  # fmt: skip


def fuzz_one(case: Case, folder: Path, number: int, seed: int) -> bool:
    """Read one input, and return whether it was refused."""
    try:
        case(folder, random.Random(f"{seed} {number}"))
    except ExciseError as error:
        message = str(error)
        assert message == one_line(message) and len(message) < 1100, (number, message)
        return True
    except Exception as error:
        raise AssertionError(f"input {number} of seed {seed}") from error
    return False


def fuzz(case: Case, folder: Path, n: int, seed: int) -> int:
    return sum(fuzz_one(case, folder, number, seed) for number in range(n))


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
