"""What needs no model answers without importing torch, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from excise.cli import app
from excise.erasers.artefact import files as saved_files
from excise.erasers.artefact.checks import check_files
from excise.erasers.artefact.files import FILES

GROUPS = [(), *((name,) for name, group in typer.main.get_command(app).commands.items() if hasattr(group, "commands"))]
_RUN = """
import json, os, sys, traceback

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "diffusers"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Refused())
from excise.cli import main

def run(words, out, err):
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = ["excise", *words]
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    if not (child := os.fork()):
        run(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs each command that it reads in a process of its own; what all of them import is imported once."""


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        yield running
        assert running.stdin is not None
        running.stdin.close()


@pytest.fixture
def ran_light(
    server: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a process of its own, where nothing heavy can be imported."""

    def ran(*words: Any) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp("printed")
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps([[str(word) for word in words], f"{folder}/out", f"{folder}/err"]) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, (folder / "out").read_text(), (folder / "err").read_text())

    return ran


@pytest.fixture
def runs_light(ran_light: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., str]:
    """Returns what such a command prints. It must succeed."""

    def runs(*words: Any) -> str:
        ran = ran_light(*words)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return runs


@pytest.fixture
def eraser(gun_eraser: Any, tmp_path: Path) -> Path:
    gun_eraser.save(tmp_path / "gun")
    return tmp_path / "gun"


def test_a_model_that_is_not_there(ran_light: Callable[..., Any]) -> None:
    for model in ("/nope", "sd.safetensors", "./models/sd14"):
        ran = ran_light("generate", "--prompt", "a cat", "--model", model)
        assert ran.returncode == 2
        assert ran.stderr == f"error: there is no {model} on this machine; name a folder with model_index.json\n"


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_the_help_of_every_group(runs_light: Callable[..., str], group: tuple[str, ...]) -> None:
    assert "--help" in runs_light(*group, "--help")


def test_the_methods_and_their_papers(runs_light: Callable[..., str]) -> None:
    assert "saeuron (inference)" in runs_light("methods")
    rows = {row["name"]: row for row in json.loads(runs_light("methods", "--json"))}
    assert rows["snce"]["defaults"]["k"] == 1
    assert "@inproceedings{gandikota2024unified" in runs_light("methods", "cite", "uce")
    assert runs_light("methods", "cite", "snce+saemnesia").count("  eprint = ") == 2


def test_the_settings_of_a_method(ran_light: Callable[..., Any], runs_light: Callable[..., str]) -> None:
    said = runs_light("methods", "show", "esd-x")
    assert "Adam's learning rate." in " ".join(said.split())
    rows = {row["name"]: row for row in json.loads(runs_light("methods", "show", "esd", "--json"))}
    assert rows["lr"] == {
        "name": "lr",
        "default": 5e-5,
        "takes": "a number, above 0 and at most 1",
        "unit": "",
        "meaning": "Adam's learning rate.",
        "paper": 5e-5,
        "bundled": 3e-4,
    }
    assert rows["seed"]["paper"] is None and rows["seed"]["bundled"] is None
    both = [row["name"] for row in json.loads(runs_light("methods", "show", "snce+uce", "--json"))]
    assert "snce.k" in both and "uce.lam" in both
    refused = ran_light("methods", "show", "snec")
    assert refused.returncode == 2 and "there is no method 'snec'; try snce" in refused.stderr


def test_the_concepts(runs_light: Callable[..., str]) -> None:
    assert "gun" in runs_light("concepts")
    rows = json.loads(runs_light("concepts", "--json"))
    assert len(rows) == 66
    assert rows[0] == {"name": "gun", "kind": "object", "for": "the bundled model", "mentions": ["gun"]}


