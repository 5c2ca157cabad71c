"""Training of the reference model, part by part, and measurement of its pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.reference import data
from excise.statistics import share

PARTS = ("text", "vae", "classifier", "second_classifier", "unet", "assemble")
"""The parts in the order of training: each needs earlier ones."""


def train_part(name: str, work: Path, out: Path) -> None:
    """Train one part below `work` (`text/`, `vae/`, ...), or assemble them all into `out`.

    Raises:
        ExciseError: The part is unknown, a part that it needs is missing, or the artwork is not installed.
    """
    steps: dict[str, Callable[[], Any]] = {
        "text": lambda: _text(work / "text"),
        "vae": lambda: _vae(work / "vae"),
        **{name: partial(_judge, name, work) for name in ("classifier", "second_classifier")},
        "unet": lambda: _unet(work),
        "assemble": lambda: _assemble(work, out),
    }
    if name not in steps:
        raise ExciseError(f"unknown part {name!r}; choose from {', '.join(PARTS)}")
    data.folder()
    steps[name]()


def drawing_figures(
    pipe: Pipeline, n: int, steps: int, progress: Callable[[float], Any] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what the bundled judge recognises in `n` pictures of each family: shares with Wilson's intervals."""
    from excise.reference.evaluate import evaluate

    outcomes = evaluate(pipe, n, steps, progress)
    return {
        family: {asked: share(right).to_json() for asked, right in found.items()} for family, found in outcomes.items()
    }


def _text(folder: Path) -> Any:
    from excise.reference.training import text_encoder

    return text_encoder.train(folder)


def _vae(folder: Path) -> Any:
    from excise.reference.training import vae

    return vae.train(folder)


def _judge(name: str, work: Path) -> Any:
    from excise.reference import classifier

    return classifier.train(work / name, _trained(work / "vae" / "vae", "vae"), name)


def _unet(work: Path) -> Any:
    from excise.reference.training import unet

    return unet.train(work / "unet", _parts(work))


def _assemble(work: Path, out: Path) -> None:
    from excise.reference import bundle
    from excise.reference.training import unet

    _trained(work / "unet", "unet")
    bundle.assemble(_parts(work), unet.snapshot(work / "unet"), out)


def _parts(work: Path) -> Path:
    """Link the trained parts into one folder, as the U-Net's training and the bundle expect them."""
    parts = work / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    wanted = {
        "vae": _trained(work / "vae" / "vae", "vae"),
        "text_encoder": _trained(work / "text" / "text_encoder", "text"),
        "tokenizer": work / "text" / "tokenizer",
        "text_head.safetensors": work / "text" / "text_head.safetensors",
        "classifier.safetensors": work / "classifier" / "classifier.safetensors",
        "classifier.json": work / "classifier" / "classifier.json",
        "second_classifier.safetensors": work / "second_classifier" / "second_classifier.safetensors",
        "second_classifier.json": work / "second_classifier" / "second_classifier.json",
        "text_encoder.json": work / "text" / "text_encoder.json",
        "training.txt": work / "training.txt",
    }
    for name, source in wanted.items():
        link = parts / name
        link.unlink(missing_ok=True)
        if source.exists():
            link.symlink_to(source.resolve())
    return parts


def _trained(path: Path, part: str) -> Path:
    if not path.exists():
        raise ExciseError(f"{path} does not exist yet; run `excise reference train --part {part}` first")
    return path
