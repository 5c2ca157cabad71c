"""Signatures of an eraser's files (OpenSSF model signing). They prove who made it; a digest only proves integrity."""

from __future__ import annotations

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
from excise.files import parse_json, read_file, write_atomic

UNSIGNED = {SIGNATURE, CARD, ".gitattributes"}
"""Files that a signed eraser's folder may hold unsigned, as hub repositories do. Excise does not read them."""


@dataclass(frozen=True)
class Signer:
    """The signer of an eraser: the holder of a key, or with sigstore (keyless) an identity vouched for by a provider.

    Raises InvalidSetting on construction unless exactly one of the two is given, and the identity has its provider.
    """

    public_key: Path | str | None = None
    """File with an elliptic-curve public key in PEM."""
    identity: str | None = None
    """Keyless: an e-mail address, or a workflow's address."""
    identity_provider: str | None = None
    """Keyless: the OpenID Connect issuer that vouches for `identity`, such as https://accounts.google.com."""

    def __post_init__(self) -> None:
        # Empty texts count as missing: sigstore accepts any provider for an empty one, such as an unset variable.
        if bool(self.identity) != bool(self.identity_provider):
            raise InvalidSetting("an identity needs its provider; give both, or a public key")
        if bool(self.public_key) == bool(self.identity):
            raise InvalidSetting("give exactly one signer: a public key, or an identity with its provider")

    def __str__(self) -> str:
        return f"{self.identity} at {self.identity_provider}" if self.identity else f"the key of {self.public_key}"


def sign(folder: Path | str, private_key: Path | str, password: str | None = None) -> Path:
    """Sign a saved eraser: write `model.sig` to its folder, replacing an older signature.

    Args:
        folder: Folder of the eraser, with no other files except its card.
        private_key: File with an elliptic-curve private key in PEM.
        password: The key's password, if it has one.

    Returns:
        Path of the signature.

    Raises:
        NotFound: if the folder holds no eraser.
        Tampered: if the eraser is incomplete or altered, or its folder holds other files.
        InvalidSetting: if the key cannot be used.
        MissingExtra: if `excise[sign]` is not installed.

    Example:
        >>> excise.sign("erasers/gun", "key.pem")
        PosixPath('erasers/gun/model.sig')
    """
    from excise.erasers.artefact.formats import unpack

    path, target = Path(folder), Path(folder) / SIGNATURE
    files = saved_files.read(path)
    saved_files.check_manifest(path, files)
    unpack(path, files)
    _refuse_other_files(path)
    library = _library()
    try:
        # The library declares str, but passes it on to a function of bytes.
        secret: Any = None if password is None else password.encode()
        config = library.signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
    except Exception as error:
        raise InvalidSetting(
            f"cannot sign with {private_key} ({reason(error)}); "
            "give an elliptic-curve private key in PEM, and its password if it has one"
        ) from error
    with _private_copy(path, files) as (copy, signature):
        config.set_hashing_config(_everything()).sign(copy, signature)
        write_atomic(target, read_file(signature))
    return target


def verify_signature(
    folder: Path | str,
    public_key: Path | str | None = None,
    identity: str | None = None,
    identity_provider: str | None = None,
) -> None:
    """Raise ExciseError unless the signer signed all of this eraser, and nothing was added or altered.

    Args:
        folder: Folder of the eraser.
        public_key: File with the signer's public key in PEM; or else both of the following.
        identity: The signer's e-mail address or workflow address (keyless).
        identity_provider: The OpenID Connect issuer that vouches for the identity.
    """
    path = Path(folder)
    check_signature(path, saved_files.read(path), Signer(public_key, identity, identity_provider))


def check_signature(folder: Path, files: Mapping[str, bytes], signer: Signer) -> None:
    """Raise ExciseError unless `folder` holds the signer's signature of exactly `files`, and no other files.

    The bytes in memory are checked, so that nothing can change before they are parsed.
    """
    _refuse_other_files(folder)
    try:
        signature = read_file(folder / SIGNATURE)
    except OSError as error:
        raise Tampered(
            f"{folder} is not signed ({SIGNATURE}: {error.strerror}); get it signed, or load it without `signed_by`"
        ) from error
    config = _verifier(signer).set_hashing_config(_everything())
    with _private_copy(folder, files) as (copy, place):
        place.write_bytes(signature)
        try:
            # For a signature without a key hint the library prints, which would spoil json on stdout.
            with redirect_stdout(sys.stderr):
                config.verify(copy, place)
            _refuse_noncanonical(signature)
        except Exception as error:  # its dependencies raise errors of any kind; in each case nothing was proved
            if str(error).startswith("Signature mismatch"):
                what = f"was altered since {signer} signed it"
            else:
                what = f"was not signed by {signer} ({reason(error)})"
            raise Tampered(f"{folder} {what}; do not use it, and get it again from its author") from error


def _verifier(signer: Signer) -> Any:
    config = _library().verifying.Config()
    try:
        if signer.public_key:
            return config.use_elliptic_key_verifier(public_key=signer.public_key)
        return config.use_sigstore_verifier(identity=signer.identity, oidc_issuer=signer.identity_provider)
    except Exception as error:
        why = reason(error)
        if signer.public_key:
            raise InvalidSetting(
                f"cannot read the public key {signer.public_key} ({why}); give an elliptic-curve one in PEM"
            ) from error
        raise ExciseError(f"cannot get sigstore's trusted root ({why}); keyless signatures need its network") from error


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise MissingExtra(
            f"signatures need the extra: pip install 'excise[sign]' ({error.name} is missing)"
        ) from error
    return model_signing


def _everything() -> Any:
    """Return a hashing configuration that ignores no file, even if a signature lists ignored files."""
    from model_signing import hashing

    class Everything(hashing.Config):
        def add_ignored_paths(self, **_: Any) -> None: ...

    return Everything().set_ignored_paths(paths=[], ignore_git_paths=False)  # type: ignore[no-untyped-call]


@contextmanager
def _private_copy(folder: Path, files: Mapping[str, bytes]) -> Iterator[tuple[Path, Path]]:
    """Copy the files to a private folder of the same name, with a path for their signature outside it.

    The library reads paths and refuses links, which the hub's cache consists of. Raises ExciseError on a full disk.
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


def _refuse_other_files(folder: Path) -> None:
    try:
        others = sorted({path.name for path in folder.iterdir()} - {*FILES, *UNSIGNED})
    except OSError as error:
        raise ExciseError(f"cannot list {folder}: {error.strerror}; copy it again") from error
    if others:
        raise Tampered(f"{folder} holds {others[0]!r}, which no signature covers; remove it")


def _refuse_noncanonical(signature: bytes) -> None:
    """Raise ValueError if unused bits at the end of a base64 text were altered: no byte of any file may change."""
    envelope = parse_json(signature)["dsseEnvelope"]
    for text in (envelope["payload"], *(each["sig"] for each in envelope["signatures"])):
        if b64encode(b64decode(text)).decode() != text:
            raise ValueError("its base64 is not canonical")
