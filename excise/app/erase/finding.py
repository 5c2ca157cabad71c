"""Finding neurons and fitting erasers with what a person named, and plain rows to print of it."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from excise.app.models.resolve import bundled_settings, parse_site, sae_folder
from excise.app.training.text import BUNDLED, train_sae
from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.errors import ExciseError, InvalidSetting, WeakEraserError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.lookup import configured, declared, method, parsed, preset_settings, settings_of
from excise.methods.sae.finding import Found, find
from excise.methods.sae.snce import fit
from excise.methods.trained.trainer import watch_training
from excise.neurons import Ranking
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, card, load, saes_in, shape
from excise.sites import Site, capture, sites_of, text_encoders
from excise.sites.site import tokenizer_of

SWEEP_PROMPTS = 2000


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found, the objects it was found with, and rows ready to print."""

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
    """The method's configuration from the options given, its defaults for the rest.

    Raises ExciseError where the model has no such Site, and as `unplaced` does.
    """
    config = unplaced(model, sae, **options)
    if site is None:
        return config
    place = parse_site(pipe, site)
    return replace(config, site=place.path, component=place.component)


def unplaced(model: str | None = None, sae: Path | None = None, **options: Any) -> SNCEConfig:
    """The method's configuration but for the Site: all of it that can be checked before the model is loaded.

    Raises ExciseError for an impossible value, where another model needs an SAE and none was named, where that cannot
    be read, and where it has fewer neurons than are asked for.
    """
    folder = sae_folder(model, sae)
    config = SNCEConfig(sae=str(folder), **options)
    for own in (saes_in(folder) or {"": folder}).values():
        m = shape(own).m
        if config.k > m:
            raise ExciseError(f"k is {config.k}, but {own} has {m} neurons; ask for fewer")
        if far := [index for index in config.neurons if index >= m]:
            raise ExciseError(f"there is no neuron {far[0]}: {own} has {m}, counted from 0")
    return config


def load_one(pipe: Pipeline, folder: Path) -> TopKSAE:
    """The SAE in a folder, on the device of the pipeline's first text encoder.

    Raises InvalidSetting where the folder holds one for each of several text encoders, and as `excise.sae.load` does.
    """
    if several := saes_in(folder):
        raise InvalidSetting(
            f"{folder} holds SAEs of {', '.join(several)}; name one of them: {folder / next(iter(several))}"
        )
    encoders = list(text_encoders(pipe).values())
    return load(folder, device=next(encoders[0].parameters()).device if encoders else "cpu")


def find_neurons(pipe: Pipeline, concept: Concept, config: SNCEConfig, top: int = 10) -> Findings:
    """Rank and validate neurons, `top` of them. Raises ExciseError as `excise.methods.sae.finding.find` does."""
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
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    if not rows:
        near = ", ".join(str(e.index) for e in found.ranking.near[:3])
        said.append(f"no neuron fires for {concept.name!r} alone" + (f"; nearest are {near}" if near else ""))
    return Findings(concept, sae, config, found, rows, said)


