"""AdaVD: project a concept out of the values of cross-attention, in tokens close to it (Wang et al., Precise, Fast, and
Low-cost Concept Erasure in Value Space: Orthogonal Complement Matters, CVPR 2025).

    v ← v - σ(cos(v_c, v)) ⟨v_c, v⟩ / |v_c|² v_c,   σ(x) = s / (1 + exp(-p (x - ε)))
for the value v of every token but BOS, at every cross-attention and step. v_c is the value of the concept's last token
before EOS. Several words are made orthogonal to each other first, by Gram-Schmidt:
`excise.erasers.edits.projection.ValueEdit` has the whole formula. s = 2, p = 100 and ε = 0.93 are from the authors'
code (WYuan1001/AdaVD, Apache-2.0). Nothing is trained, and the U-Net is called no more often than before.

Differences: σ below 0.001 counts as exactly 0, so that a prompt far from the concept keeps every bit. A token's cosine
is that of its own values; the authors' code takes it over its values and the unconditional branch's together, so that
cosines there are higher.
"""

from __future__ import annotations

from dataclasses import asdict

import torch.nn.functional as F
from torch import Tensor, nn

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.projection import ValueEdit
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import AdaVDConfig
from excise.methods.cross_attention import keys_and_values, word_states
from excise.pipeline import Pipeline


def fit(pipe: Pipeline, concept: Concept, config: AdaVDConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net with cross-attention.
    """
    config = config or AdaVDConfig()
    layers, states = keys_and_values(pipe, "adavd"), word_states(pipe, concept.mentions)
    edits = [
        ValueEdit(site, values(layer, states), config.scale, config.steepness, config.midpoint)
        for site, layer in layers.items()
        if site.path.endswith(".to_v")
    ]
    return build_eraser(pipe, edits, concept, "adavd", asdict(config), {"words": len(concept.mentions)})


def values(layer: nn.Linear, states: Tensor) -> Tensor:
    """Return the values `[n, d]` that an unedited layer makes of text states `[n, d_text]`, float32 on the CPU."""
    weight, bias = (None if part is None else part.detach().float().cpu() for part in (layer.weight, layer.bias))
    return F.linear(states, weight, bias)


METHOD = Fitted("adavd", AdaVDConfig, fit)
