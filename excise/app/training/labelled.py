"""From labelled prompts to an SAE with a neuron a label: whence the labels come, and drawing what is learnt from."""

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
from excise.errors import ExciseError
from excise.outputs import check_untrained
from excise.pipeline import Pipeline
from excise.sae import Progress, TopKSAE, TrainConfig, load
from excise.sites import Site
from excise.sites.activations.block_shards import Labelled, capture_blocks_to, label_table

BLOCK = TrainConfig(expansion=8, k=16, lr=2e-3, batch=2048, tokens=6_000_000, decay=0.2)
"""How the bundled SAEs of the denoiser are trained."""
CAPTIONS, TEXT_CAPTIONS, CAPTIONS_SEED = 1600, 8000, 7
"""What they are trained on, on the denoiser and on the text encoder: captions as the bundled model was trained on."""
FIRST_SEED = 100_000
"""The first picture's; benchmarks begin at 0."""


def labelled_prompts(
    path: Path, columns: tuple[str, ...], prompt: str = "prompt"
) -> tuple[list[Labelled], tuple[tuple[str, ...], ...]]:
    """The prompts of a file with their labels, and the labels of each column, which are a macro-group.

    In an order drawn by lot, always the same: those that early stopping looks at must not all show one concept. Without
    columns nothing is labelled.
    Raises ExciseError as `read_prompts` and `read_labelled`, and for a label in two columns.
    """
    if not columns:
        return [Labelled(text, ()) for text in read_prompts(path, prompt)], ()
    rows = list(read_labelled(path, columns, prompt))
    if not rows:
        raise ExciseError(f"{path} holds no prompts; fill it or choose another file")
    groups = tuple(_distinct(label for _, labels in rows for label in labels[name]) for name in columns)
    if empty := [name for name, group in zip(columns, groups, strict=True) if not group]:
        raise ExciseError(f"column '{empty[0]}' of {path} holds no label; fill it, or leave --label {empty[0]} out")
    named = Counter(label for group in groups for label in group)
    if twice := [label for label, count in named.items() if count > 1]:
        raise ExciseError(f"'{twice[0]}' is a label in two columns of {path}; a neuron can be one's alone: rename one")
    random.Random(CAPTIONS_SEED).shuffle(rows)
    return [
        Labelled(text, _distinct(label for own in labels.values() for label in own)) for text, labels in rows
    ], groups


def labelled_captions(columns: tuple[str, ...], count: int) -> tuple[list[Labelled], tuple[tuple[str, ...], ...]]:
    """Captions of the bundled model, labelled as by a file with the columns `object` and `style`."""
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
    negatives: str,
    beta: float,
    start: str,
    unsupervised: bool = False,
) -> tuple[list[Labelled], Labels]:
    """The prompts and labels that were asked for, `count` captions where that is the recipe.

    Raises ExciseError unless either a file or a known recipe was named, and as `labelled_prompts`.
    """
    if (path is None) == (recipe is None) or recipe not in (None, "reference"):
        raise ExciseError("give either --prompts FILE or --recipe reference")
    names = tuple(columns or ())
    rows, groups = labelled_captions(names, count) if path is None else labelled_prompts(path, names, column)
    return rows, Labels(bool(groups) and not unsupervised, groups, negatives=negatives, beta=beta, start=start)  # type: ignore[arg-type]


def english() -> list[str]:
    """Unlabelled English that the bundled model's text SAEs also learn from: WordNet's, where that is installed, and
    else none."""
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
) -> TopKSAE:
    """Draw the prompts, keep what the block gave at each of `steps`, and train an SAE into `out`.

    Calling again after an interruption goes on, in the drawing as in the training. The features lie in `features`,
    where another training may use them, or beside `out` until it is done. Raises ExciseError as `capture_blocks_to`
    and `train_on_block` do.
    """
    check_untrained(out)
    # What cannot be trained is refused before an hour of drawing, not after it.
    if how.start and (has := load(Path(how.start)).config) != (wanted := config.sae(site.width)):
        raise ExciseError(f"the SAE to go on from is {has}, the settings give {wanted}")
    if how.supervised:
        shown = label_table(prompts, how.concepts).sum(0).tolist()
        if odd := [name for name, count in zip(how.concepts, shown, strict=True) if not 0 < count < len(prompts)]:
            raise ExciseError(f"no prompt, or every one, shows {odd[0]!r}; a neuron is learnt from the difference")
    folder = features or out.with_name(out.name + ".features")
    drawn: dict[str, Any] = {"steps": steps, "seed": FIRST_SEED, "options": options, "made_by": _drawn_by(pipe, site)}
    shards = capture_blocks_to(folder, pipe, site, prompts, how.concepts, **drawn, progress=captured)
    made = train_on_block(shards, out, config, how, progress=progress, device=device)
    if features is None:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _drawn_by(pipe: Pipeline, site: Site) -> dict[str, Any]:
    """What pictures depend on beside prompts and seeds: weights, tokenizers and the sampler."""
    scheduler = getattr(pipe, "scheduler", None)
    sampler = {"class": type(scheduler).__name__, "config": dict(getattr(scheduler, "config", {}))}
    made: dict[str, Any] = json.loads(
        json.dumps({**made_for(pipe, [site.component]), "scheduler": sampler}, default=str)
    )
    return made


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
