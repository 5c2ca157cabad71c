"""Test the bundled model's commands, loading and attaching with several versions of transformers and diffusers.

Run `make matrix`, or `nox -s "attach(...)"` for one combination. Some combinations cannot be installed, because the
libraries need different versions of huggingface_hub: transformers 4.57 needs one below 1.0, diffusers from 0.40 one
from 1.23. "newest" is at least the version in constraints.txt, so that pip cannot silently choose an older one for the
other library. The session `core` runs what an eraser needs before it is attached, next to an older transformers than
Excise supports. The session `saes` exchanges SAEs with SAELens and sparsify, each in an environment of its own. The
session `ray` runs the engine for clusters on one of this machine, and `s3` runs in a bucket on moto's server.
"""

from __future__ import annotations

import re
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True

PINS = Path(__file__).with_name("constraints.txt").read_text().splitlines()
VARIED = ("transformers", "diffusers", "huggingface-hub", "tokenizers", "compel")
COMBINATIONS = (
    ("4.57", "0.38"),
    ("4.57", "0.39"),  # the newest diffusers that installs with it
    ("5.0", "0.38"),
    ("5.1", "0.38"),  # the last that gets hidden states by patching `forward`
    ("5.5", "0.38"),  # the last with CLIP's layers under `text_model`
    ("newest", "0.38"),
    ("newest", "newest"),
)
SUITE = (
    "tests/cli/test_bundled.py",  # generate, find, erase and verify
    "tests/reference/test_bundle.py",
    "tests/test_loading.py",
    "tests/erasers",
    "tests/sites",
    "tests/test_tiny.py",
)
CORE = ("torch", "safetensors", "lazy_loader", "model-signing", "pyopenssl")
"""What reading, checking, digesting and signing an eraser, and computing its text edits, need."""
SAE_LIBRARIES = {"SAELENS": "sae-lens==6.54.12", "SPARSIFY": "eai-sparsify==1.3.3"}
MOTO = ("moto[s3]==5.2.5", "boto3==1.43.11", "flask==3.1.3", "flask-cors==6.0.2")
"""What moto's S3 server needs; all of its servers need far more. With a version of boto3 pip does not try them all."""
TORCH = next(line for line in PINS if line.startswith("torch=="))


@nox.session
@nox.parametrize("transformers, diffusers", COMBINATIONS, ids=[f"{t}-{d}" for t, d in COMBINATIONS])
def attach(session: nox.Session, transformers: str, diffusers: str) -> None:
    wanted = [wish("transformers", transformers), wish("diffusers", diffusers)]
    tools = ["accelerate", "compel>=2.1", "hypothesis", "opentelemetry-sdk", "peft", "pytest"]
    session.install("-e", "reference", "-e", ".[otel,sign]", *tools, *wanted, *pinned(session))
    session.run("python", "-m", "pip", "freeze", "--exclude-editable")
    suite = session.posargs or SUITE
    session.run(
        "python", "-m", "pytest", "-rs", *suite, env={"OMP_NUM_THREADS": "1", "CI": ""}
    )  # packages are left out on purpose


@nox.session
@nox.parametrize("transformers", ["4.46"])
def core(session: nox.Session, transformers: str) -> None:
    """Read, check, digest and sign erasers, and compute their text edits, where a host pins an old transformers."""
    session.install(f"transformers=={transformers}.*", *CORE, *pinned(session))
    session.install("--no-deps", "-e", ".")
    session.run("python", "-c", f"import transformers; assert transformers.__version__.startswith('{transformers}.')")
    session.run("python", "tests/core.py", *map(str, sorted(Path("tests/erasers/old").glob("*/"))))


@nox.session
def saes(session: nox.Session) -> None:
    """Load exported SAEs in SAELens and sparsify, and import what these write: tests/sae/published.py runs there."""
    session.install("-e", "reference", "-e", ".", "pytest", *pinned(session))
    environment = {"OMP_NUM_THREADS": "1"}
    for name, package in SAE_LIBRARIES.items():
        folder = Path(session.create_tmp()) / name
        session.run("python", "-m", "venv", str(folder))
        python = str(folder / "bin" / "python")
        session.run(python, "-m", "pip", "install", "-q", package, TORCH, external=True)
        environment[f"EXCISE_{name}_PYTHON"] = python
    session.run("python", "-m", "pytest", "-m", "", "-rs", "tests/sae/test_libraries.py", env=environment)


@nox.session
def s3(session: nox.Session) -> None:
    """Run the tests of runs in a bucket on moto's server, in an environment of its own."""
    session.install("-e", "reference", "-e", ".[plot,parquet]", "pytest", *pinned(session))
    folder = Path(session.create_tmp()) / "moto"
    session.run("python", "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    session.run(python, "-m", "pip", "install", "-q", *MOTO, external=True)
    environment = {"OMP_NUM_THREADS": "1", "EXCISE_MOTO_PYTHON": python}
    session.run("python", "-m", "pytest", "tests/remote", env=environment)


@nox.session
def ray(session: nox.Session) -> None:
    """Run the engine `ray` on a cluster of three nodes on this machine."""
    session.install("-e", ".[ray]", "numpy", "psutil", "pytest", *pinned(session))
    session.run("python", "-m", "pytest", "-m", "", "-rs", "tests/engine/test_ray.py", "tests/engine/test_ray_ranks.py")


def pinned(session: nox.Session) -> tuple[str, str]:
    """Return pip's option for the versions in constraints.txt, except of the libraries that sessions vary."""
    pins = Path(session.create_tmp()) / "constraints.txt"
    pins.write_text("\n".join(line for line in PINS if re.split("[= ]", line)[0] not in VARIED) + "\n")
    return "-c", str(pins)


def wish(library: str, version: str) -> str:
    if version != "newest":
        return f"{library}=={version}.*"
    pinned = next(line for line in PINS if line.startswith(f"{library}=="))
    return re.split("[ ;]", pinned)[0].replace("==", ">=")
