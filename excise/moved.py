"""Import paths of earlier versions: each still works for one release, warns once, and gives the same objects.

`MODULES` lists the modules that moved, `NAMES` the names that left a module or package which still exists.
docs/migration.md has the table for people.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _all(room: str, moves: str) -> dict[str, tuple[str, ...]]:
    """Parse lines `old: new, new`: old is below `room`, and so is new unless it starts with `excise.`."""
    found = {}
    for line in moves.strip().splitlines():
        old, _, new = line.strip().partition(": ")
        names = (name if name.startswith("excise.") else f"excise.{room}.{name}" for name in new.split(", "))
        found[f"excise.{room}.{old}"] = tuple(names)
    return found


MODULES: dict[str, tuple[str, ...]] = {
    **_all(
        "app",
        """
        benchmark: bench.runs
        comparing: training.comparing
        eval_unlearn: erase.eval_unlearn
        explaining: neurons.explaining
        fid: bench.fid
        finding: erase.finding
        language: models.language
        many: erase.many
        nearest: neurons.nearest
        neuron_corpus: neurons.corpus
        neuron_database: neurons.database
        pair_generation: pairs.generation
        pair_review: pairs.review
        pictures: erase.pictures
        pipelines: models.pipelines
        report: demo.report
        reproduce: bench.reproduce
        safe_sail: neurons.safe_sail
        supervised_training: training.supervised
        text_corpora: training.corpora
        """,
    ),
    **_all(
        "erasers",
        """
        block: edits.block_sae, edits.base
        blocklist: edits.blocklist, apply.conditioning
        calibrate: excise.methods.sae.calibrate
        edit: edits.text_sae, edits.base
        formats: artefact.formats
        gated: edits.gated_sae
        guidance: edits.guidance, apply.guidance
        hub: artefact.hub, excise.hub
        integrity: guard.model_digest
        kinds: edits.registry, apply.registry
        modulation: edits.skips, apply.skips, edits.weights
        permeable: edits.weights, apply.weights_by_prompt
        projection: edits.projection, apply.conditioning, excise.sites.pooled
        rows: edits.sae_rows
        signing: artefact.signing
        steering: edits.vectors
        strength: artefact.strength
        tensors: edits.base
        verbs: loaders
        verdict: artefact.verdict
        weights: edits.weights, apply.weights
        """,
    ),
    **_all(
        "methods",
        """
        advunlearn: trained.advunlearn
        blocks: sae.block_levels
        ca: trained.ca
        casteer: steering.casteer
        concept_steerers: sae.concept_steerers
        dumo: trained.dumo
        esd: trained.esd
        esd_u: trained.esd_u
        esd_x: trained.esd_x
        itd: sae.itd
        mace: trained.mace
        proving: build
        reading: prompt_codes
        rece: closed_form.rece
        record: sae.metadata
        sa: trained.sa
        saemnesia: sae.saemnesia
        saemnesia_text: sae.saemnesia_text
        saeuron: sae.saeuron
        safety_filter: steering.safety_filter
        safree: steering.safree
        sld: steering.sld
        snce: sae.snce, sae.finding
        spm: trained.spm
        tuning: trained.trainer
        uce: closed_form.uce
        """,
    ),
    **_all("neurons", "entry: database.entry\nexport: database.export\ntext_index: database.text_index"),
    **_all("sae", "importers: exchange.importers\nlayouts: exchange.layouts, exchange.read"),
    **_all(
        "sites",
        """
        block_shards: activations.block_shards
        blocks: denoiser, activations.blocks
        by_length: activations.length_buckets
        capture: activations.capture
        fidelity: activations.fidelity
        packing: activations.packing
        pieces: tokens
        shards: activations.shards
        token_shards: activations.token_shards
        """,
    ),
}
"""Old module: where its names are now, the main module first."""

NAMES: dict[str, dict[str, str]] = {
    "excise.app.audit": dict.fromkeys(("Audit", "Plan"), "excise.app.audit.audit"),
    "excise.app.demo": dict.fromkeys(("DemoConfig", "run"), "excise.app.demo.demo"),
    "excise.app.models": dict.fromkeys(
        ("bundled_settings", "concept_named", "load_pipeline", "parse_site", "sae_folder", "sae_site"),
        "excise.app.models.resolve",
    ),
    "excise.app.training": {
        **dict.fromkeys(("recipe_config", "recipe_prompts", "train_on", "train_sae"), "excise.app.training.text"),
        **dict.fromkeys(("features", "vectors"), "excise.app.reading.vectors"),
    },
    "excise.erasers.artefact": {
        **dict.fromkeys(("Check", "check_manifest", "eraser_folders", "manifest"), "excise.erasers.artefact.files"),
        "check_files": "excise.erasers.artefact.checks",
    },
    "excise.methods.base": dict.fromkeys(
        ("check_name", "method", "named", "parsed", "settings_of"), "excise.methods.lookup"
    ),
    "excise.neurons.database": {"NeuronDatabase": "excise.neurons.database.database"},
}
"""Existing module or package: where the names that left it are now."""


def forward(module: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that names have left."""

    def find(name: str) -> Any:
        if name not in NAMES[module]:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", f"{NAMES[module][name]}.{name}", 2)
        found = getattr(import_module(NAMES[module][name]), name)
        vars(sys.modules[module])[name] = found  # so that it warns once
        return found

    return find


class _Finder(MetaPathFinder, Loader):
    """Finder of old modules; it comes last, so that it is asked only for modules that nothing else has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        first, *others = MODULES[old]
        _warn(old, first, 2)
        main = import_module(first)
        if others:
            homes = [main, *map(import_module, others)]

            def find(name: str) -> Any:
                for home in homes:
                    if name in vars(home):
                        return vars(home)[name]
                raise AttributeError(f"module {old!r} has no attribute {name!r}")

            vars(module)["__getattr__"] = find
        else:
            sys.modules[old] = main  # the import system uses what it finds here
        package, _, own = old.rpartition(".")
        if own in getattr(sys.modules[package], "__all__", ()):
            getattr(sys.modules[package], own)
            sys.modules[package].__class__ = _Keeping


class _Keeping(ModuleType):
    """Package whose public names are not overwritten when a module of the same name is imported below it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in self.__all__ and f"{self.__name__}.{name}" in MODULES):
            super().__setattr__(name, value)


def _warn(old: str, new: str, level: int) -> None:
    warnings.warn(
        f"{old} has moved to {new} and will be gone in the next release; see docs/migration.md",
        DeprecationWarning,
        stacklevel=level + 1,
    )


def install() -> None:
    """Install the finder of old modules; calling it again changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
