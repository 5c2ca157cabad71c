"""Documented commands run, page by page, on a machine with only the package.

Every command that is not in ELSEWHERE runs. A new one needs no entry unless it cannot run or is heavy.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.documented import ROOT, Command, commands, parses

HUB, GPU, MODEL, SERVER = "a model hub", "a GPU", "a model that is not bundled", "a server of a language model"
PLUGIN = "the page's package: tests/test_plugins.py installs one like it"
BROWSER = "a person at a browser: tests/app/studio/test_page.py visits it"
CLUSTER = "a cluster: tests/engine has what every engine promises"
BUCKET = "a bucket: tests/remote has a server"
HOURS, RUNS = "hours", "runs of a model that is not bundled"
UNTIL_STOPPED = "it serves until it is stopped: tests/app/serve/test_process.py"
ELSEWHERE = {
    "docs/how-to/http-service.md: serve policy.yaml --port 8000": UNTIL_STOPPED,
    "docs/how-to/bench.md: bench resume run --device cuda": GPU,
    "docs/how-to/scale.md: erase gun,cat,rocket --method esd-x,mace": CLUSTER,
    "docs/how-to/scale.md: bench run canvas --methods snce,uce --out s3://bucket/run": BUCKET,
    "docs/how-to/scale.md: bench resume s3://bucket/run": BUCKET,
    "docs/how-to/scale.md: bench report s3://bucket/run": BUCKET,
    "docs/how-to/scale.md: sae train --model $MODEL": CLUSTER,
    "docs/how-to/harden.md: harden car-eraser": "minutes: it reads the whole vocabulary",
    "docs/how-to/bench.md: reproduce snce --figure 7 --run RUN": RUNS,
    "docs/how-to/hub.md: push gun-eraser owner/gun-eraser --private": HUB,
    "docs/how-to/hub.md: verify owner/gun-eraser": HUB,
    "docs/how-to/hub.md: generate --prompt a gun on grass --eraser owner/gun-eraser": HUB,
    "docs/reference/methods.md: bench run canvas --methods all --size standard --out run": HOURS,
    "docs/how-to/neurons.md: neurons explain --db neurons.db --tag gun --backend openai": SERVER,
    "docs/how-to/neurons.md: pairs generate gun --backend openai": SERVER,
    "docs/how-to/neurons.md: sae train --model smollm2": MODEL,
    "docs/how-to/neurons.md: find safety-violence --model smollm2": MODEL,
    "docs/how-to/neurons.md: erase safety-violence --model smollm2": MODEL,
    "docs/how-to/neurons.md: generate --model smollm2": MODEL,
    "docs/how-to/studio.md: app ": BROWSER,
    "docs/how-to/parallel-training.md: sae train": GPU,
    "docs/how-to/many-prompts.md: sae corpus": MODEL,
    "docs/how-to/many-prompts.md: sae train": GPU,
    "docs/how-to/plugin.md: methods show mine": PLUGIN,
    "docs/how-to/plugin.md: erase gun --method mine": PLUGIN,
    "docs/how-to/saemnesia.md: sae train-block --model $MODEL": MODEL,
    "docs/how-to/saemnesia.md: erase gun --model $MODEL": MODEL,
    "docs/how-to/saemnesia.md: sae import SAEmnesia": "files that others publish",
    "docs/how-to/exchange-saes.md: sae import FOLDER": "files that others publish",
    "docs/how-to/sd14.md: sae train --model $MODEL": MODEL,
    "docs/how-to/sd14.md: find nudity --model $MODEL": MODEL,
    "docs/how-to/sd14.md: erase nudity --model $MODEL": MODEL,
    "docs/how-to/sd14.md: generate --model $MODEL": MODEL,
    "docs/how-to/sd14.md: verify nudity-eraser --model $MODEL": MODEL,
    "docs/how-to/sd14.md: generate --compare": "a prompt: in a sentence it is a name",
    "docs/how-to/sd14.md: bench run ": MODEL,
    "docs/how-to/sd14.md: bench convert-q16 prompts.p": "files that others publish",
    "docs/how-to/sd14.md: bench report run-i2p": RUNS,
    "docs/how-to/sd14.md: bench resume run-i2p": RUNS,
    "docs/how-to/sd14.md: bench fid run-coco": RUNS,
    "docs/how-to/sd14.md: reproduce ": RUNS,
    "docs/how-to/signing.md: verify gun-eraser --identity": "sigstore's network",
    "docs/tutorials/own-model.md: ": MODEL,
}
"""Prefixes of commands that cannot run on such a machine, and what they need."""

SHORT = ("--concepts", "gun", "--n", "1", "--steps", "2", "--no-search")
SMALL = {
    "bench run canvas --methods": (SHORT, "minutes a method"),
    "bench run probes --methods": (SHORT[:-1], "minutes a method, and it trains a classifier"),
    "probe gun-eraser": (SHORT[2:-1], "a minute or more, and it trains a classifier"),
    "bench run canvas --concepts": ((*SHORT[2:], "--methods", "none"), "minutes a method; the concepts are weapons"),
    "neurons build": (("--captions", "200"), "watches 10,000 captions"),
    "audit": (("--count", "60"), "tries 2,000 captions"),
    "sae sweep": (
        ("--sites", "encoder.layers.3", "--expansions", "4", "--k", "8", "--concepts", "gun", "--tokens", "3000",
         "--most", "40", "--n", "12"),
        "trains eight SAEs",
    ),
    "sae train-text": (("--tokens", "20000"), "trains on a million tokens"),
    "erase gun,knife,bomb --method uce,esd-x": (
        ("--set", "esd-x.iterations=1", "--accept-weak"), "trains for minutes, and a training cut short is weak",
    ),
    "erase gun --method saemnesia --": (
        ("--set", "pictures=4", "--set", "steps=4", "--accept-weak"), "generates 24 pictures of 20 steps on each side",
    ),
    "erase gun --method saemnesia-text": (("--accept-weak",), "its SAE was trained only briefly, above"),
    "erase gun --method snce+saemnesia": (
        ("--set", "saemnesia.pictures=4", "--set", "saemnesia.steps=4", "--accept-weak"), "as alone",
    ),
    "erase gun --method mace": (
        ("--set", "iterations=1", "--set", "pictures=1", "--set", "steps=2", "--accept-weak"),
        "trains for minutes, and a training cut short is weak",
    ),
}  # fmt: skip
"""Prefixes of heavy commands, options that make them small, and why they are heavy. An existing option is replaced."""

OTHER_CODES = {"audit": (0, 3), "bench report run --gate": (3,)}
"""Prefixes of commands whose exit code need not be 0, and the right codes. The pages say so."""


def _bundled_sae(*names: str) -> Callable[[Path], None]:
    def copy(folder: Path) -> None:
        from excise import reference

        for name in names:
            shutil.copytree(reference.sae_folder(), folder / name)

    return copy


def _pairs(folder: Path) -> None:
    assert _run(folder, ["pairs", "make", "gun", "--out", "gun.csv"]).returncode == 0


def _eraser(folder: Path) -> None:
    assert _run(folder, ["erase", "gun", "--out", "gun-eraser"]).returncode == 0


def _policy(folder: Path) -> None:
    """Write the page's policy."""
    text = (ROOT / "docs" / "how-to" / "http-service.md").read_text(encoding="utf-8")
    (folder / "policy.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[0])


def _keys(folder: Path) -> None:
    """Make keys with the page's commands."""
    password = {**os.environ, "KEY_PASSWORD": PASSWORD}
    for line in re.findall(
        r"^openssl .*", (ROOT / "docs" / "how-to" / "signing.md").read_text(encoding="utf-8"), re.MULTILINE
    ):
        words = line.partition("#")[0].split()
        asked = "-pass" if words[1] == "genpkey" else "-passin"
        subprocess.run([*words, asked, "env:KEY_PASSWORD"], cwd=folder, env=password, check=True, capture_output=True)


PASSWORD = "a password"
PREPARED: dict[str, tuple[Callable[[Path], None], ...]] = {
    "docs/architecture.md": (_eraser,),
    "docs/how-to/exchange-saes.md": (_bundled_sae("my-sae"),),
    "docs/how-to/http-service.md": (_policy,),
    "docs/how-to/neurons.md": (_bundled_sae("my-sae", "other-sae"), _eraser, _pairs),
    "docs/how-to/probe.md": (_eraser,),
    "docs/how-to/saemnesia.md": (_bundled_sae("sae"),),
    "docs/how-to/sd14.md": (_bundled_sae("sae-layers8"),),
    "docs/how-to/signing.md": (_eraser, _keys),
}
"""Preconditions of a page: the reader's files, and what another page or an excluded command makes."""


def _entry(table: dict[str, object], text: str) -> str | None:
    """Return the longest entry that the text begins with."""
    return max((begins for begins in table if text.startswith(begins)), key=len, default=None)


@functools.cache
def runnable() -> list[Command]:
    """Return the commands to run: complete, and not in ELSEWHERE."""
    return [c for c in commands() if _entry({**ELSEWHERE}, f"{c.page}: {c.text}") is None and parses(c)]


def _small(command: Command) -> list[str]:
    words = list(command.words)
    begins = _entry({**SMALL}, command.text)
    more = list(SMALL[begins][0]) if begins is not None else []
    while more:
        option = more.pop(0)
        values = [more.pop(0)] if more and not more[0].startswith("--") else []
        if values and option in words and option != "--set":
            words[words.index(option) + 1] = values[0]
        else:
            words += [option, *values]
    return words


def _alone() -> list[str]:
    """Return a prefix that hides the system's data and the network from a command, if this machine permits it."""
    hidden = ["unshare", "-rmn", "sh", "-c", 'mount -t tmpfs none /usr/share && exec "$@"', "sh"]
    try:
        return hidden if subprocess.run([*hidden, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def _run(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    home = folder.with_name(folder.name + "-home")
    home.mkdir(exist_ok=True)
    kept = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    environment |= {"HOME": str(home), "KEY_PASSWORD": PASSWORD, "XDG_DATA_DIRS": str(home), "HF_HUB_OFFLINE": "1"}
    whole = [*_alone(), sys.executable, "-m", "excise", *words]
    return subprocess.run(
        whole, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=3600
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({command.page for command in runnable()}))
def test_the_commands_of_a_page_run_in_order(page: str, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    for prepare in PREPARED.get(page, ()):
        prepare(folder)
    failed = []
    for command in runnable():
        if command.page == page:
            ran = _run(folder, _small(command))
            begins = _entry({**OTHER_CODES}, command.text)
            if ran.returncode not in (OTHER_CODES[begins] if begins is not None else (0,)):
                failed.append(f"{command} ended with {ran.returncode}: {ran.stderr[-2000:]}")
            assert "Traceback" not in ran.stderr, ran.stderr
    assert not failed, "\n".join(failed)


def test_what_needs_more_than_the_package_is_listed() -> None:
    """A command that needs another model, a device or an address cannot run everywhere."""
    asks = re.compile(r"\$MODEL|--model\b|--device\b|--identity\b|https?://|hf://|^push\b|--backend\b")
    assert [str(command) for command in runnable() if asks.search(command.text)] == []


def test_every_entry_is_of_a_command_that_is_documented() -> None:
    texts = [f"{command.page}: {command.text}" for command in commands()]
    assert [begins for begins in ELSEWHERE if not any(text.startswith(begins) for text in texts)] == []
    run = [command.text for command in runnable()]
    for table in (SMALL, OTHER_CODES):
        assert [begins for begins in table if not any(text.startswith(begins) for text in run)] == []
    assert set(PREPARED) <= {command.page for command in runnable()}


def test_what_a_command_reads_is_prepared_or_made_before_it() -> None:
    """A page's commands get names of files and folders; `--out` and `--out-dir` make them."""
    reads = re.compile(r"(?:--(?:eraser|db|sae|pairs|prompts|key|start|run)) (\S+)|sae=(\S+)")
    made: dict[str, set[str]] = {}
    given = {
        "docs/architecture.md": {"gun-eraser"},
        "docs/how-to/saemnesia.md": {"sae"},
        "docs/how-to/neurons.md": {"gun-eraser"},
        "docs/how-to/signing.md": {"private.pem", "public.pem"},
    }
    for command in runnable():
        known = made.setdefault(command.page, set(given.get(command.page, ())))
        named = {first or second for first, second in reads.findall(command.text)}
        assert named <= known, f"{command}: nothing makes {', '.join(sorted(named - known))} before it"
        known |= set(re.findall(r"--(?:out|out-dir) (\S+)", command.text))
