"""`excise sign` and `excise verify --key`, with real keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.erasers.artefact import files as saved_files

pytest.importorskip("model_signing")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key, locked with "hush", and its public one."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    locked = form.BestAvailableEncryption(b"hush")
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, locked))
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def folder(firm_eraser: Any, tmp_path: Path) -> Path:
    firm_eraser.save(tmp_path / "gun-eraser")
    return tmp_path / "gun-eraser"


def why(result: Any) -> str:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return str(line)


def test_sign_and_verify(
    call: Callable[..., Any],
    ask: Callable[..., Any],
    keys: tuple[Path, Path],
    folder: Path,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public = keys
    assert "is not signed" in why(call("verify", folder, "--key", public))
    assert "give an elliptic-curve private key" in why(call("sign", folder, "--key", private))
    assert "the environment variable KEY_WORD is not set" in why(
        call("sign", folder, "--key", private, "--password-env", "KEY_WORD")
    )
    monkeypatch.setenv("KEY_WORD", "hush")
    signature = ask("sign", folder, "--key", private, "--password-env", "KEY_WORD")["signature"]
    assert Path(signature) == folder / "model.sig"
    checked = ask("verify", folder, "--key", public, "--model", model_folder)
    assert checked["passed"]
    assert [c["name"] for c in checked["checks"]][:3] == ["files", "signature", "manifest"]
    assert "canary" in [c["name"] for c in checked["checks"]]
    assert checked["signature_checked"]
    shown = call("verify", folder, "--key", public, "--files-only")
    assert shown.exit_code == 0
    assert "signature" in shown.stdout and "not checked" not in shown.stdout


def test_what_is_wrong_is_one_line(
    call: Callable[..., Any], keys: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys
    monkeypatch.setenv("KEY_WORD", "hush")
    signed = call("sign", folder, "--key", private, "--password-env", "KEY_WORD")
    assert signed.exit_code == 0
    assert "give your public key" in signed.stdout
    asked = ("verify", folder, "--files-only")
    unnamed = call(*asked)
    assert unnamed.exit_code == 0
    line = next(line for line in unnamed.stdout.splitlines() if "signature" in line)
    assert "not checked" in line and "passed" not in line
    assert "it has one, but no signer was named" in " ".join(unnamed.stdout.split())
    assert "give both" in why(call(*asked, "--identity", "me@example.com"))
    both = ("--identity", "me@example.com", "--identity-provider", "https://accounts.google.com")
    assert "give exactly one signer" in why(call(*asked, "--key", public, *both))
    assert "cannot read the public key" in why(call(*asked, "--key", private))
    assert "give an elliptic-curve private key" in why(call("sign", folder, "--key", folder / "none.pem", "--force"))
    files = {name: (folder / name).read_bytes() for name in ("eraser.json", "eraser.safetensors")}
    files["eraser.json"] = files["eraser.json"].replace(b'"lam": 2.0', b'"lam": 0.5')
    (folder / "eraser.json").write_bytes(files["eraser.json"])
    (folder / "manifest.json").write_bytes(saved_files.manifest(files))
    assert call(*asked).exit_code == 0, "a digest that was recomputed notices nothing"
    assert "was altered since" in why(call(*asked, "--key", public))
    told = call(*asked, "--key", public, "--json")
    assert told.exit_code == 2
    assert [c["passed"] for c in json.loads(told.stdout)["checks"]] == [True, False]
    assert "not a complete eraser" in why(call("sign", folder.parent / "nowhere", "--key", private))


def test_a_signed_folder_is_not_written_over(
    call: Callable[..., Any], gun_eraser: Any, keys: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise.errors import ExciseError

    monkeypatch.setenv("KEY_WORD", "hush")
    assert call("sign", folder, "--key", keys[0], "--password-env", "KEY_WORD").exit_code == 0
    with pytest.raises(ExciseError, match=r"holds other files \(model\.sig\)"):
        gun_eraser.save(folder)


def test_every_eraser_of_a_folder_is_signed(
    ask: Callable[..., Any],
    call: Callable[..., Any],
    keys: tuple[Path, Path],
    gun_eraser: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, public = keys
    monkeypatch.setenv("KEY_WORD", "hush")
    for name in ("gun", "pistol"):
        gun_eraser.save(tmp_path / "erasers" / name)
    signed = ask("sign", tmp_path / "erasers", "--key", private, "--password-env", "KEY_WORD")
    assert [Path(row["folder"]).name for row in signed] == ["gun", "pistol"]
    told = ask("verify", tmp_path / "erasers", "--key", public, "--files-only")
    assert [[c["name"] for c in one["checks"]][1] for one in told["erasers"]] == ["signature", "signature"]
    (tmp_path / "erasers" / "gun" / "model.sig").unlink()
    refused = call("verify", tmp_path / "erasers", "--key", public, "--files-only")
    assert refused.exit_code == 2
    assert "is not signed" in refused.stderr


def test_a_signature_is_replaced_with_force_alone(
    call: Callable[..., Any], keys: tuple[Path, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_WORD", "hush")
    how = ("sign", folder, "--key", keys[0], "--password-env", "KEY_WORD")
    assert call(*how).exit_code == 0
    before = (folder / "model.sig").read_bytes()
    assert "model.sig is there already; replace it with --force" in why(call(*how))
    assert (folder / "model.sig").read_bytes() == before
    assert call(*how, "--force").exit_code == 0
    assert (folder / "model.sig").read_bytes() != before
