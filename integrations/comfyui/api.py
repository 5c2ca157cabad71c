"""ComfyUI's node API, in the version that this pack was written for where it is still there."""

from __future__ import annotations

try:
    from comfy_api.v0_0_2 import ComfyExtension, io
except ImportError:
    from comfy_api.latest import ComfyExtension, io

__all__ = ["ComfyExtension", "io"]
