from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.errors import ExciseError
from excise.sites import Site, capture, sites_of
from excise.sites.activations.token_shards import capture_tokens_to

PROMPTS = ["a gun", "a cat on grass", "", "a very long prompt " * 40]


def test_states_are_what_the_encoder_computes(tiny_pipe: Any) -> None:
    sites = sites_of(tiny_pipe)
    (features,) = capture(tiny_pipe, sites, PROMPTS)
    with torch.no_grad():
        out = tiny_pipe.text_encoder(features.ids, output_hidden_states=True)
    for site, expected in zip(sites[:-1], out.hidden_states, strict=True):
        assert torch.equal(features.states[site], expected), site
    assert torch.equal(features.states[sites[-1]], out.last_hidden_state)
    with torch.no_grad():
        embeds = torch.cat([tiny_pipe.encode_prompt(p, "cpu", 1, False)[0] for p in PROMPTS])
    assert torch.allclose(features.states[sites[-1]], embeds, atol=1e-5)


def test_all_positions_are_kept_and_only_words_and_eos_scored(tiny_pipe: Any, tiny_site: Site) -> None:
    (features,) = capture(tiny_pipe, [tiny_site], PROMPTS)
    assert features.states[tiny_site].shape == (4, 77, 64)
    assert features.scored.sum(1).tolist() == [3, 5, 1, 76]
    assert not features.scored[:, 0].any()
    assert features.scored[0, :4].tolist() == [False, True, True, True]
    assert features.ids[0, 3] == features.ids[0, 4] == 49407, "EOS is scored, the padding after it, the same token, not"


def test_batches_and_hooks(tiny_pipe: Any, tiny_site: Site) -> None:
    sizes = [len(f.ids) for f in capture(tiny_pipe, [tiny_site], (f"prompt {n}" for n in range(7)), batch_size=3)]
    assert sizes == [3, 3, 1]
    assert not any(m._forward_hooks for m in tiny_pipe.text_encoder.modules())
    assert list(capture(tiny_pipe, [tiny_site], [])) == []


def test_the_encoder_stops_behind_the_last_site(tiny_pipe: Any) -> None:
    ran: list[str] = []
    for name, module in tiny_pipe.text_encoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    first, second, _ = (site for site in sites_of(tiny_pipe) if site.path.startswith("encoder.layers."))
    (features,) = capture(tiny_pipe, [second, first], ["a cat"])
    assert set(features.states) == {first, second}
    assert any(name.endswith("layers.1") for name in ran)
    assert not [name for name in ran if "layers.2" in name or "final" in name]


def test_sites_of_two_encoders_are_refused(tiny_pipe: Any, tiny_site: Site) -> None:
    with pytest.raises(ExciseError, match="one text encoder at a time"):
        next(capture(tiny_pipe, [tiny_site, Site("text_encoder_2", "encoder.layers.0", 64)], PROMPTS))
    with pytest.raises(ExciseError, match="one text encoder at a time"):
        next(capture(tiny_pipe, [], PROMPTS))


def test_vectors_on_disk_are_the_states(tiny_pipe: Any, tiny_site: Site, tmp_path: Path) -> None:
    read: list[int] = []
    (whole,) = capture(tiny_pipe, [tiny_site], PROMPTS)
    options = {"bos": True, "batch_size": 2, "progress": read.append}
    made = capture_tokens_to(tmp_path / "exact", tiny_pipe, [tiny_site], PROMPTS, dtype=torch.float32, **options)
    assert sum(read) == made.texts == len(PROMPTS)
    vectors = torch.cat(list(made.vectors_at(tiny_site)))
    assert len(vectors) == made.vectors == len(PROMPTS) * 77
    near = torch.cdist(vectors.double(), whole.vectors(tiny_site).double())
    assert max(float(near.amin(0).max()), float(near.amin(1).max())) < 1e-4
    half = capture_tokens_to(tmp_path / "half", tiny_pipe, [tiny_site], PROMPTS)
    assert next(half.vectors_at(tiny_site)).dtype == torch.float16


def test_damaged_shards_are_refused(tiny_pipe: Any, tiny_site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    made = capture_tokens_to(folder, tiny_pipe, [tiny_site], PROMPTS)
    shard = folder / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ExciseError, match="altered or cut short"):
        list(made.vectors_at(tiny_site))
    shard.unlink()
    with pytest.raises(ExciseError, match="cannot read"):
        list(made.vectors_at(tiny_site))
    manifest = json.loads((folder / "manifest.json").read_text())
    for content in (json.dumps({**manifest, "schema": "other"}), "{"):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(ExciseError, match=r"cannot read the states in .*; delete it to read again"):
            capture_tokens_to(folder, tiny_pipe, [tiny_site], PROMPTS)
