"""Excise erases a concept from a text-to-image diffusion pipeline by turning down one neuron of a sparse autoencoder.

Names are imported on first use, so that `import excise` is fast.
"""

from typing import Any

import lazy_loader

from excise.moved import install as _install

_install()
_attribute, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("excise")
    return _attribute(name)


def __dir__() -> list[str]:
    return sorted([*_names(), "__version__"])
