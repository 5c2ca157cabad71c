"""An edit of one text-encoder Site: subtract what a few SAE neurons write (SNCE, eqs. 8-9).

Shapes: h `[B, T, d]`, k edited neurons, W_enc and W_dec `[k, d]` (a neuron is a row in both), codes z `[B, T, k]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from torch import Tensor

from excise.erasers.choices import Align, Gate, Source, Uncond
from excise.erasers.edits.base import Branch, without
from excise.erasers.edits.sae_rows import ROWS, Rows, check_choices, preactivations, topk_codes
from excise.erasers.gates import passed, surrogate
from excise.errors import ExciseError, InvalidSetting
from excise.sites.site import Site

if TYPE_CHECKING:
    from typing_extensions import Self

TENSORS = (*ROWS, "threshold", "typical")
CHOICES: dict[str, tuple[str, ...]] = {
    "gate": get_args(Gate),
    "source": get_args(Source),
    "uncond": get_args(Uncond),
    "align": get_args(Align),
}


def threshold_codes(preacts: Tensor, threshold: Tensor) -> Tensor:
    """Return z_i: the pre-activation where it is above max(threshold_i, 0), else exactly 0."""
    return passed(preacts, preacts, threshold.clamp(min=0))


def whole_codes(preacts: Tensor, threshold: Tensor, typical: Tensor) -> Tensor:
    """Return codes `[B, T, k]` of prompts whose gate is open, or closed, for all of their states.

    Neuron i is exactly 0 in a prompt unless a state passes threshold_i. If one does, every state is read with ReLU.
    The codes are then scaled up so that the loudest is at least typical_i: a synonym activates the neuron more weakly
    than the concept's name, and the edit must not shrink with it.
    """
    z = preacts.clamp(min=0)
    loudest = z.amax(-2, keepdim=True)
    gain = (typical / loudest.clamp(min=1e-6)).clamp(min=1)
    return passed(gain * z, loudest, threshold.clamp(min=0))


def onward_codes(preacts: Tensor, threshold: Tensor, typical: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `whole_codes` `[B, T, k]` for text that is read from left to right, and the loudest code so far `[B, k]`.

    The gate opens at the first state that passes the threshold, and each state is scaled by the loudest code up to it.
    `before` `[B, k]` is the loudest code of the parts read before, so that the result does not depend on how a text is
    split. In a causal model, states before the concept's first word hold nothing of it, so they can be spared.
    """
    z = preacts.clamp(min=0)
    loudest = z.cummax(-2).values
    if before is not None:
        loudest = torch.maximum(loudest, before[:, None])
    gain = (typical / loudest.clamp(min=1e-6)).clamp(min=1)
    return passed(gain * z, loudest, threshold.clamp(min=0)), loudest[:, -1].detach()


def contribution(z: Tensor, directions: Tensor, amount: float) -> Tensor:
    """Return M D `[B, T, d]`, what eqs. 8-9 subtract from h: M_i = amount * z_i, and D is `[k, d]`, such as W_dec."""
    return (amount * z) @ directions


