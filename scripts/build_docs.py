"""Build the documentation site into build/site: pages of docs/, and a reference generated from docstrings and typer.

    python scripts/build_docs.py

Fails on a broken link and on a public name without a docstring. Works offline. Needs `pip install 'excise[docs]'`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
PAGES = BUILD / "docs"


def public_names() -> list[str]:
    """Every name that `excise/__init__.pyi` exports, in its order."""
    stub = (ROOT / "excise" / "__init__.pyi").read_text(encoding="utf-8")
    return re.findall(r"^from .* import \w+ as (\w+)$", stub, re.MULTILINE)


def undocumented(names: list[str]) -> list[str]:
    """Those of the names that have no docstring of their own."""
    import excise

    missing = []
    for name in names:
        doc = getattr(excise, name).__doc__ or ""
        if not doc.strip() or doc.startswith(f"{name}("):  # a dataclass without one gets its signature
            missing.append(name)
    return missing


def api_page(names: list[str]) -> str:
    """The Python reference: functions first, then classes, then errors."""
    import excise

    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Modules": [], "Errors": []}
    for name in names:
        value = getattr(excise, name)
        if isinstance(value, type):
            groups["Errors" if issubclass(value, BaseException) else "Classes"].append(name)
        else:
            groups["Functions" if callable(value) else "Modules"].append(name)
    lines = ["# Python", "", "Every name of `import excise`. They are imported when first used.", ""]
    for title, some in groups.items():
        lines += [f"## {title}", ""] if some else []
        for name in some:
            home = getattr(excise, name)
            where = f"{home.__module__}.{home.__qualname__}" if hasattr(home, "__qualname__") else f"excise.{name}"
            lines += [f"::: {where}", "    options:", f"      heading: excise.{name}", ""]
    return "\n".join(lines)


def command_line_page() -> str:
    """The command line reference, as typer writes it."""
    command = [sys.executable, "-m", "typer", "excise.cli", "utils", "docs", "--name", "excise", "--title", "Commands"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # Placeholders such as <bool> are no tags.
    return re.sub(r"<(\w+)>(?!`)", r"&lt;\1&gt;", text)


def main() -> None:
    names = public_names()
    if missing := undocumented(names):
        raise SystemExit(f"without a docstring: {', '.join(missing)}")
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    for page in PAGES.rglob("*.md"):  # what follows the language in a fence is for our tests
        text = page.read_text(encoding="utf-8")
        page.write_text(re.sub(r"^```python \w+$", "```python", text, flags=re.MULTILINE), encoding="utf-8")
    (PAGES / "reference" / "api.md").write_text(api_page(names), encoding="utf-8")
    (PAGES / "reference" / "cli.md").write_text(command_line_page(), encoding="utf-8")
    config = ["--config-file", str(ROOT / "zensical.toml")]
    raise SystemExit(subprocess.run(["zensical", "build", "--clean", "--strict", *config], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
