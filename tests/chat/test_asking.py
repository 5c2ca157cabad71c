from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.chat import Cache, Cost, Failure, Question, Reply, Unavailable, ask_all, backend
from excise.chat.asking import _Asking
from excise.errors import ExciseError
from tests.chat_server import ChatServer

KEY = "sk-never-to-be-seen"


def echo(system: str, user: str) -> str:
    return f"answer to {user}"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(echo) as chat:
        yield chat


@pytest.fixture
def ask(monkeypatch) -> Callable[..., object]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(server: ChatServer, **options: object) -> object:
        return backend("openai", **{"model": "planted", "base_url": server.base_url, "retries": 0, **options})

    return make


def questions(n: int, max_tokens: int = 16) -> list[Question]:
    return [Question("be brief", f"question {i}", max_tokens) for i in range(n)]


def test_a_question_goes_out_as_it_is_and_its_answer_and_cost_come_back(server, ask):
    reply = ask(server, seed=3).ask(Question("be brief", "why?", 16))
    assert reply == Reply("answer to why?", prompt_tokens=3, completion_tokens=3)
    (request,) = server.asked
    assert request["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    assert request["temperature"] == 0 and request["seed"] == 3 and request["max_tokens"] == 16
    assert server.keys == [f"Bearer {KEY}"]
    ask(server, temperature=None, limit="max_completion_tokens").ask(Question("", "why?", 16))
    assert "temperature" not in server.asked[-1] and "max_tokens" not in server.asked[-1]
    assert server.asked[-1]["max_completion_tokens"] == 16 and len(server.asked[-1]["messages"]) == 1


def test_replies_keep_the_order_of_their_questions_though_many_are_asked_at_once(server, ask):
    three, last = threading.Barrier(3), threading.Event()

    def hold(number: int, user: str) -> None:
        if number < 3:
            three.wait()
        if user == "question 8":
            last.set()
        if user == "question 0":
            last.wait()

    server.hold = hold
    told: list[int] = []
    asked = [*questions(9), *questions(2)]
    outcomes = ask_all(ask(server), asked, jobs=3, progress=told.append)
    assert [outcome.text for outcome in outcomes] == [f"answer to {question.user}" for question in asked]
    assert sum(told) == 11
    assert len(server.asked) == 9 and server.most_at_once == 3
    assert [outcome.cached for outcome in outcomes] == [False] * 9 + [True] * 2
    assert Cost.of(outcomes) == Cost(questions=11, cached=2, tokens=11 * 8, spent=9 * 8)


def test_what_is_in_the_cache_is_not_asked_again_and_what_is_damaged_is(server, ask, tmp_path):
    cache, asked = Cache(tmp_path / "cache"), questions(4)
    first = ask_all(ask(server), asked, cache)
    files = sorted((tmp_path / "cache").rglob("*"))
    assert len([file for file in files if file.suffix == ".json"]) == 4
    assert KEY not in "".join(file.read_text() for file in files if file.is_file())
    again = ask_all(ask(server), asked, cache)
    assert len(server.asked) == 4
    assert [(r.text, r.cached) for r in again] == [(r.text, True) for r in first]
    assert Cost.of(again).spent == 0 and Cost.of(again).tokens == Cost.of(first).tokens > 0

    name = ask(server).name
    cache.path(name, asked[0]).write_bytes(b'{"backend": ')
    cache.path(name, asked[1]).write_text(json.dumps({"reply": {"text": 3}}))
    other = json.loads(cache.path(name, asked[2]).read_text())
    cache.path(name, asked[2]).write_text(json.dumps({**other, "question": {"user": "another"}}))
    assert [r.text for r in ask_all(ask(server), asked, cache)] == [r.text for r in first]
    assert sorted(server.users()[4:]) == [q.user for q in asked[:3]]
    assert cache.get(name, asked[0]) == Reply("answer to question 0", 4, 4, cached=True)


def test_another_model_seed_or_length_is_another_question_for_the_cache(server, ask, tmp_path):
    cache = Cache(tmp_path)
    for options in ({}, {"seed": 1}, {"model": "other"}, {"temperature": None}):
        ask_all(ask(server, **options), questions(1), cache)
    ask_all(ask(server), questions(1, max_tokens=17), cache)
    assert len(server.asked) == 5


def test_one_question_that_fails_does_not_lose_the_others(server, ask, tmp_path):
    server.answer = lambda system, user: "" if user.endswith("2") else echo(system, user)
    cache = Cache(tmp_path)
    outcomes = ask_all(ask(server), questions(4), cache)
    assert isinstance(outcomes[2], Failure) and "empty answer" in outcomes[2].reason
    assert [type(outcome) for outcome in outcomes].count(Reply) == 3
    assert Cost.of(outcomes).unanswered == 1
    server.answer = echo
    assert ask_all(ask(server), questions(4), cache)[2].text == "answer to question 2"
    assert len(server.asked) == 5


def test_a_server_that_dies_is_not_asked_on_and_a_second_run_asks_only_what_is_left(ask, tmp_path):
    cache, asked = Cache(tmp_path), questions(40)
    with ChatServer(echo) as server:
        server.dies_after = 7
        outcomes = ask_all(ask(server), asked, cache, jobs=2, patience=3)
        answered = [outcome.text for outcome in outcomes if isinstance(outcome, Reply)]
        failures = [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]
        assert len(answered) == 7 and len(failures) == 33
        # Two failures, a seventh answer that was late, three failures, and one that was being asked by then.
        assert sum("not asked, after" not in reason for reason in failures) <= 2 + 3 + 1
        assert all("cannot reach 127.0.0.1" in reason for reason in failures)
        server.dies_after = None
        outcomes = ask_all(ask(server), asked, cache, jobs=2)
        assert [outcome.text for outcome in outcomes] == [f"answer to {question.user}" for question in asked]
        assert len(server.asked) == 40 and len(set(server.users())) == 40


def test_asking_stops_before_the_failures_are_read():
    """However busy the one is that reads the answers: `patience` questions, and one for each other thread."""

    class Dead:
        name = "dead"

        def __init__(self) -> None:
            self.asked = 0

        def ask(self, question: Question) -> Reply:
            self.asked += 1
            raise Unavailable("no server")

    dead = Dead()
    asking = _Asking(dead, questions(40), jobs=1, patience=3)
    with asking:
        for thread in asking._threads:
            thread.join()
    assert dead.asked == 3 and asking.reason == "no server"


def test_no_server_at_all_is_one_line(ask, server):
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))  # held, so that no other program takes it, but does not listen
        port = idle.getsockname()[1]
        with pytest.raises(Unavailable, match=rf"^cannot reach 127\.0\.0\.1:{port}/v1 \(.*refused.*\); is it running"):
            ask(server, base_url=f"http://127.0.0.1:{port}/v1").ask(questions(1)[0])


