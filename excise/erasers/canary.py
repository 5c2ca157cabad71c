"""The canary: what the denoiser reads for a prompt, and by how much an edit moves it."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from excise.sites.site import text_encoders


@torch.no_grad()
def what_denoiser_reads(pipe: Any, prompt: str) -> list[Tensor]:
    """The conditional states of `prompt`, through the pipeline's own `encode_prompt`: each tap and pooled vector.

    With guidance, as pictures are made: a pipeline that encodes the unconditional prompt first must not pass.
    """
    known = inspect.signature(pipe.encode_prompt).parameters
    device = getattr(pipe, "_execution_device", None) or next(iter(text_encoders(pipe).values())).device
    wanted = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    return conditional(pipe.encode_prompt(prompt, **{k: v for k, v in wanted.items() if k in known}))


def conditional(made: Any) -> list[Tensor]:
    """The conditional tensors among `encode_prompt`'s results, which alternate conditional, unconditional."""
    parts = made if isinstance(made, (tuple, list)) else (made,)
    return [part for part in parts[::2] if isinstance(part, Tensor)]


def shift(edited: Tensor, plain: Tensor) -> float:
    """|edited - plain| / |plain|, 0 where nothing changed; NaN counts as no change, since it proves nothing."""
    a, b = edited.double(), plain.double()
    relative = float((a - b).norm() / b.norm().clamp(min=1e-12))
    return relative if math.isfinite(relative) else 0.0
