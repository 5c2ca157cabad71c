"""`excise neurons`: what every neuron of an SAE answers to, in one file to search, read and share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.command import Commands
from excise.cli.cutting import note_cuts
from excise.cli.options import Device, Force, Json, Model, Sae, SiteOption
from excise.cli.terminal import aligned, emit, key_values, note, progress, table
from excise.cli.weights import choosing_weights
from excise.outputs import EXPORTS, check_extra, check_file, check_folder, check_resumed_file

if TYPE_CHECKING:
    from excise.neurons.contexts import Context
    from excise.neurons.database.entry import Entry

app = Commands(help="The neuron database: what each neuron of an SAE answers to.", no_args_is_help=True)

Database = Annotated[Path, typer.Option("--db", help="The neuron database.")]
NAME = Path("neurons.db")


@app.command(epilog="Example: excise neurons build --out neurons.db")
@choosing_weights
def build(
    out: Annotated[Path, typer.Option("--out", help="The database to write.")] = NAME,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="Prompts to watch neurons on: .txt, .csv, .jsonl or .parquet. Default: captions."
        ),
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Column of the prompts in such a file.")] = "prompt",
    captions: Annotated[
        int, typer.Option("--captions", help="Captions of the bundled model, where no file is given.", **bounds.CORPUS)
    ] = 10_000,
    english: Annotated[
        int,
        typer.Option(
            "--english", help="English sentences with them; needs Debian's wordnet-base.", **bounds.CORPUS_OR_NONE
        ),
    ] = 0,
    contexts: Annotated[int, typer.Option("--contexts", help="Prompts to keep of each neuron.", **bounds.COUNT)] = 10,
    model: Model = None,
    sae: Sae = None,
    site: SiteOption = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Watch every neuron of an SAE on a corpus. The same call goes on where an interrupted one stopped."""
    check_resumed_file(out)
    from excise.app.models.resolve import load_pipeline, parse_site, sae_folder
    from excise.app.neurons.database import Watching
    from excise.app.neurons.database import build as built
    from excise.sae import load

    folder = sae_folder(model, sae)
    m = load(folder).config.m
    texts, corpus = corpus_of(prompts, column, captions, english, model)
    pipe = load_pipeline(model, device, weights)
    note_cuts(pipe, texts)
    place = None if site is None else parse_site(pipe, site)
    with progress("watching neurons", len(texts) + m) as advance:
        made = built(pipe, folder, texts, out, advance, corpus=corpus, site=place, watching=Watching(contexts=contexts))

    def told() -> None:
        was = "saved in" if made.fresh else "there already in"
        typer.echo(f"{made.neurons:,} of {made.m:,} neurons fire on {corpus}; {was} {out}")

    emit(json, made.row(), told)


def corpus_of(
    prompts: Path | None, column: str, captions: int, english: int, model: str | None
) -> tuple[list[str], str]:
    """The prompts that neurons are watched on, and what they are, in words. Raises ExciseError where there are none."""
    from excise.concepts import read_prompts
    from excise.errors import ExciseError

    if prompts is not None:
        texts = list(read_prompts(prompts, column))
        return texts, f"{len(texts):,} prompts of {prompts.name}"
    if model is not None:
        raise ExciseError("--model needs --prompts FILE: a corpus to watch the neurons on")
    from excise import reference

    said = f"{captions:,} captions of the bundled model" + (f" and {english:,} sentences of English" if english else "")
    return list(reference.sae_corpus(captions=captions, english=english)), said


def captions_of(corpus: str) -> tuple[int, int] | None:
    """How many captions and English sentences a corpus is of, by what `corpus_of` says of it; None for others."""
    found = re.fullmatch(r"([\d,]+) captions of the bundled model(?: and ([\d,]+) sentences of English)?", corpus)
    if found is None:
        return None
    captions, english = (int((number or "0").replace(",", "")) for number in found.groups())
    return captions, english


@app.command(epilog="Example: excise neurons show 1153 --db neurons.db")
def show(
    neuron: Annotated[int, typer.Argument(help="The neuron's number.", **bounds.NEURON)],
    db: Database = NAME,
    contexts: Annotated[
        int, typer.Option("--contexts", help="How many of its contexts to show.", **bounds.COUNT_OR_NONE)
    ] = 10,
    json: Json = False,
) -> None:
    """Show one neuron: where it fires, what it writes, what is said of it."""
    from excise.neurons.database.database import NeuronDatabase

    with NeuronDatabase.open(db) as database:
        entry = database.neuron(neuron)
    emit(json, entry.row(), lambda: print_entry(entry, contexts))