def fit_eraser(pipe: Pipeline, findings: Findings) -> Eraser:
    """The eraser of what was found, without a warning that it is weak: its verdict says so.

    Raises ExciseError as `excise.methods.sae.snce.fit` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)
        return fit(pipe, findings.concept, findings.config, sae=findings.sae, found=findings.found)


def erase(pipe: Pipeline, concept: Concept, config: SNCEConfig) -> tuple[Eraser, list[str]]:
    """The eraser of a concept, by one SAE or by one for every text encoder, and what was warned of on the way, without
    that it is weak: its verdict says so.

    Raises ExciseError as `excise.methods.sae.snce.fit` does.
    """
    if not saes_in(Path(config.sae)):
        findings = find_neurons(pipe, concept, config, config.examine)
        return fit_eraser(pipe, findings), findings.warnings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        eraser = fit(pipe, concept, config)
    said = [w for w in caught if issubclass(w.category, UserWarning) and not issubclass(w.category, WeakEraser)]
    return eraser, [str(w.message) for w in said]


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
    """The eraser of a concept by any method, with settings such as `gamma=-2`, or `saemnesia.gamma=-2` of a joined one,
    saved as the folder `out`.

    With the `bundled` model, its own SAEs where none is named, and the values chosen for it unless a preset is given. A
    training is kept beside `out` until it is done, so that the same call goes on where it was interrupted; `progress`
    is told of its steps. Raises ExciseError for an unknown method, preset or setting, an impossible value, and as the
    method does; WeakEraserError where it is weak and that is not accepted.
    """
    _, settings = parsed(f"{name}:{','.join(given)}")
    chosen, kept = method(name), out.with_name(f"{out.name}.training")
    known = settings_of(name, bundled_settings(preset)) if bundled else {}
    for key in declared(name):
        part, _, setting = key.rpartition(".")
        if setting == "checkpoint":
            known[key] = str(kept / part if part else kept)
    with watch_training(progress or (lambda *line: None)), warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakEraser)  # it is refused, or the caller says so
        eraser = chosen.fit(pipe, concept, configured(name, {**known, **preset_settings(name, preset), **settings}))
    save(eraser, out, accept_weak=accept_weak)
    shutil.rmtree(kept, ignore_errors=True)
    return eraser


def save(eraser: Eraser, out: Path, *, accept_weak: bool = False) -> None:
    """Save an eraser that works. Raises WeakEraserError for a weak one, unless it is accepted; nothing is written."""
    if eraser.weak and not accept_weak:
        raise WeakEraserError(
            f"the eraser of {eraser.concept!r} cannot be relied on: {'; '.join(eraser.weak)}; nothing was written "
            "(--accept-weak writes it, marked as weak)"
        )
    eraser.save(out)


def draw(findings: Findings, path: Path) -> list[Path]:
    """The rows found as bars at `path`, and the paper's Figure 3 beside it. Raises ExciseError without matplotlib."""
    second = path.with_name(f"{path.stem}-activations{path.suffix}")
    draw_figure(findings, 8, path, len(findings.rows))
    draw_figure(findings, 3, second)
    return [path, second]


def draw_figure(findings: Findings, number: int, path: Path, top: int = 30) -> None:
    """The paper's Figure 3, or its Figure 8 of the `top` neurons, as .svg, .png or .pdf.

    Raises ExciseError without matplotlib.
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
        title = f"Every neuron's activation in prompts with “{name}”, and in the same without it"
        figure = plots.distribution(sides[0], sides[1], found.ranking, f"{title} ({found.site.key})")
    plots.save(figure, path)


def swept_sites(pipe: Pipeline) -> list[Site]:
    """The Sites a sweep tries: those of the first text encoder. Raises ExciseError where the pipeline has none."""
    sites = sites_of(pipe)
    if not sites:
        raise ExciseError(f"{type(pipe).__name__} has no text encoder to sweep; name a pipeline that has one")
    return [s for s in sites if s.component == sites[0].component]


def sweep(
    pipe: Pipeline,
    concept: Concept,
    prompts: list[str],
    *,
    tokens: int,
    device: str = "cpu",
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """The best neuron at every Site of the first text encoder, by a small SAE trained there: rows, first layer first.

    `dominance` is the first score over the second. Raises ExciseError as training and finding do.
    """
    rows = []
    for site in swept_sites(pipe):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "sae"
            corpus = {"corpus": f"sweep over {len(prompts)} prompts"}
            train_sae(pipe, site, prompts, replace(BUNDLED, tokens=tokens), folder, card=corpus, device=device)
            findings = find_neurons(pipe, concept, SNCEConfig(sae=str(folder)), top=1)
            held = card(folder)["metrics"]["train"]
        best: dict[str, Any] = findings.rows[0] if findings.rows else {}
        dominance = findings.ranking.dominance
        rows.append(
            {
                "site": site.key,
                **{name: best.get(name) for name in ("neuron", "score", "auroc", "control_share")},
                "dominance": dominance if 0 < dominance < float("inf") else None,
                "fvu": held["fvu"],
            }
        )
        if progress is not None:
            progress(1)
    return rows


@torch.no_grad()
def token_codes(pipe: Pipeline, sae: TopKSAE, site: Site, prompt: str, neuron: int) -> list[tuple[str, float]]:
    """A prompt's tokens, up to and with the end of text, and the neuron's code at each."""
    (batch,) = capture(pipe, [site], [prompt])
    values, indices = sae.encode(batch.states[site][0].to(sae.W_enc))
    codes = (values * (indices == neuron)).sum(-1).tolist()
    words = tokenizer_of(pipe, site.component).convert_ids_to_tokens(batch.ids[0].tolist())
    kept = [(w.removesuffix("</w>"), c) for w, c, s in zip(words, codes, batch.scored[0].tolist(), strict=True) if s]
    return [*kept[:-1], ("⟨end⟩", kept[-1][1])] if kept else []


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
