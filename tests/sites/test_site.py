from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from excise.errors import ExciseError
from excise.sites import PRESETS, Site, resolve, site_at, sites_of
from excise.sites.site import depth, encoder_of, layer_count, tokenizer_of
from tests import tiny


def test_sites_are_listed_in_order_of_computation(tiny_pipe: Any) -> None:
    paths = [site.path for site in sites_of(tiny_pipe)]
    assert paths == ["embeddings", *(f"encoder.layers.{n}" for n in range(3)), "final_layer_norm"]
    assert {site.width for site in sites_of(tiny_pipe)} == {64}
    assert [depth(tiny_pipe, site) for site in sites_of(tiny_pipe)] == [0, 1, 2, 3, 3]


def test_both_layouts_of_clip_are_resolved(tiny_pipe: Any) -> None:
    flat = tiny.body(tiny_pipe.text_encoder)
    layer = flat.get_submodule("encoder.layers.1")
    wrapped = nn.Module()
    wrapped.text_model = flat
    wrapped.config = flat.config  # type: ignore[assignment]
    new = SimpleNamespace(components={"text_encoder": flat})
    old = SimpleNamespace(components={"text_encoder": wrapped})
    for pipe in (tiny_pipe, new, old):
        for path in ("encoder.layers.1", "text_model.encoder.layers.1"):
            assert resolve(pipe, Site("text_encoder", path, 64)) is layer
    assert sites_of(old) == sites_of(new) == sites_of(tiny_pipe)


def test_a_missing_path_lists_near_ones(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match=r"no module 'encoder.layers.9'.*encoder\.layers\.[012]"):
        resolve(tiny_pipe, Site("text_encoder", "encoder.layers.9", 64))


def test_another_width_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match="has width 64 here, not 768"):
        resolve(tiny_pipe, PRESETS["sd14"][0].__class__("text_encoder", "encoder.layers.1", 768))
    with pytest.raises(ExciseError, match="has width 128 here"):
        resolve(tiny_pipe, Site("text_encoder", "encoder.layers.1.mlp.fc1", 64))


def test_a_pipeline_without_that_encoder_is_refused(tiny_pipe: Any) -> None:
    with pytest.raises(ExciseError, match=r"no text encoder .text_encoder_2. .it has text_encoder"):
        encoder_of(tiny_pipe, "text_encoder_2")
    with pytest.raises(ExciseError, match=r"it has none\)"):
        encoder_of(SimpleNamespace(components={}), "text_encoder")
    with pytest.raises(ExciseError, match="no tokenizer_2"):
        tokenizer_of(tiny_pipe, "text_encoder_2")


def test_site_at_looks_the_width_up(tiny_pipe: Any) -> None:
    assert site_at(tiny_pipe, "text_model.encoder.layers.0") == Site("text_encoder", "encoder.layers.0", 64)
    with pytest.raises(ExciseError, match=r"the width of .* is unknown"):
        site_at(tiny_pipe, "encoder.layers.0.mlp")


def test_presets_name_paths_never_ordinals() -> None:
    assert [site.path for site in PRESETS["sd14"]] == ["encoder.layers.8", "encoder.layers.9"]
    assert {site.width for site in PRESETS["sd14"] + PRESETS["sd15"]} == {768}
    assert {site.width for site in PRESETS["sd21"]} == {1024}


def test_nested_stacks_are_one_station_a_block() -> None:
    """T5 keeps `layer` lists inside each `block`: only the blocks are Sites."""
    from transformers import T5Config, T5EncoderModel

    encoder = T5EncoderModel(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    pipe = SimpleNamespace(components={"text_encoder_3": encoder})
    assert [site.path for site in sites_of(pipe)] == ["encoder.block.0", "encoder.block.1"]
    assert layer_count(encoder) == 2
