"""Program that runs the light core on saved erasers: read, checked, digested, signed, and text edits computed.

It needs torch, safetensors and lazy_loader, and to sign also model_signing. `nox -s core` runs it next to a version of
transformers that Excise itself does not support. Arguments: folders of erasers.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from excise.erasers.artefact.checks import check_files
from excise.erasers.artefact.files import eraser_folders
from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.signing import Signer, sign
from excise.erasers.edits.text_sae import SAEEdit
from excise.errors import Tampered

HEAVY = ("diffusers", "transformers", "peft", "PIL", "huggingface_hub", "accelerate")


def subtracted(edit: SAEEdit, states: torch.Tensor) -> torch.Tensor:
    """Return what a whole-prompt edit subtracts from states `[B, T, d]` (eqs. 8-9), one neuron and prompt at a time."""
    out = torch.zeros_like(states)
    for b, prompt in enumerate(states):
        for i in range(len(edit.indices)):
            codes = [max(0.0, float((h - edit.b_pre) @ edit.W_enc[i] + edit.b_enc[i])) for h in prompt[edit.lead :]]
            if max(codes) > max(0.0, float(edit.threshold[i])):
                gain = max(1.0, float(edit.typical[i]) / max(codes))
                for t, code in enumerate(codes, edit.lead):
                    out[b, t] += edit.lam * gain * code * edit.W_dec[i]
    return out


def used(folder: Path) -> str:
    """Use an eraser in every way that needs no pipeline, and return its digest."""
    (place,) = eraser_folders(folder)
    eraser = Artefact.load(place)
    checks = check_files(place, digest=eraser.digest, concept=eraser.concept)
    assert checks and all(check.passed for check in checks), checks
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        eraser.save(copy)
        assert Artefact.load(copy, digest=eraser.digest).digest == eraser.digest
        (copy / "eraser.json").write_bytes((copy / "eraser.json").read_bytes() + b" ")
        try:
            Artefact.load(copy)
        except Tampered:
            pass
        else:
            raise AssertionError("an altered eraser was loaded")
    for edit in eraser.text_edits:
        states = torch.randn(2, 7, edit.site.width, generator=torch.Generator().manual_seed(0))
        if isinstance(edit, SAEEdit) and (edit.gate, edit.source) == ("whole", "prompt"):
            row = edit.W_enc[0]
            states[0, 3] = edit.b_pre + row * (2 * edit.typical[0] - edit.b_enc[0]) / row.square().sum()
            assert bool(subtracted(edit, states).any()), "no neuron fires"
            expected = states - subtracted(edit, states)
            torch.testing.assert_close(edit.apply(states, 1.0), expected, atol=1e-4, rtol=1e-4)
            assert torch.equal(edit.apply(states, 0.0), states)
    return eraser.digest


def signed(folder: Path) -> None:
    """Sign a copy of an eraser and check it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder, Path(scratch) / "copy")
        pem, key = serialization.Encoding.PEM, ec.generate_private_key(ec.SECP256R1())
        private, public = Path(scratch) / "private.pem", Path(scratch) / "public.pem"
        private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
        sign(copy, private)
        Artefact.load(copy, signed_by=Signer(public), require_signature=True)


def main() -> None:
    for folder in map(Path, sys.argv[1:]):
        print(folder.name, used(folder)[:12])
    if importlib.util.find_spec("model_signing"):
        signed(Path(sys.argv[1]))
        print("signed")
    imported = [name for name in HEAVY if name in sys.modules]
    assert not imported, f"imported {imported}"


if __name__ == "__main__":
    main()
