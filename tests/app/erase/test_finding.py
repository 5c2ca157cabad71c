from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from excise import reference
from excise.app.erase.finding import erase, find_neurons
from excise.app.erase.sweeping import sweep, swept_sites
from excise.concepts import from_templates
from excise.errors import ExciseError
from excise.methods import prompt_codes
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import cached_codes
from excise.sae import save

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


def test_finding_and_fitting_read_each_prompt_once(
    tiny_pipe: Any, gun: Any, word_sae: Any, tiny_site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(word_sae, tmp_path / "sae", {"site": asdict(tiny_site)})
    read: list[tuple[str, ...]] = []
    capture = prompt_codes.capture

    def counting(pipe: Any, sites: Any, prompts: Any, batch_size: int) -> Any:
        read.append(tuple(prompts))
        return capture(pipe, sites, prompts, batch_size)

    monkeypatch.setattr(prompt_codes, "capture", counting)
    config = SNCEConfig(sae=str(tmp_path / "sae"), gate="relu", tolerance=0.9, permutations=1, examine=1)
    erase(tiny_pipe, gun, config)
    assert len(read) == len(set(read)) > 3
