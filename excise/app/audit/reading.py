"""Readings for an audit: neurons' codes on prompts, and what an attached eraser changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers import SAEEdit
from excise.erasers.artefact.canary import shift
from excise.erasers.edits.sae_rows import preactivations
from excise.erasers.edits.text_sae import threshold_codes
from excise.erasers.guard.canary import denoiser_predictions
from excise.erasers.hooks.context import unedited
from excise.erasers.proof.effects import BATCH, Progress
from excise.neurons import PromptCodes
from excise.neurons.contexts import Contexts
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import capture_by_length
from excise.sites.encoding import conditional, encode_prompt, tensors_of
from excise.sites.site import tokenizer_of
from excise.sites.tokens import pieces


@torch.no_grad()
def contexts_of(
    pipe: Pipeline, edit: SAEEdit, sae: TopKSAE | None, prompts: Sequence[str], progress: Progress = lambda done: None
) -> Contexts:
    """Return the TopK codes of all of the SAE's neurons on `prompts`.

    Without the SAE, return only the edited neurons' pre-activations above the edit's threshold.
    """
    tokenizer = tokenizer_of(pipe, edit.site.component)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    tokens: list[list[str]] = []
    order: list[int] = []
    with unedited():
        for numbers, batch in capture_by_length(pipe, [edit.site], prompts, BATCH):
            kept = 1 + max(batch.scored.any(0).nonzero().flatten().tolist(), default=0)
            h = batch.states[edit.site][:, :kept]
            values, indices = _own_codes(edit, h) if sae is None else sae.encode(h.to(sae.W_enc))
            parts.append((values.cpu(), indices.cpu(), batch.scored[:, :kept].cpu()))
            tokens += [pieces(tokenizer, row) for row in batch.ids[:, :kept].tolist()]
            order += numbers
            progress(len(batch.ids))
    back = torch.tensor(order).argsort()
    longest = max(scored.shape[1] for _, _, scored in parts)

    def whole(n: int) -> Tensor:
        return torch.cat(
            [F.pad(part[n], (0, 0) * (part[n].ndim - 2) + (0, longest - part[n].shape[1])) for part in parts]
        )[back]

    m = 1 + int(edit.indices.max()) if sae is None else sae.config.m
    filled = [[*tokens[row], *[""] * (longest - len(tokens[row]))] for row in back.tolist()]
    return Contexts(PromptCodes(whole(0), whole(1), whole(2), m), filled)


def _own_codes(edit: SAEEdit, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and indices `[B, T, k]` of the edit's neurons."""
    here = edit.to(h.device)
    preacts = here.after_lead(preactivations(h.float(), here.W_enc, here.b_enc, here.b_pre))
    values = threshold_codes(preacts, here.threshold)
    return values, here.indices.expand(values.shape)


@torch.no_grad()
def unconditional_changes(pipe: Pipeline, prompt: str) -> bool:
    """Return whether the attached erasers change the unconditional branch that is encoded with `prompt`."""

    def unconditional() -> list[Tensor]:
        encoded = encode_prompt(pipe, prompt, guidance=True)
        of_prompt = {id(t) for t in conditional(pipe, encoded)}
        return [t for t in tensors_of(encoded) if t.is_floating_point() and id(t) not in of_prompt]

    edited = unconditional()
    with unedited():
        plain = unconditional()
    return any(not torch.equal(new, old) for new, old in zip(edited, plain, strict=True))


@torch.no_grad()
def prediction_changes(
    pipe: Pipeline, prompts: Sequence[str], steps: int, progress: Progress = lambda done: None
) -> Iterator[float]:
    """Yield by how much the attached erasers change the denoiser's prediction for each prompt.

    This is the largest relative L2 change over the first half of `steps` steps, starting from the same noise.
    """
    for prompt in prompts:
        edited = denoiser_predictions(pipe, prompt, steps)
        with unedited():
            plain = denoiser_predictions(pipe, prompt, steps)
        yield max((shift(new, old) for new, old in zip(edited, plain, strict=True)), default=0.0)
        progress(1)
