"""`excise pairs generate`: pairs that a language model writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from excise.cli import bounds
from excise.cli.asking import KEY, Answers, BaseUrl, Jobs, KeyVariable, ModelName
from excise.cli.asking import asked as asked_of
from excise.cli.options import Count, Device, Force, Json, Kind
from excise.cli.terminal import emit, note, progress, table
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
    concept: Annotated[str, typer.Argument(help="A known concept, or any name together with --mentions.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .csv or .jsonl; a report is put beside it.")],
    mentions: Annotated[
        str | None, typer.Option("--mentions", help='Words for the concept, separated by commas: "gun, pistol".')
    ] = None,
    kind: Kind = "object",
    n: Count = 100,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="Who writes: openai (any server that speaks chat completions), transformers (in this process) or "
            "template (no model).",
        ),
    ] = TEMPLATE,
    model_name: ModelName = None,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = KEY,
    jobs: Jobs = 4,
    questions: Annotated[
        int | None,
        typer.Option(
            "--questions", help="Ask so many questions at most. Default: four times what would do.", **bounds.COUNT
        ),
    ] = None,
    cache: Answers = None,
    fill: Annotated[bool, typer.Option("--fill", help="Take what is missing in the end from templates.")] = False,
    seed: Annotated[
        int, typer.Option("--seed", help="Other questions and templates for another number.", **bounds.SEED)
    ] = 0,
    device: Device = "cpu",
    force: Force = False,
    json: Json = False,
) -> None:
    """Have a language model write a concept's pairs, and keep those that fit and balance."""
    check_file(out, PAIRS, force=force)
    from excise.app.pairs import generation

    check_absent(generation.report_path(out), force=force)
    from excise.concepts.generation import recipe
    from excise.errors import ExciseError

    asked = recipe(concept, [m.strip() for m in mentions.split(",")] if mentions is not None else None, kind)
    report = generation.report_path(out)
    writer = asked_of(backend, TEMPLATE, model_name, base_url, api_key_env, device)
    folder = (cache or out.with_suffix(".answers")) if writer is not None else None
    with progress("pairs", n) as advance:
        made = generation.generate(
            asked, n, writer, folder, advance, fill=fill, seed=seed, jobs=jobs, questions=questions
        )
    generation.save(made, out)
    counted = made.report()
    for key in ("rejects", "unparsed_lines"):
        del counted[key]
    for text in [*made.notes, *counted["failures"]]:
        note(f"warning: {text}")
    if not made.pairs:
        raise ExciseError(f"not one pair could be kept ({_why(counted)}); see {report}")
    if folder is not None:
        note(f"the answers are kept in {folder}")
    first = [(p.concept, p.deconcept) for p in made.pairs[:5]]
    emit(json, {**counted, "out": str(out), "report": str(report)}, lambda: _show(made, counted, first, out))


def _why(counted: dict[str, Any]) -> str:
    """Where candidates went, in words."""
    went = [f"{n} ({reason})" for reason, n in counted["rejected"].items()]
    return ", ".join([*went, *([f"{counted['unparsed']} (no pair to read)"] if counted["unparsed"] else [])]) or "none"


def _show(made: Generated, counted: dict[str, Any], first: list[tuple[str, str]], out: Path) -> None:
    table(f"{counted['kept']} pairs for “{counted['concept']}” in {out}", ("concept", "deconcept"), first)
    if made.cost.questions:
        asked = (
            f"{counted['questions']} questions: {counted['cached']} answered before, {counted['unanswered']} not at all"
        )
        typer.echo(f"{asked}; {counted['tokens']} tokens, {counted['tokens_spent']} of them this time")
        typer.echo(f"pairs read: {counted['parsed']}")
    typer.echo(f"not taken: {_why(counted)}" + (f"; {counted['spare']} spare" if counted["spare"] else ""))
    if made.cost.questions and counted["from_templates"]:
        typer.echo(f"from templates: {counted['from_templates']}")
    for problem in counted["problems"]:
        typer.echo(f"problem: {problem}")
