"""`excise neurons explain`: patterns of words, and explanations by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.asking import KEY, Answers, BaseUrl, Jobs, KeyVariable, ModelName, asked
from excise.cli.cutting import note_cuts
from excise.cli.neurons.neurons import NAME, Database, app, figure
from excise.cli.options import Device, Json, Model, Sae
from excise.cli.terminal import emit, note, progress, table
from excise.cli.weights import choosing_weights
from excise.errors import ExciseError

if TYPE_CHECKING:
    from excise.explain import Explanation
    from excise.neurons.database.database import NeuronDatabase

__all__ = ["app"]
NONE = "none"


@app.command(epilog="Example: excise neurons explain --db neurons.db --tag gun --top 5")
@choosing_weights
def explain(
    neurons: Annotated[
        list[int] | None, typer.Argument(help="Numbers of neurons; or take them by --tag.", **bounds.NEURON)
    ] = None,
    db: Database = NAME,
    tag: Annotated[str | None, typer.Option("--tag", help="Neurons tagged with this concept.")] = None,
    top: Annotated[int, typer.Option("--top", help="How many of them at most.", **bounds.COUNT)] = 20,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="The file of prompts that the database was built on, if it was one."),
    ] = None,
    column: Annotated[str, typer.Option("--column", help="Column of the prompts in such a file.")] = "prompt",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="Who explains: none (patterns of words only), openai (any server that speaks chat completions) or "
            "transformers (in this process).",
        ),
    ] = NONE,
    model_name: ModelName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = KEY,
    scores: Annotated[
        str,
        typer.Option(
            "--scores", help="What explanations are scored by: detection, fuzzing, embedding, segments, tokens."
        ),
    ] = "detection,fuzzing",
    cache: Answers = None,
    jobs: Jobs = 4,
    model: Model = None,
    sae: Sae = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Say what neurons stand for, and how right that is. The same call goes on where an interrupted one stopped."""
    from excise.app.models.resolve import load_pipeline, sae_folder
    from excise.app.neurons.explaining import Explaining
    from excise.chat import Cache
    from excise.cli.neurons.neurons import captions_of, corpus_of
    from excise.explain import ExplainConfig
    from excise.neurons.database.database import NeuronDatabase

    config = ExplainConfig(scorers=tuple(filter(None, (name.strip() for name in scores.split(",")))), jobs=jobs)
    writer = asked(backend, NONE, model_name, base_url, api_key_env, device)
    rows = []
    with NeuronDatabase.open(db) as database:
        chosen = list(neurons or _tagged(database, tag))[:top]
        captions, english = captions_of(database.provenance.corpus) or (0, 0)
        if prompts is None and not captions:
            raise ExciseError(f"{db} was built on {database.provenance.corpus}; give them with --prompts FILE")
        texts, _ = corpus_of(prompts, column, captions, english, model)
        for index in chosen:
            database.neuron(index)
        pipe = load_pipeline(model, device, weights)
        note_cuts(pipe, texts)
        with progress("watching neurons", len(texts)) as advance:
            explaining = Explaining(pipe, database, sae_folder(model, sae), texts, advance)
        with progress("looking for patterns", len(chosen)) as advance:
            for index in chosen:
                found, counted = explaining.patterns(index, config)
                rows.append(
                    {
                        "neuron": index,
                        "patterns": [pattern.text for pattern in found],
                        "precision": counted.precision,
                        "recall": counted.tpr,
                    }
                )
                advance(1)
        if writer is not None:
            with progress("asking", explaining.questions(chosen, config)) as advance:
                folder = cache or db.with_suffix(".answers")
                said = explaining.explain(chosen, writer, Cache(folder), config, advance)
            if all(made.cost.questions == made.cost.unanswered for made in said):
                why = next((made.why for made in said if made.why), "no question was answered")
                raise ExciseError(f"nothing was explained: {why}; the patterns of words are in {db}")
            note(f"the answers are kept in {folder}")
            for row, made in zip(rows, said, strict=True):
                row["explanation"] = made.to_json()
            emit(json, rows, lambda: _show(rows, said))
            return
    emit(json, rows, lambda: _show(rows, []))


def _tagged(database: NeuronDatabase, tag: str | None) -> list[int]:
    """The neurons with a tag. Raises ExciseError where none is named or none has it."""
    if tag is None:
        raise ExciseError("name neurons by number, or a concept with --tag")
    by_tag: dict[str, list[int]] = {}
    for entry in database.entries():
        for own in entry.tags:
            by_tag.setdefault(own.concept, []).append(entry.index)
    if tag not in by_tag:
        there = f"its tags are {', '.join(sorted(by_tag))}" if by_tag else "it has no tags"
        raise ExciseError(
            f"no neuron of {database.path} is tagged {tag!r} ({there}); put some with `excise neurons tag`"
        )
    return by_tag[tag]


def _show(rows: list[dict[str, Any]], said: list[Explanation]) -> None:
    cells = [
        (str(row["neuron"]), figure(row["precision"]), figure(row["recall"]), "; ".join(row["patterns"][:4]) or "-")
        for row in rows
    ]
    table("Patterns of words", ("neuron", "precision", "recall", "patterns"), cells)
    if not said:
        return
    cells = [(str(made.neuron), made.text or f"({made.why})", _scores(made), str(made.failures)) for made in said]
    table("Explanations", ("neuron", "explanation", "scores", "failed"), cells)
    spent, cached = sum(made.cost.spent for made in said), sum(made.cost.cached for made in said)
    asked = sum(made.cost.questions for made in said)
    typer.echo(f"{asked} questions, {cached} answered before; {spent} tokens this time")


def _scores(made: Explanation) -> str:
    shown = []
    for name, own in made.scores.items():
        value = own if isinstance(own, float) or own is None else getattr(own, "balanced_accuracy", None)
        value = getattr(own, "r", value)
        shown.append(f"{name} {figure(value)}")
    return ", ".join(shown)
