"""One change at one block of the denoiser: turn down what a few SAE neurons write, step by step (SAeUron, SAEmnesia).

Shapes: a block's patches x `[B, N, d]`, k edited neurons, W_enc and W_dec `[k, d]`, codes z `[B, N, k]`, S steps.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from excise.erasers.edit import SAEEdit, preactivations, sae_digest, topk_codes
from excise.errors import ExciseError
from excise.sites.blocks import DENOISERS
from excise.sites.site import Site

BlockGate = Literal["threshold", "topk"]
Steps = Literal["exact", "nearest"]

ROWS = ("indices", "W_enc", "b_enc", "b_pre", "W_dec")
TABLES = ("level", "gate", "cut")
BLOCK_TENSORS = (*ROWS, "timesteps", *TABLES)
BLOCK_CHOICES: dict[str, tuple[str, ...]] = {"codes": get_args(BlockGate), "steps": get_args(Steps)}


def ablated(codes: Tensor, level: Tensor, gate: Tensor, gamma: float) -> Tensor:
    """z_i ← γ μ_i(t, D_c) z_i where z_i > gate_i, else z_i: codes `[..., k]`, `level` μ and `gate` `[k]`."""
    return torch.where(codes > gate, gamma * level * codes, codes)


@dataclass(frozen=True, eq=False)
class BlockEdit:
    """Turn down k neurons of an SAE at a denoiser's block. Carries only their rows and their levels at each step.

    Raises ExciseError on construction for shapes that do not fit, values that are not finite or unknown options.
    """

    site: Site
    indices: Tensor
    """`[k]` int64: the neurons' numbers in the SAE."""
    W_enc: Tensor
    """`[k, d]`"""
    b_enc: Tensor
    """`[k]`"""
    b_pre: Tensor
    """`[d]`"""
    W_dec: Tensor
    """`[k, d]`"""
    timesteps: Tensor
    """`[S]`: what the denoiser was told at each step when the levels were measured, falling."""
    level: Tensor
    """`[S, k]`: μ_i(t, D_c), a neuron's mean code at that step over pictures of the concept."""
    gate: Tensor
    """`[S, k]`: a code up to this is left alone; infinity where the neuron is not edited at that step."""
    cut: Tensor
    """`[S, k]`: pre-activations up to this read as silence (codes="threshold"), in TopK's stead."""
    gamma: float = -1.0
    """The paper's multiplier γ."""
    codes: BlockGate = "threshold"
    """How codes are read from patches: against a calibrated threshold, or by the exact TopK ("topk"), which needs the
    whole SAE at attach."""
    steps: Steps = "exact"
    """At a timestep that was not measured: refuse ("exact"), or use the levels of the nearest one ("nearest")."""
    compat: bool = False
    """Behave as the code that was published with the papers: its error term has the wrong sign, so that what comes out
    is 2 x̂ - x even where nothing is edited. Needs the whole SAE."""
    sae_digest: str = ""
    """`sae_digest` of the SAE the rows came from."""

    def __post_init__(self) -> None:
        if self.site.component not in DENOISERS:
            raise ExciseError(f"{self.site.key} is no block of a denoiser; name one of {', '.join(DENOISERS)}")
        for name, allowed in BLOCK_CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ExciseError(f"{name} cannot be {getattr(self, name)!r}; it is one of {', '.join(allowed)}")
        if not math.isfinite(self.gamma):
            raise ExciseError(f"γ is {self.gamma}; it must be a number")
        k, d, count = len(self.indices), self.site.width, len(self.timesteps)
        shapes: dict[str, tuple[int, ...]] = {"indices": (k,), "b_enc": (k,), "b_pre": (d,), "timesteps": (count,)}
        shapes |= {"W_enc": (k, d), "W_dec": (k, d), **dict.fromkeys(TABLES, (count, k))}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ExciseError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, not {shape}, for {k} neurons at "
                    f"{self.site} and {count} steps; they do not belong together"
                )
        if k == 0 or len(set(self.indices.tolist())) != k or int(self.indices.min()) < 0:
            raise ExciseError("an edit needs at least one neuron, each named once by a number of at least 0")
        for name, tensor in self.tensors().items():
            if name != "gate" and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ExciseError(f"{name} holds values that are not finite numbers; fit the eraser again")
        if bool(self.gate.isnan().any()):
            raise ExciseError("gate holds values that are not numbers; fit the eraser again")
        if count == 0 or not bool((self.timesteps.diff() < 0).all()):
            raise ExciseError("an edit needs at least one timestep, each below the one before")

    @classmethod
    def from_sae(cls, sae: Any, site: Site, indices: list[int], **options: Any) -> BlockEdit:
        """The edit of neurons `indices` of `sae` at `site`; `options` are this class's other fields.

        Raises ExciseError where the SAE has no such neuron or another width.
        """
        m, d = sae.W_enc.shape
        if d != site.width:
            raise ExciseError(f"the SAE is {d} wide, {site.key} {site.width}; use the SAE trained at this Site")
        if bad := [i for i in indices if not 0 <= i < m]:
            raise ExciseError(f"the SAE has {m} neurons, numbered from 0; there is no {bad[0]}")
        rows = torch.tensor(indices, dtype=torch.int64)

        def own(tensor: Tensor) -> Tensor:
            return tensor.detach().to("cpu", torch.float32).clone().contiguous()

        parts: dict[str, Any] = {
            name: own(getattr(sae, name)[rows.to(sae.W_enc.device)]) for name in ("W_enc", "b_enc", "W_dec")
        }
        return cls(site=site, indices=rows, b_pre=own(sae.b_pre), sae_digest=sae_digest(sae), **parts, **options)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by field name, as they are saved."""
        return {name: getattr(self, name) for name in BLOCK_TENSORS}

    def to(self, device: torch.device) -> BlockEdit:
        """The same edit with its tensors on `device`."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the Site and the tensors, as json."""
        return {**{name: getattr(self, name) for name in ("codes", "steps", "compat")}, "gamma": float(self.gamma)}

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "gamma", self.gamma

    @property
    def needs_sae(self) -> bool:
        """Whether the whole SAE must be given when attaching."""
        return self.codes == "topk" or self.compat

    def step_of(self, timestep: float) -> int:
        """The row of the tables that counts at `timestep`. Raises ExciseError where none does (steps="exact")."""
        known = self.timesteps.tolist()
        falling = [-t for t in known]
        at = bisect_left(falling, -timestep)
        near = min((n for n in (at - 1, at) if 0 <= n < len(known)), key=lambda n: abs(known[n] - timestep))
        if self.steps == "exact" and abs(known[near] - timestep) > 1e-3 * max(1.0, abs(timestep)):
            raise ExciseError(
                f"timestep {timestep:g} is none of the {len(known)} that {self.site.key} was measured at; draw with "
                f'{len(known)} steps and the same scheduler, or fit the eraser with steps="nearest"'
            )
        return near

    def read(self, x: Tensor, step: int, sae: Any | None = None) -> Tensor:
        """z `[B, N, k]` of patches `x` `[B, N, d]`, float32 or better.

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
        return torch.where(preacts > self.cut[step].to(preacts).clamp(min=0), preacts, torch.zeros_like(preacts))

    def delta(self, x: Tensor, strength: float = 1.0, *, timestep: float, sae: Any | None = None) -> Tensor | None:
        """What is subtracted from patches `x` `[B, N, d]`, float32 or better; None where every bit is left alone.

        strength · Σ_i (z_i - z'_i) W_dec[i], z' as `ablated` gives it: the SAE's own error stays in x. Patches in which
        no edited neuron is above its gate are left alone, bit for bit.
        """
        step = self.step_of(timestep)
        if strength == 0 or not (self.compat or bool(self.gate[step].isfinite().any())):
            return None
        with torch.autocast(x.device.type, enabled=False):
            z = self.read(x, step, sae)
            turned = ablated(z, self.level[step].to(z), self.gate[step].to(z), self.gamma)
            delta = (strength * (z - turned)) @ self.W_dec.to(z.dtype)
            if self.compat:
                whole = self._whole(sae)
                made = whole.decode(whole.encode(x.to(whole.W_enc))).to(z)
                delta = delta + strength * 2 * (x.to(z.dtype) - made)
        return delta

    def _whole(self, sae: Any | None) -> Any:
        if sae is None:
            raise ExciseError("this edit needs the whole SAE; give it as attach(pipe, sae=...)")
        return sae


Edit = SAEEdit | BlockEdit