def test_pairs_are_made_and_checked(runs_light: Callable[..., str], tmp_path: Path) -> None:
    runs_light("pairs", "make", "gun", "--out", tmp_path / "gun.csv")
    assert "0 problems" in runs_light("pairs", "check", tmp_path / "gun.csv", "--mentions", "gun")
    runs_light("pairs", "make", "gun", "--out", tmp_path / "gun.jsonl", "--json")
    assert json.loads(runs_light("pairs", "check", tmp_path / "gun.jsonl", "--mentions", "gun", "--json"))


def test_a_neuron_of_a_database(runs_light: Callable[..., str], tmp_path: Path) -> None:
    from excise.neurons.context import Context
    from excise.neurons.database.database import NeuronDatabase
    from excise.neurons.database.entry import Entry, Provenance

    about = Provenance("ab" * 32, "text_encoder/encoder.layers.2", 64, "prompts", 3, "cd" * 32, "2026-01-01T00:00:00")
    with NeuronDatabase.create(tmp_path / "neurons.db", about) as database:
        database.add([Entry(5, density=0.25, contexts=(Context((" a", " gun"), (0.0, 3.0)),))])
    for more in ((), ("--json",)):
        assert "gun" in runs_light("neurons", "show", 5, "--db", tmp_path / "neurons.db", *more)
        assert "gun" in runs_light("neurons", "search", "gun", "--db", tmp_path / "neurons.db", *more)
        out = tmp_path / f"neurons{len(more)}.jsonl"
        assert "neurons" in runs_light("neurons", "export", "--db", tmp_path / "neurons.db", "--out", out, *more)


def test_the_files_of_an_eraser(runs_light: Callable[..., str], eraser: Path) -> None:
    assert "passed" in runs_light("verify", eraser, "--files-only")
    checks = json.loads(runs_light("verify", eraser, "--files-only", "--json"))["checks"]
    assert [(check["name"], check["passed"]) for check in checks] == [
        ("files", True),
        ("manifest", True),
        ("content", True),
    ]


def test_the_signature_of_an_eraser(
    ran_light: Callable[..., Any], runs_light: Callable[..., str], eraser: Path, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from excise.erasers import sign

    pem, key = serialization.Encoding.PEM, ec.generate_private_key(ec.SECP256R1())
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "private.pem").write_bytes(secret)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "public.pem").write_bytes(public)
    words = ("verify", eraser, "--files-only", "--key", tmp_path / "public.pem")
    refused = ran_light(*words)
    assert refused.returncode == 2
    assert "is not signed" in refused.stderr
    sign(eraser, tmp_path / "private.pem")
    assert "signed by the key of" in runs_light(*words)
    checks = json.loads(runs_light(*words, "--json"))["checks"]
    assert [check["name"] for check in checks] == ["files", "signature", "manifest", "content"]


def _drop(files: dict[str, bytes]) -> None:
    told = json.loads(files["eraser.json"])
    del told["canary"]
    files["eraser.json"] = json.dumps(told).encode()


@pytest.mark.parametrize(
    "spoil",
    [
        _drop,
        lambda files: files.update({"eraser.json": b"[]"}),
        lambda files: files.update(
            {"eraser.json": files["eraser.json"].replace(b"excise.eraser/1", b"excise.eraser/9")}
        ),
        lambda files: files.update({"eraser.safetensors": files["eraser.safetensors"][:-1]}),
        lambda files: files.update({"eraser.safetensors": b"\xff" * 40}),
        lambda files: files.update({"eraser.safetensors": files["eraser.safetensors"].replace(b'"0.', b'"7.')}),
    ],
)
def test_files_that_hold_no_eraser_are_found_out(spoil: Callable[[dict[str, bytes]], None], eraser: Path) -> None:
    files = {name: (eraser / name).read_bytes() for name in FILES}
    spoil(files)
    files["manifest.json"] = saved_files.manifest(files)
    for name, data in files.items():
        (eraser / name).write_bytes(data)
    assert [(check.name, check.passed) for check in check_files(eraser)] == [
        ("files", True),
        ("manifest", True),
        ("content", False),
    ]
