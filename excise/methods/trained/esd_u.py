"""ESD-u (`excise.methods.trained.esd`): train all but the cross-attention, for concepts that prompts need not name."""

from __future__ import annotations

from functools import partial

from excise.methods.base import Fitted
from excise.methods.configs.trained import ESDConfig
from excise.methods.trained.esd import fit

METHOD = Fitted("esd-u", ESDConfig, partial(fit, method="esd-u", attention=False))
