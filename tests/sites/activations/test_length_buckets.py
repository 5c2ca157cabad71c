"""Prompts of like length read together give the states of the padded pass, and as much padding as was asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from excise.errors import ExciseError
from excise.sites import Site, capture, capture_by_length, sites_of
from excise.sites.activations import length_buckets as module
from excise.sites.activations.packing import can_pack

PROMPTS = ["a gun", "a cat on grass", "", "a very long prompt " * 40, "a gun", "the star in the sky", "a cat on grass"]


def _by_number(pipe: Any, sites: list[Site], prompts: list[str], **options: Any) -> dict[int, Any]:
    """By prompt its ids, scored mask, kept mask and states."""
    found: dict[int, Any] = {}
    for numbers, features in capture_by_length(pipe, sites, prompts, 2, **options):
        for row, number in enumerate(numbers):
            kept = torch.ones_like(features.scored[row]) if features.kept is None else features.kept[row]
            states = {site: features.states[site][row] for site in sites}
            assert number not in found
            found[number] = features.ids[row], features.scored[row], kept, states
    return found


def test_states_are_those_of_the_padded_pass(tiny_pipe: Any) -> None:
    sites = sites_of(tiny_pipe)
    (whole,) = capture(tiny_pipe, sites, PROMPTS)
    found = _by_number(tiny_pipe, sites, PROMPTS)
    assert sorted(found) == list(range(len(PROMPTS)))
    for number, (ids, scored, kept, states) in found.items():
        end = len(ids)
        assert torch.equal(ids, whole.ids[number, :end])
        assert torch.equal(scored, whole.scored[number, :end])
        assert not whole.scored[number, end:].any(), "every word and EOS is read"
        assert int(kept.sum()) == int(scored.sum()) + 1, "and BOS, but no padding"
        for site in sites:
            assert torch.allclose(states[site][kept], whole.states[site][number, :end][kept], atol=1e-5), site


def _places(pipe: Any) -> list[int]:
    """How many positions the encoder computes in each run from now on."""
    read: list[int] = []
    pipe.text_encoder.register_forward_pre_hook(
        lambda encoder, args, kwargs: read.append((*args, *kwargs.values())[0].numel()), with_kwargs=True
    )
    return read


def test_what_is_the_same_is_computed_once(tiny_pipe: Any, tiny_site: Site) -> None:
    assert can_pack(tiny_pipe.text_encoder)
    read = _places(tiny_pipe)
    found = _by_number(tiny_pipe, [tiny_site], ["a gun"] * 9 + ["a cat"])
    assert sum(read) == 6, "BOS and a; gun and EOS; cat and EOS"
    assert len(found) == 10
    assert all(torch.equal(found[n][3][tiny_site], found[0][3][tiny_site]) for n in range(9))


def test_an_encoder_that_cannot_be_packed_is_read_by_length(tiny_pipe: Any) -> None:
    forward = tiny_pipe.text_encoder.forward
    tiny_pipe.text_encoder.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    assert not can_pack(tiny_pipe.text_encoder)
    read = _places(tiny_pipe)
    test_states_are_those_of_the_padded_pass(tiny_pipe)
    assert len(read) > 2
    assert sum(read[1:]) < 5 * 77


@pytest.mark.parametrize(("padding", "least", "most"), [(0.0, 0, 0), (0.3, 28, 32), (1.0, 100, 100)])
def test_the_share_of_padding_is_the_one_asked_for(
    tiny_pipe: Any, tiny_site: Site, padding: float, least: int, most: int
) -> None:
    prompts = [f"a picture of {n} cats {'on grass ' * (n % 7)}" for n in range(200)]
    batches = list(capture_by_length(tiny_pipe, [tiny_site], prompts, 2, padding=padding))
    whole = [features for _, features in batches if features.kept is None]
    assert least <= len(whole) <= most
    for features in whole:
        assert features.ids.shape[1] == 77
        assert len(features.vectors(tiny_site)) == 77 * len(features.ids)
    for _, features in batches:
        if features.kept is not None:
            assert torch.equal(features.vectors(tiny_site), features.states[tiny_site][features.kept])
    again = [
        len(f.vectors(tiny_site)) for _, f in capture_by_length(tiny_pipe, [tiny_site], prompts, 2, padding=padding)
    ]
    assert again == [len(f.vectors(tiny_site)) for _, f in batches], "the same ones, by their seed"


def test_numbers_go_on_from_window_to_window(tiny_pipe: Any, tiny_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 3)
    assert sorted(_by_number(tiny_pipe, [tiny_site], PROMPTS)) == list(range(len(PROMPTS)))


def test_an_impossible_share_is_refused(tiny_pipe: Any, tiny_site: Site) -> None:
    with pytest.raises(ExciseError, match="share from 0 to 1"):
        next(capture_by_length(tiny_pipe, [tiny_site], PROMPTS, padding=1.5))
