"""The canary: what the denoiser reads for a prompt, and by how much an edit moves every part of it."""

from __future__ import annotations

import inspect
import math
from contextlib import suppress
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from excise.erasers.hooks.known_vectors import KnownVectors
from excise.erasers.hooks.wrapping import Passage, install, remove
from excise.errors import WrongModel
from excise.pipeline import Pipeline, as_diffusers
from excise.sites.denoiser import denoiser_of
from excise.sites.encoding import Enough, encode_prompt, tensors_of


@torch.no_grad()
def what_denoiser_reads(pipe: Pipeline, prompt: str) -> list[Tensor]:
    """Every floating tensor that the pipeline's own `encode_prompt` gives for `prompt`: states, pooled vectors, and
    whatever else stands beside them.

    With guidance, as pictures are made: a pipeline that encodes the unconditional prompt first must not pass.
    """
    return [t for t in tensors_of(encode_prompt(pipe, prompt, guidance=True)) if t.is_floating_point()]


def what_denoiser_predicts(pipe: Pipeline, prompt: str, steps: int) -> list[Tensor]:
    """What the first denoiser gives at every step of the first half of a picture of `prompt`, always the same one; of
    a grey picture made over, where the pipeline starts from one.

    Raises ExciseError where the pipeline wants something else beside a prompt.
    """
    denoiser, peek = denoiser_of(pipe)[1], _Peek(steps // 2 + steps % 2)
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
            f"{type(pipe).__name__} cannot draw an eraser's canary prompt ({error}); attach it to the text-to-image "
            "pipeline of the same components, before this one is used"
        ) from error
    finally:
        remove(denoiser, peek)
        as_diffusers(pipe)._progress_bar_config = shown
    return peek.made


def _blank(pipe: Pipeline) -> dict[str, Any]:
    """Grey pictures for all that a pipeline wants to see beside the prompt, made over from pure noise on."""
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
    """Keeps what a denoiser gives, compiled or not, until it is enough."""

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
    """Numbers of the tensors that differ between two prompts: the others hold no text (position ids, the
    unconditional states)."""
    pairs = zip(plain, other, strict=False)
    return [n for n, (a, b) in enumerate(pairs) if a.shape != b.shape or not torch.equal(a, b)]


def shifts(edited: Tensor, plain: Tensor, vectors: KnownVectors | None) -> dict[str, float]:
    """By part of the states how far it moved: its label, and |edited - plain| / |plain|.

    A part is the columns that the vectors of one encoder or layer fill, by the known vectors of the edited run.
    Without known vectors the whole is one part. A part that no edited encoder made counts as not moved.
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


def shift(edited: Tensor, plain: Tensor) -> float:
    """|edited - plain| / |plain|, 0 where nothing changed; NaN counts as no change, since it proves nothing."""
    a, b = edited.double(), plain.double()
    relative = float((a - b).norm() / b.norm().clamp(min=1e-12))
    return relative if math.isfinite(relative) else 0.0
