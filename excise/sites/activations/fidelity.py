"""Fidelity of the final text state when the features at a Site are replaced, for example by a reconstruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from excise.pipeline import Pipeline
from excise.sites.activations.capture import run
from excise.sites.language import LanguageModel
from excise.sites.site import Site, resolve


@torch.no_grad()
def final_state_cosine(
    pipe: Pipeline, site: Site, replace: Callable[[Tensor], Tensor], prompts: Iterable[str], batch_size: int = 64
) -> float | None:
    """Return the mean cosine between the text encoder's `last_hidden_state` with and without `replace` at `site`.

    The mean is over all prompts and positions, including padding, since the denoiser reads it too. In a language model
    only words are replaced and compared.

    Args:
        pipe: The pipeline.
        site: A Site of a text encoder.
        replace: Maps features `[B, T, d]` to the same shape, for example by an SAE's reconstruction.
        prompts: The prompts.
        batch_size: Prompts per batch.

    Returns:
        The mean cosine, or None if the encoder returns no such state, it is not finite, or there are no prompts.

    Raises:
        ExciseError: if the Site does not exist.
    """
    module = resolve(pipe, site)
    total, rows = 0.0, 0
    stream = iter(prompts)
    while batch := list(islice(stream, batch_size)):
        words = pipe.words(*pipe.tokenise(batch, pipe.positions)) if isinstance(pipe, LanguageModel) else None
        plain = _final(pipe, site.component, batch)
        handle = module.register_forward_hook(_replacing(replace, words))
        try:
            changed = _final(pipe, site.component, batch)
        finally:
            handle.remove()
        if plain is None or changed is None:
            return None
        cosines = torch.nn.functional.cosine_similarity(plain, changed, dim=-1)
        cosines = cosines if words is None else cosines[words]
        total += float(cosines.sum())
        rows += cosines.numel()
    mean = total / rows if rows else math.nan
    return mean if math.isfinite(mean) else None


def _final(pipe: Pipeline, component: str, batch: list[str]) -> Tensor | None:
    """Return the final states `[B, T, d]` in float64, if the encoder returns them."""
    output = run(pipe, component, batch)[2]
    # A language model's output may have `hidden_states` only.
    states = getattr(output, "hidden_states", None) or (None,)
    state = getattr(output, "last_hidden_state", states[-1])
    return state.cpu().double() if isinstance(state, Tensor) else None


def _replacing(replace: Callable[[Tensor], Tensor], words: Tensor | None) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        state = output[0] if isinstance(output, tuple) else output
        made = replace(state).to(state)
        if words is not None:
            made = torch.where(words[..., None].to(state.device), made, state)
        return (made, *output[1:]) if isinstance(output, tuple) else made

    return hook
