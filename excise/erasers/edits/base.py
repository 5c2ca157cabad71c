"""Base class of edits that hold a few named tensors and no SAE neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from excise.erasers.gates import smooth
from excise.errors import ExciseError

if TYPE_CHECKING:
    from typing_extensions import Self


def widest(device: torch.device) -> torch.dtype:
    """Return the widest dtype of a device: float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


class Tensors:
    """Base of frozen dataclasses with tensor fields: it saves, checks and moves them."""

    TENSORS: ClassVar[tuple[str, ...]]
    """Names of the fields; one of them may be None."""
    DTYPES: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float16)
    """Dtypes they may be saved in."""
    SAVED: ClassVar[Mapping[str, type]]
    neurons: ClassVar[list[int]] = []
    needs_sae: ClassVar[bool] = False
    text_only: ClassVar[bool] = False
    """Whether it acts on a text encoder alone: the denoiser sees it only in what the encoder returns."""
    sae_digest: ClassVar[str] = ""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name, as saved."""
        named = {name: getattr(self, name) for name in self.TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def description(self) -> str:
        """What the edit does to a model, for the eraser's card. `{count}` stands for the number of such edits."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return next(iter(self.tensors().values())).device

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        return {name: kind(getattr(self, name)) for name, kind in self.SAVED.items()}

    @property
    def saved(self) -> dict[str, Any]:
        """What is saved of it, except the Site and the tensors."""
        return self.options

    def to(self, device: torch.device) -> Self:
        """Return the edit with its tensors on `device`."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[type-var]

    def check_finite(self) -> None:
        """Raise ExciseError if a tensor or an option is not finite."""
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ExciseError(f"{name} holds values that are not finite numbers; fit it again")
        for name, value in self.options.items():
            if isinstance(value, float) and not bool(torch.isfinite(torch.tensor(value))):
                raise ExciseError(f"{name} is {value}; it must be a number")


Branch = Literal["conditional", "unconditional"]


def without(h: Tensor, delta: Tensor) -> Tensor:
    """Return h - `delta`, computed in delta's dtype. Rows in which it is all zero keep their bits."""
    edited = (h.to(delta.dtype) - delta).to(h.dtype)
    return smooth(torch.where((delta != 0).any(-1, keepdim=True), edited, h), edited)


def rows_at(table: Tensor, steps: Sequence[int]) -> Tensor:
    """Return the rows `[n, ...]` of `table` `[S, ...]` at n steps. For a single one nothing is copied to the device."""
    return table[steps[0] : steps[0] + 1] if len(steps) == 1 else table[list(steps)]


class StepInfo(NamedTuple):
    """The denoising step of a denoiser call."""

    timesteps: tuple[float, ...]
    """One for each image of the batch, or one for all."""
    drawing: bool = True
    """Whether the call is part of a generation. Otherwise (training, a gradient attack) timesteps come in any order."""
