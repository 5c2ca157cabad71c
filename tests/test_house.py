"""The package structure: direction of imports, size of folders and files (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from excise.erasers import Eraser

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("excise", "integrations")
    for path in (ROOT / top).rglob("*.py")
}
FULL = {
    "excise": "small modules that every package shares, and the API",
    "excise/concepts": "one file for each way to get pairs, all on one Concept",
    "excise/erasers/edits": "one file for each kind of edit",
    "excise/erasers/hooks": "one file for each thing that a hook knows: its image, its prompt, its step, its observers",
    "excise/methods/trained": "one file a method",
    "excise/sae": "one file for each part of one training: its vectors, their order, losses, checkpoint, ranks",
}
"""Folders with more than twelve files, and why."""
LONG = {
    "excise/erasers/hooks/setting.py": "snapshots, requests and the hooks that keep them",
    "excise/api.py": "the API: docstrings are most of its lines",
    "excise/cli/neurons/neurons.py": "eight commands; their options are most of the lines",
    "excise/erasers/attachment.py": "everything that is undone together is attached together",
    "excise/erasers/guard/denoiser.py": "the guard, what it has accepted, and its hook on a denoiser",
    "excise/files.py": "reading and writing of files, all in one place",
    "excise/methods/catalogue.py": "BibTeX",
    "excise/sae/trainer.py": "one training loop with its checkpoints",
}
"""Files with more than 300 lines, and why."""


def imports(module: str) -> Iterator[str]:
    """Yield our modules that a module imports anywhere in its text, also under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            # A node pack has no fixed name, so its imports are relative.
            package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
            source = ".".join(filter(None, [package if node.level else "", node.module]))
            for alias in node.names:
                name = f"{source}.{alias.name}"
                if name in MODULES:
                    yield name
                elif source in MODULES:
                    yield source


def cycles(graph: dict[str, set[str]]) -> set[str]:
    """Return the modules left after repeatedly removing those without imports or without importers."""
    left = dict(graph)
    while True:
        imported = {name for targets in left.values() for name in targets if name in left}
        ends = {name for name, targets in left.items() if name not in imported or not targets & set(left)}
        if not ends:
            return set(left)
        left = {name: targets for name, targets in left.items() if name not in ends}


def test_there_is_no_import_cycle() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == {"b", "c"}
    assert cycles({module: set(imports(module)) for module in MODULES}) == set()


def test_folders_and_files_stay_small() -> None:
    folders = {path.parent for path in MODULES.values()}
    full = {f.relative_to(ROOT).as_posix() for f in folders if len([*f.glob("*.py")]) > 13}  # __init__.py among them
    assert full == set(FULL)
    long = {p.relative_to(ROOT).as_posix() for p in MODULES.values() if len(p.read_text().splitlines()) > 300}
    assert long == set(LONG)


def test_the_architecture_page_names_every_package_and_no_missing_file() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:excise|integrations)/[\w/.]+)`", page))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    rooms = {path.parent.relative_to(ROOT) for path in MODULES.values()}
    first = {"/".join(room.parts[: 3 if room.parts[:2] == ("excise", "erasers") else 2]) for room in rooms}
    assert first - {"excise"} - named == set()


LIGHT = """
import runpy
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"diffusers", "transformers", "peft", "PIL", "huggingface_hub", "accelerate"}:
            raise ImportError(f"{name} is not there")


sys.meta_path.insert(0, Blocker())
runpy.run_path("tests/core.py", run_name="__main__")
"""


def test_an_eraser_is_read_and_its_edit_computed_with_torch_and_safetensors_alone(
    gun_eraser: Eraser, tmp_path: Path
) -> None:
    gun_eraser.save(tmp_path / "gun")
    old = [path.parent for path in (ROOT / "tests/erasers/old").glob("*/eraser.json")]  # not __pycache__
    assert old
    folders = [tmp_path / "gun", *sorted(old)]
    command = [sys.executable, "-c", LIGHT, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"gun {gun_eraser.digest[:12]}" in done.stdout.splitlines()
