"""How much of what the denoiser reads is left when the features at a Site are replaced by others."""

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
    """Cosine of the text encoder's `last_hidden_state` with what it is when `replace` acts on the features at `site`.

    `replace` maps `[B, T, d]` to the same shape, such as an SAE's reconstruction. The mean over all positions (padding
    included: the denoiser reads them all) of all prompts; of a language model only words are replaced and looked at.
    None where the encoder gives no such state, the state is not finite or there are no prompts. Raises ExciseError as
    `resolve` does.
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
    """`[B, T, d]` float64."""
    output = run(pipe, component, batch)[2]
    # A language model's output has the hidden states but names none of them the last.
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
