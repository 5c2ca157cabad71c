from __future__ import annotations

from typing import Any

import pytest

from excise import reference
from excise.app.erase.finding import find_neurons, sweep, swept_sites
from excise.concepts import from_templates
from excise.errors import ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import cached_codes

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")


def test_a_sweep_needs_a_text_encoder(tiny_pipe: Any, gun: Any) -> None:
    assert [site.path for site in swept_sites(tiny_pipe)][:2] == ["embeddings", "encoder.layers.0"]
    tiny_pipe.text_encoder = None
    with pytest.raises(ExciseError, match="no text encoder"):
        sweep(tiny_pipe, gun, ["a gun"], tokens=100)


def test_the_tolerance_finds_what_the_papers_rule_drops() -> None:
    """Eq. 6 drops the bundled neuron that carries "dog" (docs/decisions/0019-differential-tolerance.md)."""
    pipe, dog = reference.load(), from_templates("dog", ("dog",))
    aurocs = {}
    with cached_codes():  # the prompts are read once
        for tolerance in (0.0, SNCEConfig().tolerance):
            config = SNCEConfig(sae=str(reference.sae_folder()), tolerance=tolerance, examine=1, permutations=10)
            aurocs[tolerance] = find_neurons(pipe, dog, config).found.validation[0].auroc or 0.0
    assert aurocs[0.0] < 0.7
    assert aurocs[SNCEConfig().tolerance] > 0.99
