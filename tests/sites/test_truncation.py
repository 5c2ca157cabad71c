"""Prompts beyond the encoder's length, with the tiny pipeline's real tokenizer."""

from __future__ import annotations

import copy
import gc
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
from excise.sites.truncation import Cut, _limit, _own, cuts, described, warn_of_cuts


def beyond(pipe: Any, tail: str) -> str:
    """A prompt whose `tail` begins exactly behind what the encoder reads."""
    tokenizer = _own(pipe.tokenizer)
    room = (_limit(pipe, "text_encoder") or 0) - tokenizer.num_special_tokens_to_add()
    each = len(tokenizer(" cat", add_special_tokens=False)["input_ids"])
    assert room % each == 0
    return "cat " * (room // each) + tail


def test_what_is_lost_is_what_the_encoder_never_reads(tiny_pipe: Any) -> None:
    long = beyond(tiny_pipe, "a gun on grass")
    (cut,) = cuts(tiny_pipe, ["a cat", long, long.removesuffix(" a gun on grass")])
    assert cut.prompt == long
    assert cut.lost == "a gun on grass"
    assert cut.holds(["gun"]) and not cut.holds(["cat", ""])
    ids = tiny_pipe.tokenizer(long, truncation=True, max_length=cut.limit)["input_ids"]
    kept = tiny_pipe.tokenizer(long.removesuffix(cut.lost), truncation=True, max_length=cut.limit)["input_ids"]
    assert ids == kept


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
        own = _own(tiny_pipe.tokenizer)
        assert all(getattr(method, "__self__", own) is own for method in vars(own).values())  # none of the original's
        found = list(pool.map(lambda n: cuts(tiny_pipe, [f"a cat {n}", long])[0].lost, range(200)))
    assert set(found) == {"a gun on grass"}


def test_it_is_said_in_one_line() -> None:
    found = [Cut("a", "x\ny " * 40, 77), Cut("b", "z", 77)]
    said = described(found, 5)
    assert said.startswith("2 of 5 prompts are longer than the 77 tokens that the model reads")
    assert "\n" not in said and "…” is lost in the first" in said
