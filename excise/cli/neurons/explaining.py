"""`excise neurons explain`: word patterns, and explanations by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.asking import KEY, Answers, BaseUrl, Jobs, KeyVariable, ModelName, chosen_backend
from excise.cli.cutting import note_cuts
from excise.cli.neurons.neurons import NAME, Database, app, figure
from excise.cli.options import Column, Device, Json, Model, Sae
from excise.cli.terminal import echo, emit, note, progress, table
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
        list[int] | None, typer.Argument(help="Numbers of the neurons; or select them with --tag.", **bounds.NEURON)
    ] = None,
    db: Database = NAME,
    tag: Annotated[str | None, typer.Option("--tag", help="Explain the neurons tagged with this concept.")] = None,
    top: Annotated[int, typer.Option("--top", help="Neurons to explain at most.", **bounds.COUNT)] = 20,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="File of prompts that the database was built from, if it was built from one."),
    ] = None,
    column: Column = "prompt",
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="Model that writes the explanations: none (word patterns only), openai (any server with a chat "
            "completions API) or transformers (in this process).",
        ),
    ] = NONE,
    model_name: ModelName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = KEY,
    scores: Annotated[
        str,
        typer.Option(
            "--scores", help="How to score the explanations: detection, fuzzing, embedding, segments, tokens."
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
    """Explain what neurons stand for, and score the explanations. Repeat the command to resume it."""
    from excise.app.models.resolve import load_pipeline, sae_folder
    from excise.app.neurons.explaining import Explaining
    from excise.chat import Cache
    from excise.cli.neurons.neurons import captions_of, corpus_of
    from excise.explain import ExplainConfig
    from excise.neurons.database.database import NeuronDatabase

    config = ExplainConfig(scorers=tuple(filter(None, (name.strip() for name in scores.split(",")))), jobs=jobs)
    writer = chosen_backend(backend, NONE, model_name, base_url, api_key_env, device)
    rows = []
    with NeuronDatabase.open(db) as database:
        chosen = list(neurons or _tagged(database, tag))[:top]
        captions, english = captions_of(database.provenance.corpus) or (0, 0)
        if prompts is None and not captions:
            raise ExciseError(f"{db} was built from {database.provenance.corpus}; give that file with --prompts")
        texts, _ = corpus_of(prompts, column, captions, english, model)
        for index in chosen:
            database.neuron(index)
        pipe = load_pipeline(model, device, weights)
        note_cuts(pipe, texts)
        with progress("recording neurons", len(texts)) as advance:
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
                explanations = explaining.explain(chosen, writer, Cache(folder), config, advance)
            if all(made.cost.questions == made.cost.unanswered for made in explanations):
                why = next((made.why for made in explanations if made.why), "no question was answered")
                raise ExciseError(f"no neuron was explained: {why}; the word patterns are saved in {db}")
            note(f"answers are kept in {folder}")
            for row, made in zip(rows, explanations, strict=True):
                row["explanation"] = made.to_json()
            emit(json, rows, lambda: _show(rows, explanations))
            return
    emit(json, rows, lambda: _show(rows, []))


def _tagged(database: NeuronDatabase, tag: str | None) -> list[int]:
    """Return the neurons with a tag. Raises ExciseError if no tag is given or no neuron has it."""
    if tag is None:
        raise ExciseError("name neurons by number, or a concept with --tag")
    by_tag: dict[str, list[int]] = {}
    for entry in database.entries():
        for one in entry.tags:
            by_tag.setdefault(one.concept, []).append(entry.index)
    if tag not in by_tag:
        known = f"its tags are {', '.join(sorted(by_tag))}" if by_tag else "it has no tags"
        raise ExciseError(
            f"no neuron in {database.path} is tagged {tag!r} ({known}); add tags with `excise neurons tag`"
        )
    return by_tag[tag]


def _show(rows: list[dict[str, Any]], explanations: list[Explanation]) -> None:
    cells = [
        (str(row["neuron"]), figure(row["precision"]), figure(row["recall"]), "; ".join(row["patterns"][:4]) or "-")
        for row in rows
    ]
    table("Word patterns", ("neuron", "precision", "recall", "patterns"), cells)
    if not explanations:
        return
    cells = [(str(m.neuron), m.text or f"({m.why})", _scores(m), str(m.failures)) for m in explanations]
    table("Explanations", ("neuron", "explanation", "scores", "failed"), cells)
    spent, cached = sum(made.cost.spent for made in explanations), sum(made.cost.cached for made in explanations)
    asked = sum(made.cost.questions for made in explanations)
    echo(f"{asked} questions, {cached} answered from the cache; {spent} tokens spent this time")


def _scores(made: Explanation) -> str:
    shown = []
    for name, score in made.scores.items():
        value = score if isinstance(score, float) or score is None else getattr(score, "balanced_accuracy", None)
        value = getattr(score, "r", value)
        shown.append(f"{name} {figure(value)}")
    return ", ".join(shown)
