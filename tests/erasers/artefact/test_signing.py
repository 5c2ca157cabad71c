"""Signatures with real keys and the real library. Keyless ones need sigstore's network: there, only what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise.erasers import Eraser, SAEEdit, Signer, sign, verify, verify_signature
from excise.erasers.artefact import files as saved_files
from excise.erasers.artefact import signing
from excise.erasers.artefact.files import FILES
from excise.errors import ExciseError
from excise.sites import Site

pytest.importorskip("model_signing")

PASSWORD = "schhh é"
GOOGLE = "https://accounts.google.com"


def keys(folder: Path, password: str | None = None) -> tuple[Path, Path]:
    """A fresh private and public key, P-256 in PEM."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True, exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    locked = form.BestAvailableEncryption(password.encode()) if password else form.NoEncryption()
    (folder / "private.pem").write_bytes(
        private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, encryption_algorithm=locked)
    )
    (folder / "public.pem").write_bytes(
        private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    return folder / "private.pem", folder / "public.pem"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def public(pair: tuple[Path, Path]) -> Path:
    return pair[1]


@pytest.fixture
def signed(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    edit = SAEEdit(
        Site("text_encoder", "encoder.layers.2", 4),
        torch.tensor([3]),
        *(torch.rand(shape) for shape in ((1, 4), (1,), (4,), (1, 4), (1,), (1,))),
    )
    Eraser((edit,), "gun", "gun", canary=("a gun",)).save(tmp_path / "gun")
    sign(tmp_path / "gun", pair[0])
    return tmp_path / "gun"


def refused(folder: Path, public: Path) -> str:
    """Return the one-line reason why `check_signature`, `Eraser.load` and `verify` all refuse the folder."""
    with pytest.raises(ExciseError) as caught:
        verify_signature(folder, public)
    with pytest.raises(ExciseError):
        Eraser.load(folder, signed_by=Signer(public))
    assert not all(check.passed for check in verify(folder, signed_by=Signer(public)))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_what_was_signed_is_let_through(signed: Path, public: Path) -> None:
    verify_signature(signed, public)
    assert Eraser.load(signed, signed_by=Signer(public), require_signature=True).digest == Eraser.load(signed).digest
    assert Eraser.from_pretrained(str(signed), signed_by=Signer(public)).name == "gun"
    assert [(c.name, c.passed) for c in verify(signed, signed_by=Signer(str(public)))] == [
        ("files", True),
        ("signature", True),
        ("manifest", True),
        ("content", True),
    ]
    assert sorted(p.name for p in signed.iterdir()) == sorted([*FILES, "model.sig"]), "nothing else is left"


def test_signing_again_replaces_the_signature(signed: Path, public: Path, tmp_path: Path) -> None:
    private, other = keys(tmp_path / "other")
    sign(signed, private)
    verify_signature(signed, other)
    assert "not signed by" in refused(signed, public)


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_in_any_file_shows(signed: Path, public: Path, name: str) -> None:
    data = bytearray((signed / name).read_bytes())
    data[len(data) // 2] ^= 1
    (signed / name).write_bytes(data)
    assert "was altered since the key of" in refused(signed, public)


def test_every_byte_of_the_signature_counts(signed: Path, public: Path) -> None:
    path = signed / "model.sig"
    original = path.read_bytes()
    # All bytes around the signed text, and a sample of the text itself.
    places = {*range(300), *range(300, len(original), 13), *range(len(original) - 220, len(original))}
    for place in places & set(range(len(original))):
        altered = bytearray(original)
        altered[place] ^= 1
        path.write_bytes(altered)
        with pytest.raises(ExciseError):
            verify_signature(signed, public)
    for length in (0, 1, len(original) // 2, len(original) - 1):
        path.write_bytes(original[:length])
        refused(signed, public)


def test_resealing_helps_against_a_digest_and_not_against_a_signature(signed: Path, public: Path) -> None:
    """Who alters the files can rewrite the manifest, but not the signature."""
    described = signed / "eraser.json"
    described.write_text(described.read_text().replace('"lam": 1.0', '"lam": 0.0'))
    files = saved_files.read(signed)
    (signed / "manifest.json").write_bytes(saved_files.manifest(files))
    assert Eraser.load(signed).edits[0].lam == 0
    assert all(check.passed for check in verify(signed))
    assert "was altered since" in refused(signed, public)


def test_the_signature_is_checked_before_anything_is_parsed(signed: Path, public: Path) -> None:
    (signed / "eraser.json").write_bytes(b"\xff")
    assert "was altered since" in refused(signed, public)
    assert [c.name for c in verify(signed, signed_by=Signer(public))] == ["files", "signature"]


def test_anothers_key_or_eraser_is_refused(signed: Path, public: Path, tmp_path: Path) -> None:
    other = keys(tmp_path / "other")[1]
    assert "was not signed by the key of" in refused(signed, other)
    edit = Eraser.load(signed).edits[0]
    Eraser((edit,), "cat", "cat", canary=("a cat",)).save(tmp_path / "cat")
    shutil.copy(signed / "model.sig", tmp_path / "cat")
    assert "was altered since" in refused(tmp_path / "cat", public)


def test_a_missing_signature_is_refused(signed: Path, public: Path) -> None:
    (signed / "model.sig").unlink()
    assert "is not signed" in refused(signed, public)
    with pytest.raises(ExciseError, match="not a complete eraser"):
        verify_signature(signed / "nowhere", public)


def test_only_a_card_may_lie_beside_it(signed: Path, pair: tuple[Path, Path]) -> None:
    (signed / "README.md").write_text("what it does")
    verify_signature(signed, pair[1])
    sign(signed, pair[0])
    (signed / "hook.py").write_text("print('hello')")
    assert "'hook.py', which no signature covers" in refused(signed, pair[1])
    with pytest.raises(ExciseError, match=r"hook\.py"):
        sign(signed, pair[0])
    Eraser.load(signed)


def test_a_link_counts_for_what_it_leads_to(signed: Path, public: Path, tmp_path: Path) -> None:
    """The hub's cache consists of links. The bytes read through one are those checked and parsed."""
    path = signed / "eraser.safetensors"
    target = path.rename(tmp_path / "elsewhere")
    path.symlink_to(target)
    Eraser.load(signed, signed_by=Signer(public))
    target.write_bytes(target.read_bytes()[:-1] + b"\x01")
    assert "was altered since" in refused(signed, public)
    target.unlink()
    assert "not a complete eraser" in refused(signed, public)


def test_a_link_in_the_signatures_place_is_not_written_through(signed: Path, pair: tuple[Path, Path]) -> None:
    victim = signed.parent / "victim"
    victim.write_text("mine")
    (signed / "model.sig").unlink()
    (signed / "model.sig").symlink_to(victim)
    sign(signed, pair[0])
    assert victim.read_text() == "mine"
    verify_signature(signed, pair[1])


def test_a_broken_eraser_is_not_signed(signed: Path, pair: tuple[Path, Path]) -> None:
    (signed / "model.sig").unlink()
    (signed / "eraser.json").write_text("{}")
    with pytest.raises(ExciseError, match="was altered"):
        sign(signed, pair[0])
    files = saved_files.read(signed)
    (signed / "manifest.json").write_bytes(saved_files.manifest(files))
    with pytest.raises(ExciseError, match="not a valid eraser"):
        sign(signed, pair[0])
    assert not (signed / "model.sig").exists()


def test_keys_that_cannot_be_used_are_named(signed: Path, public: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import rsa

    before = (signed / "model.sig").read_bytes()
    locked, its_public = keys(tmp_path / "locked", PASSWORD)
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(
        other.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )
    cases: list[tuple[Path, str | None]] = [(locked, None), (locked, "wrong"), (tmp_path / "rsa.pem", None)]
    for private, password in [*cases, (tmp_path / "none.pem", None), (public, None)]:
        with pytest.raises(ExciseError, match="give an elliptic-curve private key in PEM"):
            sign(signed, private, password)
    assert (signed / "model.sig").read_bytes() == before
    sign(signed, locked, PASSWORD)
    verify_signature(signed, its_public)
    for bad in (tmp_path / "none.pem", locked):
        with pytest.raises(ExciseError, match="cannot read the public key"):
            verify_signature(signed, bad)


def test_a_signer_is_one_and_whole(public: Path) -> None:
    with pytest.raises(ExciseError, match="give both"):
        Signer(identity="me@example.com")
    with pytest.raises(ExciseError, match="give both"):
        Signer(public, identity_provider=GOOGLE)
    with pytest.raises(ExciseError, match="give both"):
        Signer(identity="me@example.com", identity_provider="")
    nobody = {"public_key": "", "identity": "", "identity_provider": ""}
    for given in ({}, nobody, {"public_key": public, "identity": "me@example.com", "identity_provider": GOOGLE}):
        with pytest.raises(ExciseError, match="give exactly one signer"):
            Signer(**given)  # type: ignore[arg-type]


def test_a_signature_by_just_anybody_is_not_asked_for(signed: Path) -> None:
    for load in (Eraser.load, Eraser.from_pretrained):
        with pytest.raises(ExciseError, match="name the signer that you trust"):
            load(signed, require_signature=True)


def test_keyless_goes_to_sigstore_with_both(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tested without sigstore's network: the arguments it gets, and that a failure to reach it refuses."""
    from model_signing import verifying

    asked: list[dict[str, Any]] = []

    def unreachable(self: Any, **options: Any) -> Any:
        asked.append(options)
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", unreachable)
    with pytest.raises(ExciseError, match=r"sigstore's trusted root \(no route to host\)"):
        Eraser.load(signed, signed_by=Signer(identity="me@example.com", identity_provider=GOOGLE))
    assert asked == [{"identity": "me@example.com", "oidc_issuer": GOOGLE}]


def test_without_the_extra_it_is_named(signed: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for work in (lambda: sign(signed, pair[0]), lambda: verify_signature(signed, pair[1])):
        with pytest.raises(ExciseError, match=r"excise\[sign\]"):
            work()
    Eraser.load(signed)


def test_a_signature_that_leaves_files_out_is_refused(signed: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The format lets a signer list paths to ignore. Those files would not be protected."""
    from model_signing import hashing
    from model_signing import signing as library

    chosen = hashing.Config().set_ignored_paths(paths=["eraser.safetensors", "model.sig"])
    config = library.Config().use_elliptic_key_signer(private_key=pair[0]).set_hashing_config(chosen)
    config.sign(signed, signed / "model.sig")
    assert "was altered since" in refused(signed, pair[1])


def test_other_tools_read_ours_and_we_read_theirs(signed: Path, pair: tuple[Path, Path]) -> None:
    signature = signed / "model.sig"

    def library(*words: Any) -> int:
        command = (sys.executable, "-m", "model_signing", *words)
        return subprocess.run([str(w) for w in command], capture_output=True, check=False).returncode

    named = ("key", signed, "--signature", signature)
    assert library("verify", *named, "--public_key", pair[1]) == 0
    card = signed / "README.md"
    card.write_text("what it does")
    assert library("verify", *named, "--public_key", pair[1], "--ignore-paths", card) == 0
    signature.unlink()
    assert library("sign", *named, "--private_key", pair[0], "--ignore-paths", card) == 0
    verify_signature(signed, pair[1])


def test_loading_by_name_passes_the_signer_on(
    gun_eraser: Eraser, tiny_pipe: Any, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    gun_eraser.save(tmp_path / "gun")
    trusted = excise.Signer(public_key=pair[1])
    with pytest.raises(ExciseError, match="is not signed"):
        excise.load_eraser(tiny_pipe, tmp_path / "gun", signed_by=trusted)
    with pytest.raises(ExciseError, match="name the signer that you trust"):
        excise.load_eraser(tiny_pipe, tmp_path / "gun", require_signature=True)
    assert excise.list_erasers(tiny_pipe) == {}
    sign(tmp_path / "gun", pair[0])
    with excise.load_eraser(tiny_pipe, tmp_path / "gun", name="gun", signed_by=trusted):
        assert excise.get_active_erasers(tiny_pipe) == ["gun"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_documented_keys_work(signed: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "signing.md").read_text(encoding="utf-8")
    lines = re.findall(r"^openssl .*$", page, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        words = [word.replace("-aes256", "-aes256 -pass pass:hush") for word in line.split("  #")[0].split()]
        unlock = ["-passin", "pass:hush"] if words[1] != "genpkey" else []
        subprocess.run([*" ".join(words).split(), *unlock], cwd=tmp_path, check=True, capture_output=True)
    signing.sign(signed, tmp_path / "private.pem", "hush")
    verify_signature(signed, tmp_path / "public.pem")
