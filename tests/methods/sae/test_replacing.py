"""Fitting what an SNCE eraser moves states to: against loops, on a tiny model and on the bundled one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import excise
from excise import reference
from excise.bench.canvas.families import cases
from excise.bench.canvas.remains import EMPTY
from excise.bench.canvas.suite import Canvas
from excise.concepts import Concept, Pair, from_templates
from excise.concepts.instead import pairs_instead
from excise.erasers import Eraser, verify
from excise.erasers.artefact.verdict import WeakEraser
from excise.erasers.edits.replacing_sae import ReplacingSAEEdit
from excise.errors import ExciseError
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.replacing import Prompt, counterparts, least_squares, places, replacing, without_padding
from excise.methods.sae.snce import fit
from excise.sae import TopKSAE
from excise.sites import capture, default_site, encode_prompt, to_cover
from excise.sites.activations.capture import is_clip
from excise.sites.encoding import tensors_of
from excise.sites.site import encoder_of, tokenizer_of
from tests import tiny
from tests.methods.sae.test_snce import CONFIG
from tests.planted import planted, read

REPLACED = replace(CONFIG, lam=0.9, replace_with="bus")


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ([0, 1, 5, 2, 9], [0, 1, 6, 2, 9], [0, 1, 2, 3, 4, 5, 6, 7]),  # one token for another
        ([0, 1, 5, 2, 9], [0, 1, 6, 7, 2, 9], [0, 1, 3, 4, 5, 6, 6, 7]),  # one for two
        ([0, 1, 5, 6, 2, 9], [0, 1, 7, 2, 9], [0, 1, 2, 2, 3, 4, 6, 7]),  # two for one
        ([0, 1, 5, 2, 9], [0, 1, 9], [0, 1, 1, 1, 2, 5, 6, 7]),  # none for two
        ([0, 5, 9], [0, 5, 9], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 5, 9], [0, 6, 7, 8, 9], [0, 3, 4, 5, 5, 5, 6, 7]),
        ([5, 9], [9], [0, 0, 2, 3, 4, 5, 6, 7]),
        ([0, 1, 5], [0, 1, 2, 3, 4, 6, 7, 8], [0, 1, 7, 7, 7, 7, 7, 7]),  # the other has no padding
    ],
)
def test_which_position_of_another_prompt_corresponds(own: list[int], other: list[int], expected: list[int]) -> None:
    assert counterparts(own, other, 8, 8) == expected


def test_another_prompt_may_be_padded_to_another_length() -> None:
    assert counterparts([0, 5, 9], [0, 6, 9], 5, 4) == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("k", [1, 2])
def test_the_moves_leave_least(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    z = torch.rand(40, k, generator=generator, dtype=torch.float64)
    apart = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    expected, *_ = np.linalg.lstsq(z.numpy(), apart.numpy(), rcond=None)
    torch.testing.assert_close(least_squares(z, apart), torch.from_numpy(expected))


def test_neurons_with_equal_codes_share_the_move() -> None:
    z = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    moves = least_squares(z, torch.tensor([[4.0], [8.0]], dtype=torch.float64))
    torch.testing.assert_close(moves, torch.tensor([[2.0], [2.0]], dtype=torch.float64))


def test_the_move_against_loops(tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tiny_site: Any) -> None:
    """Every word of these pairs is one token, so that the same positions correspond."""
    plain = fit(tiny_pipe, gun, CONFIG, sae=word_sae).edits[0]
    made, share = replacing(tiny_pipe, word_sae, plain, gun, "bus", 3)
    sides = []
    for form in dict.fromkeys(pair.template for pair in gun.pairs):
        (read,) = capture(tiny_pipe, [tiny_site], [form.format("gun"), form.format("bus")])
        h, g = read.states[tiny_site]
        z = plain.codes(h[None])[0, :, 0]
        sides.append((z.double(), (h - g).double()))
    u, expected = by_loops(sides)
    torch.testing.assert_close(made.moves[0].double(), u, atol=1e-4, rtol=1e-4)
    assert share == pytest.approx(expected, abs=1e-5)
    assert 0.2 < share < 1


def by_loops(sides: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, float]:
    """The move of one neuron and the share that it moves, of each prompt's codes `[T]` and differences `[T, d]`."""
    places = [place for codes, aparts in sides for place in zip(codes, aparts, strict=True)]
    above, below, left, whole = torch.zeros_like(places[0][1]), 0.0, 0.0, 0.0
    for code, apart in places:
        above += code * apart
        below += float(code) ** 2
    u = above / below
    for code, apart in places:
        left += float((apart - code * u).square().sum())
        whole += float(apart.square().sum())
    return u, 1 - left / whole


