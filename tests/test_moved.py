"""Old import paths work for one release: each warns once and gives the same object."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from excise import moved

PAGE = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")

WARNING_ONCE = """
import sys
import warnings
from importlib import import_module

from excise.moved import MODULES, NAMES

for old in MODULES:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            exec(f"import {old}", {})
    messages = [str(w.message) for w in caught if w.category is DeprecationWarning and "has moved to" in str(w.message)]
    if len(messages) != 1 or not messages[0].startswith(f"{old} has moved to {MODULES[old][0]} and"):
        print(old, messages)
    if caught[0].filename != "<string>":
        print(old, "the warning points at", caught[0].filename)
for module, names in NAMES.items():
    for name, new in names.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                space = {}
                exec(f"from {module} import {name}", space)
        messages = [str(w.message) for w in caught if "has moved to" in str(w.message)]
        if len(messages) != 1 or caught[-1].filename != "<string>" or f"{new}.{name} and" not in messages[0]:
            print(module, name, messages)
        if space[name] is not getattr(import_module(new), name):
            print(module, name, "is another object")
"""


def test_each_old_path_warns_once_and_gives_the_same_objects() -> None:
    """Run in a separate process, since a module is imported once."""
    done = subprocess.run([sys.executable, "-c", WARNING_ONCE], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("old", moved.MODULES)
def test_an_old_module_has_every_name_of_the_new_one(old: str) -> None:
    module, expected = import_module(old), {}
    for new in reversed(moved.MODULES[old]):  # the first one is the main place, and wins
        home = vars(import_module(new))
        own = {k for k, v in home.items() if k[0] != "_" and getattr(v, "__module__", None) == new}
        expected |= {k: home[k] for k in own | ({"METHOD"} & set(home))}
    assert expected
    assert {name: getattr(module, name) for name in expected} == expected
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_function_stays_what_it_is_when_the_old_module_of_its_name_is_imported() -> None:
    import excise.sites

    from_module = import_module("excise.sites.capture").capture
    assert excise.sites.capture is from_module
    assert callable(excise.sites.capture)


def test_what_was_never_there_is_not_found() -> None:
    for name in ("excise.methods.nce", "excise.erasers.verb", "excise.app.benchmarks"):
        with pytest.raises(ModuleNotFoundError):
            import_module(name)
    with pytest.raises(ImportError):
        exec("from excise.methods.base import nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec("from excise.app.training import text, corpora")


def test_the_table_for_people_has_every_path() -> None:
    for old, homes in moved.MODULES.items():
        assert f"| `{old}` | {', '.join(f'`{home}`' for home in homes)} |" in PAGE
    for module, names in moved.NAMES.items():
        for name, new in names.items():
            assert f"| `{module}.{name}` | `{new}.{name}` |" in PAGE
    assert PAGE.count("\n| `excise.") == len(moved.MODULES) + sum(map(len, moved.NAMES.values()))
