"""SNCE: erase a concept by turning down the SAE neuron that carries it (He et al., A Single Neuron Works)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.concepts import Concept
from excise.concepts.concept import mentioned
from excise.erasers import Attachment, Eraser, SAEEdit, made_for
from excise.erasers.artefact.strength import LEAST_CARRIED
from excise.erasers.edits.orthogonal_sae import OrthogonalSAEEdit
from excise.erasers.verify import removals
from excise.errors import ExciseError, InvalidSetting, stacklevel
from excise.methods.base import Fitted
from excise.methods.configs.sae import SNCEConfig
from excise.methods.judging import Figures, prompts_by_mention, protected, with_verdict
from excise.methods.prompt_codes import Reading, cached_codes, carried_share, concept_codes
from excise.methods.sae.calibrate import Calibration, calibrate
from excise.methods.sae.coupling import coupled
from excise.methods.sae.finding import Found, acts_on, find
from excise.methods.sae.metadata import created, measured
from excise.methods.sae.replacing import pairs_to, replacing
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, load, saes_in
from excise.sites import LanguageModel, Site


def fit(
    pipe: Pipeline,
    concept: Concept,
    config: SNCEConfig | None = None,
    *,
    sae: TopKSAE | Mapping[Site, TopKSAE] | None = None,
    found: Found | None = None,
) -> Eraser:
    """Fit, calibrate and self-test the eraser of `concept` for `pipe`: an edit for every SAE.

    A pipeline with several text encoders needs one SAE for each: the config's folder then holds a folder for each
    encoder (`text_encoder`, `text_encoder_2`, ...). Pass `sae`, or several by Site, and the `found` of a single one, to
    reuse what is loaded already. Raises ExciseError if no neuron carries the concept or the threshold cannot separate
    the sides, and EraserDidNotFire if an edit does not reach the denoiser.
    """
    config = config or SNCEConfig()
    if config.replace_with:
        pairs_to(pipe, concept, config.replace_with)
    parts = []
    for own, whole in _by_encoder(config, sae):
        with cached_codes():
            parts.append(_part(pipe, concept, own, whole, found))
    # The canary has to show all edits: take the prompt on which the quietest of them is loudest.
    loudness = torch.stack([part.loudness / part.loudness.max().clamp(min=1e-9) for part in parts]).amin(0)
    canary = (
        ", ".join(concept.mentions) if config.source == "concept" else concept.pairs[int(loudness.argmax())].concept
    )
    eraser = Eraser(
        edits=tuple(part.edit for part in parts),
        name=f"{concept.name}-snce",
        concept=concept.name,
        mentions=concept.mentions,
        made_for=made_for(pipe),
        created=created(config, [part.edit.site for part in parts]),
        measured=parts[0].measured
        if len(parts) == 1
        else {"encoders": {part.edit.site.key: part.measured for part in parts}},
        canary=(canary,),
    )
    given = sae if isinstance(sae, TopKSAE) else _whole(config, parts)
    with Attachment(eraser, pipe, sae=given, trial=True) as attachment:
        prompts = prompts_by_mention(concept, loudness.tolist())
        kept = _left_over(attachment) if config.replace_with else ()
        return with_verdict(attachment, concept, prompts, _worst(parts), kept)


def _left_over(attachment: Attachment) -> list[str]:
    """Return what `verify` would refuse: states that move to those of a word like the concept keep much of it."""
    found, _ = removals(attachment)
    return [f"it removes too little of {kept}; replace it with another word" for kept in found if not kept.enough]


@dataclass(frozen=True, eq=False)
class _Part:
    """Fit for one encoder."""

    edit: SAEEdit
    sae: TopKSAE
    loudness: Tensor
    """`[P]`: the sum of the edited neurons' codes on every concept prompt."""
    measured: dict[str, Any]
    figures: Figures


