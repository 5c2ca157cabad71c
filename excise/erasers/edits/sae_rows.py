"""Base class of edits of SAE neurons: it holds, checks and moves their rows of the SAE."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from excise.errors import ExciseError, InvalidSetting, NotFound, WrongModel
from excise.sites.site import Site

if TYPE_CHECKING:
    from typing_extensions import Self

ROWS = ("indices", "W_enc", "b_enc", "b_pre", "W_dec")


def preactivations(h: Tensor, W_enc: Tensor, b_enc: Tensor, b_pre: Tensor) -> Tensor:
    """Return `[..., k]`: (h - b_pre) @ W_encᵀ + b_enc, eq. 1 before its ReLU, for the k edited rows only."""
    return (h - b_pre) @ W_enc.T + b_enc


def topk_codes(values: Tensor, indices: Tensor, wanted: Tensor) -> Tensor:
    """Return `[N, k]`: the `wanted` `[k]` neurons' codes among TopK `values` and `indices` `[N, K]`, 0 if absent."""
    return (values[..., None] * (indices[..., None] == wanted)).sum(-2)


def sae_digest(sae: Any) -> str:
    """Return the sha256 of an SAE's float32 parameters and its k, which identifies the source of an edit's rows."""
    digest = hashlib.sha256(f"k={_k(sae)}".encode())
    for name in ("W_enc", "W_dec", "b_enc", "b_pre"):
        tensor = getattr(sae, name).detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _k(sae: Any) -> int:
    config = getattr(sae, "config", None)
    return int(config.k if config is not None else sae.k)


def altered_rows(edit: Rows, sae: Any) -> list[str]:
    """Names of an edit's tensors that are not, bit for bit, the rows of `sae` that its indices name.

    A projection of a row (`OrthogonalSAEEdit`) is computed again, and may differ by rounding. An index that the SAE
    does not have makes all of them altered.
    """
    m, d = sae.W_enc.shape
    indices = edit.indices.cpu()
    if d != edit.site.width or int(indices.max()) >= m:
        return [*ROWS]
    rows = {name: getattr(sae, name).detach().to("cpu", torch.float32) for name in ROWS[1:]}
    wanted = {name: tensor if name == "b_pre" else tensor[indices] for name, tensor in rows.items()}
    return [name for name, tensor in wanted.items() if not edit.holds(name, tensor, rows["W_dec"])]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float32 tensors have the same bits: 0.0 and -0.0 differ."""
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@dataclass(frozen=True, eq=False)
class Rows:
    """k neurons of an SAE at a Site of width d."""

    site: Site
    indices: Tensor
    """`[k]` int64: the neurons' indices in the SAE."""
    W_enc: Tensor
    """`[k, d]`"""
    b_enc: Tensor
    """`[k]`"""
    b_pre: Tensor
    """`[d]`"""
    W_dec: Tensor
    """`[k, d]`"""

    text_only: ClassVar[bool] = False
    """Whether it acts on a text encoder alone: the denoiser sees it only in what the encoder returns."""
    DTYPES: ClassVar[tuple[torch.dtype, ...]] = (torch.float32,)
    """Dtypes its tensors, except the indices, may be saved in."""
    sae_digest: str = field(default="", kw_only=True)
    """`sae_digest` of the SAE the rows came from."""

    @property
    def options(self) -> dict[str, Any]:
        """Options other than the Site and the tensors, as json."""
        raise NotImplementedError

    @property
    def saved(self) -> dict[str, Any]:
        """What is saved of it, except the Site and the tensors."""
        return {**self.options, "sae_digest": self.sae_digest}

    @property
    def neurons(self) -> list[int]:
        """The neurons' indices in the SAE."""
        return self.indices.tolist()

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return self.W_enc.device

    @classmethod
    def from_sae(cls, sae: Any, site: Site, indices: list[int], **options: Any) -> Self:
        """Create an edit of neurons `indices` of `sae` at `site`. `options` are the class's other fields.

        Raises ExciseError if the SAE has no such neuron, or another width than the Site.
        """
        m, d = sae.W_enc.shape
        if d != site.width:
            raise WrongModel(f"the SAE is {d} wide, {site.key} {site.width}; use the SAE trained at this Site")
        if bad := [i for i in indices if not 0 <= i < m]:
            raise NotFound(f"the SAE has {m} neurons, numbered from 0; there is no {bad[0]}")
        rows = torch.tensor(indices, dtype=torch.int64)

        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach().to("cpu", torch.float32).clone().contiguous()

        parts: dict[str, Any] = {
            name: copied(getattr(sae, name)[rows.to(sae.W_enc.device)]) for name in ("W_enc", "b_enc", "W_dec")
        }
        parts |= {"b_pre": copied(sae.b_pre), "sae_digest": sae_digest(sae)}
        return cls(site=site, indices=rows, **parts, **options)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by field name, as saved."""
        return {name: getattr(self, name) for name in ROWS}

    def holds(self, name: str, wanted: Tensor, W_dec: Tensor) -> bool:
        """Whether tensor `name` is, bit for bit, the rows `wanted` of an SAE with decoder `W_dec` `[m, d]`."""
        return _same_bits(getattr(self, name).cpu(), wanted)

    def to(self, device: torch.device) -> Self:
        """Return the edit with its tensors on `device`."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def check_rows(self, others: Mapping[str, tuple[int, ...]], *, infinite: tuple[str, ...] = ()) -> None:
        """Raise ExciseError if shapes do not fit, a neuron is given twice, or values are not finite.

        `others` are the expected shapes of further tensors. Those in `infinite` may hold infinity, which means never.
        """
        k, d = len(self.indices), self.site.width
        shapes = {"indices": (k,), "W_enc": (k, d), "b_enc": (k,), "b_pre": (d,), "W_dec": (k, d), **others}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ExciseError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, not {shape}, for {k} neurons at "
                    f"{self.site}; fit the eraser again"
                )
        if k == 0 or len(set(self.indices.tolist())) != k or int(self.indices.min()) < 0:
            raise ExciseError("an edit needs at least one neuron, each named once by a number of at least 0")
        for name, tensor in self.tensors().items():
            may = name in infinite
            if bool((tensor.isnan() if may else ~torch.isfinite(tensor)).any()):
                raise ExciseError(f"{name} holds values that are not {'' if may else 'finite '}numbers; fit it again")


def check_choices(options: Any, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Raise InvalidSetting if a setting of `options` is not among its `choices`."""
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise InvalidSetting(f"{name} cannot be {getattr(options, name)!r}; it is one of {', '.join(allowed)}")
