"""Audits: what an eraser does to sentences and neurons it should leave alone."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    from excise.moved import forward

    __getattr__ = forward(__name__)
