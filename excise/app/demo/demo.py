"""The demo, step by step: find a concept's neuron, turn it down, and measure what changed."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from excise.app.demo.measure import Family, FamilyName, families, figures, further_figures, generate, judge
from excise.app.demo.pictures import comparison_png
from excise.app.demo.report import NeuronView, Report, Strip, render
from excise.app.erase.finding import Findings, find_neurons, fit_eraser, token_codes
from excise.app.models.resolve import sae_folder, sae_site
from excise.app.training.text import BUNDLED, shown, train_sae
from excise.bench.machine import machine
from excise.bench.pictures import Pictures
from excise.concepts import from_templates
from excise.erasers.artefact import strength
from excise.errors import ExciseError
from excise.files import write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.neurons.validation import activations
from excise.pipeline import Pipeline
from excise.sae import load
from excise.sites import PRESETS
from excise.sites.truncation import cuts
from excise.statistics import Estimate

STRIP_LAMS = (0.0, 0.6, 0.8, 1.0, 1.2, 2.0, 3.0)
STRIP_ROWS: tuple[tuple[FamilyName, int], ...] = (("direct", 4), ("synonym", 2), ("mixed", 2))
"""How many prompts of each family are in the strip."""
TRAIN_CAPTIONS, TRAIN_TOKENS = 4000, 2_000_000
"""Corpus of `--train-sae`. Training takes under two minutes on two cores."""


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demo."""

    concept: str = "gun"
    """An object that the bundled model knows."""
    out: Path = Path("demo")
    """Folder for report.html, grid.png, result.json and the eraser."""
    n: int = 24
    """Prompts in each family; their seeds are 0 to n - 1."""
    steps: int = 20
    """Denoising steps."""
    lam: float | None = None
    """Strength λ; None chooses it automatically."""
    train_sae: bool = False
    """Train an SAE instead of using the bundled one."""


class Stage(Protocol):
    """Display of the demo's progress."""

    def step(self, title: str) -> None:
        """Begin a step."""

    def say(self, text: str) -> None:
        """Show a finding of the current step."""

    def ranking(self, found: Findings) -> None:
        """Show the neurons found."""

    def figures(self, measured: dict[str, Estimate], further: dict[str, Estimate]) -> None:
        """Show the figures."""

    def working(self, title: str, total: int | None, unit: str = "") -> AbstractContextManager[Callable[[float], None]]:
        """Show progress of long work. The callable takes the `unit`s done since its last call, `total` in all."""


def run(config: DemoConfig, stage: Stage) -> dict[str, Any]:
    """Run the demo. Return the content of `result.json`.

    Raises:
        ExciseError: The bundled model does not know the object or has no synonyms for it, or a file cannot be written.
    """
    from excise import reference
    from excise.reference.world import OBJECTS

    began = time.monotonic()
    if config.concept not in OBJECTS:
        raise ExciseError(f"the bundled model does not know {config.concept!r}; it knows {', '.join(OBJECTS)}")
    groups = families(config.concept, config.n)
    if config.out.exists() and not config.out.is_dir():
        raise ExciseError(f"{config.out} is a file; name a folder with --out")

    stage.step("Load the bundled model and " + ("train an SAE" if config.train_sae else "its SAE"))
    pipe = reference.load()
    site, folder = _site_and_sae(config, pipe, stage)
    shape = load(folder).config
    stage.say(f"site {site}; {shape.m} neurons, {shape.k} active at a time")

    stage.step(f"Build pairs for “{config.concept}”")
    concept = from_templates(config.concept, (config.concept,))
    for pair in concept.pairs[:3]:
        stage.say(f"{pair.concept}  ↔  {pair.deconcept}")
    stage.say(f"{len(concept.pairs)} pairs, {len(concept.controls)} controls")

    stage.step("Rank the neurons")
    options: dict[str, Any] = {} if config.lam is None else {"lam": config.lam}
    found = find_neurons(pipe, concept, SNCEConfig(sae=str(folder), **options))
    stage.ranking(found)

    eraser = fit_eraser(pipe, found)
    for why in eraser.weak:
        stage.say(f"weak: {why}")
    (_, lam), neuron = eraser.edits[0].coefficient, eraser.edits[0].neurons[0]
    stage.step(f"Generate the same prompts and seeds without and with neuron {neuron} turned down, {_strength(eraser)}")
    lost = {cut.prompt: cut.lost for cut in cuts(pipe, [prompt for group in groups for prompt in group.prompts])}
    groups = tuple(replace(group, lost=lost) for group in groups)
    before = _generate(pipe, groups, config.steps, stage, "without the eraser")
    with eraser.attach(pipe):
        after = _generate(pipe, groups, config.steps, stage, "with the eraser")
    strip = _strip(pipe, eraser, groups, config.steps, stage)

    stage.step("Judge the pictures")
    outcomes = judge(config.concept, groups, before, after)
    measured, further = figures(outcomes), further_figures(outcomes)
    stage.figures(measured, further)

    stage.step("Write the report")
    ranking = found.ranking.entries
    shown = [g.prompts[0] for g in groups] + list(groups[1].prompts[1:2])
    views = _views(found, [e.index for e in ranking[:3]])
    tokens = [token_codes(pipe, found.sae, site, prompt, neuron) for prompt in shown]
    eraser.save(config.out / "eraser")
    result = {
        "figures": {name: figure.to_json() for name, figure in measured.items()},
        "neuron": neuron,
        "lambda": lam,
        "seconds": round(time.monotonic() - began, 1),
        "machine": machine(),
        "weak": list(eraser.weak),
    }
    report = Report(
        concept=config.concept,
        lam=lam,
        facts=_facts(eraser, result, config),
        figures=measured,
        further=further,
        outcomes=outcomes,
        ranking=[(e.index, e.score) for e in ranking[:10]],
        neurons=views,
        tokens=tokens,
        strip=strip,
        settings=dict(eraser.created),
        command=_command(config),
    )
    write_atomic(config.out / "report.html", render(report))
    write_atomic(config.out / "grid.png", comparison_png(outcomes))
    write_atomic(config.out / "result.json", json.dumps(result, indent=2) + "\n")
    stage.say(", ".join(str(config.out / name) for name in ("report.html", "grid.png", "result.json", "eraser")))
    return result


