"""SAE for the user's own model: taken from the cache, or trained into it once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from excise.cli.terminal import note, progress
from excise.pipeline import Pipeline


def sae_of(
    pipe: Pipeline, model: str, site: str | None, prompts: tuple[str, list[str]] | None, tokens: int | None, device: str
) -> Path:
    """Return the folder of the SAE for a pipeline's text encoders, training it if it is not in the cache.

    Prints the cost of training before it begins. `prompts` holds the name of their file and the texts.

    Raises ExciseError if the SAE is not in the cache and its training prompts cannot be read.
    """
    from excise.app.models.resolve import parse_site
    from excise.app.training.sae_cache import cached_sae, cost_of, planned, train_planned
    from excise.app.training.text import recipe_config, recipe_prompts, shown
    from excise.errors import ExciseError

    place = None if site is None else parse_site(pipe, site)
    if prompts is None and tokens is None and (found := cached_sae(pipe, place)) is not None:
        note(f"SAE of {model}: {found}")
        return found
    card: dict[str, Any] = {"model": model}
    if prompts is not None:
        name, texts = prompts
        card["corpus"] = f"{name}: {len(texts)} prompts"
    else:
        try:
            texts, description = recipe_prompts("snce-sd14")
        except ExciseError as error:
            raise ExciseError(
                f"{model} has no SAE yet, and the paper's prompts to train one on cannot be downloaded from the hub; "
                "give --prompts FILE with tens of thousands of prompts, or --sae FOLDER"
            ) from error
        card |= description
    config = recipe_config(None)
    training = planned(pipe, texts, config if tokens is None else replace(config, tokens=tokens), card, place)
    if not training.left:
        note(f"SAE of {model}: {training.folder}")
        return training.folder
    note(f"{model} has no SAE yet: training one on {cost_of(pipe, training, device)}; it is kept in {training.folder}")
    note("Ctrl-C keeps what is done; repeat the command to resume")
    for folder, layer in training.left.items():
        note(f"training at {layer.key}")
        with shown(progress, len(texts), training.config.tokens) as (captured, line):
            train_planned(pipe, training, folder, device=device, captured=captured, progress=line)
    return training.folder
