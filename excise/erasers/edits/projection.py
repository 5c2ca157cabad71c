"""Words near a concept, projected out of what a U-Net is told of a prompt (SAFREE)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers.apply.conditioning import ConditionHook, Instead
from excise.erasers.edits.base import Tensors
from excise.erasers.hooks.unet_call import Proceed, Run, Said
from excise.errors import ExciseError
from excise.sites.blocks import denoiser_of
from excise.sites.site import Site, encoder_of, tokenizer_of


@dataclass(frozen=True, eq=False)
class ProjectionEdit(Tensors):
    """Words near a concept are projected out of its subspace and into that of the prompt's other words (SAFREE)."""

    site: Site
    """Of the whole U-Net."""
    concept: Tensor
    """`[n, d]`: the concept's phrases, each as its EOS state."""
    alpha: float = 0.01
    """α: a word counts as the concept's where the prompt without it is farther from the concept by this share."""
    most: int = 10
    """Steps that the projected states are told at most, of a prompt that is all concept; 0: in all steps, always."""
    reattention: float = 1.0
    """What low frequencies are multiplied by in skip connections where they grew by the projection; 1: left alone."""
    midpoint: float = 5.333
    steepness: float = 2.5
    """Of the curve from how much a prompt is changed to how many steps."""

    kind: ClassVar[str] = "projection"
    TENSORS: ClassVar[tuple[str, ...]] = ("concept",)
    deed: ClassVar[str] = "a projection of its words out of what its U-Net is told of a prompt"
    SAVED: ClassVar[Mapping[str, type]] = {
        "alpha": float,
        "most": int,
        "reattention": float,
        "midpoint": float,
        "steepness": float,
    }
    trial_steps: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self.check_finite()
        if self.concept.ndim != 2 or not len(self.concept) or min(self.alpha, self.most, self.reattention) < 0:
            raise ExciseError("a projection needs phrases' states [n, d]; alpha, most and reattention at least 0")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> ProjectionEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("concept"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "alpha", self.alpha

    def projected(self, states: Tensor, without: Tensor) -> tuple[Tensor, Tensor]:
        """`[T, d]` of a prompt's `states` of that shape, and `[n]` which of its n words were replaced.

        `without` `[n, d]` are EOS states of the prompt without its i-th word. Word i is the concept's where
        |(I - P_C) without_i| exceeds the mean of the others' by a share α; its state s becomes (I - P_C) P_I s, where
        P_C projects on the span of the concept's phrases and P_I on that of `without` (eqs. 2-5).
        """
        own, masked = states.double(), without.double()
        off = masked - masked @ projection(self.concept.double())
        distance = off.norm(dim=1)
        others = (distance.sum() - distance) / max(1, len(distance) - 1)
        hit = distance >= (1 + self.alpha) * others if len(distance) > 1 else off.new_ones(1, dtype=torch.bool)
        inside = own @ projection(masked)
        safe = inside - inside @ projection(self.concept.double())
        chosen = own.new_zeros(len(own), dtype=torch.bool)
        chosen[1 : 1 + len(hit)] = hit
        return torch.where(chosen[:, None], safe, own).to(states.dtype), hit

    def steps(self, states: Tensor, without: Tensor) -> int | None:
        """In how many first steps the projected states are told (self-validating filtering, eq. 7).

        round(most · σ(2k (10 z - t))), z one minus the mean cosine between the words' states and what they become
        where all of them are projected; and the step at which that ends counts too, as in the authors' code.
        """
        if self.most == 0:
            return None
        own, count = states.double(), len(without)
        inside = own @ projection(without.double())
        safe = inside - inside @ projection(self.concept.double())
        words = slice(0, count + 2)  # BOS and EOS among them
        z = 1 - F.cosine_similarity(own[words], safe[words], dim=1).mean().item()
        share = 1 / (1 + math.exp(-2 * self.steepness * (10 * z - self.midpoint)))
        return round(self.most * share) + 1


def projection(rows: Tensor) -> Tensor:
    """`[d, d]`: the orthogonal projection on the span of `rows` `[n, d]`."""
    made: Tensor = torch.linalg.pinv(rows) @ rows
    return made


class ProjectionHook(ConditionHook):
    """A projection at work."""

    edit: ProjectionEdit

    def instead(self, said: Said) -> Instead | None:
        without = eos_without_each(self.attachment.pipe, said.text).to(said.states.device)
        if not len(without):
            return None
        concept = self.edit.to(said.states.device)
        states, hit = concept.projected(said.states.float(), without)
        return Instead(states, concept.steps(said.states.float(), without)) if bool(hit.any()) else None

    def drawn(self, run: Run, states: Tensor, rows: list[int], proceed: Proceed) -> Any:
        if self.edit.reattention == 1.0:
            return super().drawn(run, states, rows, proceed)
        unet: Any = denoiser_of(self.attachment.pipe, self.edit.site.component)[1]
        plain: dict[int, tuple[Tensor, ...]] = {}

        def keep(n: int, skips: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            plain[n] = skips
            return skips

        def attend(n: int, skips: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            changed = tuple(skip.clone() for skip in skips)
            for skip, before in zip(changed, plain[n], strict=True):
                skip[rows] = reattended(skip[rows], before[rows], self.edit.reattention)
            return changed

        with skipping(unet, keep):
            proceed(run)
        with skipping(unet, attend):
            return proceed(run.told(states))


def reattended(safe: Tensor, plain: Tensor, share: float) -> Tensor:
    """Features `[B, C, h, w]` of the projected prompt: low frequencies that are stronger than in `plain`, the prompt's
    own, times `share` (SAFREE, eqs. 8-10). Low are those next to the constant one, as in FreeU."""
    own, other = (torch.fft.fft2(features.float()) for features in (safe, plain))
    # Frequencies 0 and -1 of both axes, where a transform that is not shifted has them.
    low = torch.zeros(own.shape[-2:], dtype=torch.bool, device=own.device)
    low[0, 0] = low[0, -1] = low[-1, 0] = low[-1, -1] = True
    own = torch.where(low & (own.abs() > other.abs()), share * own, own)
    made: Tensor = torch.fft.ifft2(own).real.to(safe.dtype)
    return made


@contextmanager
def skipping(unet: Any, change: Callable[[int, tuple[Tensor, ...]], tuple[Tensor, ...]]) -> Iterator[None]:
    """Within it every up block reads what `change` makes of its number and its skip connections."""

    def before(n: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "res_hidden_states_tuple": change(n, kwargs["res_hidden_states_tuple"])}

        return hook

    handles = [block.register_forward_pre_hook(before(n), with_kwargs=True) for n, block in enumerate(unet.up_blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def eos_states(pipe: Any, ids: Tensor) -> Tensor:
    """`[n, d]` float32: EOS states of token rows `[n, T]`, after the last norm; the encoder's "pooled" output."""
    encoder: Any = encoder_of(pipe, "text_encoder")
    states = encoder(ids.to(next(encoder.parameters()).device)).last_hidden_state
    eos: int = tokenizer_of(pipe, "text_encoder").eos_token_id
    # The first one: where PAD is EOS too, the others follow it.
    at = (ids == eos).int().argmax(1).to(states.device)
    made: Tensor = states[torch.arange(len(ids), device=states.device), at].float()
    return made


def eos_without_each(pipe: Any, text: str) -> Tensor:
    """`[n, d]`: of a prompt of n words (tokens) the EOS state without the i-th, which id 0 stands in for, as in the
    authors' code."""
    tokenizer: Any = tokenizer_of(pipe, "text_encoder")
    ids = tokenizer(text, truncation=True, return_tensors="pt").input_ids
    count = ids.shape[1] - 2
    if count < 1:
        return torch.zeros(0, 1)
    each = ids.repeat(count, 1)
    each[torch.arange(count), torch.arange(count) + 1] = 0
    return eos_states(pipe, each)
