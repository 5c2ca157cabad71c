"""Excise erases a concept from a text-to-image diffusion pipeline by turning down one neuron of a sparse autoencoder.

Names are imported when first asked for, so that `import excise` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from excise.concepts import Concept as Concept
    from excise.concepts import Pair as Pair
    from excise.erasers import Attachment as Attachment
    from excise.erasers import Attachments as Attachments
    from excise.erasers import Eraser as Eraser
    from excise.erasers import Signer as Signer
    from excise.erasers.telemetry import on_event as on_event
    from excise.erasers.verbs import disable_erasers as disable_erasers
    from excise.erasers.verbs import enable_erasers as enable_erasers
    from excise.erasers.verbs import encode as encode
    from excise.erasers.verbs import get_active_erasers as get_active_erasers
    from excise.erasers.verbs import list_erasers as list_erasers
    from excise.erasers.verbs import load_eraser as load_eraser
    from excise.erasers.verbs import set_erasers as set_erasers
    from excise.erasers.verbs import unload_eraser as unload_eraser
    from excise.errors import EraserDidNotFire as EraserDidNotFire
    from excise.errors import ExciseError as ExciseError
    from excise.methods.snce import SNCEConfig as SNCEConfig
    from excise.sae import TopKSAE as TopKSAE
    from excise.sites import LanguageModel as LanguageModel
    from excise.sites import Site as Site
    from excise.sites import TextEncoding as TextEncoding

_HOMES = {
    "Attachment": "erasers",
    "Attachments": "erasers",
    "Concept": "concepts",
    "Eraser": "erasers",
    "EraserDidNotFire": "errors",
    "ExciseError": "errors",
    "LanguageModel": "sites",
    "Pair": "concepts",
    "SNCEConfig": "methods.snce",
    "Signer": "erasers",
    "Site": "sites",
    "TextEncoding": "sites",
    "TopKSAE": "sae",
    "disable_erasers": "erasers.verbs",
    "enable_erasers": "erasers.verbs",
    "encode": "erasers.verbs",
    "get_active_erasers": "erasers.verbs",
    "list_erasers": "erasers.verbs",
    "load_eraser": "erasers.verbs",
    "on_event": "erasers.telemetry",
    "set_erasers": "erasers.verbs",
    "unload_eraser": "erasers.verbs",
}

__all__ = [
    "Attachment",
    "Attachments",
    "Concept",
    "Eraser",
    "EraserDidNotFire",
    "ExciseError",
    "LanguageModel",
    "Pair",
    "SNCEConfig",
    "Signer",
    "Site",
    "TextEncoding",
    "TopKSAE",
    "disable_erasers",
    "enable_erasers",
    "encode",
    "get_active_erasers",
    "list_erasers",
    "load_eraser",
    "on_event",
    "set_erasers",
    "unload_eraser",
]


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
