"""Nearest tokens and nearest neurons of decoder rows."""

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
"""Names of the norm between the last layer and the output head."""
_STACK = re.compile(r"^(?P<above>.*?)\.?(?:layers|blocks?|layer|h)\.\d+")


@torch.no_grad()
def near_neurons(W_dec: Tensor, live: Tensor, n: int) -> list[tuple[tuple[int, float], ...]]:
    """Return for each of the `live` [L] neurons the `n` other live ones with the largest cosine of decoder rows.

    The largest comes first. W_dec is [m, d].
    """
    rows = F.normalize(W_dec[live], dim=1)
    out: list[tuple[tuple[int, float], ...]] = []
    for start in range(0, len(live), 512):
        cosine = rows[start : start + 512] @ rows.T
        cosine[torch.arange(len(cosine)), torch.arange(start, start + len(cosine))] = -2
        values, places = cosine.topk(min(n, max(len(live) - 1, 0)))
        for cosines, others in zip(values.tolist(), live[places].tolist(), strict=True):
            out.append(tuple((int(i), round(v, 4)) for i, v in zip(others, cosines, strict=True)))
    return out


@torch.no_grad()
def nearest_tokens(
    pipe: Pipeline, sae: TopKSAE, site: Site, corpus: Corpus, live: Tensor, n: int
) -> list[tuple[tuple[str, float], ...]]:
    """Return for each of the `live` [L] neurons the `n` tokens nearest to its decoder row, nearest first.

    With an output head these have the largest logits for the row after the final norm (logit lens, nostalgebraist
    2020). Otherwise they have the largest cosine of the row with the token's mean state over the corpus, minus the mean
    of those. Tokens with the same text appear once.
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
        # Take more than n: some tokens look the same, such as "gun" alone and within a word, or are invisible.
        values, places = how.topk(min(4 * n, how.shape[1]))
        for scores, tokens in zip(values.tolist(), ids[places].tolist(), strict=True):
            best: dict[str, float] = {}
            for token, value in zip(tokens, scores, strict=True):
                if (word := text(token)) and not (head is not None and is_special(word)):
                    best.setdefault(word, round(value, 4))
            out.append(tuple(list(best.items())[:n]))
    return out


def head_of(encoder: Any) -> Any:
    """Return the module that maps states to logits over the vocabulary, or None if the model has none."""
    getter = getattr(encoder, "get_output_embeddings", None)
    return getter() if getter is not None else None


def _final_norm(encoder: Any, site: Site) -> Callable[[Tensor], Tensor]:
    """Return the norm between the last layer and the output head, or the identity."""
    stack = _STACK.match(site.path)
    above = encoder.get_submodule(stack["above"]) if stack else encoder
    found = [getattr(above, name) for name in _NORMS if hasattr(above, name)]
    return found[0] if found else lambda states: states
