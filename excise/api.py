"""Functions of `import excise` that make erasers, rankings of neurons and SAEs.

`excise.erasers.loaders` loads and switches erasers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.concepts import Concept, builtin, from_templates, names
from excise.errors import InvalidSetting, NotFound, WrongModel
from excise.methods.catalogue import METHODS
from excise.plugins import plugins
from excise.settings import check_names

if TYPE_CHECKING:
    from excise.erasers import Eraser, Signer
    from excise.erasers.artefact.files import Check
    from excise.methods.base import Method
    from excise.neurons import Ranking
    from excise.pipeline import Pipeline
    from excise.sae import TopKSAE

StrPath = str | PathLike[str]


def erase(
    pipe: Pipeline,
    concept: str | Concept,
    method: str = "snce",
    *,
    sae: StrPath | TopKSAE | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Eraser:
    """Make an eraser of a concept for a pipeline.

    The pipeline is not changed. Attach the eraser with `eraser.attach(pipe)`, or save it and attach it with
    `excise.load_eraser`.

    Args:
        pipe: A diffusers pipeline, or an `excise.LanguageModel`.
        concept: A built-in concept (`excise concepts` lists them), any other word or phrase, or a Concept with pairs of
            your own.
        method: One of `excise.list_methods()`, or several joined by `+`, such as `snce+saemnesia`.
        sae: Folder of the sparse autoencoder, or the SAE itself (SNCE alone). By default the bundled model's, or the
            one that `excise erase --model` trained for this model.
        preset: `"paper"` for the settings of the method's paper where Excise's defaults depart from it.
        settings: Settings of the method, by the names of `excise.method_config(method)`; of joined methods
            `**{"snce.k": 2}`. With the bundled model, the defaults are those chosen for it.

    Returns:
        The eraser. If it misses a stated limit, `eraser.weak` lists the reasons.

    Raises:
        ExciseError: for an unknown method or setting, an invalid value, a missing SAE, or a concept that the method
            cannot erase from this pipeline.
        EraserDidNotFire: if the edit changes nothing on the concept's canary prompt.

    Warns:
        WeakEraser: if the eraser cannot be relied on.

    Example:
        >>> eraser = excise.erase(pipe, "gun")
        >>> eraser.save_pretrained("erasers/gun")
    """
    from excise.app.erase.benign import with_benign
    from excise.app.models.resolve import bundled_settings
    from excise.methods.lookup import configured, declared, preset_settings, settings_of
    from excise.pipeline import check_pipeline
    from excise.sae import TopKSAE

    check_pipeline(pipe)
    chosen, wanted = _method(method), _concept(concept)
    known = settings_of(chosen.name, bundled_settings(preset)) if is_bundled(pipe) else {}
    own, more = {**known, **preset_settings(chosen.name, preset), **settings}, {}
    if isinstance(sae, TopKSAE):
        if chosen.name != "snce":
            raise InvalidSetting(
                f"{chosen.name} takes the folder of an SAE, not the SAE itself; save it and give its path"
            )
        more["sae"], own = sae, {**own, "sae": ""}
    elif sae is not None:
        takes = [key for key in declared(chosen.name) if key.rpartition(".")[2] == "sae"]
        if not takes:
            raise InvalidSetting(f"{chosen.name} needs no SAE; leave `sae` out")
        own |= dict.fromkeys(takes, _folder(sae))
    elif chosen.name == "snce" and not own.get("sae"):
        own["sae"] = _folder(_known_sae(pipe))
    folder = Path(own["sae"]) if own.get("sae") else None
    wanted = with_benign(wanted, None if is_bundled(pipe) else pipe, sae=folder)
    return chosen.fit(pipe, wanted, configured(chosen.name, own), **more)


def find_neurons(
    pipe: Pipeline, concept: str | Concept, sae: StrPath | TopKSAE | None = None, *, top: int = 10, **settings: Any
) -> Ranking:
    """Rank the neurons of an SAE by how much more they fire with a concept than without it (SNCE, eqs. 4 to 7).

    Args:
        pipe: A diffusers pipeline, or an `excise.LanguageModel`.
        concept: As for `excise.erase`.
        sae: The SAE, or its folder; by default as for `excise.erase`.
        top: Number of top-ranked neurons to validate on held-out pairs; a structural one causes a warning.
        settings: Settings of SNCE, by the names of `excise.SNCEConfig`.

    Returns:
        The neurons that fire on the concept's side alone, by falling score.

    Raises:
        ExciseError: if the SAE does not belong to the pipeline, or a setting is invalid.

    Example:
        >>> ranking = excise.find_neurons(pipe, "gun")
        >>> neuron, *_ = ranking.top(1)
    """
    from excise.app.erase.finding import load_one
    from excise.methods.lookup import configured
    from excise.methods.sae.finding import find
    from excise.pipeline import check_pipeline
    from excise.sae import TopKSAE

    check_pipeline(pipe)
    if sae is None:
        sae = _known_sae(pipe)
    folder = "" if isinstance(sae, TopKSAE) else _folder(sae)
    config = configured("snce", {**settings, "sae": folder, "examine": top})
    whole = sae if isinstance(sae, TopKSAE) else load_one(pipe, Path(folder))
    return find(pipe, whole, _concept(concept), config).ranking


def train_sae(
    pipe: Pipeline,
    prompts: Iterable[str],
    *,
    site: str | None = None,
    out: StrPath | None = None,
    device: str = "cpu",
    **settings: Any,
) -> TopKSAE:
    """Train a sparse autoencoder on a text encoder's states of prompts.

    Args:
        pipe: A diffusers pipeline, or an `excise.LanguageModel`.
        prompts: Texts to train on: tens of thousands for a real model.
        site: Layer to read, such as `encoder.layers.8` or `text_encoder_2/encoder.layers.24`; by default the family's.
        out: Folder for the SAE and its checkpoints. After an interruption the same call resumes.
        device: Where to train, such as `cuda`.
        settings: Settings of `excise.sae.TrainConfig`, such as `tokens=2_000_000` or `k=32`.

    Returns:
        The trained SAE.

    Raises:
        ExciseError: if the layer does not exist, there are no prompts, or a setting is invalid.

    Example:
        >>> sae = excise.train_sae(pipe, prompts, out="sae", tokens=2_000_000)
    """
    from excise.app.models.resolve import check_device, parse_site
    from excise.app.training import text
    from excise.pipeline import check_pipeline
    from excise.sae import TrainConfig
    from excise.sae import card as card_of
    from excise.sites import default_site

    check_pipeline(pipe)
    check_names("the training", settings, TrainConfig.__dataclass_fields__)
    config = TrainConfig(**settings)
    texts = _texts(prompts)
    check_device(device)
    place = default_site(pipe) if site is None else parse_site(pipe, site)
    card = {"corpus": f"{len(texts)} prompts"}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "sae" if out is None else Path(_folder(out))
        sae = text.train_sae(pipe, place, texts, config, folder, card=card, device=device)
        sae.card = card_of(folder)
    return sae


def evaluate(
    eraser: Eraser,
    pipe: Pipeline,
    suite: str = "canvas",
    *,
    size: str = "quick",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure an eraser on a benchmark suite: pictures with and without it, judged by the suite's detectors.

    It does what `excise bench run` does for one method and one concept, in a temporary folder. A picture takes seconds
    to minutes on a CPU. Use the command for runs that are to be kept, resumed or shared by workers.

    Args:
        eraser: An eraser of one of the suite's concepts, such as `excise.erase` returns.
        pipe: The pipeline it was made for, with no eraser attached; for "canvas" the bundled model.
        suite: "canvas", or another name that `excise bench run --suite` takes.
        size: "quick", "standard", "full" or "frozen" (the test set): how many pictures.
        settings: Settings of the suite, such as `{"steps": 20}` denoising steps.

    Returns:
        The figures, as json: `["methods"][eraser.method]["figures"]` has a value, a 95 % interval and n for each, and
        `["methods"]["none"]` those of the pipeline without the eraser.

    Raises:
        WrongModel: if the eraser or the suite does not belong to the pipeline.
        InvalidSetting: if an eraser is attached already.
        ExciseError: for an unknown suite, size, setting or concept, or if generation fails.

    Example:
        >>> found = excise.evaluate(excise.erase(pipe, "gun"), pipe)
        >>> found["methods"]["snce"]["figures"]["ira_ratio"]["value"]
    """
    from excise.app.bench.runs import measured, start, suite_of
    from excise.bench.items.work import work
    from excise.bench.run import Unit
    from excise.drawn import checker_of, restore_checker, without_checker
    from excise.erasers.edits.merged_sae import MERGED
    from excise.erasers.loaders import list_erasers
    from excise.pipeline import check_pipeline

    check_pipeline(pipe)
    if eraser.method == MERGED:
        raise InvalidSetting("a merged eraser is of several concepts; evaluate its parts, one by one")
    if suite == "canvas" and not is_bundled(pipe):
        raise WrongModel("canvas is made for the bundled model, excise.reference.load(); name another suite")
    if loaded := list(list_erasers(pipe)):
        raise InvalidSetting(f"eraser {loaded[0]!r} is loaded; unload it, so that there is something to compare with")
    eraser.attach(pipe).detach()  # a refusal comes before any picture is generated
    checker = checker_of(pipe)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            run = start(Path(scratch) / "run", suite, size, [eraser.method], [eraser.concept], settings)
            eraser.save(run.folder / "erasers" / Unit(eraser.method, eraser.concept).file)
            work(run, suite_of(run), lambda: without_checker(pipe), {})
            return measured(run)
    finally:
        restore_checker(pipe, *checker)


