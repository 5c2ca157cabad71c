"""One change at one block of the denoiser: turn down what a few SAE neurons write, step by step (SAeUron, SAEmnesia).

Shapes: a block's patches x `[B, N, d]`, k edited neurons, W_enc and W_dec `[k, d]`, codes z `[B, N, k]`, S steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from excise.erasers.choices import BlockGate, Steps
from excise.erasers.edits.base import StepInfo
from excise.erasers.edits.sae_rows import ROWS, Rows, check_choices, preactivations, topk_codes
from excise.erasers.edits.text_sae import threshold_codes
from excise.errors import ExciseError, InvalidSetting
from excise.sites.site import DENOISERS, Site

TABLES = ("level", "gate", "cut")
BLOCK_TENSORS = (*ROWS, "timesteps", *TABLES)
BLOCK_CHOICES: dict[str, tuple[str, ...]] = {"codes": get_args(BlockGate), "steps": get_args(Steps)}


def ablated(codes: Tensor, level: Tensor, gate: Tensor, gamma: float) -> Tensor:
    """z_i ← γ μ_i(t, D_c) z_i where z_i > gate_i, else z_i: codes `[..., k]`, `level` μ and `gate` `[..., k]`."""
    return torch.where(codes > gate, gamma * level * codes, codes)


class Opened:
    """Which pictures opened at an earlier step of their drawing, so that they stay open until it ends.

    At the first step it is the prompt that decides what a block's neurons do; later on the picture does too, and a
    style that nobody asked for can be as loud as one that was.
    """

    MOST_RUNS = 1024
    """At one timestep: with more of them it is a timestep that drawings begin and end at."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Another picture is about to be drawn."""
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._at_first: Counter[int] = Counter()
        self._runs: Counter[int] = Counter()
        self._first = self._now = math.inf

    def joined(self, mask: Tensor, timestep: float) -> Tensor:
        """`mask` `[B, k]` of this step, or'ed with that of the same pictures at the step before.

        A timestep above the last one begins another drawing too. Where a denoiser runs several times a step (branches
        of guidance, tiles), each run goes on from its own: the n-th of its batch size.
        """
        if timestep > self._now or self._runs.total() >= self.MOST_RUNS:
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
            self._masks[size, run] = mask
            return mask
        if size in self._at_first:
            # A sampler may take one timestep twice (PNDM, Heun): then the runs begin anew.
            run %= self._at_first[size]
            self._masks[size, run] = mask = mask | self._masks[size, run]
            return mask
        return self._of_another_size(mask, run)

    def _of_another_size(self, mask: Tensor, run: int) -> Tensor:
        """`mask` of a run whose batch had another size at the first step.

        Half of it: the unconditional pictures, which come first, are left out from this step on, or for this one run
        (guidance switched off midway; SD 3's skip-layer guidance). Any other change: what was open anywhere is.
        """
        size = len(mask)
        if 2 * size in self._at_first:
            its = 2 * size, run % self._at_first[2 * size]
            whole = self._masks[its]
            mask = mask | whole[size:]
            self._masks[its] = torch.cat([whole[:size], mask])
            return mask
        return mask | torch.cat(list(self._masks.values())).any(0)


