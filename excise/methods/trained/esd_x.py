"""ESD-x (`excise.methods.trained.esd`): train the cross-attention, for concepts that prompts name."""

from __future__ import annotations

from functools import partial

from excise.methods.base import Fitted
from excise.methods.configs.trained import ESDConfig
from excise.methods.trained.esd import fit

METHOD = Fitted("esd-x", ESDConfig, partial(fit, method="esd-x", attention=True))
