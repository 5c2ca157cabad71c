"""`excise neurons`: one file that records what every neuron of an SAE fires on, to search, read and share."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import Commands
from excise.cli.cutting import note_cuts
from excise.cli.options import (
    Column,
    Device,
    Engine,
    Force,
    Json,
    Model,
    RetryFailed,
    Sae,
    SiteOption,
    Top,
    Workers,
)
from excise.cli.sources import EraserSources, at_hand
from excise.cli.terminal import aligned, echo, emit, key_values, note, progress, table
from excise.cli.weights import choosing_weights
from excise.outputs import EXPORTS, check_extra, check_file, check_folder, check_resumed_file

if TYPE_CHECKING:
    from excise.neurons.contexts import Context
    from excise.neurons.database.entry import Entry

app = Commands(help="Build and search a database of what each neuron of an SAE fires on.", no_args_is_help=True)

Database = Annotated[Path, typer.Option("--db", help="File of the neuron database.")]
NAME = Path("neurons.db")


@app.command(epilog="Example: excise neurons build --out neurons.db")
@choosing_weights
def build(
    out: Annotated[Path, typer.Option("--out", help="File for the database.")] = NAME,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="Prompts to run through the SAE: .txt, .csv, .jsonl or .parquet. Default: the bundled model's "
            "captions.",
        ),
    ] = None,
    column: Column = "prompt",
    captions: Annotated[
        int, typer.Option("--captions", help="Without --prompts: number of captions.", **bounds.CORPUS)
    ] = 10_000,
    english: Annotated[
        int,
        typer.Option(
            "--english",
            help="Without --prompts: number of English sentences to add; needs Debian's wordnet-base.",
            **bounds.CORPUS_OR_NONE,
        ),
    ] = 0,
    contexts: Annotated[int, typer.Option("--contexts", help="Prompts to keep per neuron.", **bounds.COUNT)] = 10,
    model: Model = None,
    sae: Sae = None,
    site: SiteOption = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    workers: Workers = 1,
    engine: Engine = None,
    retry_failed: RetryFailed = False,
    json: Json = False,
) -> None:
    """Record where every neuron of an SAE fires on a corpus. Repeat the command to resume it."""
    check_resumed_file(out)
    from excise.app.models.loader import Loader
    from excise.app.models.resolve import parse_site, sae_folder
    from excise.app.neurons.database import Watching
    from excise.app.neurons.database import build as built
    from excise.app.neurons.reading import Reader
    from excise.engine import check_engine, is_here
    from excise.sae import load

    check_engine(engine, workers)
    folder = sae_folder(model, sae)
    m = load(folder).config.m
    texts, corpus = corpus_of(prompts, column, captions, english, model)
    loader = Loader(model, device, weights)
    # Workers have the device; this process only writes what they found.
    pipe = loader() if is_here(engine, workers) else replace(loader, device="cpu")()
    note_cuts(pipe, texts)
    how: dict[str, Any] = {"reader": Reader(loader, engine, workers, retry_failed)}
    how |= {"site": None if site is None else parse_site(pipe, site), "watching": Watching(contexts=contexts)}
    with progress("recording neurons", len(texts) + m) as advance:
        made = built(pipe, folder, texts, out, advance, corpus=corpus, **how)

    def printed() -> None:
        if not made.written:
            echo(f"this part of {corpus} is read; the first slice writes {out}")
            return
        state = "saved in" if made.fresh else "there already in"
        echo(f"{made.neurons:,} of {made.m:,} neurons fire on {corpus}; {state} {out}")

    emit(json, made.row(), printed)


def corpus_of(
    prompts: Path | None, column: str, captions: int, english: int, model: str | None
) -> tuple[list[str], str]:
    """Return the prompts to run through an SAE, and their description. Raises ExciseError if they are missing."""
    from excise.concepts import read_prompts
    from excise.errors import ExciseError

    if prompts is not None:
        texts = list(read_prompts(prompts, column))
        return texts, f"{len(texts):,} prompts of {prompts.name}"
    if model is not None:
        raise ExciseError("--model needs --prompts FILE: a corpus to run through the SAE")
    from excise import reference

    # Saved in the database, and parsed by captions_of.
    description = f"{captions:,} captions of the bundled model"
    description += f" and {english:,} sentences of English" if english else ""
    return list(reference.sae_corpus(captions=captions, english=english)), description


def captions_of(corpus: str) -> tuple[int, int] | None:
    """Return the numbers of captions and English sentences in a description by `corpus_of`; None for other corpora."""
    found = re.fullmatch(r"([\d,]+) captions of the bundled model(?: and ([\d,]+) sentences of English)?", corpus)
    if found is None:
        return None
    captions, english = (int((number or "0").replace(",", "")) for number in found.groups())
    return captions, english


@app.command(epilog="Example: excise neurons show 1153 --db neurons.db")
def show(
    neuron: Annotated[int, typer.Argument(help="Number of the neuron.", **bounds.NEURON)],
    db: Database = NAME,
    contexts: Annotated[
        int, typer.Option("--contexts", help="Number of its contexts to show.", **bounds.COUNT_OR_NONE)
    ] = 10,
    json: Json = False,
) -> None:
    """Show one neuron: where it fires, what it writes, and its tags and explanations."""
    from excise.neurons.database.database import NeuronDatabase

    with NeuronDatabase.open(db) as database:
        entry = database.neuron(neuron)
    emit(json, entry.row(), lambda: print_entry(entry, contexts))


@app.command(epilog='Example: excise neurons search "gun" --db neurons.db')
def search(
    text: Annotated[
        str,
        typer.Argument(
            help="Words of an explanation, tag, pattern or context, or a token that a neuron fires at or lies near."
        ),
    ],
    db: Database = NAME,
    top: Top = 20,
    json: Json = False,
) -> None:
    """Search for neurons. Exit code 1 if none matches."""
    from excise.neurons.database.database import NeuronDatabase

    with NeuronDatabase.open(db) as database:
        found = database.search(text, top)
    if found or json:
        emit(json, [entry.row() for entry in found], lambda: print_entries(f"Neurons for “{text}” in {db}", found))
    if not found:
        note(f"no neuron in {db} matches “{text}”")
        raise typer.Exit(1)


@app.command(epilog="Example: excise neurons export --db neurons.db --out neurons.jsonl")
def export(
    out: Annotated[Path, typer.Option("--out", help="File to write: .jsonl, .csv or .parquet.")],
    db: Database = NAME,
    force: Force = False,
    json: Json = False,
) -> None:
    """Export the neurons that fire to a file for other programs."""
    check_file(out, EXPORTS, force=force)
    if out.suffix == ".parquet":
        check_extra("pyarrow", "parquet", f"--out {out}")
    from excise.neurons.database.database import NeuronDatabase

    with NeuronDatabase.open(db) as database:
        database.export(out)
        n = len(database)
    emit(json, {"neurons": n, "out": str(out)}, lambda: echo(f"wrote {n:,} neurons to {out}"))


@app.command(epilog="Example: excise neurons browse --db neurons.db --out neurons --eraser gun-eraser")
def browse(
    out: Annotated[Path, typer.Option("--out", help="Folder for the page.")],
    db: Database = NAME,
    eraser: EraserSources = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write an HTML page for browsing the database: one file that works offline."""
    check_folder(out, own=("index.html",), force=force)
    from excise.app.neurons.page import write_browser
    from excise.neurons.database.database import NeuronDatabase

    erasers = [at_hand(one) for one in eraser or ()]
    with NeuronDatabase.open(db) as database:
        command = ["excise", "neurons", "browse", "--db", str(db), "--out", str(out)]
        command += [part for folder in eraser or () for part in ("--eraser", str(folder))]
        page = write_browser(database, out, erasers, command)
    emit(
        json,
        {"page": str(page)},
        lambda: echo(f"open {page} in a browser; add #q=word or #n=number to share a view"),
    )