READ = {"sdxl": 4, "sd3": 4, "flux": 4, "flux2": 4, "kandinsky5": 1, "qwen-image": 4}
"""Families with several text encoders, one that pads before the prompt, and one that pads to the longest prompt of a
batch, with the prompts of a batch. Kandinsky does that too, and gives its language model no mask that says where."""


@pytest.mark.usefixtures("few_groups")
@pytest.mark.parametrize("family", READ)
def test_the_move_of_every_encoder_against_loops(family: str) -> None:
    """The other word has another number of tokens, and prompts are read in batches of other lengths."""
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe, full = tiny.build(family), from_templates("gun", ("gun",), 12)
    concept, word = replace(full, pairs=full.pairs[:6], controls=full.controls[:4]), "tulip"
    saes = {s: planted(pipe, s, concept) for s in (default_site(pipe, c) for c in to_cover(pipe))}
    own = SNCEConfig(permutations=20, examine=2, replace_with=word, lam=1.0, batch_size=READ[family])
    eraser = fit(pipe, concept, own, sae=saes)
    assert [edit.site for edit in eraser.edits] == list(saes)
    for edit in eraser.edits:
        assert isinstance(edit, ReplacingSAEEdit) and (edit.replace_with, len(edit.neurons)) == (word, 1)
        component, clip = edit.site.component, is_clip(encoder_of(pipe, edit.site.component))
        padding = tokenizer_of(pipe, component).pad_token_id
        sides = []
        for text in dict.fromkeys(pair.concept for pair in concept.pairs):
            # In batches of one prompt nothing is padded to the longest.
            ((ids, h),) = read(pipe, edit.site, [text])
            ((other_ids, g),) = read(pipe, edit.site, [re.sub(r"\bgun\b", word, text)])
            short, other_short = (one[: spoken(one, padding)] for one in (ids, other_ids))
            first, other_first = (min(n for n, one in enumerate(o) if one != padding) for o in (short, other_short))
            at = counterparts(short[first:], other_short[other_first:], len(h) - first, len(g) - other_first)
            reads = slice(first, len(h) if clip or family in ("sd3", "flux") else len(short))
            codes = edit.codes(h[None])[0, reads, 0].double()
            sides.append((codes, (h[first:] - g[other_first:][at]).double()[: reads.stop - first]))
        u, expected = by_loops(sides)
        torch.testing.assert_close(edit.moves[0].double(), u, atol=1e-3, rtol=1e-3)
        measured = eraser.measured["encoders"][edit.site.key] if len(saes) > 1 else eraser.measured
        assert measured["replaced"] == pytest.approx(expected, abs=1e-3)

    def encoded(text: str) -> list[torch.Tensor]:
        return [tensor for tensor in tensors_of(encode_prompt(pipe, text)) if tensor.is_floating_point()]

    with torch.no_grad():
        plain, cat = encoded("a gun on grass"), encoded("a cat on grass")
        with eraser.attach(pipe):
            moved, kept = encoded("a gun on grass"), encoded("a cat on grass")
    assert all(torch.equal(one, other) for one, other in zip(kept, cat, strict=True))
    by_prompt = [n for n, (one, other) in enumerate(zip(plain, cat, strict=True)) if not torch.equal(one, other)]
    assert by_prompt and not any(torch.equal(moved[n], plain[n]) for n in by_prompt)


def test_where_a_prompt_stands_between_padding() -> None:
    def prompt(row: list[int], start: int) -> Prompt:
        return Prompt(torch.zeros(len(row), 1), without_padding(row[start:], 0), start, slice(None))

    one_word, two_words = prompt([0, 0, 0, 5, 1, 2], 3), prompt([0, 0, 5, 1, 1, 2], 2)
    assert places(one_word, two_words, 0) == [0, 0, 1, 2, 3, 5]
    assert places(two_words, one_word, 0) == [1, 2, 3, 4, 4, 5]
    # None follows the longest prompt of a batch.
    longest, padded = prompt([9, 5, 6, 7], 0), prompt([9, 8, 6, 7, 0], 0)
    assert places(longest, padded, 0) == [0, 1, 2, 3]
    assert places(padded, longest, 0) == [0, 1, 2, 3, 3]


def spoken(ids: list[int], padding: int) -> int:
    """How many of the ids are a prompt's, with the first of the padding (CLIP's is also the end of a prompt)."""
    last = max(n for n, one in enumerate(ids) if one != padding)
    return min(last + 2, len(ids))


@pytest.mark.parametrize(
    ("ids", "expected"), [([5, 1, 0, 0, 0], 3), ([5, 1], 2), ([5, 1, 0], 3), ([0, 0, 0], 1), ([5, 5, 1, 1], 4)]
)
def test_padding_that_no_mask_leaves_out_is_cut_to_its_first(ids: list[int], expected: int) -> None:
    assert without_padding(ids, 0) == ids[:expected]
    assert without_padding(ids, None) == ids