def list_methods() -> list[str]:
    """Return the names of the methods that make erasers, ours and plugins'.

    Example:
        >>> "esd-x" in excise.list_methods()
        True
    """
    return list(dict.fromkeys((*METHODS, *plugins("excise.methods"))))


def harden(
    eraser: Eraser, pipe: Pipeline, *, gate: float = 0.05, rounds: int = 4, words: int = 32, steps: int = 20
) -> Eraser:
    """Harden an eraser of the bundled model: find words that get past it, and give each an edit of its own.

    Each round searches the text encoder's whole vocabulary under the eraser, generates pictures from the words nearest
    to the concept, and takes the words whose pictures show it. Words of the benchmark's own prompts are left out.

    Args:
        eraser: An eraser by SNCE. It is not changed.
        pipe: The bundled model's pipeline, whose judges decide what a picture shows.
        gate: Share of the pictures that may show the concept; once reached, no further round is made.
        rounds: Most erasers to try, the first one included.
        words: Words to try in a round, with two pictures each.
        steps: Denoising steps of a picture.

    Returns:
        The eraser of the best round, in which the smallest share of the pictures shows the concept.
        `measured["hardening"]` has the figures of all rounds.

    Raises:
        InvalidSetting: if the pipeline, the eraser or its concept cannot be hardened, or a value is out of range.

    Example:
        >>> hardened = excise.harden(excise.erase(pipe, "car"), pipe)
        >>> hardened.measured["hardening"]["best"]
        1
    """
    from excise.app.erase.hardening import harden as hardened
    from excise.pipeline import check_pipeline

    check_pipeline(pipe)
    if not is_bundled(pipe):
        raise InvalidSetting("only erasers of the bundled model can be hardened; other models have no judges")
    if not 0 <= gate <= 1:
        raise InvalidSetting(f"gate is {gate}; it is a share from 0 to 1")
    if least := [name for name, value in (("rounds", rounds), ("words", words), ("steps", steps)) if value < 1]:
        raise InvalidSetting(f"{least[0]} must be at least 1")
    return hardened(pipe, eraser, gate=gate, rounds=rounds, words=words, steps=steps).eraser


