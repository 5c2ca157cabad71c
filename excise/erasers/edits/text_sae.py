"""One change at one Site: subtract what a few SAE neurons write (SNCE, eqs. 8-9).

Shapes: h `[B, T, d]`, k edited neurons, W_enc and W_dec `[k, d]` (a latent is a row in both), codes z `[B, T, k]`.
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
    """z_i = pre-activation where it is above threshold_i (never below 0), else exactly 0."""
    return torch.where(preacts > threshold.clamp(min=0), preacts, torch.zeros_like(preacts))


def whole_codes(preacts: Tensor, threshold: Tensor, typical: Tensor) -> Tensor:
    """`[B, T, k]`: a prompt is silent, or open from its first state to its last.

    Neuron i is silent in a prompt (exactly 0) unless some state passes threshold_i. Where one does, every state is read
    with ReLU, and a prompt whose loudest code is below typical_i is raised until it reaches it: a synonym makes the
    neuron fire more weakly than the concept's own name, and what is subtracted must not shrink with it.
    """
    z = preacts.clamp(min=0)
    loudest = z.amax(-2, keepdim=True)
    opened = loudest > threshold.clamp(min=0)
    gain = (typical / loudest.clamp(min=1e-6)).clamp(min=1)
    return torch.where(opened, gain * z, torch.zeros_like(z))


def onward_codes(preacts: Tensor, threshold: Tensor, typical: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """`whole_codes` for text that is read from left to right: codes `[B, T, k]`, and the loudest so far `[B, k]`.

    A text is open from the first state that passes the threshold on, and raised by what was loudest up to each state.
    `before` `[B, k]` is the loudest of the stretches read before, so that it makes no difference in how many a text is
    read. A causal model's states before the concept's first word know nothing of it: nothing is lost by sparing them.
    """
    z = preacts.clamp(min=0)
    loudest = z.cummax(-2).values
    if before is not None:
        loudest = torch.maximum(loudest, before[:, None])
    gain = (typical / loudest.clamp(min=1e-6)).clamp(min=1)
    codes = torch.where(loudest > threshold.clamp(min=0), gain * z, torch.zeros_like(z))
    return codes, loudest[:, -1].detach()


def contribution(z: Tensor, W_dec: Tensor, amount: float) -> Tensor:
    """Return M W_decᵀ `[B, T, d]`, what eqs. 8-9 subtract from h, with M_i = amount * z_i on the edited neurons."""
    return (amount * z) @ W_dec


@dataclass(frozen=True, eq=False)
class SAEEdit(Rows):
    """Turn down k neurons of an SAE at one Site. Carries only their rows, so it is kilobytes.

    Raises ExciseError on construction for shapes that do not fit, values that are not finite or unknown options.
    """

    threshold: Tensor
    """`[k]`: pre-activations up to this one read as silence, a state at a time ("threshold") or a prompt ("whole")."""
    typical: Tensor
    """`[k]`: the loudest pre-activation of a usual concept prompt, to which gate="whole" raises quieter prompts."""
    gate: Gate = "threshold"
    """How codes are read from states: "whole" (`whole_codes`), "threshold" (a calibrated stand-in for TopK), "relu"
    (TopK off), "topk" (exact; with source="prompt" it needs the whole SAE at attach)."""
    source: Source = "prompt"
    """Whose codes are subtracted: the user's prompt's own, or the concept tuple's (the paper's reading)."""
    lam: float = 1.0
    """The paper's manipulation coefficient λ."""
    lead: int = 0
    """With source="prompt": how many first states are left alone. A causal encoder's BOS comes before any word and is
    the same in every prompt, so a neuron that fires there says nothing of this one."""
    uncond: Uncond = "none"
    """The unconditional branch: left alone, edited alike, or edited with the opposite sign."""
    align: Align = "position"
    """How `concept_codes` were made: codes of the joined tuple position by position, or a mean over each mention."""
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
            raise ExciseError('concept codes go with source="concept" and with nothing else; fit the eraser again')
        if self.concept_codes is not None:
            codes = {"concept_codes": (len(self.concept_codes), k)}
        self.check_rows({"threshold": (k,), "typical": (k,), **codes})
        if self.lead < 0:
            raise ExciseError(f"lead is {self.lead}; it is a number of states, at least 0")

    @classmethod
    def from_sae(cls, sae: Any, site: Site, indices: list[int], **options: Any) -> Self:
        """As `Rows.from_sae`; levels that are not given are 0."""
        levels = {name: torch.zeros(len(indices)) for name in ("threshold", "typical")}
        return super().from_sae(sae, site, indices, **{**levels, **options})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by field name, as they are saved."""
        out = {**super().tensors(), "threshold": self.threshold, "typical": self.typical}
        if self.concept_codes is not None:
            out["concept_codes"] = self.concept_codes
        return out

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> Self:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        names = [*TENSORS, *(["concept_codes"] if saved.pop("concept_codes") else [])]
        return cls(site=site, **{**saved, **{name: take(name) for name in names}})

    @property
    def saved(self) -> dict[str, Any]:
        """As `Rows.saved`, and whether there are concept codes among the tensors."""
        return {**super().saved, "concept_codes": self.concept_codes is not None}

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the Site and the tensors, as json."""
        # 1 and 1.0 are one number, and have to be one digest.
        return {**{name: getattr(self, name) for name in ("lead", *CHOICES)}, "lam": float(self.lam)}

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "lambda", self.lam

    @property
    def needs_sae(self) -> bool:
        """Whether the whole SAE must be given when attaching."""
        return self.gate == "topk" and self.source == "prompt"

    def codes(self, h: Tensor, sae: Any | None = None) -> Tensor:
        """z `[B, T, k]` for states `h` `[B, T, d]`, float32 or better. `sae` is read by gate="topk" alone.

        Raises ExciseError where widths or lengths differ from the artefact's, or the SAE is missing or another one.
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
        """`[N, k]` for states `[N, d]`: the codes of the edited neurons where TopK keeps them.

        All rows of the SAE are only multiplied with states in which one of these neurons is positive; a GPU would wait
        longer to be told which than the product takes it.
        """
        own = self.indices.to(states.device)

        def kept(some: Tensor) -> Tensor:
            values, indices = sae.encode(some)
            return topk_codes(values, indices, own)

        if states.device.type != "cpu":
            return kept(states)
        fires = (preactivations(states, sae.W_enc[own], sae.b_enc[own], sae.b_pre) > 0).any(-1)
        z = states.new_zeros(len(states), len(own))
        if bool(fires.any()):
            z[fires] = kept(states[fires])
        return z

    def preacts(self, h: Tensor) -> Tensor:
        """`[B, T, k]`: pre-activations of states `h` `[B, T, d]`, float32 or better."""
        dtype = torch.promote_types(h.dtype, torch.float32)
        W_enc, b_enc, b_pre = self.W_enc.to(dtype), self.b_enc.to(dtype), self.b_pre.to(dtype)
        return preactivations(h.to(dtype), W_enc, b_enc, b_pre)

    def codes_onward(
        self, h: Tensor, words: Tensor, before: Tensor | None, sae: Any | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `codes`, for a stretch of text that a language model reads: z `[B, T, k]`, and the loudest code so far
        `[B, k]` where gate="whole" needs it for the stretch behind.

        `words` `[B, T]` bool are the positions that are edited, in the place of `lead`; `before` is what came back of
        the stretch before. Only gate="whole" remembers; the others read every state by itself.
        """
        spoken = words[..., None].to(h.device)
        if self.gate != "whole":
            z = self.codes(h, sae)
            return torch.where(spoken, z, torch.zeros_like(z)), None
        preacts = self.preacts(h)
        preacts = torch.where(spoken, preacts, torch.zeros_like(preacts))
        return onward_codes(preacts, self.threshold.to(preacts), self.typical.to(preacts), before)

    def gated(self, preacts: Tensor) -> Tensor:
        """z `[B, T, k]` for pre-activations of that shape, as the gate reads them; not for gate="topk"."""
        preacts = self.after_lead(preacts)
        threshold, typical = self.threshold.to(preacts), self.typical.to(preacts)
        if self.gate == "whole":
            return whole_codes(preacts, threshold, typical)
        return threshold_codes(preacts, threshold if self.gate == "threshold" else torch.zeros_like(threshold))

    def after_lead(self, values: Tensor) -> Tensor:
        """`values` `[B, T, k]` with 0 at the states that are left alone."""
        if not self.lead or self.source == "concept":
            return values
        return torch.cat([torch.zeros_like(values[:, : self.lead]), values[:, self.lead :]], 1)

    def apply(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor:
        """Edited states `[B, T, d]` in h's dtype: h - strength·λ·Σ_i z_i W_dec[i] (eqs. 8-9), at every position.

        A row in which every edited neuron is silent is returned bit-identical. Gradients pass, so that a white-box
        attack is not fooled by the edit but has to get past it.
        """
        delta = self.delta(h, strength, branch=branch, sae=sae)
        return h if delta is None else without(h, delta)

    def delta(
        self, h: Tensor, strength: float = 1.0, *, branch: Branch = "conditional", sae: Any | None = None
    ) -> Tensor | None:
        """What `apply` subtracts, `[B, T, d]` float32 or better; None where it leaves every bit alone."""
        amount = strength * self.lam
        if branch == "unconditional":
            amount *= {"none": 0.0, "same": 1.0, "flip": -1.0}[self.uncond]
        if amount == 0:
            return None
        # Under autocast these small products would be rounded to half precision and the gate would flip.
        with torch.autocast(h.device.type, enabled=False):
            z = self.codes(h, sae)
            return contribution(z, self.W_dec.to(z.dtype), amount)
