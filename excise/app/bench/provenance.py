"""Where measured figures come from: command, commit, machine, date, digests of model and SAEs, and settings."""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from excise.app.models.resolve import bundled_settings
from excise.bench.machine import machine
from excise.files import read_json, sha256, write_atomic
from excise.methods.lookup import configured
from excise.reference import data


def provenance(
    command: str, methods: Collection[str] = (), *, bundled: bool = True, device: str = "cpu", **saes: Path
) -> dict[str, Any]:
    """Return, as JSON, what a file of results says of its origin.

    Args:
        command: Command that measures it.
        methods: Methods it fits, with the bundled model's settings; the script's own are in its command or results.
        bundled: Whether it measures the bundled model.
        device: Device it runs on.
        saes: Folders of other SAEs than the methods' bundled ones, by name.
    """
    chosen = bundled_settings() if bundled else {}
    settings = {name: vars(configured(name, chosen.get(name, {}))) for name in methods}
    folders = {name: Path(own["sae"]) for name, own in settings.items() if own.get("sae")} | saes
    return {
        "command": command,
        "commit": commit(),
        "machine": machine(device),
        "date": datetime.date.today().isoformat(),
        "model": {"bundled": folder_digest(data.folder() / "model")} if bundled else {},
        "saes": {name: sha256(folder / "sae.safetensors") for name, folder in folders.items()},
        "settings": json.loads(
            json.dumps(
                {
                    name: {**own, **({"sae": folders[name].name} if name in folders else {})}
                    for name, own in settings.items()
                }
            )
        ),
    }


def by_concept(
    out: Path,
    concepts: Iterable[str],
    measure: Callable[[str], Any],
    page: Callable[[Mapping[str, Any]], str],
    origin: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Measure the concepts that a file of results lacks, and return the results.

    The file and its page are written after each concept, so that an interrupted call can go on.

    Args:
        out: File of results, JSON. Its page has the same name, with the suffix .md.
        concepts: Concepts to have, by name.
        measure: Returns what is saved of one, as JSON.
        page: Renders the page.
        origin: Returns what the file says of its origin and settings, such as `provenance`.
    """
    results: dict[str, Any] = read_json(out) if out.exists() else {"concepts": {}}
    for name in concepts:
        if name not in results["concepts"]:
            results["concepts"][name] = measure(name)
            results |= origin()
            results.setdefault("commits", {})[name] = results.get("commit", "")
            write_atomic(out, json.dumps(results, indent=1) + "\n")
            write_atomic(out.with_suffix(".md"), page(results))
    return results


def folder_digest(folder: Path) -> str:
    """Return the sha256 of the names and sha256 of a folder's safetensors and configurations, SAEs left out."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".safetensors", ".json")]
    names = [path.relative_to(folder).as_posix() for path in files]
    kept = [(name, path) for name, path in zip(names, files, strict=True) if not name.startswith("sae/")]
    return hashlib.sha256("".join(f"{name} {sha256(path)}\n" for name, path in kept).encode()).hexdigest()


def commit() -> str:
    """Return the commit of the code, followed by `, changed` if a tracked file differs from it; "" outside of git."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "HEAD") + (", changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*words: str) -> str:
    here = str(Path(__file__).parent)
    return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()


NOT_RECORDED = "commit and digests were not recorded then"
"""Note on files that were drawn before this module."""


def in_words(results: Mapping[str, Any], command: str = "") -> str:
    """Describe the origin: `` `command`, date, machine, commit 0123456789ab, bundled 0123..., snce 0123... ``.

    Commits of concepts that were measured before (`by_concept`) are added.
    `command` is for files that have none.
    """
    line = ", ".join(filter(None, (f"`{results.get('command') or command}`", results.get("date"), results["machine"])))
    if not results.get("commit"):
        return f"{line} ({NOT_RECORDED})"
    commits = sorted({results["commit"], *filter(None, results.get("commits", {}).values())})
    digests = {**results["model"], **{f"SAE of {name}": digest for name, digest in results["saes"].items()}}
    parts = [f"commit {one[:12]}{' (changed)' if ', ' in one else ''}" for one in commits]
    parts += [f"{name} {digest[:12]}" for name, digest in digests.items()]
    return f"{line}, {', '.join(parts)}"
