"""Stand-ins for torchvision and torchaudio, whose wheels on PyPI need CUDA: modules full of empty classes.

ComfyUI imports both at start, and the nodes of the tests use neither. Python runs this file at start, if its folder is
on PYTHONPATH.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = {"torchvision", "torchaudio"}


class Empty(ModuleType):
    """A module in which every name is an empty class."""

    __version__ = "0"
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class Finder(MetaPathFinder, Loader):
    """Finds the stand-ins, once transformers has noted that the libraries are missing."""

    def __init__(self) -> None:
        self.noting = self.noted = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in NAMES or self.noting:
            return None
        if not self.noted:
            self.noting = True
            self._note()
            self.noting, self.noted = False, True
        return ModuleSpec(name, self, is_package=True)

    def _note(self) -> None:
        from transformers.utils import import_utils

        for name in ("is_torchvision_available", "is_torchvision_v2_available", "is_torchaudio_available"):
            getattr(import_utils, name, bool)()

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


if all(importlib.util.find_spec(name) is None for name in NAMES):
    sys.meta_path.insert(0, Finder())