@app.command("import", epilog="Example: excise neurons import en_db.json --out safe-sail.db")
def import_(
    file: Annotated[Path, typer.Argument(help="Safe-SAIL's published neuron database, en_db.json or cn_db.json.")],
    out: Annotated[
        Path, typer.Option("--out", help="File for the database; with several layers, one file per layer next to it.")
    ],
    json: Json = False,
) -> None:
    """Convert a published neuron database to Excise's format. Masked words stay masked."""
    check_resumed_file(out)
    from excise.app.neurons.safe_sail import import_safe_sail

    paths = import_safe_sail(file, out)
    emit(json, {"databases": [str(path) for path in paths]}, lambda: echo(f"saved in {', '.join(map(str, paths))}"))


@app.command(epilog="Example: excise neurons tag gun,knife --db neurons.db")
@choosing_weights
def tag(
    concepts: Annotated[
        str, typer.Argument(help="Known concepts, separated by commas, or a file of concepts or pairs.")
    ],
    db: Database = NAME,
    top: Annotated[int, typer.Option("--top", help="Neurons to tag per concept at most.", **bounds.COUNT)] = 3,
    least: Annotated[float, typer.Option("--least", help="Least held-out AUROC for a tag.", **bounds.SHARE)] = 0.9,
    model: Model = None,
    sae: Sae = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Find the neurons that carry concepts, as `excise find` does, and tag them."""
    from excise.app.models.resolve import load_pipeline, sae_folder
    from excise.app.neurons.database import tag as tagged
    from excise.app.training.comparing import concepts_of
    from excise.neurons.database.database import NeuronDatabase

    folder, wanted = sae_folder(model, sae), concepts_of(concepts)
    with NeuronDatabase.open(db) as database:
        pipe = load_pipeline(model, device, weights)
        note_cuts(pipe, (side for one in wanted for pair in one.pairs for side in (pair.concept, pair.deconcept)))
        with progress("tagging", len(wanted)) as advance:
            rows = tagged(pipe, database, folder, wanted, top=top, least=least, progress=advance)
    for name in dict.fromkeys(concept.name for concept in wanted):
        if not any(row["tagged"] for row in rows if row["concept"] == name):
            note(f"warning: no neuron was tagged with {name!r}")
    emit(json, rows, lambda: _show_tagged(rows))


def _show_tagged(rows: list[dict[str, Any]]) -> None:
    figures = zip(*(aligned([r[name] for r in rows]) for name in ("score", "auroc")), strict=True)
    cells = [
        (
            r["concept"],
            str(r["neuron"]),
            score,
            auroc,
            "yes" if r["tagged"] else f"no: {r['why']}",
        )
        for r, (score, auroc) in zip(rows, figures, strict=True)
    ]
    table("Neurons by concept", ("concept", "neuron", "score", "AUROC", "tagged"), cells)


def print_entries(title: str, entries: list[Entry]) -> None:
    """Print neurons as a table."""
    cells = [
        (
            str(e.index),
            "-" if e.density is None else f"{e.density:.3%}",
            peak,
            ", ".join(t.concept for t in e.tags) or "-",
            e.explanation.text if e.explanation else " ".join(e.top_tokens(5)),
        )
        for e, peak in zip(entries, aligned([e.peak for e in entries]), strict=True)
    ]
    table(title, ("neuron", "fires at", "largest code", "tags", "explanation, or top tokens"), cells)


def print_entry(entry: Entry, contexts: int = 10) -> None:
    """Print one neuron's entry."""
    from excise.neurons.database.entry import pattern_text

    explanation = entry.explanation
    by = f" ({explanation.by}{f', {explanation.at[:10]}' if explanation.at else ''})" if explanation else ""
    rows = [
        (
            "explanation",
            f"{explanation.text}{by}" if explanation else "none by a language model; see patterns and tokens",
        ),
        ("tags", ", ".join(f"{t.concept} (AUROC {figure(t.auroc)})" for t in entry.tags)),
        ("scores", ", ".join(f"{name} {figure(s.value)}" for name, s in entry.scores.items())),
        ("patterns", "; ".join(map(pattern_text, entry.patterns))),
        ("fires at", "" if entry.density is None else f"{entry.density:.3%} of tokens"),
        ("largest code", figure(entry.peak)),
        ("top tokens", " ".join(entry.top_tokens(8))),
        ("nearest tokens", " ".join(f"{token} {how:.2f}" for token, how in entry.nearest)),
        ("near neurons", " ".join(f"{index} ({how:.2f})" for index, how in entry.near)),
    ]
    key_values(f"Neuron {entry.index}", [row for row in rows if row[1] != "-"])
    shown = entry.contexts[:contexts]
    if shown:
        codes = aligned([context.peak for context in shown])
        cells = [(code, marked(c, entry.peak or c.peak)) for code, c in zip(codes, shown, strict=True)]
        table("Strongest contexts, with the «tokens» it fires at", ("code", "prompt"), cells)


def marked(context: Context, peak: float) -> str:
    """Return the prompt, with « and » around each token whose code is at least a quarter of `peak`."""
    parts = []
    for token, code in zip(context.tokens, context.codes, strict=True):
        word = token.lstrip()
        parts.append(token.replace(word, f"«{word}»") if word and code >= 0.25 * peak > 0 else token)
    return "".join(parts).strip()


def figure(value: float | None) -> str:
    """Format a figure for a table cell; None becomes a dash."""
    return "-" if value is None else f"{value:.3g}"