def test_fit_moves_states_to_the_other_word_and_leaves_others_alone(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tmp_path: Path
) -> None:
    eraser = fit(tiny_pipe, gun, REPLACED, sae=word_sae)
    (edit,) = eraser.edits
    assert isinstance(edit, ReplacingSAEEdit)
    assert (edit.lam, edit.replace_with, edit.gate) == (0.9, "bus", "whole")
    assert eraser.created["config"]["replace_with"] == "bus"
    assert eraser.measured["replaced"] > 0.2
    assert eraser.verdict["carried"] == eraser.measured["replaced"], "the verdict is on what is moved"
    turned = fit(tiny_pipe, gun, CONFIG, sae=word_sae)
    assert torch.equal(edit.threshold, turned.edits[0].threshold), "the gate is that of the neuron turned down"
    eraser.save(tmp_path / "gun")
    checks = {check.name: check for check in verify(tmp_path / "gun", tiny_pipe, sae=word_sae)}
    assert all(checks[name].passed for name in ("content", "manifest", "rows", "sites", "model", "canary"))
    assert "that text_encoder/encoder.layers.2 is moved to the states of “bus”" in checks["trusted as signed"].detail

    def states(prompt: str) -> Any:
        return tiny_pipe.encode_prompt(prompt, "cpu", 1, False)[0]

    with torch.no_grad():
        before = {text: states(text) for text in (*gun.controls, "a gun on grass", "a bus on grass")}
        with Eraser.load(tmp_path / "gun").attach(tiny_pipe):
            after = {text: states(text) for text in (*gun.controls, "a gun on grass")}
        assert torch.equal(states("a gun on grass"), before["a gun on grass"]), "detaching restores every bit"
    assert all(torch.equal(after[text], before[text]) for text in gun.controls)
    far, near = ((side["a gun on grass"] - before["a bus on grass"]).norm() for side in (before, after))
    assert near < 0.9 * far


def test_nothing_is_what_the_pairs_have_without_the_concept(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, tiny_site: Any
) -> None:
    plain = fit(tiny_pipe, gun, CONFIG, sae=word_sae).edits[0]
    with pytest.raises(ExciseError, match="0 pairs leave 'gun' out"):
        replacing(tiny_pipe, word_sae, plain, gun, "nothing")
    out = tuple(Pair(pair.concept, pair.concept.replace("gun", "nothing")) for pair in gun.pairs[::6])
    both = replace(gun, pairs=(*gun.pairs, *out))
    assert pairs_instead(both, "nothing") == out
    made, _ = replacing(tiny_pipe, word_sae, plain, both, "nothing")
    alone, _ = replacing(tiny_pipe, word_sae, plain, replace(gun, pairs=out), "nothing")
    assert torch.equal(made.moves, alone.moves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replace_with": "gun"}, "'gun' is to be erased; choose another word"),
        ({"replace_with": "a\nb"}, "replace_with cannot be"),
        ({"source": "concept"}, "replace_with needs source=prompt, not concept"),
        ({"ortho": 8}, "ortho projects the neuron's own direction"),
    ],
)
def test_settings_that_do_not_go_together(
    tiny_pipe: Any, word_sae: TopKSAE, gun: Concept, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExciseError, match=message):
        fit(tiny_pipe, gun, replace(REPLACED, **change), sae=word_sae)


@pytest.mark.parametrize(("word", "drawn"), [("apple", {"apple"}), ("nothing", set())])
def test_on_the_bundled_model_another_thing_or_an_empty_scene_is_drawn(
    one_bundled_pipe: Any, tmp_path: Path, word: str, drawn: set[str]
) -> None:
    pipe, canvas = one_bundled_pipe, Canvas(batch=3)
    asked = [case for case in cases("dog", 3) if case.family == "direct"]
    eraser = excise.erase(pipe, canvas.concept("dog"), replace_with=word)
    assert eraser.weak == ()
    eraser.save(tmp_path / "dog")
    assert all(check.passed for check in verify(tmp_path / "dog", pipe))
    with eraser.attach(pipe):
        pictures = canvas.draw(pipe, asked).pixels
    for seen in canvas.judge(asked, pictures):
        assert not (seen["target"] or seen["second"]["target"])
        assert set(seen["others"]) == drawn and (bool(drawn) or seen["covered"] <= EMPTY)


def test_a_word_like_the_concept_is_weak_as_verify_would_refuse_it(one_bundled_pipe: Any) -> None:
    own = SNCEConfig(sae=str(reference.sae_folder()), replace_with="cat", lam=0.8)
    with pytest.warns(WeakEraser):
        eraser = fit(one_bundled_pipe, Canvas().concept("dog"), own)
    (reason,) = eraser.weak
    assert reason.startswith("it removes too little of “dog”") and "another word" in reason
