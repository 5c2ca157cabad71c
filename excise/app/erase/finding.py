"""Finding neurons and fitting erasers, with plain rows to print."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from excise.app.models.resolve import bundled_settings, parse_site, sae_folder
from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, InvalidSetting, WeakEraserError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.lookup import configured, declared, method, parsed, preset_settings, settings_of
from excise.methods.prompt_codes import cached_codes
from excise.methods.sae.finding import Found, find
from excise.methods.sae.snce import fit
from excise.methods.trained.trainer import watch_training
from excise.neurons import Ranking
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, load, saes_in, shape
from excise.sites import Site, capture, text_encoders
from excise.sites.site import tokenizer_of


@dataclass(frozen=True, eq=False)
class Findings:
    """The neurons found, the objects used to find them, and rows ready to print."""

    concept: Concept
    sae: TopKSAE
    config: SNCEConfig
    found: Found
    rows: list[dict[str, Any]]
    warnings: list[str]

    @property
    def ranking(self) -> Ranking:
        return self.found.ranking


def settings(
    pipe: Pipeline, *, model: str | None = None, sae: Path | None = None, site: str | None = None, **options: Any
) -> SNCEConfig:
    """Return SNCE's configuration with the given options and defaults for the rest.

    Raises:
        ExciseError: The model does not have this Site, or as `settings_without_site`.
    """
    config = settings_without_site(model, sae, **options)
    if site is None:
        return config
    place = parse_site(pipe, site)
    return replace(config, site=place.path, component=place.component)


def settings_without_site(model: str | None = None, sae: Path | None = None, **options: Any) -> SNCEConfig:
    """Return SNCE's configuration without the Site: what can be checked before the model is loaded.

    Raises:
        ExciseError: A value is impossible, a model other than the bundled one comes without an SAE, the SAE cannot be
            read, or it has fewer neurons than the options ask for.
    """
    folder = sae_folder(model, sae)
    config = SNCEConfig(sae=str(folder), **options)
    for each in (saes_in(folder) or {"": folder}).values():
        m = shape(each).m
        if config.k > m:
            raise ExciseError(f"k is {config.k}, but {each} has {m} neurons; ask for fewer")
        if far := [index for index in config.neurons if index >= m]:
            raise ExciseError(f"there is no neuron {far[0]}: {each} has {m}, counted from 0")
    return config


def load_one(pipe: Pipeline, folder: Path) -> TopKSAE:
    """Load the SAE in a folder, onto the device of the pipeline's first text encoder.

    Raises:
        InvalidSetting: The folder holds SAEs of several text encoders.
        ExciseError: As `excise.sae.load`.
    """
    if several := saes_in(folder):
        raise InvalidSetting(
            f"{folder} holds SAEs of {', '.join(several)}; name one of them: {folder / next(iter(several))}"
        )
    encoders = list(text_encoders(pipe).values())
    return load(folder, device=next(encoders[0].parameters()).device if encoders else "cpu")


def find_neurons(pipe: Pipeline, concept: Concept, config: SNCEConfig, top: int = 10) -> Findings:
    """Rank the neurons and validate the first `top`. Raises ExciseError as `excise.methods.sae.finding.find`."""
    config = replace(config, examine=top)
    sae = load_one(pipe, Path(config.sae))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = find(pipe, sae, concept, config)
    checks = {check.index: check for check in found.validation}
    rows = []
    for entry in found.ranking.entries[:top]:
        check = checks.get(entry.index)
        rows.append(
            {
                "neuron": entry.index,
                "score": entry.score,
                "frequency": entry.frequency,
                "deconcept_score": entry.deconcept_score,
                "auroc": check and check.auroc,
                "p_value": check and check.p_value,
                "control_share": check and check.control_share,
                "structural": bool(check and check.structural),
                "top_tokens": [use.token for use in found.tokens.get(entry.index, ())],
            }
        )
    messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    if not rows:
        near = ", ".join(str(e.index) for e in found.ranking.near[:3])
        messages.append(f"no neuron fires for {concept.name!r} alone" + (f"; nearest are {near}" if near else ""))
    return Findings(concept, sae, config, found, rows, messages)


def fit_eraser(pipe: Pipeline, findings: Findings) -> Eraser:
    """Fit the eraser for the neurons found. A weak eraser gives no warning here: its verdict reports it.

    Raises:
        ExciseError: As `excise.methods.sae.snce.fit`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)
        return fit(pipe, findings.concept, findings.config, sae=findings.sae, found=findings.found)


def erase(pipe: Pipeline, concept: Concept, config: SNCEConfig) -> tuple[Eraser, list[str]]:
    """Fit a concept's eraser, with one SAE or one for each text encoder. Return it with the warnings.

    The warnings leave out that the eraser is weak: its verdict reports it.

    Raises:
        ExciseError: As `excise.methods.sae.snce.fit`.
    """
    if not saes_in(Path(config.sae)):
        with cached_codes():
            findings = find_neurons(pipe, concept, config, config.examine)
            return fit_eraser(pipe, findings), findings.warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        eraser = fit(pipe, concept, config)
    kept = [w for w in caught if issubclass(w.category, UserWarning) and not issubclass(w.category, WeakEraser)]
    return eraser, [str(w.message) for w in kept]


