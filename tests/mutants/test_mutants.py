from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.mutants import ROOT, all_mutants
from tests.mutants.__main__ import main

MUTANTS = all_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_every_mutant_is_up_to_date(mutant) -> None:
    """A line that changed takes its mutants along: mend the table in this folder where this fails."""
    changed = mutant.source()
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse((ROOT / mutant.file).read_text()))
    for test in mutant.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).exists()
        assert f"def {name.partition('[')[0]}" in (ROOT / path).read_text()


def test_no_mutant_is_there_twice() -> None:
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS) >= 150


def test_a_name_of_no_file_is_one_clear_line() -> None:
    with pytest.raises(SystemExit, match=r"^no mutated file has 'nosuch' or 'other' in its name; see the tables in"):
        main(["nosuch", "other"])


@pytest.mark.slow
def test_nearly_every_mutant_is_noticed() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.mutants"], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
