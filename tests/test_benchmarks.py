"""The scripts of benchmarks/ import names that exist: no other test runs them."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec

import pytest

from tests.test_house import ROOT

SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_name_that_a_script_imports_from_excise_exists(script: str) -> None:
    for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "excise":
            module = import_module(str(node.module))
            for alias in node.names:
                is_there = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}") is not None
                assert is_there, f"{node.module}.{alias.name}"
