"""Training and comparison of sparse autoencoders."""

from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    from excise.moved import forward

    __getattr__ = forward(__name__)
