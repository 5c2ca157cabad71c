"""Every exit code that the commands end with is in the docs and in `excise --help`."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import excise.cli as cli
from excise.cli.root import app

FOLDER = Path(cli.__file__).parent


def used() -> set[int]:
    """Codes in `Exit(...)` and `sys.exit(...)`, names of constants looked up in their modules."""
    found: set[int] = {0}
    for file in FOLDER.rglob("*.py"):
        name = ".".join(file.relative_to(FOLDER.parents[1]).with_suffix("").parts).removesuffix(".__init__")
        module: Any = importlib.import_module(name)
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "").lower() == "exit" and call.args:
                code = call.args[0]
                found.add(code.value if isinstance(code, ast.Constant) else getattr(module, ast.unparse(code)))
    return found


def test_exit_codes_are_documented() -> None:
    docs = (FOLDER.parents[1] / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", docs, re.MULTILINE)} == used()
    epilog = str(app.info.epilog).split("Exit codes: ")[1]
    assert {int(code) for code in re.findall(r"(?:^|; )(\d+) ", epilog)} == used()
    (three,) = re.findall(r"^\| 3 \| (.*) \|$", docs, re.MULTILINE)
    assert all(word in three for word in ("weak", "gate", "red flag")) and "weak" in epilog
