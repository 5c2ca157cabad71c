"""Packed rows: every token keeps its position and attends only to the beginning of its prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.sites.activations.packing import can_pack, packed, run_packed, unpacked

ROOM = 9
PROMPTS = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=ROOM), min_size=1, max_size=20)


def padded(prompts: list[list[int]], filler: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids `[P, T]` and lengths `[P]`."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[filler] * (longest - len(prompt))] for prompt in prompts])
    return ids, torch.tensor([len(prompt) for prompt in prompts])


@settings(max_examples=100, deadline=None)
@given(prompts=PROMPTS, filler=st.integers(0, 3))
def test_a_row_is_a_tree_of_its_prompts(prompts: list[list[int]], filler: int) -> None:
    rows = packed(*padded(sorted(prompts), filler), ROOM)
    beginnings: dict[int, set[tuple[int, ...]]] = {}
    width = rows.ids.shape[1]
    for prompt, at in zip(sorted(prompts), rows.at.tolist(), strict=True):
        assert set(at[len(prompt) :]) <= {at[len(prompt) - 1]}, "its last state fills its row"
        (row,) = {place // width for place in at}
        places = [place % width for place in at[: len(prompt)]]
        assert rows.ids[row, places].tolist() == prompt
        assert rows.positions[row, places].tolist() == list(range(len(prompt)))
        for n, place in enumerate(places):
            assert rows.attended[row, place].nonzero()[:, 0].tolist() == sorted(places[: n + 1])
        beginnings.setdefault(row, set()).update(tuple(prompt[: n + 1]) for n in range(len(prompt)))
    assert rows.attended.any(2).all(), "every place attends to some place"
    assert max(map(len, beginnings.values())) == rows.ids.shape[1], "each beginning stands once in its row"
    for row, own in beginnings.items():
        rest = torch.arange(len(own), width)
        assert not rows.ids[row, rest].any()
        assert torch.equal(rows.attended[row, rest], torch.eye(width, dtype=torch.bool)[rest])


@settings(max_examples=100, deadline=None)
@given(prompts=PROMPTS)
def test_a_row_is_filled_before_the_next_one_begins(prompts: list[list[int]]) -> None:
    rows = packed(*padded(sorted(prompts)), ROOM)
    row, filled, before = -1, ROOM + 1, list[int]()
    for prompt, at in zip(sorted(prompts), rows.at.tolist(), strict=True):
        shared = max(n for n in range(len(prompt) + 1) if prompt[:n] == before[:n])
        new = len(prompt) - shared
        if filled + new > ROOM:
            row, filled, new = row + 1, 0, len(prompt)
        filled, before = filled + new, prompt
        assert {place // rows.ids.shape[1] for place in at} == {row}
    assert len(rows.ids) == row + 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_states_are_those_of_a_row_of_its_own(build_pipe: Any, attention: str) -> None:
    encoder = build_pipe().text_encoder
    encoder.set_attn_implementation(attention)
    assert can_pack(encoder)
    generator = torch.Generator().manual_seed(0)
    prompts = sorted(
        torch.randint(5, (int(n),), generator=generator).tolist()
        for n in torch.randint(1, 12, (30,), generator=generator)
    )
    rows = packed(*padded(prompts), 20)
    assert len(rows.ids) < 12
    together = unpacked(run_packed(encoder, rows).last_hidden_state, rows)
    with torch.no_grad():
        for prompt, own in zip(prompts, together, strict=True):
            alone = encoder(torch.tensor([prompt])).last_hidden_state[0]
            assert torch.allclose(own[: len(prompt)], alone, atol=1e-4)


def test_an_encoder_that_ignores_the_mask_is_found_out(build_pipe: Any) -> None:
    encoder = build_pipe().text_encoder

    class Deaf(torch.nn.Module):
        """An encoder that ignores the mask and attends to everything before a token."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = encoder

        def forward(self, ids: Any, attention_mask: Any = None, position_ids: Any = None) -> Any:
            return self.inner(ids, position_ids=position_ids)

    class Refusing(Deaf):
        def forward(self, ids: Any, attention_mask: Any = None, position_ids: Any = None) -> Any:
            if attention_mask is not None:
                raise ValueError("a mask has two dimensions")
            return self.inner(ids)

    assert not can_pack(Deaf())
    assert not can_pack(Refusing())