def verify(
    folder: StrPath,
    pipe: Pipeline | None = None,
    *,
    sae: TopKSAE | Iterable[TopKSAE] | None = None,
    signed_by: Signer | None = None,
    digest: str | None = None,
    concept: str | None = None,
) -> list[Check]:
    """Check a saved eraser: its files, its signature, that it fits a pipeline, and that it removes its concept there.

    Nothing that decides is taken from the eraser's file: what is removed is measured on the pipeline, and compared with
    limits of Excise's own (docs/explanation/verify.md). What cannot be measured or compared is named in the check
    "trusted as signed". Checks stop at a failure that makes the later ones meaningless. A bad eraser raises nothing.

    Args:
        folder: Folder of the eraser.
        pipe: The pipeline to attach it to; None checks only the files.
        sae: The SAE or SAEs it was made from, whose rows are compared with the eraser's bit for bit. By default the
            bundled model's, or those that were trained on this machine for this model.
        signed_by: The signer whose signature it needs.
        digest, concept: The digest or the concept that it must have: which of the signer's erasers it is.

    Returns:
        The result of each check: `name`, `passed`, `detail`.

    Raises:
        WrongModel: if `pipe` is not a pipeline.

    Example:
        >>> all(check.passed for check in excise.verify("erasers/gun", pipe))
        True
    """
    from excise.app.training.saes_at_hand import saes_at_hand
    from excise.erasers import verify as check
    from excise.methods.solving import solve_again

    def found(eraser: Eraser) -> list[TopKSAE]:
        assert pipe is not None
        return saes_at_hand(eraser, pipe, bundled=is_bundled(pipe))

    saes = found if sae is None else sae
    return check(folder, pipe, sae=saes, solve=solve_again, signed_by=signed_by, digest=digest, concept=concept)


