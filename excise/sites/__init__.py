"""Named places in a pipeline's text encoders, or in a language model, where features are read and written.

Names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
