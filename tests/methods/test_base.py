from __future__ import annotations

import pytest

from excise.errors import ExciseError
from excise.methods import METHODS, method


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
