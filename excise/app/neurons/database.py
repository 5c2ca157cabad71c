"""Neuron databases: building from an SAE and a corpus, and tagging with concepts."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from excise.app.models.resolve import sae_site
from excise.app.neurons.corpus import Corpus
from excise.app.neurons.nearest import head_of, near_neurons, nearest_tokens
from excise.app.neurons.reading import Reader, Reading
from excise.app.neurons.unfinished import put, unfinished
from excise.concepts import Concept
from excise.erasers.edits.sae_rows import sae_digest
from excise.errors import ExciseError
from excise.files import sha256
from excise.methods.build import versions
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.finding import find
from excise.neurons.contexts import Contexts
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Provenance, Tag
from excise.pipeline import Pipeline
from excise.sae import TopKSAE, card, load, saes_in
from excise.sites import Site
from excise.sites.site import encoder_of


@dataclass(frozen=True)
class Watching:
    """How much is stored for each neuron."""

    contexts: int = 10
    """Prompts in which it fires most strongly."""
    spread: int = 5
    """Prompts from the whole range of its largest codes."""
    nearest: int = 10
    """Tokens nearest to its decoder row."""
    near: int = 10
    """Neurons whose decoder rows are nearest to its own."""
    bins: int = 24
    """Bins of the histogram."""

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or self.bins < 1 or self.contexts < 1:
            raise ExciseError("a neuron database stores at least 1 context and 1 bin, and no number may be negative")


@dataclass(frozen=True)
class Built:
    """A database that was built: `neurons` of the SAE's `m` neurons fired on `prompts` prompts."""

    path: Path
    neurons: int
    m: int
    prompts: int
    fresh: bool
    """False if it existed already, built from the same SAE and prompts."""
    written: bool = True
    """False in a later slice, which only reads: the first one writes the database."""

    def row(self) -> dict[str, Any]:
        """Return the fields as JSON data."""
        return {**asdict(self), "path": str(self.path)}


def build(
    pipe: Pipeline,
    sae_folder: Path,
    prompts: Sequence[str],
    out: Path,
    progress: Callable[[int], Any] | None = None,
    *,
    corpus: str = "",
    site: Site | None = None,
    watching: Watching | None = None,
    batch_size: int = 64,
    reader: Reader | None = None,
) -> Built:
    """Build a database of an SAE's neurons on a corpus, and write it to `out`.

    The tokens nearest to a decoder row depend on the model. With an output head they are the tokens with the largest
    logits for the row, after the final norm (logit lens, nostalgebraist 2020). A text encoder has no output head: there
    they are the tokens whose mean state over the corpus, minus the mean over all tokens, has the largest cosine with
    the row. Only tokens of the corpus can be found that way.

    `out` appears once it is complete. An interrupted build is kept in a hidden file next to it, and the same call
    resumes it. Where two processes write the same database at once, each writes its own file. An existing database of
    the same SAE and prompts is left unchanged.

    Args:
        pipe: The pipeline.
        sae_folder: Folder of the SAE.
        prompts: The corpus.
        out: Path of the database.
        progress: Called with the prompts read, then the neurons written, since its last call: len(prompts) + m in all.
        corpus: A description of the prompts.
        site: The SAE's Site; by default the one in its card.
        watching: How much to store for each neuron.
        batch_size: Prompts in a batch.
        reader: Where the corpus is read; by default in this process.

    Raises:
        ExciseError: There are no prompts, the SAE does not fit, `out` holds something else, or as `excise.engine.run`.
        ItemsFailed: A chunk of the corpus cannot be read.
    """
    if not prompts:
        raise ExciseError("there are no prompts to read the neurons on; give a corpus")
    if several := saes_in(sae_folder):
        raise ExciseError(
            f"{sae_folder} holds SAEs of {', '.join(several)}; name one of them: {sae_folder}/{next(iter(several))}"
        )
    place, settings, reader = place_of(pipe, sae_folder, site), watching or Watching(), reader or Reader()
    sae = load(sae_folder, device=next(encoder_of(pipe, place.component).parameters()).device)
    wanted = _provenance(sae, place, prompts, corpus, settings, pipe)
    advance = progress or (lambda done: None)
    if out.exists():
        advance(len(prompts) + sae.config.m)
        return _existing(out, wanted, sae)
    stage = Reading(reader.load, str(sae_folder), place, f"{wanted.sae} {wanted.prompts_sha256}", str(out), batch_size)
    reader.read(pipe, sae, stage, prompts, advance)
    if not reader.is_first:
        return Built(out, 0, sae.config.m, len(prompts), False, written=False)
    with stage.writing() as alone:
        try:
            read = stage.combined(pipe, sae.config, prompts)
        except ExciseError:
            if not out.exists():  # else another process has finished it, and removed the chunks
                raise
            return _existing(out, wanted, sae)
        with unfinished(out, wanted, alone=alone) as database:
            _fill(database, pipe, sae, place, read, settings, advance)
            database.finish()
            neurons = len(database)
            put(database, out)
        stage.remove()
    return Built(out, neurons, sae.config.m, len(prompts), True)


