"""Finding the neuron that carries a concept: rank and validate an SAE's neurons."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from excise.concepts import Concept
from excise.erasers import SAEEdit
from excise.errors import ExciseError, InvalidSetting, WrongModel
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import Reading, cached_codes, prompt_codes
from excise.methods.sae.calibrate import calibrate
from excise.neurons import PromptCodes, Ranking, Validation, top_tokens
from excise.neurons.identification import identify
from excise.neurons.validation import TokenUse, validate
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, card
from excise.sites import Site, site_at
from excise.sites.site import tokenizer_of
from excise.sites.tokens import pieces


@dataclass(frozen=True, eq=False)
class Found:
    """Ranking and validation of neurons for a concept at a Site."""

    site: Site
    ranking: Ranking
    validation: tuple[Validation, ...]
    """Of the first `examine` neurons of the ranking."""
    tokens: dict[int, tuple[TokenUse, ...]]
    """By neuron: the tokens of concept prompts at which it fires most."""
    concept_codes: PromptCodes
    deconcept_codes: PromptCodes
    control_codes: PromptCodes | None

    def chosen(self, config: SNCEConfig) -> tuple[int, ...]:
        """Return the neurons to edit. Raises ExciseError if the ranking has fewer than k."""
        return config.neurons or self.ranking.top(config.k)


@cached_codes()
def find(pipe: Pipeline, sae: TopKSAE, concept: Concept, config: SNCEConfig | None = None) -> Found:
    """Rank and validate the SAE's neurons for `concept` (eqs. 4-7) at the config's Site.

    Raises ExciseError if the concept has no pairs, or Site and SAE do not match. Warns of a structural top neuron.
    """
    config = config or SNCEConfig()
    site = site_of(pipe, sae, config)
    if not concept.pairs:
        raise ExciseError(f"concept {concept.name!r} has no prompt pairs; make some with `excise pairs make`")
    prompts = [pair.concept for pair in concept.pairs]
    codes, ids = prompt_codes(pipe, sae, site, prompts, config.batch_size)
    others, _ = prompt_codes(pipe, sae, site, [pair.deconcept for pair in concept.pairs], config.batch_size)
    controls = prompt_codes(pipe, sae, site, concept.controls, config.batch_size)[0] if concept.controls else None
    ranking = identify(codes, others, tolerance=config.tolerance, score=config.score)
    templates = [pair.template for pair in concept.pairs]
    if len(set(templates)) < 2:
        # With one wording only, nothing can be held out by wording: every pair becomes a fold unit.
        templates = [""] * len(templates)
    checked: tuple[Validation, ...] = ()
    if len(templates) > 1 and ranking.entries:
        checked = validate(
            codes,
            others,
            templates,
            ranking,
            controls=controls,
            groups=prompts,
            top=config.examine,
            permutations=config.permutations,
        )
    if checked and concept.controls and config.source == "prompt" and config.gate in ("whole", "threshold"):
        acts = _acts_on_controls(pipe, sae, site, concept, config, [check.index for check in checked])
        checked = tuple(replace(check, control_share=share) for check, share in zip(checked, acts, strict=True))
    if checked and checked[0].structural:
        warnings.warn(
            f"neuron {checked[0].index} ranks first for {concept.name!r} but an eraser calibrated without the control "
            f"prompts would change {checked[0].control_share:.0%} of them: it carries the prompts' structure, not the "
            "concept; improve the pairs or choose another neuron",
            stacklevel=2,
        )
    tokenizer = tokenizer_of(pipe, site.component)
    words = [[piece.strip() for piece in pieces(tokenizer, row)] for row in ids.tolist()]
    tokens = {entry.index: top_tokens(codes, words, entry.index) for entry in ranking.entries[: config.examine]}
    return Found(site, ranking, checked, tokens, codes, others, controls)


def site_of(pipe: Pipeline, sae: TopKSAE, config: SNCEConfig) -> Site:
    """Return the config's Site, or the one on the SAE's card. Raises ExciseError if both are missing or they differ."""
    trained = card(Path(config.sae)).get("site") if config.sae else None
    if isinstance(trained, dict):
        trained = f"{trained.get('component', config.component)}/{trained.get('path', '')}"
    component, path = config.component, config.site
    if not config.sae and not path and isinstance(sae.card.get("site"), dict):
        component, path = str(sae.card["site"].get("component", component)), str(sae.card["site"].get("path", ""))
    if isinstance(trained, str) and trained:
        own, _, tail = trained.rpartition("/")
        own = own or component
        if path and (own, tail) != (component, path.removeprefix("text_model.")):
            raise WrongModel(
                f"the SAE was trained at {own}/{tail}, not at {component}/{path}; use that Site or another SAE"
            )
        component, path = own, tail
    if not path:
        raise InvalidSetting("no Site was named and the SAE's card names none; give one such as encoder.layers.8")
    site = site_at(pipe, path, component)
    if site.width != sae.config.d:
        raise WrongModel(f"the SAE is {sae.config.d} wide, {site.key} {site.width}; use an SAE trained at this Site")
    return site


def _acts_on_controls(
    pipe: Pipeline, sae: TopKSAE, site: Site, concept: Concept, config: SNCEConfig, neurons: list[int]
) -> list[float]:
    """Return, by neuron, the share of controls on which an eraser calibrated without them would act."""
    edit = SAEEdit.from_sae(sae, site, neurons)

    def read(prompts: Sequence[str]) -> Reading:
        return Reading.of(pipe, sae, edit, prompts, config.batch_size)

    positives = read([pair.concept for pair in concept.pairs])
    negatives = read([pair.deconcept for pair in concept.pairs])
    acts = acts_on(positives, negatives, read(concept.controls), config.margin)
    shares: list[float] = acts.double().mean(0).tolist()
    return shares


def acts_on(positives: Reading, negatives: Reading, controls: Reading, margin: float) -> Tensor:
    """Return `[C, k]`: on which controls each neuron acts, with a threshold calibrated on the other two alone.

    The controls are then prompts that the threshold has not seen.
    """
    lead = min(positives.lead, negatives.lead, controls.lead)
    levels = calibrate(positives.preacts[:, lead:], positives.topk[:, lead:] > 0, negatives.preacts[:, lead:], margin)
    return (controls.preacts[:, lead:] > levels.threshold).any(1)
