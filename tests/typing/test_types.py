"""A user's code passes mypy --strict and pyright, and a user's mistakes do not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOOD, WRONG = HERE / "user_code.py", HERE / "wrong_code.py"
MARKED = {n for n, line in enumerate(WRONG.read_text().splitlines(), 1) if line.endswith("# wrong")}


def test_mypy_accepts_the_good_and_rejects_every_wrong_line(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """As a user's project: --strict, our files found through `py.typed`, none of our own settings.

    What mypy knows of unchanged files is kept in pytest's cache: reading torch takes it eight seconds.
    """
    kept = getattr(pytestconfig, "cache", None)
    cache = kept.mkdir("mypy") if kept else tmp_path / "cache"
    settings = tmp_path / "mypy.ini"
    skipped = "".join(
        f"[mypy-{name}.*]\nfollow_imports = skip\nignore_missing_imports = True\n"
        for name in ("diffusers", "transformers", "huggingface_hub")
    )
    settings.write_text(f"[mypy]\nstrict = True\n{skipped}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(cache)]
    done = subprocess.run([*command, str(GOOD), str(WRONG)], capture_output=True, text=True, cwd=ROOT)
    found = re.findall(r"^(.+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert [error for error in found if not error[0].endswith(WRONG.name)] == [], done.stderr
    assert {int(line) for _, line, _ in found} == MARKED
    assert len(MARKED) == 11


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_pyright_accepts_the_good_and_rejects_every_wrong_line(tmp_path: Path) -> None:
    for file in (GOOD, WRONG):
        shutil.copy(file, tmp_path)
    settings = {"include": ["*.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 2, done.stdout
    errors = [
        (Path(row["file"]).name, row["range"]["start"]["line"] + 1)
        for row in report["generalDiagnostics"]
        if row["severity"] == "error"
    ]
    assert {name for name, _ in errors} <= {WRONG.name}, report["generalDiagnostics"]
    assert {line for _, line in errors} == MARKED
