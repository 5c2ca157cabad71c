"""ESD-u (`excise.methods.trained.esd`): all but the cross-attention is trained, for what prompts need not name."""

from __future__ import annotations

from functools import partial

from excise.methods.base import Fitted
from excise.methods.configs.trained import ESDConfig
from excise.methods.trained.esd import fit

METHOD = Fitted("esd-u", ESDConfig, partial(fit, method="esd-u", attention=False))
