"""Ways to make an eraser, one file each. Names are imported when first asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
