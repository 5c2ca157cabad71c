"""Description of the machine that a figure was measured on."""

from __future__ import annotations

import os
import platform


def machine(device: str = "cpu") -> str:
    """Describe this machine in one line: system, cores, GPU and torch version."""
    import torch

    card = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{card}, torch {torch.__version__}"
