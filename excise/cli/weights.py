"""Options --dtype, --revision and --variant of every command that loads a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from excise.app.models.pipelines import DEFAULT, Weights, check_name

Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Precision of the model: float32, float16 or bfloat16. Default: float32; on cuda, the model's own.",
    ),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of --model on the hub.")]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Load those of --model's files that have this word in their name: fp16.")
]
_OPTIONS = {"dtype": (Dtype, DEFAULT.dtype), "revision": (Revision, None), "variant": (Variant, None)}


def choosing_weights(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `weights`, a `Weights`, with the three options."""

    @functools.wraps(command)
    def called(**given: Any) -> None:
        weights = Weights(**{name: given.pop(name) for name in _OPTIONS})
        check_name(given.get("model"), weights)
        command(**given, weights=weights)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if name != "weights":
            parameters.append(parameter)
            continue
        for option, (kind, default) in _OPTIONS.items():
            parameters.append(parameter.replace(name=option, annotation=kind, default=default))
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del called.__wrapped__
    return called