def place_of(pipe: Pipeline, sae_folder: Path, site: Site | None) -> Site:
    """Return the SAE's Site. Raises ExciseError if its card has another Site than the given one."""
    if site is None:
        return sae_site(pipe, sae_folder)
    if card(sae_folder).get("site") is not None and (trained_at := sae_site(pipe, sae_folder)) != site:
        raise ExciseError(
            f"the SAE in {sae_folder} was trained at {trained_at.key}, not at {site.key}; leave out the Site"
        )
    return site


def _existing(out: Path, wanted: Provenance, sae: TopKSAE) -> Built:
    """Return what is at `out`. Raises ExciseError unless it is the database that is wanted."""
    with _open_existing(out) as existing:
        if not existing.provenance.describes_the_same(wanted):
            raise ExciseError(f"{out} describes another SAE or corpus; choose another name or remove it")
        return Built(out, len(existing), sae.config.m, wanted.prompts, False)


def _open_existing(out: Path) -> NeuronDatabase:
    """Open the database at `out`. Raises ExciseError if it is something else."""
    try:
        return NeuronDatabase.open(out)
    except ExciseError as error:
        raise ExciseError(f"{out} exists and is not a neuron database; choose another name or remove it") from error


def tag(
    pipe: Pipeline,
    database: NeuronDatabase,
    sae_folder: Path,
    concepts: Sequence[Concept],
    *,
    top: int = 3,
    least: float = 0.9,
    progress: Callable[[int], Any] | None = None,
) -> list[dict[str, Any]]:
    """Identify and validate each concept's neurons as `excise find` does, and tag those of the first `top` that pass.

    A neuron is tagged if its held-out AUROC is at least `least` and it is not structural. Earlier tags of these
    concepts are removed. `progress` is called with 1 after each concept.

    Returns:
        A row for each of the first `top` neurons, with `tagged` and the reason if it is not.

    Raises:
        ExciseError: The database is of another SAE, or as `find`.
    """
    encoder = encoder_of(pipe, sae_site(pipe, sae_folder).component)
    sae = load(sae_folder, device=next(encoder.parameters()).device)
    if sae_digest(sae) != database.provenance.sae:
        raise ExciseError(f"{database.path} describes another SAE than {sae_folder}; name the one it was built from")
    # The permutation null takes long, and its p-value is not used here.
    component, _, path = database.provenance.site.partition("/")
    config = SNCEConfig(component=component, site=path, examine=top, permutations=1)
    stored, rows = set(database.indices()), []
    for concept in concepts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about structural neurons, which are not tagged
            found = find(pipe, sae, concept, config)
        scores = {neuron.index: neuron.score for neuron in found.ranking.entries}
        database.remove_tags(concept.name)
        for check in found.validation:
            why = None
            if check.structural:
                why = f"fires on {check.control_share:.0%} of the controls"
            elif check.auroc is None or check.auroc < least:
                why = f"AUROC below {least:g}"
            elif check.index not in stored:
                why = "does not fire on the database's corpus"
            else:
                database.add_tag(check.index, Tag(concept.name, scores[check.index], check.auroc))
            score, auroc = scores[check.index], check.auroc
            row = {"concept": concept.name, "neuron": check.index, "score": score, "auroc": auroc}
            rows.append({**row, "tagged": why is None, "why": why})
        if progress is not None:
            progress(1)
    return rows


def _provenance(
    sae: TopKSAE, site: Site, prompts: Sequence[str], corpus: str, settings: Watching, pipe: Pipeline
) -> Provenance:
    by = "logit lens" if head_of(encoder_of(pipe, site.component)) is not None else "mean states"
    return Provenance(
        sae=sae_digest(sae),
        site=site.key,
        m=sae.config.m,
        corpus=corpus or f"{len(prompts)} prompts",
        prompts=len(prompts),
        prompts_sha256=prompts_sha256(prompts),
        date=now(),
        versions=versions(),
        settings={**asdict(settings), "nearest_by": by},
    )


def prompts_sha256(prompts: Sequence[str]) -> str:
    """Return a digest that identifies a corpus."""
    return sha256("".join(f"{prompt}\0" for prompt in prompts).encode())


def _fill(
    database: NeuronDatabase,
    pipe: Pipeline,
    sae: TopKSAE,
    site: Site,
    corpus: Corpus,
    settings: Watching,
    advance: Callable[[int], Any],
) -> None:
    contexts = Contexts(corpus.codes, corpus.tokens)
    density = contexts.density
    live, stored = density.nonzero()[:, 0], set(database.indices())
    nearest = nearest_tokens(pipe, sae, site, corpus, live, settings.nearest)
    near = near_neurons(sae.W_dec.detach().float().cpu(), live, settings.near)
    batch: list[Entry] = []
    for place, index in enumerate(live.tolist()):
        if index not in stored:
            histogram, peak = contexts.histogram(index, settings.bins)
            spread = contexts.spread(index, settings.spread) if settings.spread else []
            batch.append(
                Entry(
                    index,
                    float(density[index]),
                    peak,
                    tuple(histogram),
                    tuple(contexts.top(index, settings.contexts)),
                    tuple(spread),
                    nearest[place],
                    near[place],
                )
            )
        if len(batch) == 64 or place == len(live) - 1:
            database.add(batch)
            batch = []
        advance(1)
    advance(sae.config.m - len(live))


def now() -> str:
    """Return the time in UTC as ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
