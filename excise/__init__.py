"""Excise erases a concept from a text-to-image diffusion pipeline by turning down one neuron of a sparse autoencoder.

Names are imported when first asked for, so that `import excise` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.concepts import Concept as Concept
    from excise.concepts import Pair as Pair
    from excise.erasers import Attachment as Attachment
    from excise.erasers import Eraser as Eraser
    from excise.errors import EraserDidNotFire as EraserDidNotFire
    from excise.errors import ExciseError as ExciseError
    from excise.methods.snce import SNCEConfig as SNCEConfig
    from excise.sae import TopKSAE as TopKSAE
    from excise.sites import Site as Site

_HOMES = {
    "Attachment": "erasers",
    "Concept": "concepts",
    "Eraser": "erasers",
    "EraserDidNotFire": "errors",
    "ExciseError": "errors",
    "Pair": "concepts",
    "SNCEConfig": "methods.snce",
    "Site": "sites",
    "TopKSAE": "sae",
}

__all__ = [
    "Attachment",
    "Concept",
    "Eraser",
    "EraserDidNotFire",
    "ExciseError",
    "Pair",
    "SNCEConfig",
    "Site",
    "TopKSAE",
    "load_eraser",
]


def load_eraser(folder: Any) -> Eraser:
    """The eraser saved in `folder` (a path). Raises ExciseError where it is missing, cut short or tampered with."""
    from pathlib import Path

    from excise.erasers import Eraser

    return Eraser.load(Path(folder))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("excise")
    if name not in _HOMES:
        raise AttributeError(f"module 'excise' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"excise.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