def test_time_outs_are_repeated_and_then_told(server, ask):
    over = threading.Event()
    server.hold = lambda number, user: over.wait()
    try:
        (outcome,) = ask_all(ask(server, timeout=0.15, retries=1), questions(1), jobs=1)
        assert outcome == Failure(f"127.0.0.1:{server.port}/v1 did not answer within 0.15 s; is it overloaded?")
        server.wait_for(2)
    finally:
        over.set()
    assert server.users() == ["question 0", "question 0"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"choices": [', "application/json"),
        (b"<html>proxy</html>", "text/html"),
        (b"{}", "application/json"),
        (b'{"choices": []}', "application/json"),
        (b'{"choices": [{"message": {"content": [1]}}]}', "application/json"),
        (b"[1, 2]", "application/json"),
        (b"\xff\xfe\x00", "application/json"),
    ],
)
def test_what_is_no_completion_is_a_failure_in_one_line(server, ask, body, content_type):
    server.body, server.content_type = body, content_type
    (outcome,) = ask_all(ask(server), questions(1))
    assert isinstance(outcome, Failure)
    assert f"127.0.0.1:{server.port}/v1" in outcome.reason and "\n" not in outcome.reason


@pytest.mark.parametrize(
    ("status", "kind", "match"),
    [
        (401, Unavailable, "refuses the key in OPENAI_API_KEY"),
        (404, Unavailable, "has no model 'planted'"),
        (429, Unavailable, "over its rate limit"),
        (500, Unavailable, "failed"),
        (400, ExciseError, "refuses the question .* too long: … is very"),
    ],
)
def test_a_refusal_is_one_line_that_does_not_show_the_key(server, ask, status, kind, match):
    server.status, server.message = status, f"too long:\n{KEY} is {'very ' * 100}wrong"
    with pytest.raises(kind, match=match) as caught:
        ask(server).ask(questions(1)[0])
    said = str(caught.value)
    assert KEY not in said and "\n" not in said and len(said) < 300
    assert type(caught.value) is kind
    assert caught.value.__suppress_context__


def test_a_key_that_cannot_be_sent_is_not_shown_either(server, ask, monkeypatch):
    for key in ("sk-schlüssel-geheim", "sk-geheim\nlines"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ExciseError, match="OPENAI_API_KEY has invalid characters") as caught:
            ask(server)
        assert "geheim" not in str(caught.value)


