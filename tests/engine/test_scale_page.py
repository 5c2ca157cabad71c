"""The command in the Kubernetes job of docs/how-to/scale.md; tests/test_docs.py checks the page's other commands."""

from __future__ import annotations

import yaml

from excise.cli.command import BAD_INPUT, FAILED, NOT_PASSED
from tests.documented import Command, blocks, parses


def test_the_job_runs_a_command_that_exists_with_as_many_slices_as_completions() -> None:
    ((_, text),) = [block for block in blocks("yaml") if block[0].startswith("scale.md")]
    job = yaml.safe_load(text)["spec"]
    assert job["template"]["spec"]["restartPolicy"] == "Never", "the others go with neither of these"
    assert job["backoffLimitPerIndex"] > 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailIndex", [BAD_INPUT, NOT_PASSED, FAILED])
    (container,) = job["template"]["spec"]["containers"]
    excise, *words = map(str, container["command"])
    assert excise == "excise"
    assert parses(Command("docs/how-to/scale.md", 1, tuple(words), True))
    assert words[words.index("--engine") + 1] == f"slice:{job['completions']}"
