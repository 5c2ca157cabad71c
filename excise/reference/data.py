"""Location of the bundled model's files: in the source tree, or in the distribution `excise-reference`.

They take nearly 100 MB, so they are installed separately: `pip install "excise[reference]"`.
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
"""Folder of the bundled pipeline. Accessing it raises ExciseError if the files are not installed."""


def __getattr__(name: str) -> Any:
    if name == "MODEL":
        return folder() / "model"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def folder() -> Path:
    """Return the folder with the bundled `model/`, `saes/`, `artwork/` and word lists.

    A source tree uses its own files even if the distribution is installed.

    Raises:
        ExciseError: The files are not installed, or in a version that this version of Excise does not support.
    """
    in_tree = Path(__file__).parents[2] / "reference" / "src" / PACKAGE
    if (in_tree / "__init__.py").is_file():
        return in_tree
    try:
        found = files(PACKAGE)
    except ModuleNotFoundError:
        raise MissingExtra(f"this needs the bundled model, which is not installed; {INSTALL}") from None
    check_version()
    return Path(str(found))


def is_model(path: Path) -> bool:
    """Return whether a path is the folder of the bundled pipeline."""
    try:
        return path == folder() / "model"
    except ExciseError:
        return False


def check_version() -> None:
    """Raise ExciseError if the installed `excise-reference` is outside the bounds that Excise declares."""
    from packaging.requirements import Requirement

    try:
        installed, ours = version(DISTRIBUTION), version("excise")
    except PackageNotFoundError:  # copied instead of installed: there are no versions to compare
        return
    for bound in map(Requirement, requires("excise") or ()):
        if bound.name == DISTRIBUTION and not bound.specifier.contains(installed, prereleases=True):
            needed = f"{bound.name}{bound.specifier}"
            raise MissingExtra(f"excise {ours} needs {needed}, but {installed} is installed; {INSTALL}")
