"""`encode_prompt` gives encoders what a call of the pipeline gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from excise.erasers.guard.model_digest import _lengths
from excise.sites import Site, capture
from excise.sites.activations.length_buckets import capture_by_length
from excise.sites.encoding import Enough, call_defaults, encode_prompt
from excise.sites.site import text_encoders
from excise.sites.truncation import _limit
from tests import tiny

PROMPT = "A GUN on &amp;lt;grass&amp;gt;, see https://example.org"


@pytest.fixture(params=tiny.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    if why := tiny.missing(request.param):
        pytest.skip(why)
    return str(request.param)


def test_encoders_read_the_tokens_that_they_read_for_an_image(family: str) -> None:
    """Sana puts an instruction before each prompt; Qwen-Image and Wan read more tokens than `encode_prompt` says."""
    pipe = tiny.build(family)
    read: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            read.append((name, kwargs.get("input_ids", args[0] if args else None)))

        return hook

    for name, part in pipe.components.items():
        if name.startswith("text_encoder") and part is not None:
            part.register_forward_pre_hook(keep(name), with_kwargs=True)
    with torch.no_grad():
        encode_prompt(pipe, PROMPT)
    alone, read[:] = list(read), []

    def stop(*_: Any) -> None:
        raise Enough

    (getattr(pipe, "unet", None) or pipe.transformer).register_forward_pre_hook(stop)
    with pytest.raises(Enough):
        tiny.call(family, pipe, PROMPT)
    assert alone
    for name, ids in alone:
        assert any(other == name and torch.equal(ids, given) for other, given in read), name


@pytest.mark.parametrize(("family", "length"), [("wan", 512), ("sana", 300)])
def test_the_length_of_an_images_call_counts(family: str, length: int) -> None:
    """Where a prompt is cut, and what a T5 encoder's states depend on, are those of an image."""
    if why := tiny.missing(family):
        pytest.skip(why)
    pipe = tiny.build(family)
    assert call_defaults(pipe)["max_sequence_length"] == length
    pipe.tokenizer.model_max_length = 1000
    assert _limit(pipe, "text_encoder") == length
    if family == "wan":
        assert _lengths(pipe, text_encoders(pipe)) == {"text_encoder": length}


@pytest.mark.parametrize("padding", [1.0, 0.0])
def test_an_instruction_before_every_prompt_neither_scores_nor_trains(padding: float) -> None:
    """Sana's denoiser reads the first state and those from the instruction's last one on; so do SAEs."""
    if why := tiny.missing("sana"):
        pytest.skip(why)
    pipe = tiny.build("sana")
    site = Site("text_encoder", "layers.1", pipe.text_encoder.config.hidden_size)
    (batch,) = (
        capture(pipe, [site], [PROMPT, "a cat"])
        if padding
        else (one.features for one in capture_by_length(pipe, [site], [PROMPT, "a cat"], padding=0))
    )
    with torch.no_grad():
        states, mask = encode_prompt(pipe, [PROMPT, "a cat"])[:2]
    assert batch.kept is not None
    if padding:
        assert batch.kept.sum(1).tolist() == [states.shape[1]] * 2
    assert not (batch.scored & ~batch.kept).any()
    assert batch.scored.sum(1).tolist() == (mask.sum(1) - 1).tolist(), "all that is read and no padding, without BOS"
    assert (batch.kept & ~batch.scored).sum(1).tolist() == (
        (states.shape[1] - batch.scored.sum(1)).tolist() if padding else [1, 1]
    )