def _command(config: DemoConfig) -> str:
    """Return the command line for `config`."""
    options = {"--concept": config.concept, "--n": config.n, "--steps": config.steps, "--lam": config.lam}
    typed = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    return shlex.join(["excise", "demo", *typed, *["--train-sae"] * config.train_sae, "--out", str(config.out)])


def _site_and_sae(config: DemoConfig, pipe: Pipeline, stage: Stage) -> tuple[Any, Path]:
    """Return the SAE's Site and folder: the bundled one's, or those of one trained into the demo's folder."""
    bundled = sae_folder(None, None)
    if not config.train_sae:
        return sae_site(pipe, bundled), bundled
    from excise import reference

    site, folder = PRESETS["reference"][0], config.out / "sae"
    if (folder / "cfg.json").exists():
        stage.say(f"using the SAE in {folder}; delete it to train again")
        return site, folder
    prompts = list(reference.sae_corpus(captions=TRAIN_CAPTIONS, english=0))
    settings = replace(BUNDLED, tokens=TRAIN_TOKENS)
    card = {"corpus": f"{len(prompts)} captions", "model": "bundled"}
    with shown(stage.working, len(prompts), TRAIN_TOKENS) as (captured, line):
        train_sae(pipe, site, prompts, settings, folder, card=card, captured=captured, progress=line)
    return site, folder


def _generate(pipe: Pipeline, groups: Sequence[Family], steps: int, stage: Stage, how: str) -> list[Pictures]:
    from excise.reference import denoising_steps

    pictures = sum(len(g.prompts) for g in groups)
    with stage.working(f"generating {pictures} pictures {how}", denoising_steps(pictures, steps), "steps") as done:
        return generate(pipe, groups, steps, done)


def _strip(pipe: Pipeline, eraser: Any, groups: Sequence[Family], steps: int, stage: Stage) -> Strip:
    """Generate the strip: the same few prompts at each λ."""
    from excise import reference

    by_name = {g.name: g for g in groups}
    chosen = [
        (by_name[name].prompts[i], by_name[name].seeds[i], by_name[name].label(i))
        for name, count in STRIP_ROWS
        for i in range(min(count, len(by_name[name].prompts)))
    ]
    prompts, seeds, labels = [p for p, _, _ in chosen], [s for _, s, _ in chosen], [text for _, _, text in chosen]
    pictures = []
    used = eraser.edits[0].coefficient[1]
    lams = sorted({*(lam for lam in STRIP_LAMS if abs(lam - used) > 0.1), used})
    total = len(lams) * reference.denoising_steps(len(chosen), steps)
    with stage.working("generating the λ strip", total, "steps") as done:
        for lam in lams:
            with eraser.attach(pipe, strength=lam / used):
                pictures.append(
                    reference.generate(pipe, prompts, seeds, steps=steps, batch_size=len(chosen), progress=done)
                )
    return Strip(labels, lams, pictures)


def _views(findings: Findings, neurons: Sequence[int]) -> list[NeuronView]:
    found = findings.found
    sides = [
        None if codes is None else activations(codes)
        for codes in (found.concept_codes, found.deconcept_codes, found.control_codes)
    ]
    return [NeuronView(i, *([] if side is None else side[:, i].tolist() for side in sides)) for i in neurons]


def _strength(eraser: Any) -> str:
    edit = eraser.edits[0]
    return strength.in_words(edit.lam, edit.site.key, eraser.created, eraser.measured)


def _facts(eraser: Any, result: dict[str, Any], config: DemoConfig) -> list[tuple[str, str]]:
    edit = eraser.edits[0]
    return [
        ("neuron", str(result["neuron"])),
        ("strength", _strength(eraser).removeprefix("strength ")),
        ("site", edit.site.key),
        ("source", edit.source),
        ("pictures", f"{config.n} in each family, {config.steps} steps"),
        *[("weak", why) for why in eraser.weak],
        ("took", f"{result['seconds']:.0f} s"),
        ("on", result["machine"]),
    ]
