"""Token ids are those that the pipeline's own tokenizer makes, whichever way they were made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.reference import data
from excise.sites.activations import tokenising
from excise.sites.activations.tokenising import tokenise

PRINTABLE = "".join(map(chr, range(32, 127)))
PIECES = st.sampled_from(
    ["it's", "I'LL", "'s", "x'd 've", "<|endoftext|>", "a<|startoftext|>b", "!!", "  ", "3.14", "\t"]
)
ASCII = st.lists(st.text(PRINTABLE, max_size=12) | PIECES, max_size=6).map("".join)
TEXTS = st.lists(st.text(max_size=40) | ASCII, min_size=64, max_size=70)
LONG = " ".join(f"word{n}" for n in range(200))


def plainly(pipe: Any, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask as diffusers' pipelines make them."""
    texts = pipe.maybe_convert_prompt(texts, pipe.tokenizer)
    made = pipe.tokenizer(
        texts, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return made.input_ids, made.attention_mask


def same(pipe: Any, texts: list[str]) -> bool:
    ids, attention, scored = tokenise(pipe, "text_encoder", texts)
    wanted = plainly(pipe, texts)
    assert torch.equal(scored, wanted[1].bool() & (wanted[0] != pipe.tokenizer.bos_token_id))
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip((ids, attention), wanted, strict=True))


@settings(max_examples=30, deadline=None)
@given(texts=TEXTS)
def test_many_texts_get_the_tokens_of_each(one_bundled_pipe: Any, texts: list[str]) -> None:
    assert same(one_bundled_pipe, [*texts, "", LONG, "a gun", "naïve café \u0301 <|endoftext|> x", "  two  spaces "])


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of texts that went through the tokenizer's own call."""
    seen: list[int] = []
    plain = tokenising._as_the_pipeline_does

    def count(tokenizer: Any, texts: list[str], length: int) -> Any:
        seen.append(len(texts))
        return plain(tokenizer, texts, length)

    monkeypatch.setattr(tokenising, "_as_the_pipeline_does", count)
    return seen


TEXT = [f"a {word} on grass number {n}" for n, word in enumerate(["gun", "cat"] * 50)]


def test_only_a_few_texts_are_compared(one_bundled_pipe: Any, counted: list[int]) -> None:
    assert same(one_bundled_pipe, [LONG, *TEXT])
    assert counted == [4]
    assert same(one_bundled_pipe, TEXT[:10])
    assert counted == [4, 10], "a few texts take the pipeline's way"


def test_the_tokenizer_is_left_as_it_was(one_bundled_pipe: Any) -> None:
    core = one_bundled_pipe.tokenizer.backend_tokenizer
    one_bundled_pipe.tokenizer(["a"], padding=False)
    before = core.padding, core.truncation
    tokenising._fast(one_bundled_pipe.tokenizer, TEXT, 77)
    copied = tokenising._copy(one_bundled_pipe.tokenizer, 77).core
    assert (copied.padding, copied.truncation["max_length"]) == (None, 77)
    one_bundled_pipe.tokenizer(["a"], padding=False)
    assert (core.padding, core.truncation) == before


def test_every_text_of_many_is_compared_once(one_bundled_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of pictures, twice: the second time all words are known, or were dropped."""
    names = (data.folder() / "emoji_words.txt").read_text().splitlines()
    texts = [*names[::3], LONG, LONG.upper(), "x" * 3000]
    assert same(one_bundled_pipe, texts)
    assert same(one_bundled_pipe, texts[::-1])
    monkeypatch.setattr(tokenising, "_MOST_WORDS", 10)
    assert same(one_bundled_pipe, texts)


def test_an_added_token_with_a_space_is_found(build_pipe: Any) -> None:
    pipe = build_pipe()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.add_tokens(["red apple"])
    assert same(pipe, ["a red apple here", *TEXT])
    assert (tokenise(pipe, "text_encoder", ["a red apple here", *TEXT])[0][0] == len(pipe.tokenizer) - 1).sum() == 1


def test_added_tokens_are_seen(build_pipe: Any, counted: list[int]) -> None:
    pipe = build_pipe()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    texts = ["a <thing> here", *TEXT]
    assert same(pipe, texts)
    pipe.tokenizer.add_tokens(["<thing>"])
    assert same(pipe, texts)
    one = tokenise(pipe, "text_encoder", texts)[1].sum()
    pipe.tokenizer.add_tokens(["<thing>_1"])
    assert same(pipe, texts)
    assert tokenise(pipe, "text_encoder", texts)[1].sum() == one + 1, "its second part is written out"
    assert set(counted) == {4}


@pytest.mark.parametrize("how", ["sides", "core"])
def test_a_tokenizer_that_differs_takes_the_pipelines_way(build_pipe: Any, counted: list[int], how: str) -> None:
    pipe = build_pipe()
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    if how == "sides":
        pipe.tokenizer.padding_side = "left"
    else:  # one whose call does more than its core
        inner = type(pipe.tokenizer).__call__

        class Shouting(type(pipe.tokenizer)):  # type: ignore[misc]
            def __call__(self, texts: Any, **how: Any) -> Any:
                return inner(self, [f"{text} now" for text in texts], **how)

        pipe.tokenizer.__class__ = Shouting
    assert same(pipe, TEXT)
    assert len(TEXT) in counted
    counted.clear()
    assert same(pipe, TEXT)
    assert counted == [len(TEXT)], "it is not tried again"
