"""Edits, the eraser artefact, and its attachment to a live pipeline.

Names are imported on first use, so that an eraser's files can be checked without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
