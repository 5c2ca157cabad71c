"""Prompts beyond the encoder's length, with the tiny pipeline's real tokenizer."""

from __future__ import annotations

import copy
import gc
import random
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.erasers import verify
from excise.sites import capture
from excise.sites.locking import lock, own_copy
from excise.sites.site import text_encoders, tokenizer_of
from excise.sites.truncation import Cut, _copy_of, _limit, cuts, described, warn_of_cuts
from tests import tiny


def beyond(pipe: Any, tail: str) -> str:
    """Return a prompt whose `tail` begins exactly after the part that the encoder reads."""
    tokenizer = _copy_of(pipe.tokenizer)
    room = (_limit(pipe, "text_encoder") or 0) - tokenizer.num_special_tokens_to_add()
    each = len(tokenizer(" cat", add_special_tokens=False)["input_ids"])
    assert room % each == 0
    return "cat " * (room // each) + tail


def test_what_is_lost_is_what_the_encoder_never_reads(tiny_pipe: Any) -> None:
    long = beyond(tiny_pipe, "a gun on grass")
    (cut,) = cuts(tiny_pipe, ["a cat", long, long.removesuffix(" a gun on grass")])
    assert cut.prompt == long
    assert cut.lost == "a gun on grass"
    assert cut.lost_words == cut.lost
    ids = tiny_pipe.tokenizer(long, truncation=True, max_length=cut.limit)["input_ids"]
    kept = tiny_pipe.tokenizer(long.removesuffix(cut.lost), truncation=True, max_length=cut.limit)["input_ids"]
    assert ids == kept


def test_the_words_that_are_lost_are_whole() -> None:
    """A word that the cut splits is lost as a whole, and its end is not shown as a word."""
    assert Cut("it has begun", "gun", 77).lost_words == "begun"
    assert Cut("a big halberd, on grass", "berd, on grass", 77).lost_words == "halberd, on grass"
    assert Cut("a big gun", " gun", 77).lost_words == " gun"
    assert Cut("a big gun", "gun", 77).lost_words == "gun"


def one_by_one(readers: list[tuple[Any, int]], prompt: str) -> Cut | None:
    """As the encoders' own tokenizers cut a prompt alone: the end that none of them reads."""
    best: tuple[int, int] | None = None
    for tokenizer, limit in readers:
        ids = tokenizer(prompt, truncation=True, max_length=limit)["input_ids"]
        if ids == tokenizer(prompt)["input_ids"]:
            return None
        spans = tokenizer(prompt, truncation=True, max_length=limit + 1, return_offsets_mapping=True)["offset_mapping"]
        best = max(best or (0, 0), (max(span for span in spans)[0], limit))
    return Cut(prompt, prompt[best[0] :], best[1]) if best else None


@pytest.mark.parametrize("family", ["sd1", "sd3"])
def test_many_prompts_are_read_together_and_cut_as_each_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (reason := tiny.missing(family)) is not None:
        pytest.skip(reason)
    pipe, rng = tiny.build(family), random.Random(0)
    words = ["cat", "a", "gun", "Zweihänder", "武器", "🔫", "halberdier", "x" * 40, "it's", "12,345", "—"]
    lengths = [0, 1, 20, 70, 76, 80, 200, 300, 600]
    prompts = [" ".join(rng.choices(words, k=rng.choice(lengths))) for _ in range(300)]
    asked: list[int] = []
    for name in text_encoders(pipe):
        kind = type(own := _copy_of(tokenizer_of(pipe, name)))
        call = kind.__call__

        def counted(self: Any, texts: Any, *args: Any, call: Any = call, **kwargs: Any) -> Any:
            asked.append(len(texts))
            return call(self, texts, *args, **kwargs)

        copied = type(kind.__name__, (kind,), {"__call__": counted})
        monkeypatch.setattr(own, "__class__", copied)
    found = cuts(pipe, prompts)
    assert 0 < len(asked) <= 2 * len(text_encoders(pipe)), "a tokenizer is asked once for 256 prompts"
    monkeypatch.undo()
    readers = [(own_copy(tokenizer_of(pipe, name)), _limit(pipe, name) or 0) for name in text_encoders(pipe)]
    alone = [one_by_one(readers, prompt) for prompt in prompts]
    assert found == [cut for cut in alone if cut is not None]
    assert 20 < len(found) < 280


def test_a_locked_tokenizer_is_left_alone_and_dies(tiny_pipe: Any) -> None:
    """While an eraser is attached and after it is taken off the copy is the only one whose settings change."""
    long, shared, tokenizer = beyond(tiny_pipe, "a gun"), tiny_pipe.tokenizer, copy.deepcopy(tiny_pipe.tokenizer)
    tiny_pipe.tokenizer = tokenizer
    try:
        release = lock(tokenizer)
        tokenizer("a cat", truncation=True, padding="max_length", max_length=9)
        before = tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding
        assert before[0] is not None and before[1] is not None
        for _ in range(2):
            assert [cut.lost for cut in cuts(tiny_pipe, [long])] == ["a gun"]
            assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == before
            release()
        alive = weakref.ref(tokenizer)
        del tokenizer, release
    finally:
        tiny_pipe.tokenizer = shared
    gc.collect()
    assert alive() is None


def test_the_library_warns_once(tiny_pipe: Any, tiny_site: Any) -> None:
    tiny_pipe.tokenizer = own_copy(tiny_pipe.tokenizer)  # of the one that tests share another may have been warned
    long = beyond(tiny_pipe, "a gun on grass")
    with pytest.warns(UserWarning, match=r"1 of 2 prompts are longer .* “a gun on grass” is lost"):
        list(capture(tiny_pipe, [tiny_site], ["a cat", long]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(capture(tiny_pipe, [tiny_site], [long]))
        warn_of_cuts(tiny_pipe, [long])


def test_a_canary_that_is_cut_off_is_not_caught(tiny_pipe: Any, gun_eraser: Any, tmp_path: Path) -> None:
    replace(gun_eraser, canary=(beyond(tiny_pipe, "a gun on grass"),)).save(tmp_path / "eraser")
    assert not {check.name: check.passed for check in verify(tmp_path / "eraser", tiny_pipe)}["canary"]


def test_threads_find_the_same_cuts_while_an_eraser_is_attached(tiny_pipe: Any, gun_eraser: Any) -> None:
    long = beyond(tiny_pipe, "a gun on grass")
    with gun_eraser.attach(tiny_pipe), ThreadPoolExecutor(8) as pool:
        own = _copy_of(tiny_pipe.tokenizer)
        assert all(getattr(method, "__self__", own) is own for method in vars(own).values())  # none of the original's
        found = list(pool.map(lambda n: cuts(tiny_pipe, [f"a cat {n}", long])[0].lost, range(200)))
    assert set(found) == {"a gun on grass"}


def test_it_is_said_in_one_line() -> None:
    found = [Cut("a", "x\ny " * 40, 77), Cut("b", "z", 77)]
    text = described(found, 5)
    assert text.startswith("2 of 5 prompts are longer than the 77 tokens that the model reads")
    assert "\n" not in text and "…” is lost in the first" in text
