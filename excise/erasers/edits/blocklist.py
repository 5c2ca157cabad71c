"""A blocklist of sentences: prompts that read like one of them are drawn as if nothing had been asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from excise.erasers.edits.base import Tensors
from excise.errors import ExciseError
from excise.sites.site import Site


@dataclass(frozen=True, eq=False)
class FilterEdit(Tensors):
    """A blocklist: prompts whose sentence is as near to a blocked one as `threshold` are drawn as the empty prompt."""

    site: Site
    """Of the whole U-Net."""
    sentences: Tensor
    """`[n, 384]`: blocked ones, as `sentence_vectors` gives them."""
    threshold: float
    """Cosine from which on a prompt is blocked."""

    kind: ClassVar[str] = "filter"
    TENSORS: ClassVar[tuple[str, ...]] = ("sentences",)
    description: ClassVar[str] = "a blocklist of sentences, in whose place nothing in particular is drawn"
    SAVED: ClassVar[Mapping[str, type]] = {"threshold": float}
    trial_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check_finite()
        if self.sentences.ndim != 2 or not len(self.sentences) or not -1 <= self.threshold <= 1:
            raise ExciseError("a filter needs sentences' vectors [n, d] and a threshold between -1 and 1")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> FilterEdit:
        """The edit whose `saved` options these are; `take` gives its tensors by name."""
        return cls(site, take("sentences"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """What its strength is called, and how much it is."""
        return "threshold", self.threshold
