"""One eraser with a text encoder's edit and a block's, and the supervised SAE on the text encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise.concepts import Concept
from excise.erasers import Eraser, verify
from excise.errors import ExciseError
from excise.methods import method
from excise.sae import SAEConfig, Supervision, TopKSAE, save
from excise.sites import block_site

STEPS = 3


@pytest.fixture
def text_sae(word_sae: Any, tiny_site: Any, tmp_path: Path) -> str:
    """The fixtures' SAE, whose latent 5 is the gun's, with a card that says so."""
    own = Supervision(("cat", "gun"), (0, 0), (2, 5), pooling="max")
    where = {"component": tiny_site.component, "path": tiny_site.path, "width": tiny_site.width}
    save(word_sae, tmp_path / "text", {"site": where, "supervision": own.to_json()})
    return str(tmp_path / "text")


@pytest.fixture
def block_sae(tiny_pipe: Any, tmp_path: Path) -> str:
    site = block_site(tiny_pipe, "up_blocks.0.attentions.0")
    own = Supervision(("cat", "gun"), (0, 0), (7, 11))
    where = {"component": site.component, "path": site.path, "width": site.width}
    save(
        TopKSAE(SAEConfig(site.width, 40, 4), seed=2), tmp_path / "block", {"site": where, "supervision": own.to_json()}
    )
    return str(tmp_path / "block")


def settings(text_sae: str, block_sae: str) -> dict[str, Any]:
    block = {"sae": block_sae, "codes": "threshold", "gamma": -30.0, "steps": STEPS, "pictures": 4, "guidance": 2.0}
    text = {"sae": text_sae, "permutations": 20, "examine": 2, "tolerance": 0.9}
    return {f"saemnesia-text.{k}": v for k, v in text.items()} | {f"saemnesia.{k}": v for k, v in block.items()}


def test_the_supervised_neuron_of_the_text_encoder_is_edited_as_snce_does(
    tiny_pipe: Any, text_sae: str, gun: Concept
) -> None:
    own = method("saemnesia-text")
    options = {"sae": text_sae, "permutations": 20, "examine": 2, "tolerance": 0.9}
    eraser = own.fit(tiny_pipe, gun, own.Config(**options))
    searched = method("snce").fit(tiny_pipe, gun, method("snce").Config(**options, neurons=(5,)))
    assert eraser.method == eraser.created["method"] == "saemnesia-text"
    for name, tensor in eraser.edits[0].tensors().items():
        assert torch.equal(tensor, searched.edits[0].tensors()[name])
    with pytest.raises(ExciseError, match="was not supervised for 'rose'"):
        own.fit(tiny_pipe, replace(gun, name="rose", mentions=("rose",)), own.Config(**options))
    with pytest.raises(ExciseError, match="no SAE was named"):
        own.fit(tiny_pipe, gun, own.Config())


def test_one_eraser_with_two_sites(tiny_pipe: Any, text_sae: str, block_sae: str, gun: Concept, tmp_path: Path) -> None:
    both = method("saemnesia-text+saemnesia")
    eraser = both.fit(tiny_pipe, gun, both.Config(**settings(text_sae, block_sae)))
    assert [edit.site.component for edit in eraser.edits] == ["text_encoder", "unet"]
    assert eraser.method == "saemnesia-text+saemnesia"
    eraser.save(tmp_path / "gun")
    again = Eraser.load(tmp_path / "gun")
    assert again.digest == eraser.digest
    assert all(check.passed for check in verify(tmp_path / "gun"))

    def draw() -> Any:
        how = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "np"}
        return tiny_pipe("a gun on grass", generator=torch.Generator().manual_seed(0), **how).images

    plain, made = draw(), []
    for edits in (again.edits, again.edits[:1], again.edits[1:]):
        with replace(again, edits=edits, canary_shift=0.0).attach(tiny_pipe):
            made.append(draw())
    for picture in (plain, *made[1:]):
        assert not np.array_equal(made[0], picture), "both edits show"
    assert np.array_equal(draw(), plain)


def test_either_part_that_does_nothing_is_noticed(tiny_pipe: Any, text_sae: str, block_sae: str, gun: Concept) -> None:
    """The text encoder's edit must not hide that the block's is dead: each is proved without the other."""
    both = method("saemnesia-text+saemnesia")
    eraser = both.fit(tiny_pipe, gun, both.Config(**settings(text_sae, block_sae)))
    text, block = eraser.edits
    for edits in (
        (text, replace(block, W_dec=torch.zeros_like(block.W_dec))),
        (replace(text, W_dec=torch.zeros_like(text.W_dec)), block),
    ):
        with pytest.raises(ExciseError, match="did not change what the denoiser"):
            replace(eraser, edits=edits).attach(tiny_pipe)


def test_what_cannot_be_joined_is_said(text_sae: str) -> None:
    with pytest.raises(ExciseError, match="cannot be joined; name methods that edit something, each once"):
        method("snce+snce")
    with pytest.raises(ExciseError, match="cannot be joined"):
        method("none+snce")
    with pytest.raises(ExciseError, match="there is no method 'snc'"):
        method("snce+snc")
    with pytest.raises(ExciseError, match=r"has no setting 'snce\.gamma'"):
        method("snce+saemnesia").Config(**{"snce.gamma": 1})
    with pytest.raises(ExciseError, match="units cannot be 'some'"):
        method("snce+saemnesia").Config(**{"saemnesia.units": "some"})