@app.command(epilog='Example: excise neurons search "gun" --db neurons.db')
def search(
    text: Annotated[
        str,
        typer.Argument(
            help="Words of an explanation, a tag, a pattern, a context, or a token it fires at or lies near."
        ),
    ],
    db: Database = NAME,
    top: Annotated[int, typer.Option("--top", help="How many neurons to show.", **bounds.COUNT)] = 20,
    json: Json = False,
) -> None:
    """Find neurons. Exit code 1 where there is none."""
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
    """Write the neurons that fire to a file for other programs."""
    check_file(out, EXPORTS, force=force)
    if out.suffix == ".parquet":
        check_extra("pyarrow", "parquet", f"--out {out}")
    from excise.neurons.database.database import NeuronDatabase

    with NeuronDatabase.open(db) as database:
        database.export(out)
        n = len(database)
    emit(json, {"neurons": n, "out": str(out)}, lambda: typer.echo(f"wrote {n:,} neurons to {out}"))


@app.command(epilog="Example: excise neurons browse --db neurons.db --out neurons --eraser gun-eraser")
def browse(
    out: Annotated[Path, typer.Option("--out", help="Folder to write the page to.")],
    db: Database = NAME,
    eraser: Annotated[
        list[Path] | None, typer.Option("--eraser", help="An eraser to link with the neurons it edits; repeatable.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a page to browse the database with: one file that opens from the disk and fetches nothing."""
    check_folder(out, own=("index.html",), force=force)
    from excise.app.neurons.page import write_browser
    from excise.neurons.database.database import NeuronDatabase

    with NeuronDatabase.open(db) as database:
        command = ["excise", "neurons", "browse", "--db", str(db), "--out", str(out)]
        command += [part for folder in eraser or () for part in ("--eraser", str(folder))]
        page = write_browser(database, out, eraser or (), command)
    emit(
        json,
        {"page": str(page)},
        lambda: typer.echo(f"open {page} in a browser; add #q=word or #n=number to share a view"),
    )


@app.command("import", epilog="Example: excise neurons import en_db.json --out safe-sail.db")
def import_(
    file: Annotated[Path, typer.Argument(help="Safe-SAIL's published neuron database, en_db.json or cn_db.json.")],
    out: Annotated[
        Path, typer.Option("--out", help="The database to write; of several layers, one beside it for each.")
    ],
    json: Json = False,
) -> None:
    """Turn a neuron database that others published into ours. Words that were masked stay masked."""
    check_resumed_file(out)
    from excise.app.neurons.safe_sail import import_safe_sail

    paths = import_safe_sail(file, out)
    emit(
        json, {"databases": [str(path) for path in paths]}, lambda: typer.echo(f"saved in {', '.join(map(str, paths))}")
    )


@app.command(epilog="Example: excise neurons tag gun,knife --db neurons.db")
@choosing_weights
def tag(
    concepts: Annotated[
        str, typer.Argument(help="Known concepts with commas between them, or a file of concepts or pairs.")
    ],
    db: Database = NAME,
    top: Annotated[int, typer.Option("--top", help="How many neurons of each concept at most.", **bounds.COUNT)] = 3,
    least: Annotated[
        float, typer.Option("--least", help="Held-out AUROC that a neuron must reach.", **bounds.SHARE)
    ] = 0.9,
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
    """Print what is known of one neuron."""
    from excise.neurons.database.entry import pattern_text

    said = entry.explanation
    by = f" ({said.by}{f', {said.at[:10]}' if said.at else ''})" if said else ""
    rows = [
        ("explanation", f"{said.text}{by}" if said else "none by a language model; see its patterns and tokens"),
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
        table("Strongest contexts, «tokens» it fires at", ("code", "prompt"), cells)


def marked(context: Context, peak: float) -> str:
    """A prompt with the tokens at which the code is a quarter of `peak` or more between « and »."""
    parts = []
    for token, code in zip(context.tokens, context.codes, strict=True):
        word = token.lstrip()
        parts.append(token.replace(word, f"«{word}»") if word and code >= 0.25 * peak > 0 else token)
    return "".join(parts).strip()


def figure(value: float | None) -> str:
    """A figure for a table's cell; a dash where there is none."""
    return "-" if value is None else f"{value:.3g}"
