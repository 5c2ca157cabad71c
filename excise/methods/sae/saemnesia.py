"""SAEmnesia: turn down the one neuron that a supervised SAE on a block of the denoiser assigned to the concept (2026).

The SAE's card lists which neuron belongs to which concept, so that no search is needed: γ is the only number, and one
value serves all concepts. Measuring and editing are SAEuron's.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.methods.base import Fitted
from excise.methods.configs.sae import SAEmnesiaConfig
from excise.methods.sae.block_levels import block_sae, build_block_eraser, edit_of, levels, trained_at
from excise.neurons.timesteps import score
from excise.pipeline import Pipeline
from excise.sae import Supervision, card


def fit(pipe: Pipeline, concept: Concept, config: SAEmnesiaConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if the SAE was not supervised, or not for this concept; EraserDidNotFire if the edit changes no
    prediction.
    """
    config = config or SAEmnesiaConfig()
    sae = block_sae(config.sae)
    neuron = assigned(config.sae, concept)
    site = trained_at(pipe, config.sae, config.site)
    found = levels(pipe, site, sae, concept, config)
    scores = score(found.own, found.others).mean(0)
    rank = int((scores > scores[neuron]).sum()) + 1
    edit = edit_of(sae, site, [neuron], found, config)
    return build_block_eraser(pipe, (edit,), concept, "saemnesia", config, {"neuron": neuron, "rank_by_score": rank})


def assigned(folder: str, concept: Concept) -> int:
    """Return the neuron that the SAE in `folder` assigned to the concept, by its name or one of its mentions.

    Raises ExciseError if the SAE was not supervised, or not for this concept.
    """
    described = card(Path(folder)).get("supervision")
    if described is None:
        raise ExciseError(f"{folder} was trained without labels, so no neuron is the concept's; use saeuron with it")
    supervision = Supervision.from_json(described)
    neurons = dict(zip(supervision.concepts, supervision.assigned, strict=True))
    for name in (concept.name, *concept.mentions):
        if name in neurons:
            return neurons[name]
    near = get_close_matches(concept.name, neurons, n=3) or sorted(neurons)[:5]
    raise ExciseError(
        f"{folder} was not supervised for {concept.name!r}; it knows {len(neurons)} concepts, such as {', '.join(near)}"
    )


METHOD = Fitted("saemnesia", SAEmnesiaConfig, fit)
