"""An edit of one denoiser block: turn down what a few SAE neurons write, at every step (SAeUron, SAEmnesia).

Shapes: a block's patches x `[B, N, d]`, k edited neurons, W_enc and W_dec `[k, d]`, codes z `[B, N, k]`, S steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor

from excise.erasers.choices import BlockGate, Steps
from excise.erasers.edits.base import StepInfo, rows_at
from excise.erasers.edits.sae_rows import ROWS, Rows, check_choices, preactivations, topk_codes
from excise.erasers.edits.text_sae import threshold_codes
from excise.erasers.gates import surrogate
from excise.errors import ExciseError, InvalidSetting
from excise.sites.site import DENOISERS, Site

if TYPE_CHECKING:
    from typing_extensions import Self

TABLES = ("level", "gate", "cut")
BLOCK_TENSORS = (*ROWS, "timesteps", *TABLES)
BLOCK_CHOICES: dict[str, tuple[str, ...]] = {"codes": get_args(BlockGate), "steps": get_args(Steps)}


def ablated(codes: Tensor, level: Tensor, gate: Tensor, gamma: float) -> Tensor:
    """Return γ μ_i(t, D_c) z_i where z_i > gate_i, else z_i. `codes` z, `level` μ and `gate` are `[..., k]`."""
    return torch.where(codes > gate, gamma * level * codes, codes)


class OpenGates:
    """Images whose gate opened at an earlier denoising step. It stays open until the end of the generation.

    At the first step only the prompt decides how a block's neurons fire. Later the image does too, and a style that the
    prompt does not name can fire as strongly as one that it names.
    """

    MOST_RUNS = 1024
    """Maximal runs at one timestep. With more of them, it is a timestep at which every generation begins and ends."""

    def __init__(self, *, rising: bool = True) -> None:
        """With `rising`, a timestep above the last one begins another generation."""
        self.rising = rising
        self.begin()

    def begin(self) -> None:
        """Close all gates for another generation."""
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._at_first: Counter[int] = Counter()
        self._runs: Counter[int] = Counter()
        self._first = self._now = math.inf
        self.latest = (0, 0), 0
        """Where the latest mask is kept: its key, and its first row there."""

    def across(self, mask: Tensor, step: StepInfo) -> Tensor:
        """Return `joined`. A call that does not belong to a generation keeps its mask, and opens no gate for later."""
        return self.joined(mask, step.timesteps[0]) if step.drawing else mask

    def joined(self, mask: Tensor, timestep: float) -> Tensor:
        """Return `mask` `[B, k]` of this step, or'ed with that of the same images at the step before.

        If a denoiser runs several times a step (branches of guidance, tiles), each run continues the mask of the n-th
        run of its batch size.
        """
        if (self.rising and timestep > self._now) or self._runs.total() >= self.MOST_RUNS:
            self.begin()
        if timestep != self._now:
            self._runs.clear()
        if not self._masks:
            self._first = timestep
        self._now = timestep
        size = len(mask)
        run = self._runs[size]
        self._runs[size] += 1
        if timestep == self._first:
            self._at_first[size] += 1
            return self._kept(mask, (size, run))
        if size in self._at_first:
            # A sampler may use a timestep twice (PNDM, Heun): then the runs start over.
            run %= self._at_first[size]
            return self._kept(mask | self._masks[size, run].to(mask.device), (size, run))
        return self._of_another_size(mask, run)

    def _of_another_size(self, mask: Tensor, run: int) -> Tensor:
        """Return the joined `mask` of a run whose batch had another size at the first step.

        If the size is half, the unconditional images, which come first, are left out from this step on or for this one
        run (guidance switched off midway; SD 3's skip-layer guidance). After any other change, a neuron that was open
        for some image is open for all.
        """
        size = len(mask)
        if 2 * size in self._at_first:
            key = 2 * size, run % self._at_first[2 * size]
            whole = self._masks[key].to(mask.device)
            mask = mask | whole[size:]
            self._masks[key], self.latest = torch.cat([whole[:size], mask]), (key, size)
            return mask
        some = torch.cat([kept.to(mask.device) for kept in self._masks.values()]).any(0)
        return self._kept(mask | some, (size, run))

    def _kept(self, mask: Tensor, key: tuple[int, int]) -> Tensor:
        self._masks[key], self.latest = mask, (key, 0)
        return mask


@dataclass(frozen=True, eq=False)
class BlockEdit(Rows):
    """An edit that turns down k SAE neurons at a denoiser's block. It holds only their rows and their levels by step.

    Raises ExciseError on construction for shapes that do not fit, values that are not finite or unknown options.
    """

    timesteps: Tensor
    """`[S]`: the timesteps at which the levels were measured, decreasing."""
    level: Tensor
    """`[S, k]`: μ_i(t, D_c), a neuron's mean code at that step over images of the concept."""
    gate: Tensor
    """`[S, k]`: a code up to this is left alone. Infinity where the neuron is not edited at that step."""
    cut: Tensor
    """`[S, k]`: threshold up to which codes count as 0, instead of TopK. It is compared with each patch ("threshold")
    or with the mean over an image's patches ("whole")."""
    gamma: float = -1.0
    """The paper's multiplier γ."""
    codes: BlockGate = "threshold"
    """How codes are read from patches. "whole" reads them in images whose gate is open, from the step at which it
    opened. "threshold" compares each patch with a calibrated threshold. "topk" is exact, and needs the SAE at attach
    time."""
    steps: Steps = "exact"
    """At a timestep that was not measured, refuse ("exact") or use the levels of the nearest one ("nearest")."""
    compat: bool = False
    """Whether to behave like the papers' published code. Its error term has the wrong sign, so that the output is
    2 x̂ - x even where nothing is edited. Needs the whole SAE."""

    kind: ClassVar[str] = "block"
    SAVED: ClassVar[Mapping[str, type]] = {
        "gamma": float,
        "compat": bool,
        "sae_digest": str,
        **dict.fromkeys(BLOCK_CHOICES, str),
    }

    def __post_init__(self) -> None:
        if self.site.part != "denoiser":
            raise InvalidSetting(f"{self.site.key} is not a block of a denoiser; name one of {', '.join(DENOISERS)}")
        check_choices(self, BLOCK_CHOICES)
        if not math.isfinite(self.gamma):
            raise InvalidSetting(f"γ is {self.gamma}; it must be a number")
        k, count = len(self.indices), len(self.timesteps)
        self.check_rows({"timesteps": (count,), **dict.fromkeys(TABLES, (count, k))}, infinite=("gate",))
        if count == 0 or not bool((self.timesteps.diff() < 0).all()):
            raise ExciseError("an edit needs at least one timestep, each below the one before")

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name, as saved."""
        return {name: getattr(self, name) for name in BLOCK_TENSORS}

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> Self:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, **{**saved, **{name: take(name) for name in BLOCK_TENSORS}})

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        return {**{name: getattr(self, name) for name in ("codes", "steps", "compat")}, "gamma": float(self.gamma)}

    @property
    def trial_steps(self) -> int:
        """Number of steps of the generation that proves it."""
        return len(self.timesteps)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "gamma", self.gamma

    @property
    def needs_sae(self) -> bool:
        """Whether attaching needs the whole SAE."""
        return self.codes == "topk" or self.compat

    @cached_property
    def known_timesteps(self) -> list[float]:
        """Its timesteps as numbers, read from the device once."""
        found: list[float] = self.timesteps.tolist()
        return found

    @cached_property
    def _edited(self) -> list[bool]:
        """Whether a neuron is edited at each of the steps."""
        found: list[bool] = self.gate.isfinite().any(1).tolist()
        return found

    def step_of(self, timestep: float, drawing: bool = True) -> int:
        """Return the row of the tables for `timestep`. In a generation with steps="exact", raise ExciseError if there
        is none."""
        known = self.known_timesteps
        at = bisect_left(known, -timestep, key=lambda t: -t)
        near = min((n for n in (at - 1, at) if 0 <= n < len(known)), key=lambda n: abs(known[n] - timestep))
        if drawing and self.steps == "exact" and abs(known[near] - timestep) > 1e-3 * max(1.0, abs(timestep)):
            raise ExciseError(
                f"timestep {timestep:g} is not among the {len(known)} that {self.site.key} was measured at; generate "
                f"with {len(known)} steps and the same scheduler, or fit the eraser with at_other_steps=nearest"
            )
        return near

    def read(
        self, x: Tensor, steps: list[int], sae: Any | None = None, opened: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the codes z `[B, N, k]` of patches `x` `[B, N, d]`, in float32 or better.

        `steps` are the rows of the tables, one for each image or one for all. With codes="whole", `opened` turns the
        mask `[B, k]` of gates that open at this step into that of all open gates.

        Raises ExciseError if the width differs, or the SAE is missing.
        """
        if x.ndim != 3 or x.shape[-1] != self.site.width:
            raise ExciseError(f"{self.site.key} gave patches of shape {tuple(x.shape)}, not [B, N, {self.site.width}]")
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.codes == "topk":
            values, indices = self._whole(sae).encode(x.reshape(-1, x.shape[-1]).to(sae.W_enc))  # type: ignore[union-attr]
            z = topk_codes(values, indices, self.indices.to(indices.device))
            return z.reshape(*x.shape[:2], -1).to(x.device, dtype)
        preacts = preactivations(x.to(dtype), self.W_enc.to(dtype), self.b_enc.to(dtype), self.b_pre.to(dtype))
        cut = rows_at(self.cut, steps).to(preacts).clamp(min=0)
        if self.codes == "threshold":
            return threshold_codes(preacts, cut[:, None])
        z = preacts.clamp(min=0)
        level = z.mean(1)
        mask = level > cut
        mask = mask if opened is None else opened(mask)
        return surrogate(torch.where(mask[:, None], z, torch.zeros_like(z)), z, level[:, None], cut[:, None])

    def delta(
        self,
        x: Tensor,
        strength: float = 1.0,
        *,
        step: StepInfo,
        sae: Any | None = None,
        opened: OpenGates | None = None,
    ) -> Tensor | None:
        """Return what to subtract from patches `x` `[B, N, d]`, in float32 or better, or None to leave every bit alone.

        It is strength · Σ_i (z_i - z'_i) W_dec[i] with z' = `ablated`, so that the SAE's error stays in x. Patches in
        which no edited neuron is above its gate keep their bits. `opened` remembers open gates from step to step.
        """
        timesteps, drawing = step
        if len(timesteps) not in (1, len(x)):
            raise ExciseError(
                f"the denoiser was given {len(timesteps)} timesteps for {len(x)} images; pass one for each or for all"
            )
        steps = [self.step_of(timestep, drawing) for timestep in timesteps]
        if strength == 0 or not (self.compat or any(self._edited[step] for step in steps)):
            return None
        latch = None if opened is None else lambda mask: opened.across(mask, step)
        with torch.autocast(x.device.type, enabled=False):
            return self.change(x, self.read(x, steps, sae, latch), steps, strength, sae)

    def change(self, x: Tensor, z: Tensor, steps: Sequence[int], strength: float, sae: Any | None) -> Tensor:
        """Return `delta` `[B, N, d]` of patches `x` with codes `z` `[B, N, k]`, at rows `steps` of the tables."""
        level, gate = (rows_at(table, steps)[:, None].to(z) for table in (self.level, self.gate))
        turned = ablated(z, level, gate, self.gamma)
        delta = (strength * (z - turned)) @ self.W_dec.to(z.dtype)
        if self.compat:
            whole = self._whole(sae)
            made = whole.decode(whole.encode(x.to(whole.W_enc))).to(z)
            delta = delta + strength * 2 * (x.to(z.dtype) - made)
        return delta

    def _whole(self, sae: Any | None) -> Any:
        if sae is None:
            raise InvalidSetting("this edit needs the whole SAE; give it as attach(pipe, sae=...)")
        return sae
