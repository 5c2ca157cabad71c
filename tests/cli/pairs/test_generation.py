from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from excise.concepts import builtin, load_pairs, save_pairs
from tests.chat_server import ChatServer

EXCISE = (sys.executable, "-c", "from excise.cli import main; main()")
NOUNS = ("cat", "dog", "bus", "rose", "star", "house", "frog", "cake", "crown", "tree")
OTHERS = NOUNS[1:] + NOUNS[:1]


def writer(system: str, user: str) -> str:
    """Ten pairs at a place of this question, and a line that is none."""
    place = re.findall(r"Draw on these places: ([^;]+);", user)[0]
    pairs = [f"a gun and a {a} {place} | a {b} and a {a} {place}" for a, b in zip(NOUNS, OTHERS, strict=True)]
    return "\n".join(["Here you go:", *pairs])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ChatServer(writer) as chat:
        yield chat


def options(server: ChatServer) -> tuple[str, ...]:
    return ("--backend", "openai", "--base-url", server.base_url, "--model-name", "planted")


def test_a_server_writes_pairs_and_the_account_is_printed(server, call, ask, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    out = tmp_path / "gun.csv"
    told = ask("pairs", "generate", "gun", "--n", 20, "--out", out, *options(server), "--api-key-env", "MY_KEY")
    assert told["kept"] == len(load_pairs(out)) == 20 and told["problems"] == []
    assert told["questions"] == len(server.asked) == told["unparsed"] and set(server.keys) == {"Bearer sk-mine"}
    assert told["report"] == str(tmp_path / "gun.report.json")
    report = json.loads(Path(told["report"]).read_text())
    assert {**report, "out": str(out), "report": told["report"]} == {
        **told,
        "rejects": report["rejects"],
        "unparsed_lines": ["Here you go:"] * told["questions"],
    }
    assert "sk-mine" not in "".join(p.read_text() for p in tmp_path.rglob("*.*") if p.is_file())
    again = call("pairs", "generate", "gun", "--n", 20, "--out", out, *options(server), "--force")
    assert again.exit_code == 0 and f"{report['questions']} answered from the cache" in " ".join(again.stdout.split())
    assert "Here you go" not in again.stdout and "a gun and a cat" in again.stdout
    assert len(server.asked) == told["questions"] and "gun.answers" in again.stderr


def test_too_few_pairs_are_kept_and_filled_up_where_wanted(server, call, ask, tmp_path):
    server.answer = lambda system, user: "a halberd on grass | a cat on grass\na halberd and a cat | a cat"
    generate = ("pairs", "generate", "weapons", "--mentions", "halberd, mace", "--n", 12, "--questions", 2)
    few = call(*generate, "--out", tmp_path / "few.jsonl", *options(server), "--cache", tmp_path / "shared")
    assert few.exit_code == 0 and "the model wrote 1 of 12 pairs in 2 questions" in few.stderr
    assert "1 (the wording differs outside the mention)" in few.stdout
    assert len(load_pairs(tmp_path / "few.jsonl")) == 1
    full = ask(*generate, "--out", tmp_path / "full.jsonl", *options(server), "--cache", tmp_path / "shared", "--fill")
    assert (full["kept"], full["from_templates"], full["cached"]) == (12, 11, 2)


def test_where_no_pair_can_be_kept_the_reasons_are_said(server, call, tmp_path):
    server.answer = lambda system, user: "a gun and a cat | a cat"
    bad = call("pairs", "generate", "gun", "--out", tmp_path / "gun.csv", *options(server), "--questions", 3)
    assert bad.exit_code == 2 and "1 (the wording differs outside the mention)" in bad.stderr
    assert not (tmp_path / "gun.csv").exists() and (tmp_path / "gun.report.json").exists()
    server.stop()
    gone = call("pairs", "generate", "cat", "--out", tmp_path / "cat.csv", *options(server), "--questions", 1)
    assert gone.exit_code == 2 and "cannot reach 127.0.0.1" in gone.stderr


def test_without_a_model_pairs_are_templates(ask, tmp_path):
    told = ask("pairs", "generate", "gun", "--n", 24, "--seed", 3, "--out", tmp_path / "gun.csv")
    assert load_pairs(tmp_path / "gun.csv") == builtin("gun", 24, 3).pairs and told["questions"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gun.csv", "gun.report.json"]


def test_a_model_in_this_process_writes_them(call, tmp_path, monkeypatch):
    """A random Llama writes no pairs; that it was asked, and what it answered, is in the report."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from excise.app.pairs import generation

    monkeypatch.setattr(generation, "TOKENS", 3)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({"<end>": 0, **{letter: 1 + n for n, letter in enumerate(letters)}}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=8192, bos_token_id=None, eos_token_id=0, **size)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>").save_pretrained(tmp_path / "llama")
    result = call(
        *("pairs", "generate", "gun", "--n", 2, "--questions", 1, "--fill", "--out", tmp_path / "gun.csv"),
        *("--backend", "transformers", "--model-name", tmp_path / "llama", "--json"),
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["backend"].startswith("transformers:llama") and told["tokens"] > 0
    assert told["from_templates"] == told["kept"] == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--out", "gun.txt"), ".csv or .jsonl"),
        (("--backend", "oracle"), "unknown backend 'oracle'; choose openai, transformers or template"),
        (("--backend", "openai"), "--model-name"),
        (("--model-name", "x"), "template uses no model"),
        (("--backend", "transformers", "--base-url", "http://x"), "--model-name"),
        (("--kind", "smell"), "unknown kind"),
        (("--mentions", "schoolgirl"), "names a minor"),
    ],
)
def test_a_wrong_option_is_one_line_before_any_work(wrong, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in wrong else ("--out", "gun.csv")
    result = call("pairs", "generate", "gun", *out, *wrong)
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_was_answered_and_the_same_call_goes_on(server, tmp_path):
    release = threading.Event()
    server.hold = lambda number, user: number < 2 or release.wait()
    arguments = ("pairs", "generate", "gun", "--n", "40", "--out", str(tmp_path / "gun.csv"), "--jobs", "2")
    first = subprocess.Popen([*EXCISE, *arguments, *options(server)], stderr=subprocess.PIPE, text=True)
    server.wait_for(4)
    first.send_signal(signal.SIGINT)
    assert "stopped" in first.communicate()[1] and first.returncode == 130
    release.set()
    assert [p.name for p in tmp_path.iterdir()] == ["gun.answers"]
    server.hold = lambda number, user: None
    server.asked.clear()
    second = subprocess.run(
        [*EXCISE, *arguments, *options(server), "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(second.stdout)
    assert told["kept"] == 40 and told["cached"] == 2 and len(server.asked) == told["questions"] - 2


class Terminal:
    """`excise` at a real pseudo-terminal that controls it, so that Ctrl-C typed there is a signal."""

    def __init__(self, *arguments: Any) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*EXCISE, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        )
        self.settings = termios.tcgetattr(theirs)
        self._theirs, self.seen, self._raw = theirs, "", ""
        self._decode = codecs.getincrementaldecoder("utf-8")().decode

    def until(self, text: str) -> str:
        """What is shown up to and with the text, which must come; the colours are left out."""
        end = time.monotonic() + 300
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} never came: {self.seen!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                # Characters and colours may come in two parts.
                self._raw += self._decode(os.read(self._ours, 65536))
                whole, part = re.fullmatch(r"(.*?)(\x1b(?:\[[0-9;?]*)?)?", self._raw, re.DOTALL).groups("")
                self._raw = part
                self.seen += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", whole)
        shown, _, self.seen = self.seen.partition(text)
        return shown + text

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def interrupt(self) -> None:
        """Type Ctrl-C once the command waits for a key: a signal just before it waits is seen at the next one only."""
        end = time.monotonic() + 300
        while psutil.Process(self.process.pid).status() != psutil.STATUS_SLEEPING:
            assert time.monotonic() < end, "it never waited"
            time.sleep(0.01)
        self.type("\x03")

    def end(self) -> int:
        code = self.process.wait(timeout=300)
        assert termios.tcgetattr(self._theirs) == self.settings, "the terminal is not as it was"
        os.close(self._ours)
        os.close(self._theirs)
        return code


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "gun.csv"
    save_pairs(builtin("gun", 5).pairs, path)
    return path


MENU = "y keep  n drop  e edit  u undo  q stop and save progress"


def test_single_keys_at_a_terminal_and_the_place_is_kept(file):
    pairs = load_pairs(file)
    terminal = Terminal("pairs", "review", file)
    shown = terminal.until(MENU)
    assert "pair 1 of 5" in shown and pairs[0].concept in shown and pairs[0].deconcept in shown
    terminal.type("yxn")  # x is not one of the keys
    assert pairs[2].concept in terminal.until("pair 3 of 5") + terminal.until(MENU)
    terminal.type("u")
    terminal.until("pair 2 of 5")
    terminal.until(MENU)
    terminal.type("e")
    assert pairs[1].concept[-9:] in terminal.until("concept prompt:") + terminal.until(pairs[1].concept[-9:])
    terminal.type("\x15a gun typed again\r")  # Ctrl-U empties the line
    terminal.until("deconcept prompt:")
    terminal.until(pairs[1].deconcept[-9:])
    terminal.type(" too\r")  # behind what is there
    terminal.until("pair 3 of 5")
    terminal.until(MENU)
    terminal.type("q")
    assert "2 kept (1 edited), 0 dropped, 3 left" in terminal.until("repeat the command to continue")
    assert terminal.end() == 0

    terminal = Terminal("pairs", "review", file, "--mentions", "gun")
    terminal.until("resuming at pair 3 of 5\r\n")
    terminal.until(MENU)
    terminal.type("\x1b[Dn")  # an arrow does nothing
    terminal.until("pair 4 of 5\r\n")
    terminal.until(MENU)
    terminal.type("yy")
    assert "4 kept (1 edited), 1 dropped, 0 left" in terminal.until("w write  u undo")
    terminal.type("w")
    assert "problem: only 4 pairs" in terminal.until("written to")
    assert terminal.end() == 0
    kept = load_pairs(file.with_name("gun-reviewed.csv"))
    assert [p.concept for p in kept] == [pairs[0].concept, "a gun typed again", pairs[3].concept, pairs[4].concept]
    assert kept[1].deconcept == f"{pairs[1].deconcept} too" and kept[1].template == pairs[1].template
    assert not file.with_name("gun.csv.review.json").exists()


@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_ctrl_c_and_ctrl_d_keep_the_place_too(file, key):
    terminal = Terminal("pairs", "review", file)
    terminal.until(MENU)
    terminal.type("n")
    terminal.until("pair 2 of 5")
    terminal.until(MENU)
    terminal.interrupt() if key == "\x03" else terminal.type(key)
    assert "0 kept (0 edited), 1 dropped, 4 left" in terminal.until("repeat the command to continue")
    assert terminal.end() == 0


def test_an_edit_that_is_broken_off_decides_nothing(file):
    terminal = Terminal("pairs", "review", file)
    for end in (lambda: terminal.type("\x15\x04"), terminal.interrupt):
        terminal.until(MENU)
        terminal.type("e")
        terminal.until("concept prompt:")
        terminal.until(load_pairs(file)[0].concept[-9:])
        end()
    assert "0 kept (0 edited), 0 dropped, 5 left" in terminal.until("repeat the command to continue")
    assert terminal.end() == 0


def run(*arguments: Any, typed: str = "") -> Any:
    from typer.testing import CliRunner

    from excise.cli import app

    return CliRunner().invoke(app, [str(a) for a in arguments], input=typed)


def test_lines_where_there_is_no_terminal(file, tmp_path):
    pairs = load_pairs(file)
    first = run("pairs", "review", file, "--json", typed="1\n2\n7\n\n4\n3\n\na lamp\n")
    assert first.exit_code == 0 and "type a number from 1 to 5, or one of y n e u q" in first.stderr
    told = json.loads(first.stdout)
    assert {key: told[key] for key in ("kept", "dropped", "edited", "left", "out")} == {
        "kept": 2,
        "dropped": 0,
        "edited": 1,
        "left": 3,
        "out": None,
    }
    out = tmp_path / "kept.jsonl"
    # Answers that end with the pairs write them.
    rest = run("pairs", "review", file, "--out", out, typed="y\nno\nn\nu\nu\nu\nu\nu\ny\ny\ny\ny\ny\n")
    assert rest.exit_code == 0 and "there is nothing to undo" in rest.stderr
    assert f"5 kept (0 edited), 0 dropped, 0 left; written to {out}" in " ".join(rest.stdout.split())
    assert load_pairs(out) == pairs


def test_a_mistake_is_shown_beside_its_pair(file, tmp_path):
    file.write_text("concept,deconcept\na gun and a cat,a cat\na pistol,[bold]a gun\n")
    shown = " ".join(run("pairs", "review", file, "--mentions", "gun", typed="y\nq\n").stderr.split())
    assert "'and' is lost" in shown
    assert "[bold]a gun" in shown and "the deconcept side holds a mention ('gun')" in shown


def test_a_sheet_goes_out_and_comes_back(file, tmp_path, call, ask):
    sheet, out = tmp_path / "sheet.jsonl", tmp_path / "kept.csv"
    assert ask("pairs", "review", file, "--export-jsonl", sheet)["exported"] == str(sheet)
    unanswered = call("pairs", "review", file, "--apply", sheet, "--out", out)
    assert unanswered.exit_code == 2 and "line 1: 'keep' is null; write true or false" in unanswered.stderr
    rows = [json.loads(line) for line in sheet.read_text().splitlines()]
    sheet.write_text("".join(json.dumps({**row, "keep": row["row"] != 2}) + "\n" for row in rows))
    told = ask("pairs", "review", file, "--apply", sheet, "--out", out)
    assert (told["kept"], told["dropped"], told["out"]) == (4, 1, str(out))
    pairs = load_pairs(file)
    assert load_pairs(out) == (pairs[0], *pairs[2:])
    both = call("pairs", "review", file, "--apply", sheet, "--export-jsonl", tmp_path / "again.jsonl")
    assert both.exit_code == 2 and "either" in both.stderr


@pytest.mark.parametrize("command", ["generate", "review"])
def test_help_has_an_example_and_json(command, call):
    result = call("pairs", command, "--help")
    assert result.exit_code == 0 and f"Example: excise pairs {command}" in result.output and "--json" in result.output