def test_the_key_comes_from_the_variable_that_is_named_and_an_own_endpoint_may_do_without(server, ask, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    chat = ask(server, key_variable="OTHER_KEY")
    chat.ask(questions(1)[0])
    assert server.keys == ["Bearer sk-other"]
    assert "sk-other" not in chat.name + repr(chat) + str(chat)
    monkeypatch.delenv("OTHER_KEY")
    ask(server, key_variable="OTHER_KEY").ask(questions(1)[0])
    assert server.keys[1] == "Bearer none"
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ExciseError, match="OTHER_KEY holds no API key"):
        backend("openai", model="planted", key_variable="OTHER_KEY")


@pytest.mark.parametrize("user", ["me:geheim@", "geheim@", ":geheim@"])
def test_a_user_in_the_endpoint_is_refused_and_not_shown(ask, server, monkeypatch, user):
    url = f"http://{user}127.0.0.1:{server.port}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    for options in ({"base_url": url}, {"base_url": None}):
        with pytest.raises(ExciseError, match="holds a user or password") as caught:
            ask(server, **options)
        assert "geheim" not in str(caught.value)


def test_a_query_in_the_endpoint_is_not_shown(ask, server):
    chat = ask(server, base_url=f"http://127.0.0.1:{server.port}/v1?token=hidden")
    assert chat.name == f"openai:planted at 127.0.0.1:{server.port}/v1 (seed=0, temperature=0)"


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"])
def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_a_question(server, ask, monkeypatch, head):
    monkeypatch.setattr("excise.chat.openai._WAIT", 0.2)
    over = threading.Event()

    def drip(file: Any) -> None:
        file.write(head)
        while not over.wait(0.05):
            file.write(b" " if head else b"H")
            file.flush()

    server.write = drip
    began = time.monotonic()
    try:
        (outcome,) = ask_all(ask(server, timeout=0.5), questions(1))
    finally:
        over.set()
    assert isinstance(outcome, Failure) and "did not answer within 0.5 s" in outcome.reason
    assert time.monotonic() - began < 10


def test_a_huge_response_is_not_read(server, ask):
    sent = 0

    def pour(file: Any) -> None:
        nonlocal sent
        file.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        for _ in range(300):
            sent += file.write(b" " * (1 << 20))

    server.write = pour
    (outcome,) = ask_all(ask(server), questions(1))
    assert isinstance(outcome, Failure) and "more than 4 MiB" in outcome.reason
    assert sent < 100 << 20  # what the two sockets hold, and not 300 MiB


@pytest.mark.parametrize("status", [200, 400])
def test_a_compressed_response_is_not_unpacked(server, ask, status):
    body = gzip.compress(b" " * (64 << 20))
    head = f"HTTP/1.1 {status} X\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    server.write = lambda file: file.write(head.encode() + body)
    (outcome,) = ask_all(ask(server), questions(1))
    assert isinstance(outcome, Failure) and "compresses its responses" in outcome.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_takes_no_prompt_to_another_server(server, ask, status):
    with ChatServer(echo) as other:
        head = f"HTTP/1.1 {status} X\r\nLocation: {other.base_url}/chat/completions\r\nContent-Length: 0\r\n\r\n"
        server.write = lambda file: file.write(head.encode())
        with pytest.raises(Unavailable, match=f"redirects elsewhere .{status}., which is not followed"):
            ask(server).ask(questions(1)[0])
        assert other.asked == []


def completion(content: str = '"an answer"', usage: str = "null") -> bytes:
    """Return a completion whose parts are given as JSON."""
    return (
        '{"id": "1", "object": "chat.completion", "created": 0, "model": "planted", "choices": [{"index": 0, '
        f'"finish_reason": "stop", "message": {{"role": "assistant", "content": {content}}}}}], "usage": {usage}}}'
    ).encode()


def test_half_a_surrogate_pair_is_replaced_and_saved(server, ask, tmp_path):
    server.body = completion(r'"cut \ud83d and whole \ud83d\ude80"')
    cache = Cache(tmp_path)
    for _ in range(2):
        outcomes = ask_all(ask(server), questions(2), cache)
        assert [outcome.text for outcome in outcomes] == ["cut � and whole 🚀"] * 2
    assert outcomes[0].cached


def test_a_question_with_half_a_surrogate_pair_does_not_end_the_others(server, ask, tmp_path):
    asked = [Question("", "cut \ud83d", 16), *questions(1)]
    first, second = ask_all(ask(server), asked, Cache(tmp_path))
    assert isinstance(first, Failure) and isinstance(second, Reply)


