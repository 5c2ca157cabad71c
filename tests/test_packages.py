"""Exports of the packages that import their names lazily."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

import excise
from excise import erasers, methods, neurons, reference, sae, sites

LAZY = [p for p in (excise, erasers, methods, neurons, reference, sae, sites) if Path(p.__file__ + "i").exists()]


@pytest.mark.parametrize("package", LAZY, ids=lambda package: package.__name__)
def test_every_exported_name_is_what_it_names(package: ModuleType) -> None:
    stub = ast.parse(Path(f"{package.__file__}i").read_text(encoding="utf-8"))
    named = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(package.__all__) == named and None not in named
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), name


def test_identify_and_validate_are_the_functions() -> None:
    assert callable(neurons.identify) and callable(neurons.validate)