@dataclass(frozen=True, eq=False)
class SAEEdit(Rows):
    """An edit that turns down k SAE neurons at one Site. It holds only their rows, which are kilobytes.

    Raises ExciseError on construction for shapes that do not fit, values that are not finite or unknown options.
    """

    text_only: ClassVar[bool] = True
    threshold: Tensor
    """`[k]`: pre-activations up to this count as 0, tested per state ("threshold") or per prompt ("whole")."""
    typical: Tensor
    """`[k]`: the loudest pre-activation of a typical concept prompt. gate="whole" scales quieter prompts up to it."""
    gate: Gate = "threshold"
    """How codes are read from states: "whole" (`whole_codes`), "threshold" (a calibrated substitute for TopK), "relu"
    (without TopK), "topk" (exact; with source="prompt" it needs the whole SAE at attach time)."""
    source: Source = "prompt"
    """Which codes are subtracted: those of the user's prompt, or those of the concept tuple (as in the paper)."""
    lam: float = 1.0
    """The paper's manipulation coefficient λ."""
    lead: int = 0
    """Number of first states that are left alone, with source="prompt". A causal encoder's BOS comes before any word
    and is the same in every prompt, so a neuron that fires there carries no information about the prompt."""
    uncond: Uncond = "none"
    """How the unconditional branch is edited: "none", "same" (like prompts), or "flip" (with the opposite sign)."""
    align: Align = "position"
    """How `concept_codes` were made: codes of the joined tuple at each position, or a mean over each mention."""
    concept_codes: Tensor | None = None
    """`[T, k]`, for source="concept" only."""

    kind: ClassVar[str] = "sae"
    SAVED: ClassVar[Mapping[str, type]] = {
        "lam": float,
        "lead": int,
        "sae_digest": str,
        "concept_codes": bool,
        **dict.fromkeys(CHOICES, str),
    }

    def __post_init__(self) -> None:
        check_choices(self, CHOICES)
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise InvalidSetting(f"λ is {self.lam}; it must be a number of at least 0 (a negative one would amplify)")
        k = len(self.indices)
        codes: dict[str, tuple[int, ...]] = {}
        if (self.source == "concept") != (self.concept_codes is not None):
            raise ExciseError('only source="concept" has concept codes, and needs them; fit the eraser again')
        if self.concept_codes is not None:
            codes = {"concept_codes": (len(self.concept_codes), k)}
        self.check_rows({"threshold": (k,), "typical": (k,), **codes})
        if self.lead < 0:
            raise ExciseError(f"lead is {self.lead}; it must be a number of states, at least 0")

    @classmethod
    def from_sae(cls, sae: Any, site: Site, indices: list[int], **options: Any) -> Self:
        """Create an edit as `Rows.from_sae` does. `threshold` and `typical` default to 0."""
        levels = {name: torch.zeros(len(indices)) for name in ("threshold", "typical")}
        return super().from_sae(sae, site, indices, **{**levels, **options})

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name, as saved."""
        out = {**super().tensors(), "threshold": self.threshold, "typical": self.typical}
        if self.concept_codes is not None:
            out["concept_codes"] = self.concept_codes
        return out

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> Self:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        names = [*TENSORS, *(["concept_codes"] if saved.pop("concept_codes") else [])]
        return cls(site=site, **{**saved, **{name: take(name) for name in names}})

    @property
    def saved(self) -> dict[str, Any]:
        """`Rows.saved`, and whether the tensors include concept codes."""
        return {**super().saved, "concept_codes": self.concept_codes is not None}

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        # 1 and 1.0 must give the same digest.
        return {**{name: getattr(self, name) for name in ("lead", *CHOICES)}, "lam": float(self.lam)}

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "lambda", self.lam

    @property
    def needs_sae(self) -> bool:
        """Whether attaching needs the whole SAE."""
        return self.gate == "topk" and self.source == "prompt"

    @property
    def directions(self) -> Tensor:
        """What a code of 1 subtracts at a strength of 1, `[k, d]`."""
        return self.W_dec

    @property
    def instead(self) -> tuple[str, ...]:
        """For each neuron what takes the concept's place; "" if it is turned down."""
        return ("",) * len(self.indices)

    def codes(self, h: Tensor, sae: Any | None = None) -> Tensor:
        """Return codes z `[B, T, k]` of states `h` `[B, T, d]`, in float32 or better. Only gate="topk" reads `sae`.

        Raises ExciseError if widths or lengths differ from the artefact's, or the SAE is missing.
        """
        if h.ndim != 3 or h.shape[-1] != self.site.width:
            raise ExciseError(f"{self.site.key} gave states of shape {tuple(h.shape)}, not [B, T, {self.site.width}]")
        dtype = torch.promote_types(h.dtype, torch.float32)
        if self.concept_codes is not None:
            if h.shape[1] != len(self.concept_codes):
                raise ExciseError(
                    f"the prompt has {h.shape[1]} positions, the eraser's concept codes {len(self.concept_codes)}; "
                    'use source="prompt" where the length varies'
                )
            return self.concept_codes.to(dtype).expand(h.shape[0], -1, -1)
        if self.gate == "topk":
            if sae is None:
                raise InvalidSetting('gate="topk" needs the whole SAE; give it as attach(pipe, sae=...)')
            z = self._among_the_largest(h.reshape(-1, h.shape[-1]).to(sae.W_enc), sae)
            return self.after_lead(z.reshape(*h.shape[:2], -1).to(h.device, dtype))
        return self.gated(self.preacts(h))

    def _among_the_largest(self, states: Tensor, sae: Any) -> Tensor:
        """Return `[N, k]`: the edited neurons' codes in states `[N, d]` where TopK keeps them, else 0.

        On a CPU the whole SAE reads only states in which one of these neurons is positive. On a GPU, finding these
        would take longer than reading all.
        """
        edited = self.indices.to(states.device)
        preacts = preactivations(states, sae.W_enc[edited], sae.b_enc[edited], sae.b_pre)

        def kept(some: Tensor, own: Tensor) -> Tensor:
            values, indices = sae.encode(some)
            return surrogate(topk_codes(values, indices, edited), own, own, values[..., -1:])

        if states.device.type != "cpu":
            return kept(states, preacts)
        fires = (preacts > 0).any(-1)
        z = states.new_zeros(len(states), len(edited))
        if bool(fires.any()):
            z[fires] = kept(states[fires], preacts[fires])
        return z

    def preacts(self, h: Tensor) -> Tensor:
        """Return pre-activations `[B, T, k]` of states `h` `[B, T, d]`, in float32 or better."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        W_enc, b_enc, b_pre = self.W_enc.to(dtype), self.b_enc.to(dtype), self.b_pre.to(dtype)
        return preactivations(h.to(dtype), W_enc, b_enc, b_pre)

    def codes_onward(
        self, h: Tensor, words: Tensor, before: Tensor | None, sae: Any | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return codes z `[B, T, k]` of a part of a text that a language model reads, and its memory for the next part.

        Only gate="whole" has a memory, the loudest code so far `[B, k]`. Other gates read every state by itself.
        `words` `[B, T]` bool are the positions to edit, instead of `lead`. `before` is the memory of the part before.
        """
        wanted = words[..., None].to(h.device)
        if self.gate != "whole":
            z = self.codes(h, sae)
            return torch.where(wanted, z, torch.zeros_like(z)), None
        preacts = self.preacts(h)
        preacts = torch.where(wanted, preacts, torch.zeros_like(preacts))
        return onward_codes(preacts, self.threshold.to(preacts), self.typical.to(preacts), before)

    def gated(self, preacts: Tensor) -> Tensor:
        """Return codes z `[B, T, k]` of pre-activations, as the gate reads them. Not for gate="topk"."""
        preacts = self.after_lead(preacts)
        threshold, typical = self.threshold.to(preacts), self.typical.to(preacts)
        if self.gate == "whole":
            return whole_codes(preacts, threshold, typical)
        return threshold_codes(preacts, threshold if self.gate == "threshold" else torch.zeros_like(threshold))

    def after_lead(self, values: Tensor) -> Tensor:
        """Return `values` `[B, T, k]` with 0 at the first `lead` states."""
        if not self.lead or self.source == "concept":
            return values
        return torch.cat([torch.zeros_like(values[:, : self.lead]), values[:, self.lead :]], 1)

    def apply(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor:
        """Return the edited states h - strength·λ·Σ_i z_i W_dec[i] (eqs. 8-9), `[B, T, d]` in h's dtype.

        A row in which every edited neuron is 0 is returned bit-identical. Gradients pass through the edit, but not
        through the gate's step: `excise.erasers.gates` has what a white-box attack puts in its place.
        """
        delta = self.delta(h, strength, branch=branch, sae=sae)
        return h if delta is None else without(h, delta)

    def delta(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor | None:
        """Return what `apply` subtracts, `[B, T, d]` in float32 or better, or None to leave every bit alone."""
        amount = strength * self.lam
        if branch == "unconditional":
            amount *= {"none": 0.0, "same": 1.0, "flip": -1.0}[self.uncond]
        if amount == 0:
            return None
        # Under autocast these small products would be rounded to half precision and the gate would flip.
        with torch.autocast(h.device.type, enabled=False):
            return self.written(self.codes(h, sae), amount)

    def written(self, z: Tensor, amount: float) -> Tensor | None:
        """Return what codes `z` `[B, T, k]` write, `[B, T, d]`, or None to leave every bit alone."""
        return contribution(z, self.directions.to(z.dtype), amount)