@dataclass(frozen=True, eq=False)
class BlockEdit(Rows):
    """Turn down k neurons of an SAE at a denoiser's block. Carries only their rows and their levels at each step.

    Raises ExciseError on construction for shapes that do not fit, values that are not finite or unknown options.
    """

    timesteps: Tensor
    """`[S]`: what the denoiser was told at each step when the levels were measured, falling."""
    level: Tensor
    """`[S, k]`: μ_i(t, D_c), a neuron's mean code at that step over pictures of the concept."""
    gate: Tensor
    """`[S, k]`: a code up to this is left alone; infinity where the neuron is not edited at that step."""
    cut: Tensor
    """`[S, k]`, in TopK's stead: codes up to this read as silence, patch by patch ("threshold") or by their mean over a
    picture's patches ("whole")."""
    gamma: float = -1.0
    """The paper's multiplier γ."""
    codes: BlockGate = "threshold"
    """How codes are read from patches: in pictures that are open as a whole, from the step on at which they opened; or
    patch by patch, against a calibrated threshold or by the exact TopK ("topk"), which needs the SAE at attach."""
    steps: Steps = "exact"
    """At a timestep that was not measured: refuse ("exact"), or use the levels of the nearest one ("nearest")."""
    compat: bool = False
    """Behave as the code that was published with the papers: its error term has the wrong sign, so that what comes out
    is 2 x̂ - x even where nothing is edited. Needs the whole SAE."""

    kind: ClassVar[str] = "block"
    SAVED: ClassVar[Mapping[str, type]] = {
        "gamma": float,
        "compat": bool,
        "sae_digest": str,
        **dict.fromkeys(BLOCK_CHOICES, str),
    }

    def __post_init__(self) -> None:
        if self.site.part != "denoiser":
            raise InvalidSetting(f"{self.site.key} is no block of a denoiser; name one of {', '.join(DENOISERS)}")
        check_choices(self, BLOCK_CHOICES)
        if not math.isfinite(self.gamma):
            raise InvalidSetting(f"γ is {self.gamma}; it must be a number")
        k, count = len(self.indices), len(self.timesteps)
        self.check_rows({"timesteps": (count,), **dict.fromkeys(TABLES, (count, k))}, infinite=("gate",))
        if count == 0 or not bool((self.timesteps.diff() < 0).all()):
            raise ExciseError("an edit needs at least one timestep, each below the one before")

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by field name, as they are saved."""
        return {name: getattr(self, name) for name in BLOCK_TENSORS}

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> BlockEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, **{**saved, **{name: take(name) for name in BLOCK_TENSORS}})

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the Site and the tensors, as json."""
        return {**{name: getattr(self, name) for name in ("codes", "steps", "compat")}, "gamma": float(self.gamma)}

    @property
    def trial_steps(self) -> int:
        """With how many steps a picture has to be drawn that proves it."""
        return len(self.timesteps)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "gamma", self.gamma

    @property
    def needs_sae(self) -> bool:
        """Whether the whole SAE must be given when attaching."""
        return self.codes == "topk" or self.compat

    def step_of(self, timestep: float, drawing: bool = True) -> int:
        """The row of the tables that counts at `timestep`. Raises ExciseError where none does (steps="exact"), unless
        it is no drawing's."""
        known = self.timesteps.tolist()
        falling = [-t for t in known]
        at = bisect_left(falling, -timestep)
        near = min((n for n in (at - 1, at) if 0 <= n < len(known)), key=lambda n: abs(known[n] - timestep))
        if drawing and self.steps == "exact" and abs(known[near] - timestep) > 1e-3 * max(1.0, abs(timestep)):
            raise ExciseError(
                f"timestep {timestep:g} is none of the {len(known)} that {self.site.key} was measured at; draw with "
                f"{len(known)} steps and the same scheduler, or fit the eraser with at_other_steps=nearest"
            )
        return near

    def read(
        self, x: Tensor, steps: list[int], sae: Any | None = None, opened: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """z `[B, N, k]` of patches `x` `[B, N, d]`, float32 or better, at the tables' rows `steps`, of every picture or
        one for all. `opened` may turn the mask `[B, k]` of pictures that open at this step (codes="whole") into that of
        all that are open.

        Raises ExciseError where the width is another, or the SAE is missing.
        """
        if x.ndim != 3 or x.shape[-1] != self.site.width:
            raise ExciseError(f"{self.site.key} gave patches of shape {tuple(x.shape)}, not [B, N, {self.site.width}]")
        dtype = torch.promote_types(x.dtype, torch.float32)
        if self.codes == "topk":
            values, indices = self._whole(sae).encode(x.reshape(-1, x.shape[-1]).to(sae.W_enc))  # type: ignore[union-attr]
            z = topk_codes(values, indices, self.indices.to(indices.device))
            return z.reshape(*x.shape[:2], -1).to(x.device, dtype)
        preacts = preactivations(x.to(dtype), self.W_enc.to(dtype), self.b_enc.to(dtype), self.b_pre.to(dtype))
        cut = self.cut[steps].to(preacts).clamp(min=0)
        if self.codes == "threshold":
            return threshold_codes(preacts, cut[:, None])
        z = preacts.clamp(min=0)
        mask = z.mean(1) > cut
        mask = mask if opened is None else opened(mask)
        return torch.where(mask[:, None], z, torch.zeros_like(z))

    def delta(
        self,
        x: Tensor,
        strength: float = 1.0,
        *,
        step: StepInfo,
        sae: Any | None = None,
        opened: Opened | None = None,
    ) -> Tensor | None:
        """What is subtracted from patches `x` `[B, N, d]`, float32 or better; None where every bit is left alone.

        strength · Σ_i (z_i - z'_i) W_dec[i], z' as `ablated` gives it: the SAE's own error stays in x. Patches in which
        no edited neuron is above its gate are left alone, bit for bit. `opened` remembers pictures from step to step.
        """
        timesteps, drawing = step
        if len(timesteps) not in (1, len(x)):
            raise ExciseError(
                f"the denoiser was told {len(timesteps)} timesteps for {len(x)} pictures; tell it one each"
            )
        steps = [self.step_of(timestep, drawing) for timestep in timesteps]
        if strength == 0 or not (self.compat or bool(self.gate[steps].isfinite().any())):
            return None
        latch = None if opened is None or not drawing else lambda mask: opened.joined(mask, timesteps[0])
        with torch.autocast(x.device.type, enabled=False):
            z = self.read(x, steps, sae, latch)
            level, gate = (table[steps][:, None].to(z) for table in (self.level, self.gate))
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
