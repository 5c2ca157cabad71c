"""Edits, the eraser artefact, and its attachment to a live pipeline.

Names are imported when first asked for, so that an eraser's files are checked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.erasers.artefact import Check as Check
    from excise.erasers.artefact import eraser_folders as eraser_folders
    from excise.erasers.attachment import Attachment as Attachment
    from excise.erasers.block import BlockEdit as BlockEdit
    from excise.erasers.edit import SAEEdit as SAEEdit
    from excise.erasers.eraser import Eraser as Eraser
    from excise.erasers.eraser import verify as verify
    from excise.erasers.integrity import made_for as made_for
    from excise.erasers.several import Attachments as Attachments
    from excise.erasers.several import load_erasers as load_erasers
    from excise.erasers.signing import Signer as Signer
    from excise.erasers.signing import sign as sign
    from excise.erasers.signing import verify_signature as verify_signature
    from excise.erasers.weights import WeightEdit as WeightEdit

__all__ = [
    "Attachment",
    "Attachments",
    "BlockEdit",
    "Check",
    "Eraser",
    "SAEEdit",
    "Signer",
    "WeightEdit",
    "eraser_folders",
    "load_erasers",
    "made_for",
    "sign",
    "verify",
    "verify_signature",
]

_HOMES = {
    "Attachment": "attachment",
    "Attachments": "several",
    "BlockEdit": "block",
    "Check": "artefact",
    "Eraser": "eraser",
    "SAEEdit": "edit",
    "Signer": "signing",
    "WeightEdit": "weights",
    "eraser_folders": "artefact",
    "load_erasers": "several",
    "made_for": "integrity",
    "sign": "signing",
    "verify": "eraser",
    "verify_signature": "signing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
