from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from excise.concepts import Pair
from excise.errors import ExciseError
from excise.methods import METHODS, method
from excise.methods.base import Fitted
from excise.methods.configs.closed_form import UCEConfig
from excise.methods.configs.registry import CONFIGS
from excise.methods.configs.sae import SNCEConfig
from excise.methods.configs.trained import ESDConfig
from excise.methods.lookup import parsed, settings_of
from excise.sae import save

ELSEWHERE = {"none", "snce", "concept-steerers", "itd", "saemnesia", "saemnesia-text", "saeuron", "hirm", "leace"}
"""Methods that edit a text encoder, or need an SAE of a block that is there."""


def test_every_method_listed_is_there() -> None:
    for name, about in METHODS.items():
        found = method(name)
        assert found.name == name
        assert callable(found.fit)
        found.Config()
        assert about.does
        assert about.edits
        assert (about.kind == "baseline") is not about.cite.startswith("@")


def test_the_settings_that_are_listed_without_torch_are_the_methods_own() -> None:
    assert {name: method(name).Config for name in METHODS} == CONFIGS


def test_an_unknown_method_names_near_ones() -> None:
    with pytest.raises(ExciseError, match="no method 'snec'; try snce"):
        method("snec")


def test_a_setting_that_is_none_by_default_can_be_none_again() -> None:
    assert parsed("safety-filter:threshold=none") == ("safety-filter", {"threshold": None})
    assert parsed("safety-filter:threshold=0.5") == ("safety-filter", {"threshold": 0.5})


def test_the_papers_tables_other_name_is_the_same_method() -> None:
    assert method("esd").name == "esd-x"
    assert parsed("esd:lr=1e-4") == ("esd-x", {"lr": 1e-4})
    assert settings_of("esd", {"esd-x": {"lr": 1e-4}}) == {"lr": 1e-4}
    assert settings_of("snce+esd", {"esd-x": {"lr": 1e-4}}) == {"esd-x.lr": 1e-4}


@pytest.mark.parametrize("name", sorted(set(METHODS) - ELSEWHERE))
def test_a_unet_that_hears_no_prompt_is_refused(tiny_pipe: Any, gun: Any, name: str) -> None:
    tiny_pipe.unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
    )
    with pytest.raises(ExciseError, match=rf"^{name} .*cross-attention \(attn2.* has none; choose a method that edits"):
        method(name).fit(tiny_pipe, gun)


@pytest.mark.parametrize("name", ["advunlearn", "itd", "mace", "uce"])
def test_what_has_to_stay_must_not_be_the_concept(
    tiny_pipe: Any, gun: Any, word_sae: Any, name: str, tmp_path: Path
) -> None:
    save(word_sae, tmp_path / "sae", {"site": {"component": "text_encoder", "path": "encoder.layers.2"}})
    given = {"itd": {"sae": str(tmp_path / "sae")}, "uce": {"preserve": "a cat;a gun"}}.get(name, {})
    leaking = replace(gun, controls=("a gun",), pairs=(Pair("a gun on grass", "a gun"), *gun.pairs))
    with pytest.raises(ExciseError, match="'a gun' is to be kept and is 'gun', which is to be erased"):
        method(name).fit(tiny_pipe, leaking, method(name).Config(**given))


def test_too_little_memory_says_what_to_lower(tiny_pipe: Any, gun: Any) -> None:
    """More than the machine has, asked of torch itself."""

    def greedy(pipe: Any, concept: Any, config: Any) -> Any:
        return torch.empty(1 << 60)

    with pytest.raises(ExciseError, match="there is not enough memory for esd-x; lower batch, or"):
        Fitted("esd-x", ESDConfig, greedy).fit(tiny_pipe, gun, ESDConfig(batch=2))
    with pytest.raises(ExciseError, match="there is not enough memory for uce; choose a method that needs less"):
        Fitted("uce", UCEConfig, greedy).fit(tiny_pipe, gun)
    with pytest.raises(ExciseError, match="there is not enough memory for snce; lower batch_size, or free some of it"):
        Fitted("snce", SNCEConfig, greedy).fit(tiny_pipe, gun)

    def broken(pipe: Any, concept: Any, config: Any) -> Any:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Fitted("uce", UCEConfig, broken).fit(tiny_pipe, gun)
