from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from excise.erasers import Eraser
from excise.sites.locking import alone, lock, own_copy
from tests.tiny import words

LONG = "a cat on grass " * 40


def encoded(tokenizer: Any, number: int) -> bool:
    """Whether a call gets its own settings while other threads call with others."""
    length = 8 + number % 5
    kinds = ({"padding": "max_length", "truncation": True, "max_length": length}, {"truncation": False})
    ids = tokenizer([LONG, "a cat"], **kinds[number % 2])["input_ids"]
    return all(len(row) == length for row in ids) if number % 2 == 0 else len(ids[0]) > 100 and len(ids[1]) < 8


@pytest.mark.parametrize("name", ["clip", "t5", "qwen", "gemma"])
def test_a_copy_has_its_own_settings_and_words(name: str) -> None:
    tokenizer = getattr(words, name)()
    fast = tokenizer._tokenizer
    tokenizer.add_tokens(["sks"])
    tokenizer(["a cat", LONG], padding="max_length", truncation=True, max_length=9)
    before = fast.to_str()
    made = own_copy(tokenizer)
    assert made._tokenizer.to_str() == before == copy.deepcopy(fast).to_str()
    made(["a cat"], padding="max_length", truncation=True, max_length=5)
    made._tokenizer.add_tokens(["zzq"])
    assert fast.to_str() == before
    plain = made("zzq")["input_ids"]
    fast.add_special_tokens(["<q>"])
    assert made("zzq")["input_ids"] == plain != tokenizer("zzq")["input_ids"]
    assert made._tokenizer.token_to_id("<q>") is None


def test_threads_that_share_a_tokenizer_get_what_they_ask_for() -> None:
    tokenizer = own_copy(words.shared_clip())
    release = lock(tokenizer)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: encoded(tokenizer, number), range(4000)))
    release()


def test_one_thread_at_a_time_is_let_in(monkeypatch: Any) -> None:
    """Whoever is faster: while one encodes another waits."""
    tokenizer = own_copy(words.shared_clip())
    kind = type(tokenizer)
    name = "_encode_plus" if hasattr(kind, "_encode_plus") else "_batch_encode_plus"
    entered, both, go_on, plain = threading.Event(), threading.Event(), threading.Event(), getattr(kind, name)

    def slow(self: Any, *args: Any, **kwargs: Any) -> Any:
        (both if entered.is_set() else entered).set()
        go_on.wait(60)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(kind, name, slow)
    release = lock(tokenizer)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(tokenizer, "a cat")]
        assert entered.wait(60)
        calls.append(pool.submit(tokenizer, "a cat"))
        assert not both.wait(0.5), "the second came in while the first was inside"
        go_on.set()
        assert [call.result()["input_ids"] for call in calls] == [calls[0].result()["input_ids"]] * 2
    release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform forks no processes")
def test_a_process_forked_while_a_thread_encodes_can_encode() -> None:
    tokenizer = own_copy(words.shared_clip())
    release, inside, go_on = lock(tokenizer), threading.Event(), threading.Event()

    def hold() -> None:
        with alone(tokenizer):
            inside.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(60)
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # ends a process that hangs
        with alone(tokenizer):
            os._exit(0)
    _, status = os.waitpid(child, 0)
    go_on.set()
    thread.join()
    release()
    assert status == 0


def test_a_lock_leaves_no_trace_and_is_not_copied(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    # A separate one: tests share the other, and an eraser that a test left attached holds its lock.
    tokenizer = tiny_pipe.tokenizer = own_copy(tiny_pipe.tokenizer)
    before = set(vars(tokenizer))
    with gun_eraser.attach(tiny_pipe):
        assert set(vars(tokenizer)) > before
        for made in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
            assert made("a cat")["input_ids"] == tokenizer("a cat")["input_ids"]
            made.add_tokens(["sks"])
            assert made("sks")["input_ids"] != tokenizer("sks")["input_ids"]
        with ThreadPoolExecutor(4) as pool, torch.no_grad():
            made = list(pool.map(lambda n: tiny_pipe.encode_prompt(f"a cat {n}", "cpu", 1, False)[0].shape, range(40)))
        assert set(made) == {torch.Size([1, 77, 64])}
    assert set(vars(tokenizer)) == before


def test_the_last_holder_unlocks() -> None:
    tokenizer = own_copy(words.shared_clip())
    before = set(vars(tokenizer))
    first, second = lock(tokenizer), lock(tokenizer)
    first()
    first()
    assert set(vars(tokenizer)) > before
    second()
    assert set(vars(tokenizer)) == before
