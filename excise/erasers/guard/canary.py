"""Canary measurements: what the denoiser reads or predicts for a prompt, and how far an edit moves each part of it."""

from __future__ import annotations

import inspect
from contextlib import suppress
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from excise.erasers.artefact.canary import shift
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.erasers.hooks.unet_call import Around
from excise.erasers.hooks.wrapping import Passage, found_on, install, remove, renew
from excise.errors import WrongModel
from excise.pipeline import Pipeline, as_diffusers
from excise.sites.denoiser import denoiser_of
from excise.sites.encoding import Enough, encode_prompt, tensors_of


@torch.no_grad()
def denoiser_inputs(
    pipe: Pipeline, prompt: str | list[str], guidance: bool = True, device: torch.device | None = None
) -> list[Tensor]:
    """Return every floating-point tensor that the pipeline's `encode_prompt` makes of a prompt, or of several (states,
    pooled vectors and others).

    Guidance is on by default, as when generating: otherwise a pipeline that encodes the unconditional prompt first
    would go unnoticed.
    """
    return [t for t in tensors_of(encode_prompt(pipe, prompt, guidance, device)) if t.is_floating_point()]


def denoiser_predictions(pipe: Pipeline, prompt: str, steps: int) -> list[Tensor]:
    """Return the first denoiser's predictions over the first half of `steps`, from a fixed seed.

    A pipeline that starts from an image is given a grey one.

    Raises:
        WrongModel: if the pipeline needs other inputs than a prompt and images.
    """
    denoiser, peek = denoiser_of(pipe)[1], _Peek(steps // 2 + steps % 2)
    if (around := found_on(denoiser, Around)) is not None:
        renew(denoiser, around)  # before the peek, which must see what the edits make and not what they call
    install(denoiser, peek)
    shown = getattr(pipe, "_progress_bar_config", {})
    as_diffusers(pipe).set_progress_bar_config(disable=True)
    try:
        with suppress(Enough):
            generator = torch.Generator().manual_seed(0)
            how = {"num_inference_steps": steps, "generator": generator, "output_type": "latent"}
            as_diffusers(pipe)(prompt=prompt, **how, **_blank(pipe))
    except (TypeError, ValueError) as error:
        raise WrongModel(
            f"{type(pipe).__name__} cannot generate from an eraser's canary prompt alone ({error}); attach the eraser "
            "to the text-to-image pipeline of the same components before using this one"
        ) from error
    finally:
        remove(denoiser, peek)
        as_diffusers(pipe)._progress_bar_config = shown
    return peek.made


def _blank(pipe: Pipeline) -> dict[str, Any]:
    """Return grey images for every image argument of the pipeline, at full strength: they start from pure noise."""
    takes = inspect.signature(as_diffusers(pipe).__call__).parameters
    config: Any = getattr(denoiser_of(pipe)[1], "config", {})
    side = config.get("sample_size") or 64
    size = (side if isinstance(side, int) else max(side)) * getattr(pipe, "vae_scale_factor", 8)
    given: dict[str, Any] = {
        name: Image.new(mode, (size, size), grey)
        for name, mode, grey in (
            ("image", "RGB", 0x808080),
            ("control_image", "RGB", 0x808080),
            ("mask_image", "L", 255),
        )
        if name in takes
    }
    return {**given, "strength": 1.0} if given and "strength" in takes else given


class _Peek(Passage):
    """Hook that collects a denoiser's predictions, compiled or not, and raises `Enough` when it has `wanted` of
    them."""

    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted, self.made = wanted, list[Tensor]()

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return self.through_prediction(output)

    def passed(self, state: Tensor) -> Tensor:
        self.made.append(state.clone())
        if len(self.made) >= self.wanted:
            raise Enough
        return state


def text_states(plain: list[Tensor], other: list[Tensor]) -> list[int]:
    """Return the indices of the tensors that differ between two prompts. The others hold no text: position ids, or the
    unconditional states."""
    pairs = zip(plain, other, strict=False)
    return [n for n, (a, b) in enumerate(pairs) if a.shape != b.shape or not torch.equal(a, b)]


def shifts(edited: Tensor, plain: Tensor, vectors: KnownVectors | None) -> dict[str, float]:
    """Return |edited - plain| / |plain| by part of the states.

    A part is the columns filled by one encoder's or layer's vectors, found by the known vectors of the edited run.
    Without known vectors, all states are one part. Positions that no edited encoder made count as not moved.
    """
    if vectors is None:
        return {"the states": shift(edited, plain)}
    rows, others = edited.flatten(0, -2), plain.flatten(0, -2)
    parts: dict[tuple[int, int], list[Tensor]] = {}
    seen = 0
    for numbers, made_of, _ in vectors.pieces(rows):
        seen += len(numbers)
        for part in made_of:
            parts.setdefault(part, []).append(numbers)
    moved = {}
    for (start, width), found in parts.items():
        at = torch.cat(found)
        columns = slice(start, start + width)
        moved[f"columns {start} to {start + width - 1}"] = shift(rows[at, columns], others[at, columns])
    if seen < len(rows):
        moved[f"{len(rows) - seen} of {len(rows)} positions"] = 0.0
    return moved
