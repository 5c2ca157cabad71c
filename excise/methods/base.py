"""What a method is, and the list of them."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from excise.errors import ExciseError
from excise.plugins import plugins

if TYPE_CHECKING:
    from excise.concepts import Concept
    from excise.erasers import Eraser

METHODS: dict[str, str] = {
    "none": "the untouched model, the baseline of every comparison",
    "saemnesia": "the neuron a supervised SAE on a block of the denoiser gave the concept (SAEmnesia)",
    "saemnesia-text": "the neuron a supervised SAE on the text encoder gave the concept, edited as SNCE does",
    "saeuron": "neurons of an SAE on a block of the denoiser, by denoising step (Cywiński & Deja, SAeUron)",
    "snce": "one neuron of a sparse autoencoder on the text encoder (He et al., A Single Neuron Works)",
}
"""Name (and module of `excise.methods`) -> one line about it. A new method is one file and one line here."""
AND = "+"
"""Joins the names of methods whose edits go into one eraser: `snce+saemnesia`."""


class Method(Protocol):
    """`fit` makes an eraser of a concept for a pipeline; `Config` makes its frozen configuration."""

    name: str

    @property
    def Config(self) -> Callable[..., Any]:
        """Settings by name, defaults for the rest. Raises ExciseError for an impossible value."""
        ...

    def fit(self, pipe: Any, concept: Concept, config: Any) -> Eraser:
        """Raises ExciseError where the concept cannot be erased so."""
        ...


def method(name: str) -> Method:
    """The method called `name`, ours or a plugin's. Raises ExciseError, naming near ones, where there is none."""
    if AND in name:
        from excise.methods.joined import Joined

        return Joined(tuple(method(part) for part in name.split(AND)))
    others = plugins("excise.methods")
    if name not in METHODS and name not in others:
        known = [*METHODS, *others]
        near = get_close_matches(name.lower(), known, n=3) or known
        raise ExciseError(f"there is no method {name!r}; try {', '.join(near)}")
    found: Method = (
        import_module(f"excise.methods.{name.replace('-', '_')}").METHOD if name in METHODS else others[name]
    )
    return found
