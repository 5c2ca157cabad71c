"""What lies nearest to a neuron's decoder row: tokens, and other neurons."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.app.neurons.corpus import Corpus
from excise.neurons.contexts import is_special
from excise.pipeline import Pipeline
from excise.sae import TopKSAE
from excise.sites import Site
from excise.sites.site import encoder_of, tokenizer_of
from excise.sites.tokens import pieces

_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""What the norm between the last layer and the output head is called."""
_STACK = re.compile(r"^(?P<above>.*?)\.?(?:layers|blocks?|layer|h)\.\d+")


@torch.no_grad()
def near_neurons(W_dec: Tensor, live: Tensor, n: int) -> list[tuple[tuple[int, float], ...]]:
    """For each of the `live` [L] neurons the `n` others of them whose decoder rows have the largest cosine with its
    own, largest first. W_dec [m, d]."""
    rows = F.normalize(W_dec[live], dim=1)
    out: list[tuple[tuple[int, float], ...]] = []
    for start in range(0, len(live), 512):
        cosine = rows[start : start + 512] @ rows.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        values, places = cosine.topk(min(n, max(len(live) - 1, 0)))
        for of, at in zip(values.tolist(), live[places].tolist(), strict=True):
            out.append(tuple((int(i), round(v, 4)) for i, v in zip(at, of, strict=True)))
    return out


@torch.no_grad()
def nearest_tokens(
    pipe: Pipeline, sae: TopKSAE, site: Site, corpus: Corpus, live: Tensor, n: int
) -> list[tuple[tuple[str, float], ...]]:
    """For each of the `live` [L] neurons the `n` tokens nearest to its decoder row, nearest first, each text once.

    With an output head: the largest logits that the head gives the row after the final norm (logit lens, nostalgebraist
    2020). Without: the largest cosines of the row with the tokens' mean states over the corpus, less the mean of those.
    """
    encoder, tokenizer = encoder_of(pipe, site.component), tokenizer_of(pipe, site.component)
    rows, head = sae.W_dec.detach()[live.to(sae.W_dec.device)], head_of(encoder)
    texts: dict[int, str] = {}

    def text(token: int) -> str:
        if token not in texts:
            texts[token] = pieces(tokenizer, [token])[0].strip()
        return texts[token]

    if head is None:
        rows = F.normalize(rows.float().cpu(), dim=1)
        ids, states = corpus.seen, F.normalize(corpus.means - corpus.means.mean(0), dim=1)
    else:
        rows, ids = (
            _final_norm(encoder, site)(rows.to(head.weight)),
            torch.arange(min(head.weight.shape[0], len(tokenizer))),
        )
    out = []
    for part in torch.split(rows, 64):
        how = part @ states.T if head is None else head(part)[:, : len(ids)].float().cpu()
        # Some tokens are the same to a person, "gun" in a word and "gun" alone, or cannot be seen at all.
        values, places = how.topk(min(4 * n, how.shape[1]))
        for of, at in zip(values.tolist(), ids[places].tolist(), strict=True):
            best: dict[str, float] = {}
            for token, value in zip(at, of, strict=True):
                if (word := text(token)) and not (head is not None and is_special(word)):
                    best.setdefault(word, round(value, 4))
            out.append(tuple(list(best.items())[:n]))
    return out


def head_of(encoder: Any) -> Any:
    """The module that turns a state into logits over the vocabulary; None where there is none."""
    getter = getattr(encoder, "get_output_embeddings", None)
    return getter() if getter is not None else None


def _final_norm(encoder: Any, site: Site) -> Callable[[Tensor], Tensor]:
    """What the head's input goes through after the last layer."""
    stack = _STACK.match(site.path)
    above = encoder.get_submodule(stack["above"]) if stack else encoder
    found = [getattr(above, name) for name in _NORMS if hasattr(above, name)]
    return found[0] if found else lambda states: states
