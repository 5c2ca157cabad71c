"""Audits: what an eraser does to prompts and neurons that it should leave alone."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    from excise.moved import forward

    __getattr__ = forward(__name__)
