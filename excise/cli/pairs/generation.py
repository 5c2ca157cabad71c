"""`excise pairs generate`: pairs written by a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.cli import bounds
from excise.cli.asking import KEY, Answers, BaseUrl, Jobs, KeyVariable, ModelName, chosen_backend
from excise.cli.options import ConceptWords, Count, Device, Force, Json, Kind, Mentions
from excise.cli.terminal import echo, emit, note, progress, table
from excise.outputs import PAIRS, check_absent, check_file

if TYPE_CHECKING:
    from excise.app.pairs.generation import Generated

TEMPLATE = "template"


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: excise pairs generate gun --backend openai --base-url http://localhost:8000/v1 "
        "--model-name qwen --out gun.csv"
    )(generate)


def generate(
    concept: ConceptWords,
    out: Annotated[
        Path, typer.Option("--out", help="File for the pairs, .csv or .jsonl; a report is written next to it.")
    ],
    mentions: Mentions = None,
    kind: Kind = "object",
    n: Count = 100,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="Model that writes the pairs: openai (any server with a chat completions API), transformers (in this "
            "process) or template (no model).",
        ),
    ] = TEMPLATE,
    model_name: ModelName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = KEY,
    jobs: Jobs = 4,
    questions: Annotated[
        int | None,
        typer.Option(
            "--questions",
            help="Questions to ask at most. Default: four times as many as needed if every answer is used.",
            **bounds.COUNT,
        ),
    ] = None,
    cache: Answers = None,
    fill: Annotated[bool, typer.Option("--fill", help="Make up a shortfall with pairs from templates.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed that selects questions and templates.", **bounds.SEED)] = 0,
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Have a language model write a concept's pairs, and keep those that pass the checks and balance."""
    check_file(out, PAIRS, force=force)
    from excise.app.pairs import generation

    check_absent(generation.report_path(out), force=force)
    from excise.concepts.generation import recipe
    from excise.errors import ExciseError

    order = recipe(concept, [m.strip() for m in mentions.split(",")] if mentions is not None else None, kind)
    report = generation.report_path(out)
    writer = chosen_backend(backend, TEMPLATE, model_name, base_url, api_key_env, device)
    folder = (cache or out.with_suffix(".answers")) if writer is not None else None
    with progress("pairs", n) as advance:
        made = generation.generate(
            order, n, writer, folder, advance, fill=fill, seed=seed, jobs=jobs, questions=questions
        )
    generation.save(made, out)
    counted = made.report()
    for key in ("rejects", "unparsed_lines"):
        del counted[key]
    for text in [*made.notes, *counted["failures"]]:
        note(f"warning: {text}")
    if not made.pairs:
        raise ExciseError(f"no pair could be kept ({_why(counted)}); see {report}")
    if folder is not None:
        note(f"answers are kept in {folder}")
    first = [(p.concept, p.deconcept) for p in made.pairs[:5]]
    emit(json, {**counted, "out": str(out), "report": str(report)}, lambda: _show(made, counted, first, out))


def _why(counted: dict[str, Any]) -> str:
    """Describe why candidates were rejected."""
    reasons = [f"{n} ({reason})" for reason, n in counted["rejected"].items()]
    unparsed = [f"{counted['unparsed']} (not readable as a pair)"] if counted["unparsed"] else []
    return ", ".join([*reasons, *unparsed]) or "none"


def _show(made: Generated, counted: dict[str, Any], first: list[tuple[str, str]], out: Path) -> None:
    table(f"{counted['kept']} pairs for “{counted['concept']}” in {out}", ("concept", "deconcept"), first)
    if made.cost.questions:
        asked = (
            f"{counted['questions']} questions: {counted['cached']} answered from the cache, {counted['unanswered']} "
            "unanswered"
        )
        echo(f"{asked}; {counted['tokens']} tokens, {counted['tokens_spent']} of them this time")
        echo(f"pairs parsed: {counted['parsed']}")
    echo(f"rejected: {_why(counted)}" + (f"; {counted['spare']} spare" if counted["spare"] else ""))
    if made.cost.questions and counted["from_templates"]:
        echo(f"from templates: {counted['from_templates']}")
    for problem in counted["problems"]:
        echo(f"problem: {problem}")
