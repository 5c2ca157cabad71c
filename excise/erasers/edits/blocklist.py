"""A blocklist of sentences: prompts similar to one of them are replaced by the empty prompt."""

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
    """A blocklist: it replaces prompts whose similarity to a blocked sentence is at least `threshold`."""

    site: Site
    """The Site of the whole U-Net."""
    sentences: Tensor
    """`[n, 384]`: the `sentence_vectors` of blocked sentences."""
    threshold: float
    """Cosine similarity from which a prompt is blocked."""

    kind: ClassVar[str] = "filter"
    TENSORS: ClassVar[tuple[str, ...]] = ("sentences",)
    description: ClassVar[str] = "a blocklist of sentences, which are replaced by the empty prompt"
    SAVED: ClassVar[Mapping[str, type]] = {"threshold": float}
    trial_steps: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check_finite()
        if self.sentences.ndim != 2 or not len(self.sentences) or not -1 <= self.threshold <= 1:
            raise ExciseError("a filter needs sentences' vectors [n, d] and a threshold between -1 and 1")

    @classmethod
    def restored(cls, site: Site, saved: dict[str, Any], take: Callable[[str], Tensor]) -> FilterEdit:
        """Restore an edit from its `saved` options. `take` returns its tensors by name."""
        return cls(site, take("sentences"), **saved)

    @property
    def coefficient(self) -> tuple[str, float]:
        """Name and value of its strength."""
        return "threshold", self.threshold
