"""The container's files, as far as they can be checked without Docker."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import typer.main
import yaml

from excise.app.serve import policy
from excise.cli import app

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "integrations" / "docker"
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def test_the_image_is_offline_without_root_and_requires_signatures() -> None:
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.index("\nUSER ") > DOCKERFILE.rindex("\nRUN ")
    assert "HF_HUB_OFFLINE=1" in DOCKERFILE
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    program, command, *words = yaml.safe_load(entry)
    assert (program, command) == ("excise", "serve")
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = serve.make_context("serve", words).params
    assert options["require_signature"] and str(options["policy"]) == "/etc/excise/policy.yaml"


def test_what_is_copied_is_there_and_every_extra_exists() -> None:
    copied = [shlex.split(line)[1:-1] for line in re.findall(r"^COPY (?!--from).*$", DOCKERFILE, re.MULTILINE)]
    assert copied and all((ROOT / name).exists() for names in copied for name in names)
    kept = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for names in copied for name in names} == {line for line in kept if line.startswith("!")}
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    (wanted,) = re.findall(r"'\.\[(.*?)\]'", DOCKERFILE)
    assert set(wanted.split(",")) <= set(extras)


def test_compose_mounts_what_the_policy_names_and_nothing_can_be_written() -> None:
    service: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"][
        "excise"
    ]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert (FOLDER / service["build"]["context"]).resolve() == ROOT
    mounted = [volume.split(":")[1] for volume in service["volumes"]]
    served = policy.read(FOLDER / "policy.yaml", require_signature=True)
    assert served.signed_by is not None and served.signed_by.public_key is not None
    for path in (served.signed_by.public_key, *(rule.folder for rule in served.erasers.values())):
        inside = "/etc/excise/" + Path(path).relative_to(FOLDER).as_posix()
        assert any(inside == place or inside.startswith(f"{place}/") for place in mounted)
    assert (FOLDER / "policy.yaml").exists() and "/etc/excise/policy.yaml" in mounted