def erase_by(
    pipe: Pipeline,
    concept: Concept,
    name: str,
    given: Sequence[str],
    out: Path,
    *,
    bundled: bool = False,
    preset: str | None = None,
    accept_weak: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> Eraser:
    """Fit a concept's eraser by any method and save it in the folder `out`.

    Checkpoints of a training are kept next to `out` until it is done, so that the same call resumes it.

    Args:
        pipe: The pipeline.
        concept: The concept to erase.
        name: The method.
        given: Settings such as `gamma=-2`, or `saemnesia.gamma=-2` for a part of a joined method.
        out: Folder of the eraser.
        bundled: Whether the model is the bundled one. If so, its SAEs are the default, and without a preset the values
            tuned for it.
        preset: Preset of the method's settings.
        accept_weak: Whether to save a weak eraser.
        progress: Called with a training's steps.

    Raises:
        ExciseError: The method, preset or a setting is unknown, a value is impossible, or the method fails.
        WeakEraserError: The eraser is weak and `accept_weak` is false.
    """
    _, settings = parsed(f"{name}:{','.join(given)}")
    chosen, kept = method(name), out.with_name(f".{out.name}.training")
    known = settings_of(name, bundled_settings(preset)) if bundled else {}
    for key in declared(name):
        part, _, setting = key.rpartition(".")
        if setting == "checkpoint":
            known[key] = str(kept / part if part else kept)
    with watch_training(progress or (lambda *line: None)), warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)  # save() refuses it, or the caller accepts it
        eraser = chosen.fit(pipe, concept, configured(name, {**known, **preset_settings(name, preset), **settings}))
    save(eraser, out, accept_weak=accept_weak)
    shutil.rmtree(kept, ignore_errors=True)
    return eraser


def save(eraser: Eraser, out: Path, *, accept_weak: bool = False) -> None:
    """Save an eraser. Raises WeakEraserError, and writes nothing, if it is weak and that is not accepted."""
    if eraser.weak and not accept_weak:
        raise WeakEraserError(
            f"the eraser of {eraser.concept!r} cannot be relied on: {'; '.join(eraser.weak)}; nothing was written "
            "(--accept-weak writes it, marked as weak)"
        )
    eraser.save(out)


def draw(findings: Findings, path: Path) -> list[Path]:
    """Draw the neurons found as bars at `path`, and the paper's Figure 3 next to it. Return both paths.

    Raises:
        ExciseError: matplotlib is not installed.
    """
    activations = path.with_name(f"{path.stem}-activations{path.suffix}")
    draw_figure(findings, 8, path, len(findings.rows))
    draw_figure(findings, 3, activations)
    return [path, activations]


def draw_figure(findings: Findings, number: int, path: Path, top: int = 30) -> None:
    """Draw the paper's Figure 3, or its Figure 8 with the `top` neurons, as .svg, .png or .pdf.

    Raises:
        ExciseError: matplotlib is not installed.
    """
    from excise.neurons import plots
    from excise.neurons.scores import modulated_frequency

    found, name = findings.found, findings.concept.name
    if number == 8:
        ahead = found.ranking.dominance
        lead = f": the first scores {ahead:.3g} times the second" if 1 < ahead < math.inf else ""
        figure = plots.ranked(
            found.ranking,
            f"Neurons that fire for “{name}” and not without it",
            f"{found.site.key}{lead}",
            {index: [use.token for use in uses] for index, uses in found.tokens.items()},
            top,
            {check.index: check.control_share or 0.0 for check in found.validation},
        )
    else:
        sides = [modulated_frequency(*codes) for codes in (found.concept_codes, found.deconcept_codes)]
        title = f"Activation of each neuron in prompts with “{name}” and in the same prompts without it"
        figure = plots.distribution(sides[0], sides[1], found.ranking, f"{title} ({found.site.key})")
    plots.save(figure, path)


@unedited()
@torch.no_grad()
def token_codes(pipe: Pipeline, sae: TopKSAE, site: Site, prompt: str, neuron: int) -> list[tuple[str, float]]:
    """Return a prompt's tokens, up to and including the end of text, with the neuron's code at each."""
    (batch,) = capture(pipe, [site], [prompt])
    values, indices = sae.encode(batch.states[site][0].to(sae.W_enc))
    codes = (values * (indices == neuron)).sum(-1).tolist()
    words = tokenizer_of(pipe, site.component).convert_ids_to_tokens(batch.ids[0].tolist())
    kept = [(w.removesuffix("</w>"), c) for w, c, s in zip(words, codes, batch.scored[0].tolist(), strict=True) if s]
    return [*kept[:-1], ("⟨end⟩", kept[-1][1])] if kept else []


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
