"""What the packages that import their names when asked for export."""

from __future__ import annotations

from types import ModuleType

import pytest

from excise import erasers, neurons


@pytest.mark.parametrize("package", [erasers, neurons], ids=lambda package: package.__name__)
def test_every_exported_name_is_what_it_names(package: ModuleType) -> None:
    assert set(package.__all__) == set(package._HOMES)
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), name


def test_identify_and_validate_are_the_functions() -> None:
    assert callable(neurons.identify) and callable(neurons.validate)
