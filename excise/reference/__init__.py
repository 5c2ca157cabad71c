"""The reference model of Excise: a small Stable Diffusion that generates emoji, with its judges and SAEs.

Names are imported on first use.
"""

from typing import Any

import lazy_loader

from excise.reference import data as data  # imported here, because a lazy import would import diffusers

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    from excise.loading import quiet

    with quiet():  # diffusers and transformers warn about parts that are not used here
        return _attribute(name)
