"""Excise in ComfyUI: erase concepts from the prompts that a workflow encodes."""

from __future__ import annotations

import os
import sys

WEB_DIRECTORY = "./web"

try:
    from . import folders, service
    from .nodes import Excise

    folders.register()
    service.start(os.environ.get(service.ENFORCE))
except Exception as error:
    # ComfyUI only logs a node pack that fails to load. Erasers that must be there must not be missing quietly.
    if "EXCISE_ENFORCE" in os.environ:
        sys.exit(f"EXCISE_ENFORCE is set, but Excise did not start: {error}")
    raise


async def comfy_entrypoint() -> Excise:
    """Return the node pack."""
    return Excise()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
