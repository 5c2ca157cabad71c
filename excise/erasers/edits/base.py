"""What edits share that carry a few named tensors and no neurons of an SAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from excise.errors import ExciseError

if TYPE_CHECKING:
    from typing_extensions import Self


class Tensors:
    """A frozen dataclass's tensors by field name: kept, checked and moved alike."""

    TENSORS: ClassVar[tuple[str, ...]]
    """Names of the fields; one of them may be None."""
    DTYPES: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float16)
    """What they may be saved in."""
    SAVED: ClassVar[Mapping[str, type]]
    neurons: ClassVar[list[int]] = []
    needs_sae: ClassVar[bool] = False
    sae_digest: ClassVar[str] = ""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by field name, as they are saved."""
        named = {name: getattr(self, name) for name in self.TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def description(self) -> str:
        """What it does to a model, in words for its card; `{count}` is how many of them there are."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(iter(self.tensors().values())).device

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the Site and the tensors, as json."""
        return {name: kind(getattr(self, name)) for name, kind in self.SAVED.items()}

    @property
    def saved(self) -> dict[str, Any]:
        """What is saved of it beside the Site and the tensors."""
        return self.options

    def to(self, device: torch.device) -> Self:
        """The same edit with its tensors on `device`."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[type-var]

    def check_finite(self) -> None:
        """Raises ExciseError where a tensor or a number holds what is none."""
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ExciseError(f"{name} holds values that are not finite numbers; fit it again")
        for name, value in self.options.items():
            if isinstance(value, float) and not bool(torch.isfinite(torch.tensor(value))):
                raise ExciseError(f"{name} is {value}; it must be a number")


Branch = Literal["conditional", "unconditional"]


def without(h: Tensor, delta: Tensor) -> Tensor:
    """h less `delta`, computed in delta's dtype; rows where that is all zero keep their bits."""
    return torch.where((delta != 0).any(-1, keepdim=True), (h.to(delta.dtype) - delta).to(h.dtype), h)


class StepInfo(NamedTuple):
    """A run of a denoiser."""

    timesteps: tuple[float, ...]
    """Of every picture of the batch, or one for all of them."""
    drawing: bool = True
    """Whether a picture is being drawn by it; where not (training, an attack by gradients) timesteps come as they
    like, none of them after another."""
