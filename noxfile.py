"""Test the bundled model's commands, loading and attaching with several versions of transformers and diffusers.

Run `make matrix`, or `nox -s "attach(...)"` for one combination. Some combinations cannot be installed, because the
libraries need different versions of huggingface_hub: transformers 4.57 needs one below 1.0, diffusers from 0.40 one
from 1.23. "newest" is at least the version in constraints.txt, so that pip cannot silently choose an older one for the
other library.
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


@nox.session
@nox.parametrize("transformers, diffusers", COMBINATIONS, ids=[f"{t}-{d}" for t, d in COMBINATIONS])
def attach(session: nox.Session, transformers: str, diffusers: str) -> None:
    pins = Path(session.create_tmp()) / "constraints.txt"
    pins.write_text("\n".join(line for line in PINS if re.split("[= ]", line)[0] not in VARIED) + "\n")
    wanted = [wish("transformers", transformers), wish("diffusers", diffusers)]
    tools = ["accelerate", "compel>=2.1", "hypothesis", "opentelemetry-sdk", "peft", "pytest"]
    session.install("-e", "reference", "-e", ".[otel,sign]", *tools, *wanted, "-c", str(pins))
    session.run("python", "-m", "pip", "freeze", "--exclude-editable")
    suite = session.posargs or SUITE
    session.run("python", "-m", "pytest", "-rs", *suite, env={"OMP_NUM_THREADS": "1"})


def wish(library: str, version: str) -> str:
    if version != "newest":
        return f"{library}=={version}.*"
    pinned = next(line for line in PINS if line.startswith(f"{library}=="))
    return re.split("[ ;]", pinned)[0].replace("==", ">=")
