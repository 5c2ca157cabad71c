"""SAEuron: turn down the neurons of an unsupervised SAE on a block of the denoiser (Cywiński & Deja 2025).

At every step, the neurons that score highest for the concept are multiplied by γ times their mean on it, wherever they
are louder than usual. Differences from the published code, each with a setting that reverts it: a number of neurons
instead of a percentile, so that the SAE's width does not change how many are edited (`k`); the SAE's error keeps its
sign (`compat`); levels count in units of the features' standard deviation, so that one γ means the same in every model
(`units`); a calibrated threshold replaces TopK, so that the eraser holds the edited rows alone (`codes`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.methods.base import Fitted
from excise.methods.configs.sae import SAEuronConfig
from excise.methods.sae.block_levels import block_sae, build_block_eraser, edit_of, levels, trained_at
from excise.neurons.timesteps import score, select
from excise.pipeline import Pipeline


def fit(pipe: Pipeline, concept: Concept, config: SAEuronConfig | None = None) -> Eraser:
    """Fit and self-test the eraser of `concept` for `pipe`.

    Raises ExciseError if no neuron scores for the concept, or SAE and block do not match; EraserDidNotFire if the edit
    changes no prediction.
    """
    config = config or SAEuronConfig()
    sae = block_sae(config.sae)
    site = trained_at(pipe, config.sae, config.site)
    found = levels(pipe, site, sae, concept, config)
    chosen = select(score(found.own, found.others), config.k)
    neurons = chosen.any(0).nonzero()[:, 0].tolist()
    edit = edit_of(sae, site, neurons, found, config)
    edit = replace(edit, gate=torch.where(chosen[:, neurons], edit.gate, torch.inf))
    measured = {"neurons": neurons, "edited_per_step": [int(n) for n in chosen.sum(1)]}
    return build_block_eraser(pipe, (edit,), concept, "saeuron", config, measured)


METHOD = Fitted("saeuron", SAEuronConfig, fit)
