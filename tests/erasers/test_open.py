"""What stays open, as docs/explanation/threat-model.md says: a test that fails here is good news for that page."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.erasers import Eraser
from excise.errors import EraserDidNotFire
from tests import tiny
from tests.erasers.test_routes import CAT, GUN, draw, states


def _output(made: Any, changed: Tensor) -> Any:
    return (changed, *made[1:]) if isinstance(made, tuple) else changed


def test_what_how_returns_to_excise_encode_is_trusted(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """A state from before the eraser comes through, if every edited layer runs meanwhile."""
    before = states(tiny_pipe, GUN)
    plain = draw(tiny_pipe, prompt_embeds=before, guidance_scale=1.0)

    def how() -> Tensor:
        tiny_pipe.text_encoder(tiny_pipe.tokenizer(CAT, padding="max_length", return_tensors="pt").input_ids)
        return before

    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        made = excise.encode(tiny_pipe, how)
        assert torch.equal(draw(tiny_pipe, prompt_embeds=made, guidance_scale=1.0), plain)


def test_code_changed_before_attaching_is_part_of_the_model(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    layer = tiny.body(tiny_pipe.text_encoder).encoder.layers[0]
    layer.register_forward_hook(
        lambda module, given, made: _output(made, 1.01 * (made[0] if isinstance(made, tuple) else made))
    )
    with gun_eraser.attach(tiny_pipe) as attachment:
        draw(tiny_pipe, prompt=GUN)
        assert attachment.status()["bypasses"] == 0


def test_code_changed_before_attaching_cannot_hide_that_the_edit_has_no_effect(
    tiny_pipe: Any, gun_eraser: Eraser
) -> None:
    layer = tiny.body(tiny_pipe.text_encoder).encoder.layers[2]
    layer.register_forward_hook(
        lambda module, given, made: _output(made, torch.ones_like(made[0] if isinstance(made, tuple) else made))
    )
    with pytest.raises(EraserDidNotFire, match="did not change"):
        gun_eraser.attach(tiny_pipe)