def test_deep_json_is_a_failure(server, ask):
    server.body = b'{"choices": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    (outcome,) = ask_all(ask(server), questions(1))
    assert isinstance(outcome, Failure) and "did not answer with a chat completion" in outcome.reason


@pytest.mark.parametrize(
    ("given", "believed"),
    [("-1000000000000", 0), ("1" + "0" * 30, 10_000_000), ("null", 0), ("7", 7), ("7.9", 7)],
)
def test_counts_of_tokens_are_believed_only_within_what_is_possible(server, ask, given, believed):
    server.body = completion(usage=f'{{"prompt_tokens": {given}, "completion_tokens": {given}, "total_tokens": 0}}')
    outcomes = ask_all(ask(server), questions(1))
    assert Cost.of(outcomes) == Cost(questions=1, tokens=2 * believed, spent=2 * believed)


@pytest.mark.parametrize("count", ["1e999", "NaN", '"many"', "[]", "[1]"])
def test_counts_that_are_no_numbers_are_a_failure_or_nothing(server, ask, count):
    server.body = completion(usage=f'{{"prompt_tokens": {count}, "completion_tokens": 1, "total_tokens": 0}}')
    (outcome,) = ask_all(ask(server), questions(1))
    assert isinstance(outcome, Failure) or outcome.prompt_tokens == 0


def test_an_answer_that_quotes_the_key_is_kept_without_it(server, ask, tmp_path):
    server.answer = lambda system, user: f"your key is {KEY}"
    (outcome,) = ask_all(ask(server), questions(1), Cache(tmp_path))
    assert outcome.text == "your key is …"
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": ""}, "name the model"),
        ({"timeout": 0}, "timeout must be"),
        ({"retries": -1}, "retries"),
        ({"base_url": "localhost:8000"}, "must begin with http"),
        ({"colour": "red"}, "its options are model, base_url"),
    ],
)
def test_impossible_options(server, ask, options, match):
    with pytest.raises(ExciseError, match=match):
        ask(server, **options)


def test_without_the_client_it_is_said_what_to_install(server, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ExciseError, match=r"pip install 'excise\[chat\]'"):
        ask(server)


def test_unknown_backends_and_amounts(server, ask):
    with pytest.raises(ExciseError, match="choose openai or transformers"):
        backend("oracle")
    with pytest.raises(ExciseError, match="must be at least 1"):
        ask_all(ask(server), questions(1), jobs=0)


def test_a_fault_in_a_backend_costs_one_question_and_is_named():
    class Broken:
        name = "broken"

        def ask(self, question: Question) -> Reply:
            if question.user == "question 1":
                raise RecursionError("too \x1b]52;c;\x07 deep")
            return Reply("yes")

    first, second, third = ask_all(Broken(), questions(3))
    assert isinstance(first, Reply) and isinstance(third, Reply)
    assert second == Failure("RecursionError: too  ]52;c;  deep")
    assert ask_all(Broken(), []) == []


def test_a_cache_that_cannot_be_written_is_told(server, ask, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExciseError, match="cannot write"):
        ask_all(ask(server), questions(3), Cache(tmp_path / "file"))


def test_ctrl_c_keeps_what_came_back(server, tmp_path):
    """In a process of its own, with a server that never answers the fifth question."""
    release = threading.Event()
    server.hold = lambda number, user: user[-1] in "0123" or release.wait()
    code = f"""
        import os, signal
        from pathlib import Path
        from excise.chat import Cache, Question, ask_all, backend
        chat = backend("openai", model="planted", base_url={server.base_url!r}, retries=0)
        done = []
        def settled(n):
            done.append(n)
            if len(done) == 4:
                signal.raise_signal(signal.SIGINT)
        questions = [Question("be brief", f"question {{i}}", 16) for i in range(9)]
        try:
            ask_all(chat, questions, Cache(Path({str(tmp_path)!r})), jobs=2, progress=settled)
        except KeyboardInterrupt:
            print("interrupted", len(done))
    """
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    try:
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True
        )
    finally:
        release.set()
    assert run.stdout == "interrupted 4\n", run.stderr
    assert run.returncode == 0
    kept = [json.loads(file.read_text())["question"]["user"] for file in Path(tmp_path).rglob("*.json")]
    assert sorted(kept) == [f"question {i}" for i in range(4)]
    assert not [file for file in Path(tmp_path).rglob("*") if file.suffix == ".tmp"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
