"""`excise sign` and `excise verify`: who made an eraser, and whether it is intact and works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli.cutting import note_cuts
from excise.cli.options import Device, Digests, EraserFolder, Force, Json, Model
from excise.cli.sources import EraserSource, at_hand
from excise.cli.terminal import echo, emit, table
from excise.cli.weights import choosing_weights
from excise.outputs import check_absent

if TYPE_CHECKING:
    from excise.erasers import Eraser, Signer
    from excise.sae import TopKSAE


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise sign gun-eraser --key private.pem")(sign)
    app.command(epilog="Example: excise verify gun-eraser")(verify)


def sign(
    folder: EraserFolder,
    key: Annotated[Path, typer.Option("--key", help="Your elliptic-curve private key, a PEM file.")],
    password_env: Annotated[
        str | None, typer.Option("--password-env", help="Environment variable that holds the key's password.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Sign an eraser. With your public key, its model.sig proves that it is yours and unaltered."""
    import os

    from excise.erasers import eraser_folders
    from excise.erasers import sign as signed
    from excise.erasers.artefact.files import SIGNATURE
    from excise.errors import ExciseError

    if password_env is not None and password_env not in os.environ:
        raise ExciseError(f"the environment variable {password_env} is not set; set it to the key's password")
    password = os.environ[password_env] if password_env is not None else None
    folders = eraser_folders(folder)
    check_absent(*(one / SIGNATURE for one in folders), force=force)
    rows = [{"folder": str(one), "signature": str(signed(one, key, password))} for one in folders]

    def show() -> None:
        for row in rows:
            echo(f"wrote {row['signature']}; give your public key to those who will check it")

    emit(json, rows[0] if len(rows) == 1 else rows, show)


@choosing_weights
def verify(
    folder: EraserSource,
    model: Model = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Check the files only; load no model and test no canary prompts.")
    ] = False,
    key: Annotated[Path | None, typer.Option("--key", help="Public key (PEM) of the required signer.")] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", help="Keyless: identity of the required signer, me@example.com. Queries sigstore."),
    ] = None,
    identity_provider: Annotated[
        str | None,
        typer.Option("--identity-provider", help="Keyless: URL of the provider that vouches for --identity."),
    ] = None,
    digest: Digests = None,
    concept: Annotated[str | None, typer.Option("--concept", help="The concept it must be an eraser of.")] = None,
    sae: Annotated[
        Path | None,
        typer.Option(
            "--sae",
            help="Folder of the SAE it was made from. Default: the bundled model's, or one trained for the model.",
        ),
    ] = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Check that an eraser is intact, fits the model and removes its concept there, and with --key who signed it.

    Exit code 2 if it is incomplete, altered or not signed or pinned as required; 1 if it does not fit, has other rows
    than its SAE, does not remove its concept or was written as weak (`erase --accept-weak`). --files-only checks only
    for exit code 2.
    """
    from excise.erasers.artefact.checks import check_files
    from excise.erasers.artefact.files import eraser_folders
    from excise.erasers.artefact.pins import pinned_digests
    from excise.errors import ExciseError

    folders = eraser_folders(at_hand(folder))
    pins = dict(zip(folders, pinned_digests(folders, digest or ()), strict=True))
    signer = _signer(key, identity, identity_provider)
    if files_only:
        found = {one: check_files(one, signer, pin, concept) for one, pin in pins.items()}
    else:
        from excise.erasers import verify as checks_of

        found = {one: checks_of(one, signed_by=signer, digest=pin, concept=concept) for one, pin in pins.items()}
    broken = {one: next((c.detail for c in checks if not c.passed), None) for one, checks in found.items()}
    if not files_only and not all(broken.values()):
        from excise.app.models.resolve import load_pipeline
        from excise.app.training.saes_at_hand import saes_at_hand
        from excise.methods.solving import solve_again

        pipe = load_pipeline(model, device, weights)

        def at_hand_for(eraser: Eraser) -> list[TopKSAE]:
            note_cuts(pipe, eraser.canary)
            return saes_at_hand(eraser, pipe, sae, bundled=model is None)

        for one, pin in pins.items():
            if broken[one] is None:
                found[one] = checks_of(
                    one, pipe, sae=at_hand_for, solve=solve_again, signed_by=signer, digest=pin, concept=concept
                )

    def show() -> None:
        for one, checks in found.items():
            if broken[one] is None:
                rows = [(c.name, "passed" if c.passed else "FAILED", c.detail) for c in checks]
                if signer is None:
                    rows.insert(1, ("signature", "not checked", _unchecked(one)))
                table(f"Eraser {one}", ("check", "", "detail"), rows)

    data = [
        {
            "folder": str(one),
            "passed": all(c.passed for c in checks),
            "signature_checked": signer is not None,
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
        }
        for one, checks in found.items()
    ]
    passed = all(row["passed"] for row in data)
    emit(json, data[0] if len(data) == 1 else {"folder": str(folder), "passed": passed, "erasers": data}, show)
    if any(broken.values()):
        raise ExciseError("; ".join(why for why in broken.values() if why is not None))
    if not passed:
        raise typer.Exit(1)


def _unchecked(folder: Path) -> str:
    """Return why an eraser's signature was not checked."""
    from excise.erasers.artefact.files import SIGNATURE

    if (folder / SIGNATURE).exists():
        return "it has one, but no signer was named; name one with --key or --identity"
    return "it has none, and no signer was named with --key or --identity"


def _signer(key: Path | None, identity: str | None, identity_provider: str | None) -> Signer | None:
    """Return the signer that the options require, or None."""
    if key is None and identity is None and identity_provider is None:
        return None
    from excise.erasers import Signer

    return Signer(key, identity, identity_provider)