def is_bundled(pipe: Pipeline) -> bool:
    """Return whether the pipeline is the model that ships with Excise."""
    from excise.reference import data

    name = getattr(getattr(pipe, "config", None), "_name_or_path", None)
    return isinstance(name, (str, PathLike)) and data.is_model(Path(name))


def _method(name: str) -> Method:
    from excise.methods.lookup import method

    if not isinstance(name, str):
        raise InvalidSetting(f"a method is named by a text, such as 'snce', not by {name!r}")
    return method(name)


def _concept(concept: str | Concept) -> Concept:
    if isinstance(concept, Concept):
        return concept
    if not isinstance(concept, str):
        raise InvalidSetting(f"a concept is a text or an excise.Concept, not {concept!r}")
    return builtin(concept) if concept in names() else from_templates(concept, (concept,), 100)


def _folder(path: StrPath) -> str:
    if not isinstance(path, (str, PathLike)) or not str(path):
        raise InvalidSetting(f"{path!r} is not a folder; give its path as a text or a Path")
    return str(Path(path))


def _texts(prompts: Iterable[str]) -> list[str]:
    texts = [] if isinstance(prompts, str) or not isinstance(prompts, Iterable) else list(prompts)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InvalidSetting("prompts are several texts, none of them empty, such as ['a gun', 'a cat on a sofa']")
    return texts


def _known_sae(pipe: Pipeline) -> StrPath:
    from excise.reference import sae_folder

    if is_bundled(pipe):
        return sae_folder()
    from excise.app.training.sae_cache import cached_sae

    found = cached_sae(pipe)
    if found is None:
        raise NotFound(
            "no SAE was given, and none is cached for this model; train one with excise.train_sae and pass it, or with "
            "`excise erase --model`, which caches it"
        )
    return found
