"""The reference model of Excise: a small Stable Diffusion that draws emoji, its judge and its SAE.

Names are imported when first asked for.
"""

from typing import Any

import lazy_loader

from excise.reference import data as data  # here, lest asking this package for it imports diffusers

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    from excise.loading import quiet

    with quiet():  # what diffusers and transformers say of parts that are not used here
        return _attribute(name)
