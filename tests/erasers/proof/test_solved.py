"""Weights that a closed form gives again: what counts as the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from excise.erasers.edits.weights import PromptScaledEdit, WeightEdit
from excise.erasers.proof.solved import TOLERANCE, altered_weights
from excise.neurons.flags import CHECKS
from excise.sites import Site

SITES = [Site("unet", f"blocks.{n}.attn2.to_k", 6) for n in range(3)]


def edits(kind: Any = WeightEdit) -> list[Any]:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return [kind(site, up=drawn(6, 2), down=drawn(2, 5)) for site in SITES]


def test_the_same_weights_in_any_order_and_any_factors_are_not_altered() -> None:
    whole = [WeightEdit(edit.site, delta=edit.change()) for edit in reversed(edits())]
    assert altered_weights(edits(), edits()) == altered_weights(whole, edits()) == []


def test_the_distance_of_one_layer_decides() -> None:
    (first, second, third), (_, other, _) = edits(), edits()
    away = torch.randn(6, 5)
    away *= float(second.change().norm() / away.norm())
    for share, odd in ((0.98, []), (1.02, [SITES[1].key])):
        moved = WeightEdit(second.site, delta=second.change() + share * TOLERANCE * away)
        assert altered_weights([first, moved, third], edits()) == odd
    assert altered_weights([first, replace(second, up=-second.up), third], edits()) == [SITES[1].key]
    assert altered_weights([first, replace(second, up=0 * second.up), third], edits()) == [SITES[1].key]
    assert altered_weights(edits(), [first, replace(other, up=0 * other.up), third]) == [SITES[1].key]


def test_every_site_is_edited_once_by_both_in_the_same_way() -> None:
    made = edits()
    assert altered_weights(made[:2], edits()) == altered_weights(edits(), made[:2]) == [SITES[2].key]
    assert altered_weights([*made, made[0]], edits()) == [SITES[0].key]
    assert altered_weights(edits(PromptScaledEdit), edits()) == [site.key for site in SITES]
    narrow = WeightEdit(SITES[0], delta=torch.ones(6, 4))
    assert altered_weights([narrow, *made[1:]], edits()) == [SITES[0].key]


def test_the_audits_page_states_the_tolerance() -> None:
    assert f"more than {100 * TOLERANCE:g} %" in CHECKS["altered weights"][1]
