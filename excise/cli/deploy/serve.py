"""`excise serve`: an HTTP service that generates under an operator's policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from excise.app.models.pipelines import DEFAULT, Weights
from excise.cli import bounds
from excise.cli.options import Device, Guidance, Json, Model, Steps
from excise.cli.terminal import emit, key_values
from excise.cli.weights import choosing_weights


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: excise serve policy.yaml --port 8000")(serve)


@choosing_weights
def serve(
    policy: Annotated[Path, typer.Argument(help="Policy: a YAML file with erasers, rules and limits.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. One that others can reach needs API keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 chooses a free one.", **bounds.PORT)] = 8000,
    steps: Steps = 20,
    guidance: Guidance = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the policy, its erasers and the model, and do not serve.")
    ] = False,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Refuse a policy that names no signer of its erasers.")
    ] = False,
    drain: Annotated[
        int, typer.Option("--drain", help="Most seconds that requests have to end after SIGTERM.", min=1, max=3600)
    ] = 120,
    model: Model = None,
    device: Device = "cpu",
    weights: Weights = DEFAULT,
    json: Json = False,
) -> None:
    """Serve pictures over HTTP, under erasers that no request can go round.

    POST /v1/images/generations takes OpenAI's fields, and answers OpenAI's own client. GET /readyz, /healthz and
    /metrics are for the operator. API keys come from the environment variable EXCISE_API_KEYS. SIGHUP reads the policy
    again, and SIGTERM ends the service when its requests are done. Each log line is a JSON object, without prompts.
    """
    from excise.outputs import check_extra

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        check_extra(module, "serve", "excise serve")
    from excise import reference
    from excise.app.models.resolve import load_pipeline
    from excise.app.serve import server
    from excise.app.serve.engine import Engine
    from excise.errors import ExciseError
    from excise.sites import LanguageModel

    def load() -> object:
        pipe = load_pipeline(model, device, weights)
        if isinstance(pipe, LanguageModel):
            raise ExciseError("excise serve generates pictures; name a diffusion model with --model")
        return pipe

    if guidance is None and model is None:
        guidance = reference.GUIDANCE
    name = "excise-reference" if model is None else Path(model).name
    engine = Engine(load, policy, steps, guidance, require_signature)
    if check:
        digests = server.check(engine)
        emit(json, {"erasers": digests}, lambda: key_values("Erasers", list(digests.items())))
        return
    server.serve(engine, name=name, host=host, port=port, drain=drain)