def _worst(parts: list[_Part]) -> Figures:
    """Return the worst of each figure over all encoders, since a concept that passes one encoder passes."""
    figures = [part.figures for part in parts]

    def least(values: Iterable[float | None]) -> float | None:
        return min((value for value in values if value is not None), default=None)

    groups = [f.protected for f in figures if f.protected is not None]
    return replace(
        figures[0],
        carried=least(f.carried for f in figures),
        auroc=least(f.auroc for f in figures),
        opened=least(f.opened for f in figures),
        controls=max((f.controls for f in figures if f.controls is not None), default=None),
        benign=max((f.benign for f in figures if f.benign is not None), default=None),
        protected=(tuple({word: None for found, _ in groups for word in found}), groups[0][1]) if groups else None,
    )


def _by_encoder(
    config: SNCEConfig, sae: TopKSAE | Mapping[Site, TopKSAE] | None
) -> Iterator[tuple[SNCEConfig, TopKSAE]]:
    """Yield a config and an SAE for every encoder to edit."""
    if isinstance(sae, Mapping):
        for site, whole in sae.items():
            yield replace(config, sae="", component=site.component, site=site.path), whole
    elif sae is not None:
        yield config, sae
    elif folders := saes_in(Path(_sae_folder(config))):
        for component, folder in folders.items():
            yield replace(config, sae=str(folder), component=component, site=""), load(folder)
    else:
        yield config, load(Path(config.sae))


def _whole(config: SNCEConfig, parts: list[_Part]) -> TopKSAE | None:
    """Return the SAE that gate="topk" needs when attaching. Raises ExciseError if there would be several."""
    if not any(part.edit.needs_sae for part in parts):
        return None
    if len(parts) > 1:
        raise InvalidSetting('gate="topk" works with one text encoder; use gate="whole" for a pipeline with several')
    return parts[0].sae


def _part(pipe: Pipeline, concept: Concept, config: SNCEConfig, sae: TopKSAE, found: Found | None) -> _Part:
    """Find, calibrate and scale the edit of one encoder."""
    if found is None:
        found = find(pipe, sae, concept, config)
    neurons = list(found.chosen(config))
    edit = _edit(sae, found, neurons, config)

    def read(prompts: Sequence[str]) -> Reading | None:
        return Reading.of(pipe, sae, edit, prompts, config.batch_size) if prompts else None

    positives = Reading.of(pipe, sae, edit, [pair.concept for pair in concept.pairs], config.batch_size)
    without = Reading.of(pipe, sae, edit, [pair.deconcept for pair in concept.pairs], config.batch_size)
    others = [text for text in concept.benign if not mentioned(text, concept.mentions)]
    controls, calibrating, held_out = read(concept.controls), read(others[::2]), read(others[1::2])
    acts: Tensor | None = None
    if controls is not None and config.source == "prompt" and config.gate in ("whole", "threshold"):
        acts = acts_on(positives, without, controls, config.margin).any(1)
    negatives = without if controls is None else without.with_more(controls)
    lead = min(side.lead for side in (positives, negatives, calibrating) if side is not None)
    carried: float | None = None
    kept = positives.topk[:, lead:] > 0
    benign = None if calibrating is None else calibrating.preacts[:, lead:]
    levels = calibrate(positives.preacts[:, lead:], kept, negatives.preacts[:, lead:], config.margin, benign)
    if config.source == "concept":
        edit = replace(edit, gate="relu" if config.gate == "relu" else "topk")
        codes = concept_codes(pipe, sae, edit, concept.mentions, config.align)
        edit = replace(edit, source="concept", align=config.align, concept_codes=codes)
    else:
        edit = replace(edit, lead=lead)
        if negatives.varying_start:
            warnings.warn(
                f"the first state at {edit.site.key} is a special token's but depends on the prompt; it is calibrated "
                "and edited like a word's",
                stacklevel=stacklevel(),
            )
        if config.gate in ("whole", "threshold"):
            edit = _with_levels(edit, concept, levels)
        carried = carried_share(pipe, sae, edit, concept, config.batch_size)
        if config.unit == "concept":
            edit = replace(edit, lam=config.lam / max(carried, LEAST_CARRIED))
    sides = {"concept": positives, "deconcept": without, "controls": controls, "benign": held_out}
    figures = {**measured(found, edit, levels, sides), "carried": carried}
    if isinstance(edit, OrthogonalSAEEdit):
        figures["left"] = edit.left(sae.W_dec.detach()[neurons].cpu())
    if config.replace_with:
        moving, figures["replaced"] = replacing(pipe, sae, edit, concept, config.replace_with, config.batch_size)
        edit = replace(moving, lam=config.lam)
    loudness = positives.codes(replace(edit, source="prompt", concept_codes=None)).sum((1, 2))
    judged = _figures(pipe, sae, edit, concept, config, figures, acts)
    if held_out is not None and judged.spares:
        opened = held_out.acting(edit)
        judged = replace(judged, benign=(int(opened.sum()), len(opened)))
    return _Part(edit, sae, loudness, figures, judged)


