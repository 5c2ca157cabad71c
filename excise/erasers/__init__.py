"""Edits, the eraser artefact, and its attachment to a live pipeline."""

from __future__ import annotations

from excise.erasers.attachment import Attachment
from excise.erasers.block import BlockEdit
from excise.erasers.edit import SAEEdit
from excise.erasers.eraser import Eraser, verify
from excise.erasers.formats import Check
from excise.erasers.integrity import made_for
from excise.erasers.several import Attachments, eraser_folders, load_erasers
from excise.erasers.signing import Signer, sign, verify_signature
from excise.erasers.weights import WeightEdit

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
