"""No module reads a file past `excise.files`: a stranger may have put anything there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import excise

PACKAGE = Path(excise.__file__).parent
MODULES = {
    "gzip": ("open", "decompress"), "io": ("open", "FileIO"), "json": ("load", "loads"), "np": ("load", "fromfile"),
    "os": ("open", "fdopen"), "pickle": ("load", "loads"), "safetensors.torch": ("load_file",),
    "shutil": ("unpack_archive",), "sqlite3": ("connect",), "tarfile": ("open",), "torch": ("load",),
    "yaml": ("load", "safe_load"), "zipfile": ("ZipFile",), "ET": ("parse",), "Image": ("open",),
    "torch.jit": ("load",),
}  # fmt: skip
"""Functions that read a file or parse one, by module."""
NAMES = {"open", "safe_open", "load_file", "ZipFile"}
"""The same, under names of their own."""
METHODS = {"open", "read_text", "read_bytes"}
"""Methods of a Path."""
ALLOWED = {
    ("files.py", "os.open"): "how open_regular opens",
    ("files.py", "os.fdopen"): "how open_regular opens",
    ("files.py", "json.loads"): "how parse_json parses",
    ("locks.py", "os.open"): "a file to lock, which is never read",
    ("pickled.py", "torch.load"): "tensors alone, from what open_regular opened",
    ("pickled.py", "zipfile.ZipFile"): "the table of what open_regular opened",
    ("app/training/corpora.py", "gzip.open"): "a dictionary of Debian, opened by open_regular",
    ("app/serve/policy.py", "yaml.load"): "by a SafeLoader, of what read_text read",
    ("bench/items/blocks.py", "zipfile.ZipFile"): "what open_regular opened, whose sizes are checked",
    ("bench/items/drawn_with.py", "Path('/proc/self/status').read_text"): "a file of the kernel",
    ("bench/items/drawn_with.py", "Path('/proc/cpuinfo').read_text"): "a file of the kernel",
    ("concepts/sentences.py", "yaml.safe_load"): "a file of the package, read by read_text",
    ("engine/working.py", "stage.open"): "no file: a stage that loads what its items need",
    ("engine/working.py", "pickle.loads"): "a stage that the process's own driver pickled, through a pipe",
    ("neurons/database/database.py", "sqlite3.connect"): "SQLite reads its file itself; `stored` limits what it may do",
    ("reference/bundle.py", "safe_open"): "a model that this process has just saved",
    ("sites/activations/shards.py", "safe_open"): "shapes and labels; the digest is checked with the states",
    ("sae/checkpoint.py", "safe_open"): "a file whose digest `sha256` has just checked; a rank reads its rows alone",
    ("reference/training/loop.py", "torch.load"): "tensors alone, a checkpoint of its own, opened by open_regular",
    ("reference/training/text_encoder.py", "torch.load"): "as above",
    ("reference/training/text_encoder.py", "gzip.decompress"): "CLIP's merges, read by read_file",
    ("reference/training/unet.py", "torch.load"): "as above",
}
"""Calls that remain, by module and what is called, and why each may."""


def reads(code: str) -> Iterator[str]:
    """Yield what is called to read or to parse a file.

    Left out are modes that write, texts that `json.dumps` has just made, and pictures in memory.
    """
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        if not (called in NAMES or name in MODULES.get(owner, ()) or (owner and name in METHODS)):
            continue
        first = ast.unparse(node.args[0]) if node.args else ""
        mode = first if owner and owner not in MODULES else "".join(map(ast.unparse, node.args[1:2]))
        if name == "open" and mode in ("'wb'", "'w'", "'x'", "'xb'", "'a'", "'ab'"):
            continue
        if called == "json.loads" and first.startswith("json.dumps("):
            continue
        if called == "Image.open" and first.startswith(("io.BytesIO(", "BytesIO(")):
            continue
        if owner in ("NeuronDatabase", "files"):
            continue
        yield called


def test_every_read_is_bounded_or_has_its_reason() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), called)
        for path in PACKAGE.rglob("*.py")
        for called in reads(path.read_text(encoding="utf-8"))
    }
    assert found - set(ALLOWED) == set(), "read it by excise.files"
    assert set(ALLOWED) - found == set(), "no longer there"


@pytest.mark.parametrize(
    "code",
    [
        "open(p)", "p.open()", "p.open('rb')", "open(p, 'rb')", "p.read_text()", "(a / b).read_bytes()",
        "json.loads(t)", "json.load(f)", "torch.load(p)", "np.load(p)", "Image.open(p)", "safe_open(p, 'pt')",
        "load_file(p)", "yaml.safe_load(f)", "ET.parse(p)", "gzip.open(p, 'rb')", "pickle.load(f)",
        "os.open(p, os.O_RDONLY)",
    ],
)  # fmt: skip
def test_a_plain_read_is_found(code: str) -> None:
    assert len(list(reads(code))) == 1


@pytest.mark.parametrize(
    "code", ["p.open('w')", "p.open('xb')", "open(p, 'a')", "json.loads(json.dumps(x))", "Image.open(io.BytesIO(data))"]
)
def test_what_reads_no_file_is_not(code: str) -> None:
    assert list(reads(code)) == []
