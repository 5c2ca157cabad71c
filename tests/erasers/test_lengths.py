"""The length that a prompt is padded to: T5's states depend on it, unless the pipeline masks padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from excise.concepts import from_templates
from excise.erasers import Eraser, SAEEdit, made_for
from excise.errors import EraserDidNotFire
from excise.sites import default_site, encode_prompt, family_of, to_cover
from excise.sites.encoding import tensors_of
from excise.sites.site import encoder_of
from tests import tiny
from tests.planted import NEURON, planted
from tests.tiny import words

GUN = "a gun on grass"
LENGTHS = {"flux": 512, "sd3": 256, "pixart": 300, "wan": 512}


def built(family: str) -> tuple[Any, Eraser]:
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe, edits, concept = tiny.build(family), [], from_templates("gun", ("gun",), 4)
    for site in [default_site(pipe, component) for component in to_cover(pipe)]:
        edits.append(SAEEdit.from_sae(planted(pipe, site, concept), site, [NEURON], lam=1.5, gate="relu"))
    return pipe, Eraser(tuple(edits), "gun", "gun", ("gun",), made_for(pipe), canary=(GUN,))


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_another_length_than_at_fitting_is_refused(family: str) -> None:
    pipe, eraser = built(family)
    length = LENGTHS[family]
    assert set(eraser.made_for["lengths"].values()) == {length}
    with eraser.attach(pipe) as attachment:
        tiny.call(family, pipe, GUN)
        tiny.call(family, pipe, GUN, max_sequence_length=length)
        assert attachment.status()["bypasses"] == 0
        with pytest.raises(EraserDidNotFire, match=f"is 128, but .* fitted at {length}, .*_length={length}, or attach"):
            tiny.call(family, pipe, GUN, max_sequence_length=128)
        assert attachment.status()["bypasses"] == 1
        with torch.no_grad():
            known = list(tensors_of(encode_prompt(pipe, GUN, guidance=False)))
        given = {"prompt_embeds": known[0], "pooled_prompt_embeds": known[1], "guidance_scale": 1.0}
        tiny.call(family, pipe, None, **given, max_sequence_length=128)  # nothing is encoded
    with eraser.attach(pipe, on_bypass="allow"):
        tiny.call(family, pipe, GUN, max_sequence_length=128)


def test_another_length_in_a_pipeline_of_the_same_components() -> None:
    from diffusers import FluxImg2ImgPipeline

    pipe, eraser = built("flux")
    sibling = FluxImg2ImgPipeline(**pipe.components)
    with eraser.attach(pipe), torch.no_grad():
        sibling.encode_prompt(GUN, None, "cpu")
        with pytest.raises(EraserDidNotFire, match="max_sequence_length is 128"):
            sibling.encode_prompt(GUN, None, "cpu", max_sequence_length=128)
    with eraser.attach(pipe, on_bypass="allow") as attachment, torch.no_grad():
        sibling.encode_prompt(GUN, None, "cpu", max_sequence_length=128)
        assert attachment.status()["bypasses"] == 1


@pytest.mark.parametrize("family", ["pixart", "wan"])
def test_a_pipeline_that_masks_padding_takes_any_length(family: str) -> None:
    pipe, eraser = built(family)
    assert eraser.made_for["lengths"] == {"text_encoder": LENGTHS[family]}
    with eraser.attach(pipe) as attachment:
        tiny.call(family, pipe, GUN)
        tiny.call(family, pipe, GUN, max_sequence_length=64)
        assert attachment.status()["bypasses"] == 0


@pytest.mark.parametrize("family", LENGTHS)
def test_the_registry_knows_which_pipelines_mask_padding(family: str) -> None:
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe = tiny.build(family)
    known, component = family_of(pipe), to_cover(pipe)[-1]
    entry = known.encoder(component) if known is not None else None
    seen: list[Any] = []
    hook = encoder_of(pipe, component).register_forward_hook(lambda module, given, made: seen.append(made[0]))
    for length in (32, 64):
        tiny.call(family, pipe, GUN, max_sequence_length=length)
    hook.remove()
    count = len(words.t5()(GUN).input_ids)
    short, long = (next(t for t in seen if t.shape[1] == n)[0, :count] for n in (32, 64))
    assert entry is not None
    assert bool(torch.allclose(short, long, atol=1e-5)) == entry.masked
