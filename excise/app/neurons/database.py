"""Making neuron databases: from an SAE and a corpus, by tagging with concepts, and from what others published."""

from __future__ import annotations

import datetime
import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from excise.app.models.resolve import sae_site
from excise.app.neurons.corpus import Corpus, read_corpus
from excise.app.neurons.nearest import head_of, near_neurons, nearest_tokens
from excise.concepts import Concept
from excise.erasers.edits.sae_rows import sae_digest
from excise.errors import ExciseError
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
    """What is kept of each neuron."""

    contexts: int = 10
    """Prompts in which it fires most."""
    spread: int = 5
    """Prompts from the whole range of its peaks."""
    nearest: int = 10
    """Tokens nearest to its decoder row."""
    near: int = 10
    """Neurons nearest to it."""
    bins: int = 24
    """Parts of the histogram."""

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 0 or self.bins < 1 or self.contexts < 1:
            raise ExciseError(
                "a neuron database keeps at least 1 context and 1 bin, and no negative number of anything"
            )


@dataclass(frozen=True)
class Built:
    """A database that was built: how many of the SAE's `m` neurons fired on how many prompts."""

    path: Path
    neurons: int
    m: int
    prompts: int
    fresh: bool
    """False where it was there already, made of the same SAE and prompts."""

    def row(self) -> dict[str, Any]:
        """As json."""
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
) -> Built:
    """Watch every neuron of an SAE on a corpus and write `out`.

    `corpus` says what the prompts are; `site` is where the SAE reads (default: what its card says). What is nearest to
    a decoder row: for a model with an output head the tokens that head gives the largest logits for it (logit lens,
    nostalgebraist 2020), after the final norm; for a text encoder, which has none, the tokens whose mean state over the
    corpus, less the mean over all tokens, has the largest cosine with it, so that only tokens of the corpus are found.

    The file appears when all is in it. An interrupted build lies beside it, hidden, and goes on when called again; one
    of the same SAE and prompts that is there already is left alone. `progress` is called with the prompts read and then
    the neurons written since the last call, len(prompts) + m in all. Raises ExciseError where there are no prompts, the
    SAE does not fit the model, or `out` describes something else.
    """
    if not prompts:
        raise ExciseError("there are no prompts to watch the neurons on; give a corpus")
    if several := saes_in(sae_folder):
        raise ExciseError(
            f"{sae_folder} holds SAEs of {', '.join(several)}; name one of them: {sae_folder}/{next(iter(several))}"
        )
    place, settings = _place(pipe, sae_folder, site), watching or Watching()
    sae = load(sae_folder, device=next(encoder_of(pipe, place.component).parameters()).device)
    wanted = _provenance(sae, place, prompts, corpus, settings, pipe)
    tell = progress or (lambda done: None)
    if out.exists():
        with _there(out) as there:
            if not there.provenance.describes_the_same(wanted):
                raise ExciseError(f"{out} describes another SAE or corpus; choose another name or remove it")
            tell(len(prompts) + sae.config.m)
            return Built(out, len(there), sae.config.m, len(prompts), False)
    with _unfinished(out, wanted) as database:
        read = read_corpus(pipe, sae, place, prompts, database, batch_size, tell)
        _fill(database, pipe, sae, place, read, settings, tell)
        database.finish()
        neurons = len(database)
    _put(database.path, out)
    return Built(out, neurons, sae.config.m, len(prompts), True)


def _place(pipe: Pipeline, sae_folder: Path, site: Site | None) -> Site:
    """Where the SAE reads. Raises ExciseError where its card says another Site than the one that was named."""
    if site is None:
        return sae_site(pipe, sae_folder)
    if card(sae_folder).get("site") is not None and (own := sae_site(pipe, sae_folder)) != site:
        raise ExciseError(f"the SAE in {sae_folder} was trained at {own.key}, not at {site.key}; leave the Site out")
    return site


