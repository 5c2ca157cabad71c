"""TopK sparse autoencoders over vectors: nothing here depends on prompts or images.

Names are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
