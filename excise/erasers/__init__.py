"""Edits, the eraser artefact, and its attachment to a live pipeline.

Names are imported when first asked for, so that an eraser's files are checked without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
