"""Training of SAEs with a neuron for each label: reading labels, and generating the pictures to learn from."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from excise.app.training.supervised import Labels, train_on_block
from excise.concepts import read_labelled, read_prompts
from excise.erasers import made_for
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError
from excise.outputs import check_untrained
from excise.pipeline import Pipeline
from excise.sae import Progress, TopKSAE, TrainConfig, load
from excise.sae.parallel import ALONE, Mesh
from excise.sae.trainer import check_ranks
from excise.sites import Site
from excise.sites.activations.block_shards import Labelled, capture_blocks_to, label_table, load_block_shards

BLOCK = TrainConfig(expansion=8, k=16, lr=2e-3, batch=2048, tokens=6_000_000, decay=0.2)
"""Training settings of the bundled SAEs of the denoiser."""
CAPTIONS, TEXT_CAPTIONS, CAPTIONS_SEED = 1600, 8000, 7
"""Number of captions for SAEs of the denoiser and of the text encoder, and their seed."""
PRESETS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "saemnesia": lambda concepts: {},
    "g-sae": lambda concepts: {
        "negatives": "assigned",
        "pooling": "each",
        "beta": float(concepts),
        "eta": 0.0,
        "l1": 0.0,
    },
}
"""Settings of `Labels` by the name of a loss, given the number of concepts. G-SAE (Härle et al., Measuring and Guiding
Monosemanticity, 2025, arXiv:2506.19382; its code is MIT) adds to the reconstruction, with weight 1, binary
cross-entropy summed over the concepts in each vector. L_CA is a mean over them, so β is their number."""
FIRST_SEED = 100_000
"""Seed of the first picture. Benchmarks start at 0, so the seeds do not overlap."""


def labelled_prompts(
    path: Path, columns: tuple[str, ...], prompt: str = "prompt"
) -> tuple[list[Labelled], tuple[tuple[str, ...], ...]]:
    """Read a file's prompts with their labels. Return them with each column's labels, which form a macro-group.

    Prompts are shuffled with a fixed seed, so that those held out for early stopping do not all show one concept.
    Without columns, prompts have no labels.

    Raises:
        ExciseError: As `read_prompts` and `read_labelled`, or a label is in two columns.
    """
    if not columns:
        return [Labelled(text, ()) for text in read_prompts(path, prompt)], ()
    rows = list(read_labelled(path, columns, prompt))
    if not rows:
        raise ExciseError(f"{path} holds no prompts; fill it or choose another file")
    groups = tuple(_distinct(label for _, labels in rows for label in labels[name]) for name in columns)
    if empty := [name for name, group in zip(columns, groups, strict=True) if not group]:
        raise ExciseError(f"column '{empty[0]}' of {path} holds no label; fill it, or leave out --label {empty[0]}")
    named = Counter(label for group in groups for label in group)
    if twice := [label for label, count in named.items() if count > 1]:
        raise ExciseError(f"'{twice[0]}' is a label in two columns of {path}; rename one, so that each has its neuron")
    random.Random(CAPTIONS_SEED).shuffle(rows)
    return [
        Labelled(text, _distinct(label for some in labels.values() for label in some)) for text, labels in rows
    ], groups


def labelled_captions(columns: tuple[str, ...], count: int) -> tuple[list[Labelled], tuple[tuple[str, ...], ...]]:
    """Return captions of the bundled model, as from a file with the columns `object` and `style`."""
    from excise import reference
    from excise.reference.world import OBJECTS, STYLES

    known = {"object": OBJECTS, "style": STYLES}
    if odd := [name for name in columns if name not in known]:
        raise ExciseError(f"the reference captions have no column '{odd[0]}'; they have {' and '.join(known)}")
    groups = tuple(known[name] for name in columns)
    wanted = {label for group in groups for label in group}
    rows = reference.labelled(count, CAPTIONS_SEED)
    return [Labelled(text, tuple(label for label in labels if label in wanted)) for text, labels in rows], groups


def labels_of(
    path: Path | None,
    column: str,
    columns: Sequence[str] | None,
    recipe: str | None,
    count: int,
    *,
    preset: str = "saemnesia",
    negatives: str | None = None,
    beta: float | None = None,
    start: str = "",
    unsupervised: bool = False,
) -> tuple[list[Labelled], Labels]:
    """Return labelled prompts and how to use the labels, from a file or as `count` captions of the recipe.

    `negatives` and `beta` take precedence over those of the `preset`.

    Raises:
        ExciseError: Not exactly one of file and recipe is given, the recipe or preset is unknown, or as
            `labelled_prompts`.
    """
    if preset not in PRESETS:
        raise ExciseError(f"there is no preset {preset!r}; there is {' and '.join(PRESETS)}")
    if (path is None) == (recipe is None) or recipe not in (None, "reference"):
        raise ExciseError("give either --prompts FILE or --recipe reference")
    names = tuple(columns or ())
    rows, groups = labelled_captions(names, count) if path is None else labelled_prompts(path, names, column)
    settings = PRESETS[preset](sum(map(len, groups)))
    settings |= {name: own for name, own in (("negatives", negatives), ("beta", beta)) if own is not None}
    return rows, Labels(bool(groups) and not unsupervised, groups, start=start, **settings)


def english() -> list[str]:
    """Return unlabelled English texts for the bundled model's text SAEs: WordNet's if installed, else none."""
    from excise import reference

    return list(reference.sae_corpus(captions=0)) if reference.has_wordnet() else []


def train_block_sae(
    pipe: Pipeline,
    site: Site,
    prompts: list[Labelled],
    config: TrainConfig,
    out: Path,
    how: Labels,
    *,
    steps: int = 20,
    options: Mapping[str, Any] | None = None,
    features: Path | None = None,
    captured: Callable[[int], Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "cpu",
    mesh: Mesh = ALONE,
) -> TopKSAE:
    """Generate the prompts' pictures, capture the block's outputs at each of `steps`, and train an SAE into `out`.

    The same call resumes after an interruption, in generation as in training. Captured features are stored in
    `features`, where another training can use them, or else next to `out` until it is done. Of several ranks the first
    one generates, and all train.

    Raises:
        ExciseError: As `capture_blocks_to` and `train_on_block`.
    """
    # Refuse before generating pictures, which may take an hour.
    check_ranks(config, mesh, width=site.width, labels=how.supervised)
    mesh.together(lambda: check_untrained(out))
    if how.start and (has := load(Path(how.start)).config) != (wanted := config.sae(site.width)):
        raise ExciseError(f"the SAE to fine-tune is {has}, but the settings give {wanted}")
    if how.supervised:
        shown = label_table(prompts, how.concepts).sum(0).tolist()
        if odd := [name for name, count in zip(how.concepts, shown, strict=True) if not 0 < count < len(prompts)]:
            raise ExciseError(
                f"no prompt or every prompt shows {odd[0]!r}; give prompts with it and prompts without it"
            )
    folder = features or out.with_name(out.name + ".features")
    origin: dict[str, Any] = {"steps": steps, "seed": FIRST_SEED, "options": options, "made_by": _origin(pipe, site)}

    def generate() -> None:
        if mesh.rank == 0:
            with unedited():
                capture_blocks_to(folder, pipe, site, prompts, how.concepts, **origin, progress=captured)

    mesh.together(generate)
    shards = mesh.together(lambda: load_block_shards(folder))
    made = train_on_block(shards, out, config, how, progress=progress, device=device, mesh=mesh)
    if features is None and mesh.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _origin(pipe: Pipeline, site: Site) -> dict[str, Any]:
    """Return what pictures depend on besides prompts and seeds: weights, tokenizers and the sampler."""
    scheduler = getattr(pipe, "scheduler", None)
    sampler = {"class": type(scheduler).__name__, "config": dict(getattr(scheduler, "config", {}))}
    made: dict[str, Any] = json.loads(
        json.dumps({**made_for(pipe, [site.component]), "scheduler": sampler}, default=str)
    )
    return made


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
