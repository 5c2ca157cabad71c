from __future__ import annotations

import math

import pytest
import torch

from excise.erasers.artefact.canary import shift
from excise.erasers.guard.canary import shifts, text_states
from excise.erasers.hooks.known_vectors import KnownVectors


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_shift_is_relative_and_what_is_no_number_proves_nothing() -> None:
    plain = torch.tensor([3.0, 4.0])
    assert shift(torch.tensor([3.0, 4.5]), plain) == pytest.approx(0.1)
    assert shift(plain, plain) == 0
    assert shift(torch.tensor([math.nan, 4.0]), plain) == 0
    assert shift(torch.tensor([math.inf, 4.0]), plain) == 0


def test_every_part_that_an_edited_encoder_made_moves_by_itself() -> None:
    plain = torch.cat([random(1, 6, 4), random(1, 6, 8, seed=1)], 2)
    edited = plain.clone()
    edited[..., :4] *= 1.5
    vectors = KnownVectors()
    vectors.add([edited[..., :4], edited[..., 4:]])
    assert shifts(edited, plain, vectors) == pytest.approx({"columns 0 to 3": 0.5, "columns 4 to 11": 0.0})
    assert shifts(edited, plain, None) == {"the states": shift(edited, plain)}


def test_positions_that_no_edited_encoder_made_count_as_not_moved_at_all() -> None:
    plain = random(1, 6, 4)
    edited = plain * 2
    vectors = KnownVectors()
    vectors.add([edited[:, :4]])
    moved = shifts(edited, plain, vectors)
    assert moved.pop("2 of 6 positions") == 0
    assert moved == pytest.approx({"columns 0 to 3": 1.0})


def test_the_tensors_that_hold_text_are_those_that_differ() -> None:
    same = random(2, 3)
    assert text_states([same, same, same[:1]], [same.clone(), same + 1, same]) == [1, 2]