def _edit(sae: TopKSAE, found: Found, neurons: list[int], config: SNCEConfig) -> SAEEdit:
    """Return the edit before its calibration, with `config.ortho` of directions that spare coupled neurons."""
    options: dict[str, Any] = {"gate": config.gate, "lam": config.lam, "uncond": config.uncond}
    if not config.ortho:
        return SAEEdit.from_sae(sae, found.site, neurons, **options)
    kept = [codes for codes in (found.deconcept_codes, found.control_codes) if codes is not None]
    others = coupled(neurons, kept, sae.W_dec, config.ortho)
    return OrthogonalSAEEdit.from_sae(sae, found.site, neurons, coupled=others, **options)


def _figures(
    pipe: Pipeline,
    sae: TopKSAE,
    edit: SAEEdit,
    concept: Concept,
    config: SNCEConfig,
    found: dict[str, Any],
    acts: Tensor | None,
) -> Figures:
    """Return what the verdict is based on. Only codes of the prompt itself (source="prompt") say what is edited.

    `acts`: on which controls the edit acts if its calibration does not see them; None if there is no calibration.
    """
    aurocs = [neuron["auroc"] for neuron in found["neurons"] if neuron.get("auroc") is not None]
    carried = found.get("replaced", found["carried"])  # the share of the change that the edit is responsible for
    figures = Figures(len(concept.pairs), carried, max(aurocs, default=None))
    if config.source == "concept" or isinstance(pipe, LanguageModel):
        return replace(figures, spares=False)
    share, number = found["fires"]["controls"], len(concept.controls)
    touched = int(acts.sum()) if acts is not None else round(share * number) if share is not None else None
    return replace(
        figures,
        opened=found["fires"]["concept"],
        controls=(touched, number) if touched is not None else None,
        protected=protected(pipe, edit, sae, config.batch_size),
        spares=config.gate != "relu",
    )


def _with_levels(edit: SAEEdit, concept: Concept, levels: Calibration) -> SAEEdit:
    """Return the edit with its levels. Raises ExciseError if the first neuron's do not separate the sides."""
    if not bool(levels.separable[0]):
        raise ExciseError(
            f"no neuron separates {concept.name!r}: neuron {int(edit.indices[0])} is not stronger with it "
            f"({levels.typical[0]:.3g}) than on some prompt without it ({levels.quiet[0]:.3g}); {_advice(concept)}"
        )
    return replace(edit, threshold=levels.threshold.float(), typical=levels.typical.float())


def _advice(concept: Concept) -> str:
    """Return what to try if no neuron is the concept's."""
    if len(concept.mentions) > 1:
        return (
            "the model may treat its words as different things: erase each one as a concept of its own, and join the "
            "erasers with `excise merge`"
        )
    return "the model may not know it, or its SAE has no neuron for it: run `excise find`, or try another method"


def _sae_folder(config: SNCEConfig) -> str:
    if not config.sae:
        raise InvalidSetting("no SAE was named; give the folder of one trained at the Site to edit")
    return config.sae


METHOD = Fitted("snce", SNCEConfig, fit)
