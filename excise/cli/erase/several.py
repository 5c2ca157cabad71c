"""Several erasers: `excise erase` with several concepts or methods, and `excise merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import Weights
from excise.cli.command import NOT_PASSED
from excise.cli.options import Force, Json, listed
from excise.cli.sources import EraserSourceArguments, at_hand
from excise.cli.terminal import complain, echo, emit, note, table
from excise.outputs import check_folder


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise merge gun-eraser cat-eraser --out policy")(merge)


def erase_several(
    names: list[str],
    by: str,
    out: Path,
    given: list[str],
    kind: str,
    n: int,
    accept_weak: bool,
    preset: str | None,
    controls: Path | None,
    model: str | None,
    device: str,
    weights: Weights,
    workers: int,
    engine: str | None,
    retry_failed: bool,
    force: bool,
    json: bool,
) -> None:
    """Make erasers of several concepts or by several methods.

    Exits with code 4 if one failed, else with code 2 if one is refused, else with code 3 if one is too weak. A slice
    counts its own erasers and those that it took over.
    """
    from excise.app.erase.many import Done, erase_all, plan
    from excise.engine import check_engine, failed_in_words
    from excise.errors import ExciseError, ItemsFailed

    check_engine(engine, workers)

    tasks = plan(names, listed(by), out, given, kind, n, accept_weak, preset, controls)

    def report(done: Done) -> None:
        how = {
            "made": f"{done.seconds:.0f} s, {done.bytes / 1000:.1f} kB",
            "kept": "there already and kept; --force makes it again",
        }
        by = " in another slice" if done.elsewhere else ""
        weak = f"; WEAK: {done.why}" if done.why and done.state in how else ""
        note(f"{done.out}: {how.get(done.state, f'{done.state}{by}: {done.why}')}{weak}")

    failures = out / "failures"
    options: dict[str, Any] = {"engine": engine, "failures": failures, "retry": retry_failed, "again": force}
    found = erase_all(tasks, model, device, workers, report, weights, **options)
    mine = [d for d in found if not d.elsewhere]
    failed, refused, weak = ([d for d in mine if d.state == state] for state in ("failed", "refused", "weak"))

    def show() -> None:
        rows = [(d.concept, d.method, d.state, f"{d.seconds:.0f}", f"{d.bytes / 1000:.1f}") for d in found]
        table(f"Erasers in {out}", ("concept", "method", "", "s", "kB"), rows)

    emit(json, [done.to_json() for done in found], show)
    if failed:
        raise ItemsFailed(failed_in_words(len(failed), len(mine), failed[0].out, failed[0].why, failures))
    if refused:
        raise ExciseError(f"{len(refused)} of {len(mine)} were refused, the first {refused[0].out}: {refused[0].why}")
    if weak:
        complain(f"{len(weak)} of {len(mine)} are too weak, the first {weak[0].out}: {weak[0].why}")
        raise typer.Exit(NOT_PASSED)


def merge(
    erasers: EraserSourceArguments,
    out: Annotated[Path, typer.Option("--out", help="Folder of the merged eraser.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key (PEM) of the signer that every eraser must have.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Merge SNCE erasers of one model into one, which erases many concepts at the price of one.

    When it is attached, a prompt of every concept must change. To change the concepts, merge again. Signatures are not
    taken over: sign the result.
    """
    from excise.erasers import Eraser, Signer, load_erasers
    from excise.erasers import merge as merged
    from excise.erasers.artefact.files import FILES

    check_folder(out, own=FILES, force=force)
    signer = None if key is None else Signer(key)
    loaded = load_erasers([at_hand(one) for one in erasers], signed_by=signer)
    eraser: Eraser = merged(list(loaded.values()), out.resolve().name)
    eraser.save(out)
    size = sum((out / name).stat().st_size for name in FILES)
    row = {"out": str(out), "digest": eraser.digest, "concepts": len(loaded), "bytes": size, "weak": list(eraser.weak)}

    def show() -> None:
        echo(f"{out}: {len(loaded)} erasers, {size / 1000:.1f} kB ({size / 1000 / len(loaded):.1f} kB each)")

    emit(json, row, show)
    if eraser.weak:
        note(f"{len(eraser.weak)} of their reasons to be weak are kept, the first {eraser.weak[0]}")
