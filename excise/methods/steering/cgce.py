"""CGCE: a small classifier finds the concept in a prompt's text states, and its gradient leads them out of it (Nguyen
and Patel, CGCE: Classifier-Guided Concept Erasure in Generative Models, 2025).

    if p(e) > threshold:  e ← e - η |e| ∇_e l(e) / |∇_e l(e)|   until l(e) is low enough
p is the classifier's probability of the concept and l its logit, from cross-attention of learned queries on the states
e `[T, d]` (`excise.erasers.edits.guidance.ClassifierEdit` has the formulas). A prompt that it does not assign to the
concept keeps every bit. There is no code of the authors, and the numbers here are ours: of queries, widths, training
steps, η, and the last two of these differences:

- Steps have one length, because ∇ log p, the paper's direction, vanishes where p is near 1.
- The prompts to train on are the concept's pairs, controls and benign prompts, where the paper has a language model
  write some.
- One concept for each eraser, where the paper adds up the gradients of several.
- Training adds noise to the states, and states move on to eight times the mean logit of prompts without the concept.
  Without both, a small move turns the classifier while the picture still shows the concept. Even so, some concepts of
  the bundled model are still drawn.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers import Eraser
from excise.erasers.edits.guidance import ClassifierEdit, logits
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.configs.steering import CGCEConfig
from excise.methods.cross_attention import text_states
from excise.methods.judging import Figures
from excise.pipeline import Pipeline
from excise.sites.denoiser import whole

QUERIES, HIDDEN = 4, 16
"""Learned queries, and values that each of them reads."""


def fit(pipe: Pipeline, concept: Concept, config: CGCEConfig | None = None) -> Eraser:
    """Train the classifier and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no U-Net that reads one text encoder, or the concept no pairs.
    """
    config = config or CGCEConfig()
    site = whole(pipe, "cgce")
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    pairs = concept.pairs[: config.pairs]
    shown = list(dict.fromkeys((*concept.mentions, *(pair.concept for pair in pairs))))
    others = ("", *(pair.deconcept for pair in pairs), *concept.controls, *concept.benign)
    kept = [text for text in dict.fromkeys(others) if not mentioned(text, concept.mentions)]
    with unedited():
        positive, negative = (torch.stack(text_states(pipe, texts)) for texts in (shown, kept))
    keys, values, weights, bias = trained(positive, negative, config)
    found, spared = (logits(states, keys, values, weights, bias) for states in (positive, negative))
    if not float(spared.mean()) < min(0.0, float(found.mean())):
        raise ExciseError(
            f"no classifier tells prompts with {concept.name!r} from others; raise iterations, or lower lr"
        )
    target = config.depth * float(spared.mean())
    edit = ClassifierEdit(site, keys, values, weights, bias, config.threshold, target, config.step, config.most)
    opened, opened_without = (
        (torch.sigmoid(made) > config.threshold).float().mean().item() for made in (found, spared)
    )
    measured = {
        "prompts": len(shown) + len(kept),
        "opened": round(opened, 4),
        "opened_without": round(opened_without, 4),
    }
    figures = Figures(len(concept.pairs), opened=opened)
    return build_eraser(pipe, [edit], concept, "cgce", asdict(config), measured, figures=figures)


def trained(positive: Tensor, negative: Tensor, config: CGCEConfig) -> tuple[Tensor, Tensor, Tensor, float]:
    """Train a classifier on states `[n, T, d]` of either kind with Adam. Return keys, values, weights and bias.

    The loss is the binary cross-entropy, in batches with as many prompts of either kind.
    """
    generator = torch.Generator().manual_seed(config.seed)
    unit = torch.cat([positive, negative])[:, 1:].square().mean().sqrt()
    width = positive.shape[2]
    shapes = ((QUERIES, width), (HIDDEN, width), (QUERIES, HIDDEN))
    parts = [torch.randn(*shape, generator=generator) / shape[1] ** 0.5 for shape in shapes]
    parts.append(torch.zeros(()))
    for part in parts:
        part.requires_grad_()
    adam = torch.optim.Adam(parts, lr=config.lr)
    labels = torch.cat([torch.ones(config.batch), torch.zeros(config.batch)])
    for _ in range(config.iterations):
        chosen = [
            side[torch.randint(len(side), (config.batch,), generator=generator)] / unit for side in (positive, negative)
        ]
        states = torch.cat(chosen)
        states = states + config.noise * torch.randn(states.shape, generator=generator)
        loss = F.binary_cross_entropy_with_logits(logits(states, *parts), labels)
        for part, slope in zip(parts, torch.autograd.grad(loss, parts), strict=True):
            part.grad = slope
        adam.step()
    keys, values, weights, bias = (part.detach() for part in parts)
    return keys / unit, values / unit, weights, float(bias)


METHOD = Fitted("cgce", CGCEConfig, fit)
