"""Neurons: scores that rank them for a concept, and the evidence that they carry it.

Names are imported on first use, so that a neuron database is read without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