def _there(out: Path) -> NeuronDatabase:
    """The database that is at `out` already. Raises ExciseError where something else is."""
    try:
        return NeuronDatabase.open(out)
    except ExciseError as error:
        raise ExciseError(f"{out} is there already and no neuron database; choose another name or remove it") from error


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
    """Identify and validate each concept's neurons as `excise find` does, and tag the first `top` of them.

    A neuron is tagged where its held-out AUROC is `least` or more and it is not structural. Earlier tags of these
    concepts are dropped. Returns a row for each of the first `top`, with `tagged` and, if not, why. `progress` is
    called with 1 for every concept. Raises ExciseError where the database is of another SAE, and as `find` does.
    """
    sae = load(sae_folder, device=next(_any_encoder(pipe, sae_folder).parameters()).device)
    if sae_digest(sae) != database.provenance.sae:
        raise ExciseError(f"{database.path} describes another SAE than {sae_folder}; name the one it was built from")
    # The permutation null is what takes long, and its p value is not asked for.
    component, _, path = database.provenance.site.partition("/")
    config = SNCEConfig(component=component, site=path, examine=top, permutations=1)
    there, rows = set(database.indices()), []
    for concept in concepts:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of structural neurons, which are not tagged
            found = find(pipe, sae, concept, config)
        scores = {neuron.index: neuron.score for neuron in found.ranking.entries}
        database.remove_tags(concept.name)
        for check in found.validation:
            why = None
            if check.structural:
                why = f"fires on {check.control_share:.0%} of the controls"
            elif check.auroc is None or check.auroc < least:
                why = f"AUROC below {least:g}"
            elif check.index not in there:
                why = "silent on the database's corpus"
            else:
                database.add_tag(check.index, Tag(concept.name, scores[check.index], check.auroc))
            score, auroc = scores[check.index], check.auroc
            row = {"concept": concept.name, "neuron": check.index, "score": score, "auroc": auroc}
            rows.append({**row, "tagged": why is None, "why": why})
        if progress is not None:
            progress(1)
    return rows


def _any_encoder(pipe: Pipeline, sae_folder: Path) -> Any:
    return encoder_of(pipe, sae_site(pipe, sae_folder).component)


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
    """Tells one corpus from another."""
    text = hashlib.sha256()
    for prompt in prompts:
        text.update(prompt.encode() + b"\0")
    return text.hexdigest()


def _unfinished(out: Path, wanted: Provenance) -> NeuronDatabase:
    """The database to go on with, or a new one."""
    path = out.with_name(f".{out.name}.building")
    if path.exists():
        try:
            database = NeuronDatabase.open(path)
            if database.provenance.describes_the_same(wanted):
                return database
            database.close()
        except ExciseError:
            pass  # cut short before anything was in it
        _remove(path)
    return NeuronDatabase.create(path, wanted)


def _remove(path: Path) -> None:
    for file in (path, path.with_name(f"{path.name}-journal")):
        file.unlink(missing_ok=True)


def _put(finished: Path, out: Path) -> None:
    try:
        finished.replace(out)
    except OSError as error:
        raise ExciseError(f"cannot write {out}: {error.strerror or error}; choose another place") from error


def _fill(
    database: NeuronDatabase,
    pipe: Pipeline,
    sae: TopKSAE,
    site: Site,
    corpus: Corpus,
    settings: Watching,
    tell: Callable[[int], Any],
) -> None:
    contexts = Contexts(corpus.codes, corpus.tokens)
    density = contexts.density
    live, there = density.nonzero()[:, 0], set(database.indices())
    nearest = nearest_tokens(pipe, sae, site, corpus, live, settings.nearest)
    near = near_neurons(sae.W_dec.detach().float().cpu(), live, settings.near)
    batch: list[Entry] = []
    for place, index in enumerate(live.tolist()):
        if index not in there:
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
        tell(1)
    tell(sae.config.m - len(live))


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
