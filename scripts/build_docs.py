"""Build the documentation site in build/site: the pages of docs/, and a reference from docstrings and typer.

    python scripts/build_docs.py

Fails on a broken link and on a public name without a docstring. Works offline. Needs `pip install 'excise[docs]'`.
"""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from diagram import svg  # noqa: E402

BUILD = ROOT / "build"
PAGES = BUILD / "docs"
MEMBERS = {
    "Attachment": "commit strength enabled on_bypass active status detach",
    "Attachments": "strength enabled status detach",
    "LanguageModel": "device tokenise encode_prompt generate",
    "TopKSAE": "from_pretrained save_pretrained push_to_hub card preactivations encode encode_batch decode forward",
}
"""Members to show of classes whose other public members are for Excise itself."""
GENERATED = "[Python](reference/api.md), [commands](reference/cli.md), "
"""Links to the generated pages, which docs/index.md cannot have: they exist on the site only."""


def public_names() -> list[str]:
    """Return the names that `excise/__init__.pyi` exports, in its order."""
    stub = (ROOT / "excise" / "__init__.pyi").read_text(encoding="utf-8")
    return re.findall(r"^from .* import \w+ as (\w+)$", stub, re.MULTILINE)


def undocumented(names: list[str]) -> list[str]:
    """Return the names that lack a docstring."""
    import excise

    missing = []
    for name in names:
        doc = getattr(excise, name).__doc__ or ""
        if not doc.strip() or doc.startswith(f"{name}("):  # a dataclass without one gets its signature
            missing.append(name)
    return missing


def api_page(names: list[str]) -> str:
    """Return the Python reference: functions first, then classes, then errors."""
    import excise

    groups: dict[str, list[str]] = {"Functions": [], "Classes": [], "Modules": [], "Errors": []}
    for name in names:
        value = getattr(excise, name)
        if isinstance(value, type):
            groups["Errors" if issubclass(value, BaseException) else "Classes"].append(name)
        else:
            groups["Functions" if callable(value) else "Modules"].append(name)
    lines = ["# Python", "", "These are the names of `import excise`. Each is imported when it is first used.", ""]
    for title, some in groups.items():
        lines += [f"## {title}", ""] if some else []
        for name in some:
            home = getattr(excise, name)
            where = f"{home.__module__}.{home.__qualname__}" if hasattr(home, "__qualname__") else f"excise.{name}"
            shown = [f"      members: [{', '.join(MEMBERS[name].split())}]"] if name in MEMBERS else []
            lines += [f"::: {where}", "    options:", f"      heading: excise.{name}", *shown, ""]
    return "\n".join(lines)


def names_table(names: list[str]) -> str:
    """Return the table of docs/reference/python.md: every public name, and the first sentence of its docstring."""
    import excise

    rows = []
    for name in sorted(names, key=lambda name: (isinstance(getattr(excise, name), type), name.lower())):
        text = " ".join(inspect.cleandoc(getattr(excise, name).__doc__).split("\n\n")[0].split())
        sentence = re.match(r"(.+?[.!?])(?: [A-Z]|$)", text)
        rows.append(f"| `excise.{name}` | {sentence[1] if sentence else text} |")
    return "\n".join(["| name | what it is or does |", "|---|---|", *rows])


def command_line_page() -> str:
    """Return the command line reference, as typer writes it."""
    command = [sys.executable, "-m", "typer", "excise.cli", "utils", "docs", "--name", "excise", "--title", "Commands"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # Otherwise placeholders such as <bool> are read as tags.
    text = re.sub(r"<(\w+)>(?!`)", r"&lt;\1&gt;", text)
    text = re.sub(r"^Example: (excise .*)$", lambda match: f"Example: `{unescape(match[1])}`", text, flags=re.MULTILINE)
    return in_full(text)


def in_full(text: str) -> str:
    """Replace the summaries of commands that typer cut short with the whole sentence from the command's own section."""
    summaries = dict(re.findall(r"^##+ `excise ([^`]+)`\n\n(.+)$", text, re.MULTILINE))
    lines, group = [], ""
    for line in text.splitlines():
        if heading := re.match(r"##+ `excise ([^`]+)`", line):
            group = f"{heading[1]} "
        if (item := re.match(r"\* `([\w-]+)`: .*\.\.\.$", line)) and f"{group}{item[1]}" in summaries:
            line = f"* `{item[1]}`: {summaries[group + item[1]]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    names = public_names()
    if missing := undocumented(names):
        raise SystemExit(f"without a docstring: {', '.join(missing)}")
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    for page in PAGES.rglob("*.md"):  # the word after the language of a fence is for our tests
        text = page.read_text(encoding="utf-8").replace("<!-- generated -->", GENERATED)
        text = re.sub(r"^```mermaid\n(.*?)^```$", lambda match: svg(match[1]), text, flags=re.DOTALL | re.MULTILINE)
        page.write_text(re.sub(r"^```python \w+$", "```python", text, flags=re.MULTILINE), encoding="utf-8")
    (PAGES / "reference" / "api.md").write_text(api_page(names), encoding="utf-8")
    (PAGES / "reference" / "cli.md").write_text(command_line_page(), encoding="utf-8")
    config = ["--config-file", str(ROOT / "zensical.toml")]
    raise SystemExit(subprocess.run(["zensical", "build", "--clean", "--strict", *config], cwd=ROOT).returncode)


if __name__ == "__main__":
    main()
