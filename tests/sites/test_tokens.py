"""Pieces of text: joined they read as the prompt does, whatever the tokenizer marks words with."""

from __future__ import annotations

from typing import Any

import pytest

from excise.sites.tokens import END, pieces

TEXT = "a café and a naïve gun, on grass"


def test_clips_words_have_the_space_before_them_and_closing_marks_have_none(clip_tokenizer: Any) -> None:
    ids = clip_tokenizer(TEXT).input_ids
    shown = pieces(clip_tokenizer, ids)
    assert len(shown) == len(ids)
    assert shown[0] == "" and shown[-1] == END
    assert "".join(shown[:-1]) == TEXT
    assert " gun" in shown and "," in shown


def test_padding_with_the_end_of_text_is_shown_as_the_end(clip_tokenizer: Any) -> None:
    ids = clip_tokenizer("a cat", padding="max_length").input_ids
    assert set(pieces(clip_tokenizer, ids)[3:]) == {END}


@pytest.mark.parametrize("kind", ["t5", "qwen", "gemma"])
def test_other_tokenizers(kind: str) -> None:
    from tests.tiny import words

    tokenizer = getattr(words, kind)()
    ids = tokenizer("a cat and a gun", add_special_tokens=False).input_ids
    assert "".join(pieces(tokenizer, ids)).strip() == "a cat and a gun"


def test_word_pieces() -> None:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: n for n, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "a", "play", "##ing", "cat", ","])}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    ids = [1, *tokenizer("a playing cat, a cat").input_ids, 2]
    assert pieces(tokenizer, ids) == ["", "a", " play", "ing", " cat", ",", " a", " cat", END]


def test_letters_that_no_alphabet_knows_stay_and_broken_bytes_show_as_such() -> None:
    from excise.sites.tokens import _bytes

    assert _bytes("猫") == "猫"
    assert _bytes("Ã") == "�"
