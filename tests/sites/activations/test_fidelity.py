from __future__ import annotations

from typing import Any

import pytest
import torch

from excise.sites import final_state_cosine, sites_of

PROMPTS = ["a gun", "a cat on grass", ""]


def test_the_same_features_leave_the_final_state_alone(tiny_pipe: Any) -> None:
    for site in sites_of(tiny_pipe):
        assert final_state_cosine(tiny_pipe, site, lambda x: x.clone(), PROMPTS) == pytest.approx(1)
    assert not any(m._forward_hooks for m in tiny_pipe.text_encoder.modules())


def test_at_the_last_site_it_is_the_cosine_of_what_is_put_there(tiny_pipe: Any) -> None:
    last = sites_of(tiny_pipe)[-1]
    assert final_state_cosine(tiny_pipe, last, torch.neg, PROMPTS, batch_size=2) == pytest.approx(-1)
    assert final_state_cosine(tiny_pipe, last, lambda x: 3 * x, PROMPTS) == pytest.approx(1)


def test_a_worse_reconstruction_scores_lower(tiny_pipe: Any, tiny_site: Any) -> None:
    noise = torch.randn(64, generator=torch.Generator().manual_seed(0))
    near, far = (final_state_cosine(tiny_pipe, tiny_site, lambda x, s=s: x + s * noise, PROMPTS) for s in (0.1, 3.0))
    assert near is not None
    assert far is not None
    assert far < near < 1


def test_where_there_is_nothing_to_tell_it_is_none(tiny_pipe: Any, tiny_site: Any) -> None:
    assert final_state_cosine(tiny_pipe, tiny_site, torch.neg, []) is None
    assert final_state_cosine(tiny_pipe, tiny_site, lambda x: x * float("nan"), PROMPTS) is None
