"""Signatures over an eraser's files (OpenSSF model signing): who made it, where a digest only says that it is whole."""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from excise.erasers.artefact import files as saved_files
from excise.erasers.artefact.files import CARD, FILES, SIGNATURE
from excise.errors import ExciseError, InvalidSetting, MissingExtra, Tampered, reason
from excise.files import write_atomic

BESIDE = {SIGNATURE, CARD, ".gitattributes"}
"""What may lie unsigned beside a signed eraser's files: a repository on the hub has them; nothing here reads them."""


@dataclass(frozen=True)
class Signer:
    """Whose signature an eraser must bear: a key's holder, or with sigstore (keyless) who a provider says it was.

    Raises ExciseError on construction unless it is exactly one of the two, and the identity has its provider.
    """

    public_key: Path | str | None = None
    """File with an elliptic-curve public key in PEM."""
    identity: str | None = None
    """Keyless: an e-mail address, or a workflow's address."""
    identity_provider: str | None = None
    """Keyless: the OpenID Connect issuer that vouches for `identity`, such as https://accounts.google.com."""

    def __post_init__(self) -> None:
        # By their truth: sigstore takes an empty provider, such as an unset variable's, for any provider.
        if bool(self.identity) != bool(self.identity_provider):
            raise InvalidSetting("an identity is worth what its provider is; give both, or a public key")
        if bool(self.public_key) == bool(self.identity):
            raise InvalidSetting("name one signer: a public key, or an identity with its provider")

    def __str__(self) -> str:
        return f"{self.identity} at {self.identity_provider}" if self.identity else f"the key of {self.public_key}"


def sign(folder: Path | str, private_key: Path | str, password: str | None = None) -> Path:
    """Sign a saved eraser: write `model.sig` beside its files, in place of an older signature.

    Args:
        folder: Folder of the eraser, with nothing else in it but its card.
        private_key: File with an elliptic-curve private key in PEM.
        password: The key's password, if it has one.

    Returns:
        Path of the signature.

    Raises:
        NotFound: where the folder holds no eraser.
        Tampered: where the eraser is not whole, or lies among other files.
        InvalidSetting: where the key cannot be used.
        MissingExtra: where `excise[sign]` is not installed.

    Example:
        >>> excise.sign("erasers/gun", "key.pem")
        PosixPath('erasers/gun/model.sig')
    """
    from excise.erasers.artefact.formats import unpack

    path, target = Path(folder), Path(folder) / SIGNATURE
    files = saved_files.read(path)
    saved_files.check_manifest(path, files)
    unpack(path, files)
    _refuse_strangers(path)
    library = _library()
    try:
        # The library says str, and hands it on to what takes bytes.
        secret: Any = None if password is None else password.encode()
        config = library.signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    except Exception as error:
        raise InvalidSetting(
            f"cannot sign with {private_key} ({reason(error)}); "
            "give an elliptic-curve private key in PEM, and its password if it has one"
        ) from error
    with _alone(path, files) as (copy, signature):
        config.set_hashing_config(_everything()).sign(copy, signature)
        write_atomic(target, signature.read_bytes())
    return target


def verify_signature(
    folder: Path | str,
    public_key: Path | str | None = None,
    identity: str | None = None,
    identity_provider: str | None = None,
) -> None:
    """Raises ExciseError unless the named signer signed this eraser, all of it, and nothing was added or altered."""
    path = Path(folder)
    check_signature(path, saved_files.read(path), Signer(public_key, identity, identity_provider))


def check_signature(folder: Path, files: Mapping[str, bytes], signer: Signer) -> None:
    """Raises ExciseError unless `folder` holds the signer's signature over exactly `files`, and nothing else.

    It is the bytes in memory that are checked, so that nothing can change between this and their being parsed.
    """
    _refuse_strangers(folder)
    try:
        signature = (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise Tampered(
            f"{folder} bears no signature ({SIGNATURE}: {error.strerror}); get it signed, or name no signer"
        ) from error
    config = _verifier(signer).set_hashing_config(_everything())
    with _alone(folder, files) as (copy, place):
        place.write_bytes(signature)
        try:
            # A signature without a hint at its key makes the library print, which would spoil a json on stdout.
            with redirect_stdout(sys.stderr):
                config.verify(copy, place)
            _refuse_respelt(signature)
        except Exception as error:  # its dependencies raise what they like; whatever it is, nothing was proved
            if str(error).startswith("Signature mismatch"):
                what = f"was altered since {signer} signed it"
            else:
                what = f"was not signed by {signer} ({reason(error)})"
            raise Tampered(f"{folder} {what}; do not use it, and get it again from who made it") from error


def _verifier(signer: Signer) -> Any:
    config = _library().verifying.Config()
    try:
        if signer.public_key:
            return config.use_elliptic_key_verifier(public_key=signer.public_key)
        return config.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.identity_provider)
    except Exception as error:
        told = reason(error)
        if signer.public_key:
            raise InvalidSetting(
                f"cannot read the public key {signer.public_key} ({told}); give an elliptic-curve one in PEM"
            ) from error
        raise ExciseError(f"cannot get sigstore's trusted root ({told}); keyless needs its network") from error


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise MissingExtra(
            f"signatures need the extra: pip install 'excise[sign]' ({error.name} is missing)"
        ) from error
    return model_signing


def _everything() -> Any:
    """A hashing configuration that leaves nothing out, whatever a signature says may be left out."""
    from model_signing import hashing

    class Everything(hashing.Config):
        def add_ignored_paths(self, **_: Any) -> None: ...

    return Everything().set_ignored_paths(paths=[], ignore_git_paths=False)  # type: ignore[no-untyped-call]


@contextmanager
def _alone(folder: Path, files: Mapping[str, bytes]) -> Iterator[tuple[Path, Path]]:
    """The files by themselves in a private folder of the same name, and a place for their signature outside it.

    The library reads paths, and takes no links, of which the hub's cache is made. Raises ExciseError for a full disk.
    """
    try:
        with TemporaryDirectory(prefix="excise-") as parent:
            copy = Path(parent) / "of" / (folder.resolve().name or "eraser")
            copy.mkdir(parents=True)
            for name, data in files.items():
                (copy / name).write_bytes(data)
            yield copy, Path(parent) / SIGNATURE
    except OSError as error:
        raise ExciseError(f"cannot copy {folder} to sign or check it: {reason(error)}") from error


def _refuse_strangers(folder: Path) -> None:
    try:
        strangers = sorted({path.name for path in folder.iterdir()} - {*FILES, *BESIDE})
    except OSError as error:
        raise ExciseError(f"cannot list {folder}: {error.strerror}; copy it again") from error
    if strangers:
        raise Tampered(f"{folder} holds {strangers[0]!r}, which no signature covers; take it out")


def _refuse_respelt(signature: bytes) -> None:
    """Raises ValueError where the spare bits at a base64 text's end were altered: no byte of any file may change."""
    envelope = json.loads(signature)["dsseEnvelope"]
    for text in (envelope["payload"], *(each["sig"] for each in envelope["signatures"])):
        if b64encode(b64decode(text)).decode() != text:
            raise ValueError("its base64 is not spelt as it was written")
