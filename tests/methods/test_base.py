from __future__ import annotations

from typing import Any

import pytest
import torch

from excise.errors import ExciseError
from excise.methods import METHODS, method
from excise.methods.base import Fitted
from excise.methods.esd import ESDConfig
from excise.methods.uce import UCEConfig


def test_every_method_listed_is_there() -> None:
    for name, about in METHODS.items():
        found = method(name)
        assert found.name == name
        assert callable(found.fit)
        found.Config()
        assert about.does
        assert about.edits
        assert (about.kind == "baseline") is not about.cite.startswith("@")


def test_an_unknown_method_names_near_ones() -> None:
    with pytest.raises(ExciseError, match="no method 'snec'; try snce"):
        method("snec")


def test_too_little_memory_says_what_to_lower(tiny_pipe: Any, gun: Any) -> None:
    """More than the machine has, asked of torch itself."""

    def greedy(pipe: Any, concept: Any, config: Any) -> Any:
        return torch.empty(1 << 60)

    with pytest.raises(ExciseError, match="memory does not suffice for esd-x; lower batch, or"):
        Fitted("esd-x", ESDConfig, greedy).fit(tiny_pipe, gun, ESDConfig(batch=2))
    with pytest.raises(ExciseError, match="memory does not suffice for uce; lower the size of the pictures, or"):
        Fitted("uce", UCEConfig, greedy).fit(tiny_pipe, gun)

    def broken(pipe: Any, concept: Any, config: Any) -> Any:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Fitted("uce", UCEConfig, broken).fit(tiny_pipe, gun)
