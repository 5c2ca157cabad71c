"""An eraser on disk: its files, manifest, card and signature."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    from excise.moved import forward

    __getattr__ = forward(__name__)
