"""Shape and training settings of an SAE: frozen, saved as json as given, and refused if a key is unknown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from excise.errors import ExciseError, InvalidSetting, shown
from excise.settings import Settings, setting

T = TypeVar("T", bound="_Json")
HUGE = 10**15
"""The largest number of vectors or steps."""


class _Json:
    """Conversion to and from json for the frozen dataclasses below."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain json values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_json(cls: type[T], data: object) -> T:
        """Rebuild from `to_json()`. Raises ExciseError if a key is unknown or missing, or a value invalid."""
        if not isinstance(data, Mapping):
            raise ExciseError(f"{cls.__name__} must be a json object, not {type(data).__name__}")
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(data) - known):
            raise InvalidSetting(
                f"{cls.__name__} has no setting {shown(unknown[0])}; it knows {', '.join(sorted(known))}"
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise ExciseError(f"{cls.__name__} is incomplete: {error}") from error


def _number(name: str, value: object, *, least: float, most: float = math.inf, whole: bool = False) -> None:
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    # json's true is a Python int, and NaN compares false with everything: refuse both.
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        limit = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        raise InvalidSetting(f"{name} must be {kind} {limit}, not {shown(value)}")


@dataclass(frozen=True)
class SAEConfig(_Json):
    """The shape of a TopK SAE."""

    d: int
    """Width of the vectors it reads and writes."""
    m: int
    """Number of latents (neurons)."""
    k: int = 32
    """Latents kept for each vector."""

    def __post_init__(self) -> None:
        _number("d (the width)", self.d, least=1, whole=True)
        _number("m (the number of latents)", self.m, least=1, whole=True)
        _number("k (latents kept)", self.k, least=1, most=self.m, whole=True)


@dataclass(frozen=True)
class TrainConfig(Settings, _Json):
    """How an SAE is trained. Defaults are the SNCE paper's (section "Training details of SAE") where it gives them."""

    expansion: int = setting(4, "Latents for each input dimension: m = expansion * d.", unit="latents", least=1)
    k: int = setting(32, "Latents kept for each vector.", unit="latents", least=1)
    activation: Literal["topk", "batchtopk"] = setting(
        "topk",
        "Which latents a training batch keeps: k of each vector (topk), or the largest k N of all its N vectors "
        "together (batchtopk; Bussmann et al. 2024), so that a vector that needs more gets more. Either way the "
        "trained SAE keeps k of each vector.",
    )
    lr: float = setting(4e-4, "Adam's learning rate.")
    batch: int = setting(
        4096, "Vectors in a step (all of them if there are fewer).", unit="vectors", least=1, most=HUGE
    )
    tokens: int = setting(
        10_000_000,
        "Vectors to train on, repeats counted; the steps are tokens / batch, rounded up.",
        unit="vectors",
        least=1,
        most=HUGE,
    )
    decay: float = setting(
        0.0,
        "Share of the steps, at the end, over which the learning rate falls linearly to zero (the paper: 0, constant).",
        unit="share",
        most=1,
    )
    alpha: float = setting(1 / 32, "Weight of the auxiliary loss that revives dead latents.")
    dead_after: int = setting(
        10_000_000,
        "Vectors without firing after which a latent counts as dead; at most one epoch.",
        unit="vectors",
        least=1,
        most=HUGE,
    )
    dead_threshold: float = setting(1e-3, "An activation up to this, in training units, does not count as firing.")
    units: Literal["variance", "raw"] = setting(
        "variance",
        "Train on vectors scaled to unit variance (one scalar, folded back when saved, so that `lr` and "
        "`dead_threshold` mean the same for every model), or on the vectors as they are (raw), as the public recipes "
        "do.",
    )
    shortlist: int = setting(
        0,
        "Spare candidates: a vector's k largest latents are preselected in bfloat16 with so many more, then computed "
        "in float32. Faster on processors that multiply bfloat16; on the bundled text encoder's states 8 find the same "
        "latents; 0: everything in float32. Not with batchtopk.",
        unit="latents",
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "Precision of the encoder's product, most of a step: in bfloat16 codes are rounded to three digits, and "
        "latents that lie closer than that may swap. Everything else, and what is saved, is float32.",
    )
    beta1: float = setting(0.9, "Adam's decay of the first moment.", most=1)
    beta2: float = setting(0.999, "Adam's decay of the second moment.", most=1)
    eps: float = setting(6.25e-10, "Adam's epsilon: OpenAI's value, small because a rare latent's gradients are small.")
    seed: int = setting(0, "Seed of the initial directions and of the order of the vectors.", most=2**31 - 1)
    log_every: int = setting(
        50,
        "Steps between two lines of the log, and between two calls of the progress callback.",
        unit="steps",
        least=1,
        most=HUGE,
    )
    checkpoint_every: int = setting(500, "Steps between two checkpoints.", unit="steps", least=1, most=HUGE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortlist and self.activation != "topk":
            raise InvalidSetting("shortlist works vector by vector; leave it out, or train with activation 'topk'")
        if self.shortlist and self.precision == "bfloat16":
            raise InvalidSetting("shortlist needs codes in float32; leave it out, or set precision to 'float32'")

    def sae(self, d: int) -> SAEConfig:
        """Return the shape of the SAE for vectors of width `d`."""
        return SAEConfig(d=d, m=self.expansion * d, k=self.k)
