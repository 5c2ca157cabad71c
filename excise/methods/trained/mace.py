"""MACE: remove a concept from the other words of its prompts, then from the U-Net's attention (Lu et al., MACE: Mass
Concept Erasure in Diffusion Models, CVPR 2024, eqs. 1-5 and 7 as printed; for one concept).

The keys and the values of every cross-attention change, as in the authors' code. For W = to_k's or to_v's:
1. W', closed form, over the words around the concept (f, end and padding included) and the same words of a prompt with
   something else in its place (g), where p is what is kept:
       min Σ |W' f - W g|² + λ₁ Σ |W' p - W p|²  =>  W' = (Σ W g fᵀ + λ₁ Σ W p pᵀ) (Σ f fᵀ + λ₁ Σ p pᵀ)⁻¹
2. ΔW = B A of rank 1, trained so that no head of any layer attends to the concept's tokens S where its object is:
       min Σ_l |A_l[S] ⊙ M|²   at its pictures, noised to t ~ ξ(t) = (σ(γ (t - t₁)) - σ(γ (t - t₂))) / Z
3. W*, closed form, over all tokens f of the concept's prompts:
       min Σ |W* f - (W' + ΔW) f|² + λ₂ Σ |W* p - W p|²
λ |W' - W|² is added in 1 and λ |W* - W|² in 3, so that there is one solution. The authors' code has such terms, the
second around W'. It sums norms in 2, where the paper squares them, as here.

The masks M differ from the paper's, which come from Grounded-SAM. Here they are the untouched U-Net's own attention to
the concept's word, averaged over heads, layers and three timesteps from t₁ to t₂, stretched to 0..1 and thresholded. A
style covers the whole picture and has no mask, as in the authors' code. p are the states of all tokens of the kept
words and of the concept's controls, where the paper takes MS-COCO's captions.

Rank 1, 8 pictures, 50 steps of Adam at 1e-4 (people, styles), λ = 10 (objects), t₁ = 200, t₂ = 400, γ = 0.05 and the
end and padding tokens in S are from the authors' code (Shilin-LU/MACE, not free; none of it is used). That code has
1e-5 for objects and nudity, 120 steps for nudity, and no kept texts besides λ for objects; elsewhere it has λ = 0 and
λ₁ = λ₂ = 1e-4 (7e-7 for nudity) over all captions of MS-COCO 2014. λ₁ = λ₂ = 10 over some hundred texts, the threshold,
and the pictures' guidance and steps are ours. The first was chosen on the bundled model's tuning concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import check_apart, mentioned, without_mentions
from excise.erasers import Eraser, WeightEdit
from excise.errors import ExciseError, InvalidSetting
from excise.methods.base import Fitted
from excise.methods.build import build_eraser
from excise.methods.closed_form.uce import right_factor
from excise.methods.configs.trained import MACEConfig
from excise.methods.cross_attention import kept_words, keys_and_values, text_states
from excise.methods.trained.attention_maps import (
    attended,
    attention,
    concept_positions,
    layer_size,
    shared_states,
    stretched,
)
from excise.methods.trained.sampling import Conditioning, add_noise, encode_conditioning, frozen_unet, sample
from excise.methods.trained.trainer import LowRank, Student, training_digest, tune
from excise.pipeline import Pipeline, as_diffusers
from excise.sites import Site
from excise.sites.denoiser import denoiser_of


@dataclass(frozen=True, eq=False)
class Picture:
    """Picture of the concept to train on."""

    conditioning: Conditioning
    latents: Tensor
    """`[1, C, h, w]`."""
    tokens: Sequence[int]
    """S, positions in the prompt."""
    mask: Tensor
    """M, `[h, w]`: 1 where the concept is, else 0."""


def fit(pipe: Pipeline, concept: Concept, config: MACEConfig | None = None) -> Eraser:
    """Train and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the pipeline has no cross-attention, no prompt names the concept, the anchor or a kept word or
    control mentions it, or as `tune` does.
    """
    config = config or MACEConfig()
    layers = keys_and_values(pipe, "mace")
    before = {site: layer.weight.detach().float().cpu() for site, layer in layers.items()}
    prompts = anchor_prompts(concept, config.anchor)
    check_apart(concept.controls, concept)
    kept = [*kept_words(concept, config.preserve), *concept.controls]
    held = torch.cat(text_states(pipe, kept)) if kept else before[next(iter(before))][:0]
    own, other = (text_states(pipe, list(texts)) for texts in (prompts, prompts.values()))
    words, others = shared_states(pipe, prompts, own, other)
    down = right_factor(words, held, 1.0, config.keep, config.lam)
    refined = {site: weight @ (others - words).T @ down for site, weight in before.items()}
    weights: Mapping[Site, Any] = {site: layer.weight for site, layer in layers.items()}
    start = torch.Generator().manual_seed(config.seed)
    student = LowRank(denoiser_of(pipe, "unet")[1], weights, refined, config.rank, start)
    pictures = generate_pictures(pipe, concept, list(prompts), config)
    chances = density(as_diffusers(pipe).scheduler.config.num_train_timesteps, config)

    def loss(generator: torch.Generator) -> Tensor:
        return objective(pipe, student, pictures, chances, generator, config)

    losses = tune(student, loss, config, training_digest("mace", pipe, concept))
    all_words = torch.cat(own)
    fused = all_words.T @ right_factor(all_words, held, 1.0, config.keep, config.lam)
    edits = [WeightEdit(site, delta=(student.change(site).detach().cpu() @ fused).half()) for site in layers]
    found = {
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "masked": float(torch.stack([picture.mask for picture in pictures]).mean()),
        "prompts": len(prompts),
        "kept": len(kept),
    }
    return build_eraser(pipe, edits, concept, "mace", config.settings, found)


def anchor_prompts(concept: Concept, anchor: str) -> dict[str, str]:
    """Return prompts about the concept, each with its counterpart about something else.

    Raises ExciseError if the anchor mentions the concept.
    """
    if mentioned(anchor, concept.mentions):
        raise InvalidSetting(f"the anchor {anchor!r} is {concept.name!r}, which is to be erased; choose another one")
    if concept.pairs and not anchor:
        # A prompt's first pair differs in the concept alone. Reversing lets it overwrite the later ones.
        first = {pair.concept: pair.deconcept for pair in reversed(concept.pairs)}
        return dict(reversed(first.items()))
    texts = [pair.concept for pair in concept.pairs] or [f"a picture of {mention}" for mention in concept.mentions]
    return {text: " ".join(without_mentions(text, concept.mentions, anchor).split()) for text in texts}


@torch.no_grad()
def generate_pictures(pipe: Pipeline, concept: Concept, prompts: Sequence[str], config: MACEConfig) -> list[Picture]:
    """Generate pictures of the concept with the untouched U-Net. Raises ExciseError if no prompt names it."""
    spoken_in = [(prompt, *where) for prompt in prompts if (where := concept_positions(pipe, prompt, concept))[0]]
    if not spoken_in:
        raise ExciseError(f"none of the prompts about {concept.name!r} holds one of its mentions; add pairs that do")
    empty, made = encode_conditioning(pipe, "", "mace"), []
    for n, (prompt, words, end) in enumerate(spoken_in[: config.pictures]):
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + n)
        side = encode_conditioning(pipe, prompt, "mace")
        how = {"steps": config.steps, "guidance": config.guidance}
        latents = sample(pipe, frozen_unet(pipe), [side], empty, generator, **how)  # type: ignore[arg-type]
        mask = torch.ones(latents.shape[-2:], device=latents.device)
        if concept.kind != "style" and config.threshold:
            mask = attention_share(pipe, side, latents, words, generator, config).ge(config.threshold).float()
        tokens = [*words, *range(end, side.states.shape[1])] if config.pooled else words
        made.append(Picture(side, latents, tokens, mask))
    return made


def attention_share(
    pipe: Pipeline,
    side: Conditioning,
    latents: Tensor,
    words: Sequence[int],
    generator: torch.Generator,
    config: MACEConfig,
) -> Tensor:
    """Return how much the untouched U-Net attends to the tokens `words` at each pixel, `[h, w]` from 0 to 1."""
    times = torch.tensor([config.t1, (config.t1 + config.t2) / 2, config.t2]).to(latents.device)
    times = (times * (as_diffusers(pipe).scheduler.config.num_train_timesteps - 1) / 1000).long()
    with attention(denoiser_of(pipe, "unet")[1]) as maps:
        frozen_unet(pipe)(add_noise(pipe, latents.expand(3, -1, -1, -1), times, generator), times, *side.of(3))
    return stretched(attended(maps, words, latents.shape[-2:]).mean(0, keepdim=True))[0]


def density(steps: int, config: MACEConfig) -> Tensor:
    """Return ξ of eq. 5 `[steps]`, the probability of each timestep."""
    t = torch.arange(steps, dtype=torch.float64) * 1000 / steps
    chances = (config.gamma * (t - config.t1)).sigmoid() - (config.gamma * (t - config.t2)).sigmoid()
    return chances / chances.sum()


def objective(
    pipe: Pipeline,
    student: Student,
    pictures: Sequence[Picture],
    chances: Tensor,
    generator: torch.Generator,
    config: MACEConfig,
) -> Tensor:
    """Return eq. 3 at one of the pictures, averaged over `batch` noised copies."""
    one = pictures[int(torch.randint(len(pictures), (1,), generator=generator))]
    times = torch.multinomial(chances, config.batch, replacement=True, generator=generator).to(one.latents.device)
    with attention(student.denoiser) as maps:
        latents = one.latents.expand(config.batch, -1, -1, -1)
        student(add_noise(pipe, latents, times, generator), times, *one.conditioning.of(config.batch))
    total = torch.zeros((), device=one.latents.device)
    for A in maps:
        size = layer_size(*one.mask.shape, A.shape[2])  # type: ignore[call-arg]
        # A pixel of a coarse layer counts if any pixel that it covers does.
        M = F.adaptive_max_pool2d(one.mask[None], size).view(1, 1, -1, 1)
        total = total + (A[..., list(one.tokens)] * M).square().sum() / config.batch
    return total


METHOD = Fitted("mace", MACEConfig, fit)
