"""`excise sign` and `excise verify`: whose an eraser is, and whether it is whole and works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli.cutting import note_cuts
from excise.cli.options import Device, Force, Json, Model, Sae
from excise.cli.terminal import emit, note, table
from excise.cli.weights import choosing_weights
from excise.outputs import check_absent

if TYPE_CHECKING:
    from excise.erasers import Signer


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise sign gun-eraser --key private.pem")(sign)
    app.command(epilog="Example: excise verify gun-eraser")(verify)


def sign(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser, or of several.")],
    key: Annotated[Path, typer.Option("--key", help="File with your elliptic-curve private key, in PEM.")],
    password_env: Annotated[
        str | None, typer.Option("--password-env", help="Environment variable that holds the key's password.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Sign an eraser: model.sig beside its files proves to whoever has your public key that it is yours, unaltered."""
    import os

    from excise.erasers import eraser_folders
    from excise.erasers import sign as signed
    from excise.erasers.artefact.files import SIGNATURE
    from excise.errors import ExciseError

    if password_env is not None and password_env not in os.environ:
        raise ExciseError(f"there is no environment variable {password_env}; set it to the key's password")
    password = os.environ[password_env] if password_env is not None else None
    folders = eraser_folders(folder)
    check_absent(*(own / SIGNATURE for own in folders), force=force)
    rows = [{"folder": str(own), "signature": str(signed(own, key, password))} for own in folders]

    def show() -> None:
        for row in rows:
            typer.echo(f"{row['signature']}: give your public key to those who are to check it")

    emit(json, rows[0] if len(rows) == 1 else rows, show)


@choosing_weights
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of an eraser, or of several.")],
    model: Model = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Check the files alone; load no model and try no canary.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option("--key", help="Public key (PEM) of the one who must have signed it.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", help="Keyless: who must have signed it, such as me@example.com. Asks sigstore."),
    ] = None,
    identity_provider: Annotated[
        str | None,
        typer.Option("--identity-provider", help="Keyless: the address of who vouches for the identity."),
    ] = None,
    sae: Sae = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Check that an eraser is whole, fits the model and works on it; with --key or --identity, also who signed it.

    Exit code 2 where it is incomplete, altered or not signed as asked, 1 where it does not fit, does not work or was
    written as weak (`erase --accept-weak`); --files-only does not look at the last.
    """
    from excise.erasers.artefact.checks import check_files
    from excise.erasers.artefact.files import SIGNATURE, eraser_folders
    from excise.errors import ExciseError

    folders = eraser_folders(folder)
    signer = _signer(key, identity, identity_provider)
    if files_only:
        found = {own: check_files(own, signer) for own in folders}
    else:
        from excise.erasers import verify as checks_of

        found = {own: checks_of(own, signed_by=signer) for own in folders}
    broken = {own: next((c.detail for c in checks if not c.passed), None) for own, checks in found.items()}
    if not files_only and not all(broken.values()):
        from excise.app.models.resolve import load_pipeline
        from excise.erasers import Eraser
        from excise.sae import load

        whole = load(sae, device=device) if sae is not None else None
        pipe = load_pipeline(model, device, weights)
        note_cuts(pipe, (text for own in folders if broken[own] is None for text in Eraser.load(own).canary))
        for own in folders:
            if broken[own] is None:
                found[own] = checks_of(own, pipe, sae=whole, signed_by=signer)
    for own in folders:
        if signer is None and (own / SIGNATURE).exists():
            note(f"{own} bears a signature that was not checked; name the signer with --key or --identity")

    def show() -> None:
        for own, checks in found.items():
            if broken[own] is None:
                rows = [(c.name, "passed" if c.passed else "FAILED", c.detail) for c in checks]
                table(f"Eraser {own}", ("check", "", "detail"), rows)

    data = [
        {
            "folder": str(own),
            "passed": all(c.passed for c in checks),
            "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks],
        }
        for own, checks in found.items()
    ]
    passed = all(row["passed"] for row in data)
    told = data[0] if len(data) == 1 else {"folder": str(folder), "passed": passed, "erasers": data}
    emit(json, told, show)
    if any(broken.values()):
        raise ExciseError("; ".join(why for why in broken.values() if why is not None))
    if not passed:
        raise typer.Exit(1)


def _signer(key: Path | None, identity: str | None, identity_provider: str | None) -> Signer | None:
    """The signer whom the options name."""
    if key is None and identity is None and identity_provider is None:
        return None
    from excise.erasers import Signer

    return Signer(key, identity, identity_provider)
