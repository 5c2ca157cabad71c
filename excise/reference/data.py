"""Where the bundled model's files are: in the source tree, or in the distribution `excise-reference`.

They are nearly 100 MB, so they are installed apart from the code: `pip install "excise[reference]"`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from excise.errors import ExciseError, MissingExtra

DISTRIBUTION, PACKAGE = "excise-reference", "excise_reference"
INSTALL = "pip install 'excise[reference]'"

MODEL: Path
"""Folder of the bundled pipeline. Reading it raises ExciseError where the files are not installed."""


def __getattr__(name: str) -> Any:
    if name == "MODEL":
        return folder() / "model"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def folder() -> Path:
    """Return the folder with the bundled `model/`, `saes/`, `artwork/` and word lists.

    A source tree uses its own, whatever is installed.

    Raises ExciseError where the files are not installed, or in a version that this version of Excise does not take.
    """
    own = Path(__file__).parents[2] / "reference" / "src" / PACKAGE
    if (own / "__init__.py").is_file():
        return own
    try:
        found = files(PACKAGE)
    except ModuleNotFoundError:
        raise MissingExtra(f"this needs the bundled model, which is not installed; {INSTALL}") from None
    check_version()
    return Path(str(found))


def is_model(path: Path) -> bool:
    """Whether that is the folder of the bundled pipeline."""
    try:
        return path == folder() / "model"
    except ExciseError:
        return False


def check_version() -> None:
    """Raise ExciseError where the installed `excise-reference` is outside the bounds that Excise declares."""
    from packaging.requirements import Requirement

    try:
        installed, own = version(DISTRIBUTION), version("excise")
    except PackageNotFoundError:  # copied into place rather than installed: there are no versions to compare
        return
    for bound in map(Requirement, requires("excise") or ()):
        if bound.name == DISTRIBUTION and not bound.specifier.contains(installed, prereleases=True):
            needed = f"{bound.name}{bound.specifier}"
            raise MissingExtra(f"excise {own} needs {needed}, and {installed} is installed; {INSTALL}")
