"""The machine that a figure was measured on, in words."""

from __future__ import annotations

import os
import platform


def machine(device: str = "cpu") -> str:
    """What the figures were taken on."""
    import torch

    card = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{card}, torch {torch.__version__}"
