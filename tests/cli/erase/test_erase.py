"""find, erase, verify and generate, one after the other, on a tiny random pipeline on disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.erasers import Eraser
from excise.erasers.artefact.hub import card
from tests.processes import processes


@pytest.fixture
def common(model_folder: Path, sae_folder: Path) -> tuple[Any, ...]:
    # The random encoder's neuron also stirs without the word, hence the tolerance.
    return ("--model", model_folder, "--sae", sae_folder, "--n", 30, "--tolerance", 0.9)


def test_find_ranks_neurons_and_draws(ask: Callable[..., Any], common: tuple[Any, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = ask("find", "gun", *common, "--top", 3, "--plot", tmp_path / "gun.svg")
    assert found["site"] == "text_encoder/encoder.layers.2"
    neurons = found["neurons"]
    assert 5 in [row["neuron"] for row in neurons]
    assert [row["score"] for row in neurons] == sorted((row["score"] for row in neurons), reverse=True)
    assert (tmp_path / "gun.svg").exists()
    assert (tmp_path / "gun-activations.svg").exists()


FITS = {"files", "manifest", "content", "sites", "model", "canary"}
"""Checks that a tiny model's eraser passes. Its weights are random: `removal` is tested on the bundled model, in
tests/erasers/test_verify.py."""


def passed_checks(verified: Any) -> set[str]:
    return {check["name"] for check in json.loads(verified.stdout)["checks"] if check["passed"]}


def test_from_nothing_to_an_eraser_at_work(
    ask: Callable[..., Any],
    call: Callable[..., Any],
    common: tuple[Any, ...],
    model_folder: Path,
    build_pipe: Callable[..., Any],
    tmp_path: Path,
) -> None:
    out = tmp_path / "eraser"
    words = ("erase", "gun", *common, "--out", out, "--lam", 3, "--set", "unit=code", "--set", "gate=relu")
    made = ask(*words, "--accept-weak")
    assert made["lambda"] == 3
    assert made["bytes"] < 50_000
    said = " ".join(call(*words, "--accept-weak", "--force").stdout.split())
    assert "(the paper states none) was chosen on the bundled model, and may not be the best" in said
    passed = passed_checks(call("verify", out, "--model", model_folder, "--json"))
    assert passed >= FITS
    assert "verdict" not in passed, "as made"
    build_pipe(seed=1).save_pretrained(tmp_path / "other")
    assert call("verify", out, "--model", tmp_path / "other").exit_code == 1
    picture = tmp_path / "compare.png"
    drawn = ask(
        "generate",
        "--prompt",
        "a gun",
        "--eraser",
        out,
        "--compare",
        "--model",
        model_folder,
        "--steps",
        2,
        "--out",
        picture,
    )
    assert drawn["changed"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    weights = out / "eraser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    broken = call("verify", out)
    assert broken.exit_code == 2
    assert broken.stdout == ""
    assert len(broken.stderr.strip().splitlines()) == 1
    assert "altered" in broken.stderr
    told = call("verify", out, "--json")
    assert told.exit_code == 2
    assert not json.loads(told.stdout)["passed"]
    assert call("verify", tmp_path / "nowhere").exit_code == 2
    refused = call(
        "generate", "--prompt", "a gun", "--eraser", out, "--model", model_folder, "--out", tmp_path / "no.png"
    )
    assert refused.exit_code == 2
    assert "altered" in refused.stderr
    assert not (tmp_path / "no.png").exists()


def test_every_setting_of_the_method_can_be_given(
    ask: Callable[..., Any], call: Callable[..., Any], common: tuple[Any, ...], tmp_path: Path
) -> None:
    given = ("--source", "concept", "--align", "pooled", "--score", "mean_difference", "--margin", 0.3)
    given += ("--unit", "code")
    given += ("--accept-weak",)
    made = ask("erase", "gun", *common, "--out", tmp_path / "a", "--gate", "relu", "--neurons", "5, 7", *given)
    assert made["neurons"] == [5, 7]
    wanted = {"source": "concept", "align": "pooled", "score": "mean_difference", "margin": 0.3, "neurons": [5, 7]}
    wanted |= {"unit": "code"}
    assert wanted.items() <= made["created"]["config"].items()
    refused = call("erase", "gun", *common, "--out", tmp_path / "b", "--source", "concept", "--align", "sideways")
    assert refused.exit_code == 2
    assert "position, pooled" in refused.stderr
    idle = call("erase", "gun", *common, "--out", tmp_path / "b", "--align", "pooled")
    assert idle.exit_code == 2
    assert "--source concept" in idle.stderr


def test_another_word_takes_the_concepts_place(
    ask: Callable[..., Any], call: Callable[..., Any], common: tuple[Any, ...], model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a"
    words = ("erase", "gun", *common, "--out", out, "--gate", "relu", "--replace-with", "bus", "--accept-weak")
    made = ask(*words)
    assert made["lambda"] == 1.25 and made["created"]["config"]["replace_with"] == "bus"
    assert passed_checks(call("verify", out, "--model", model_folder, "--json")) >= FITS
    said = " ".join(call(*words, "--force").stdout.split())
    assert "strength 1.25 (1 is to “bus”)" in said
    for given, message in (
        (("--replace-with", "gun"), "choose another word"),
        (("--replace-with", "bus", "--source", "concept"), "replace_with needs source=prompt"),
    ):
        refused = call("erase", "gun", *common, "--out", tmp_path / "b", "--gate", "relu", *given)
        assert refused.exit_code == 2 and not (tmp_path / "b").exists()
        assert message in refused.stderr.splitlines()[-1], refused.stderr
    several = call("erase", "gun,cat", "--out", tmp_path / "b", "--replace-with", "bus")
    assert several.stderr == (
        "error: --replace-with is for one eraser; with several, use --set snce.replace_with=...\n"
    )


def test_the_tolerance_is_the_methods_own_unless_given(
    call: Callable[..., Any], model_folder: Path, sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise.app.erase import finding
    from excise.errors import ExciseError
    from excise.methods.configs.sae import SNCEConfig

    seen = []

    def stop(pipe: Any, concept: Any, config: Any, top: int) -> None:
        seen.append(config.tolerance)
        raise ExciseError("far enough")

    monkeypatch.setattr(finding, "find_neurons", stop)
    for more in ((), ("--tolerance", 0)):
        assert call("find", "gun", "--model", model_folder, "--sae", sae_folder, *more).exit_code == 2
    assert seen == [SNCEConfig().tolerance, 0]


def test_generate_takes_the_bundled_sae_and_guidance_for_the_bundled_model(
    call: Callable[..., Any],
    ask: Callable[..., Any],
    common: tuple[Any, ...],
    model_folder: Path,
    sae_folder: Path,
    tiny_pipe: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from excise import reference
    from excise.app.models import resolve

    out = tmp_path / "eraser"
    ask("erase", "gun", *common, "--out", out, "--gate", "topk", "--accept-weak")
    scales: list[Any] = []
    kind = type(tiny_pipe)
    draw = kind.__call__

    def spied(self: Any, *args: Any, **options: Any) -> Any:
        scales.append(options.get("guidance_scale"))
        return draw(self, *args, **options)

    monkeypatch.setattr(kind, "__call__", spied)
    words = ("generate", "--prompt", "a gun", "--eraser", out, "--steps", 1, "--out", tmp_path / "a.png", "--force")
    other = call(*words, "--model", model_folder)
    assert other.exit_code == 2
    assert "--sae" in other.stderr
    ask(*words, "--model", model_folder, "--sae", sae_folder)
    ask(*words, "--model", model_folder, "--sae", sae_folder, "--guidance", 2)
    # The tiny model in the bundled one's place.
    monkeypatch.setattr(resolve, "load_pipeline", lambda *_: tiny_pipe)
    monkeypatch.setattr(reference, "sae_folder", lambda: sae_folder, raising=False)
    ask(*words)
    assert scales == [None, 2, 4]


def test_a_site_that_does_not_exist_lists_near_ones(call: Callable[..., Any], common: tuple[Any, ...]) -> None:
    result = call("find", "gun", *common, "--site", "encoder.layers.99")
    assert result.exit_code == 2
    assert "encoder.layers.2" in result.stderr


def test_another_model_needs_an_sae(call: Callable[..., Any], model_folder: Path) -> None:
    result = call("find", "gun", "--model", model_folder)
    assert result.exit_code == 2
    assert "--sae" in result.stderr


def test_a_model_that_is_not_there(call: Callable[..., Any], sae_folder: Path, tmp_path: Path) -> None:
    result = call("find", "gun", "--model", tmp_path, "--sae", sae_folder)
    assert result.exit_code == 2
    assert "model_index.json" in result.stderr


def test_a_sweep_names_the_best_neuron_of_every_site(
    ask: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {a} and a {b}\n" for a in ("gun", "cat", "bus") for b in ("rose", "dog")))
    found = ask(
        "find", "gun", "--model", model_folder, "--sweep-sites", "--prompts", prompts, "--sweep-tokens", 1000, "--n", 10
    )
    sites = [row["site"] for row in found["sites"]]
    assert sites[0] == "text_encoder/embeddings"
    assert "text_encoder/encoder.layers.2" in sites
    assert {"neuron", "score", "dominance", "auroc", "control_share", "fvu"} <= set(found["sites"][0])


def test_the_bundled_model_needs_no_model_option(
    ask: Callable[..., Any], build_pipe: Callable[..., Any], sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise import reference

    monkeypatch.setattr(reference, "load", lambda **_: build_pipe())
    monkeypatch.setattr(reference, "sae_folder", lambda: sae_folder)
    assert ask("find", "gun", "--n", 10, "--tolerance", 0.9)["site"] == "text_encoder/encoder.layers.2"
    monkeypatch.setattr(reference, "sae_corpus", lambda captions, english: ["a gun", "a cat", "a bus on grass"])
    swept = ask("find", "gun", "--n", 10, "--sweep-sites", "--sweep-tokens", 500)
    assert len(swept["sites"]) == 5


def test_methods(ask: Callable[..., Any], call: Callable[..., Any]) -> None:
    rows = {row["name"]: row for row in ask("methods")}
    assert {"none", "snce"} <= set(rows)
    assert rows["snce"]["defaults"]["k"] == 1
    assert (rows["uce"]["kind"], rows["esd-x"]["kind"], rows["none"]["cite"]) == ("closed form", "fine-tune", "")
    shown = call("methods").stdout
    assert "closed form" in shown
    cited = call("methods", "cite", "snce+uce").stdout
    assert cited.count("@") == 2
    assert "A Single Neuron Works" in cited
    for wrong, message in (("none", "no paper to cite for 'none'"), ("snec", "no method 'snec'")):
        refused = call("methods", "cite", wrong)
        assert refused.exit_code == 2
        assert message in refused.stderr


@pytest.mark.usefixtures("short_removal")
def test_an_eraser_by_another_method(
    ask: Callable[..., Any], call: Callable[..., Any], common: tuple[Any, ...], model_folder: Path, tmp_path: Path
) -> None:
    from excise.sae import SAEConfig, Supervision, TopKSAE, save

    where = {"component": "unet", "path": "up_blocks.0.attentions.0", "width": 16}
    told = {"site": where, "supervision": Supervision(("gun", "cat"), (0, 0), (11, 3)).to_json()}
    save(TopKSAE(SAEConfig(16, 40, 4), seed=2), tmp_path / "sae", told)
    out, model = tmp_path / "eraser", ("--model", model_folder, "--n", 12)
    small = [
        f"--set={part}"
        for part in (f"sae={tmp_path / 'sae'}", "gamma=-30", "steps=3", "pictures=4", "guidance=2", "codes=threshold")
    ]
    made = ask("erase", "gun", *model, "--method", "saemnesia", *small, "--out", out)
    assert (made["gamma"], made["neurons"], made["site"]) == (-30, [11], "unet/up_blocks.0.attentions.0")
    assert passed_checks(call("verify", out, "--model", model_folder, "--json")) >= FITS
    shown = ("--prompt", "a gun", "--eraser", out, "--model", model_folder, "--out", tmp_path / "gun.png")
    assert call("generate", *shown, "--steps", 3).exit_code == 0
    refused = call("generate", *shown, "--force", "--steps", 4)
    assert refused.exit_code == 2
    assert "is not among the 3" in refused.stderr
    for words, message in (
        (("--method", "saemnesia", "--k", "2"), "--k is a setting of snce"),
        (("--method", "saemnesia", "--set", "lam=2"), "saemnesia has no setting 'lam'"),
        (("--method", "saemnesia", "--set", "compat=maybe"), "compat cannot be 'maybe'"),
        (("--method", "saemnesia", *small[:1], "--set", "gamma=much"), "gamma cannot be 'much'"),
        (("--method", "saem"), "there is no method 'saem'"),
        (("--set", "lam=2", "--lam", "3"), "--lam and --set lam are the same setting"),
        (("--set", "lam=much"), "lam cannot be 'much'; it must be a number"),
        (("--set", "k=0"), "k is 0; it must be a whole number, at least 1"),
        (("--set", "unit=word"), "unit cannot be 'word'; it is one of code, concept"),
        (("--preset", "authors"), "there is no preset 'authors'; there is paper"),
    ):
        result = call("erase", "gun", *model, *words, "--out", tmp_path / "other")
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("short_removal")
def test_a_trained_method_goes_on_where_it_was_stopped(
    ask: Callable[..., Any],
    call: Callable[..., Any],
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from excise.methods.trained import trainer

    out, steps = tmp_path / "eraser", list[int]()
    small = [f"--set={part}" for part in ("iterations=4", "steps=2", "lr=0.001", "checkpoint_every=1")]
    words = ("erase", "gun", "--model", model_folder, "--n", 12, "--method", "esd-x", *small, "--out", out)
    step = trainer._step

    def stopping(*given: Any) -> float:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(trainer, "_step", stopping)
    stopped = call(*words)
    assert stopped.exit_code == 130
    assert "long work resumes when you repeat the command" in stopped.stderr
    assert not out.exists()
    made = ask(*words)
    assert len(steps) == 3 + 2, "two of four steps were done before"
    assert made["neurons"] == []
    assert {edit["site"].split(".")[-1] for edit in made["edits"]} >= {"to_k", "to_q"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eraser"]
    assert passed_checks(call("verify", out, "--model", model_folder, "--json")) >= FITS
    assert "changed weights in" in call(*words[:-1], tmp_path / "again").stdout


def test_several_concepts_by_several_methods(
    ask: Callable[..., Any], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two processes; the second call keeps what is there and makes what is not."""
    context = processes()
    monkeypatch.setattr("excise.engine.processes.multiprocessing.get_context", lambda _: context)
    words = ["erase", "gun,cat", "--method", "rece,uce", "--set", "uce.lam=0.2", "--out", tmp_path / "erasers"]
    words += ["--model", model_folder]
    rows = ask(*words, "--jobs", 2)
    assert [(row["concept"], row["method"], row["state"]) for row in rows] == [
        (concept, by, "made") for by in ("rece", "uce") for concept in ("gun", "cat")
    ]
    uce = Eraser.load(tmp_path / "erasers" / "gun-uce")
    assert uce.created["config"]["lam"] == 0.2
    with pytest.raises(AssertionError, match="2 of 4 were refused"):
        ask(*[word.replace("lam=0.2", "lam=0.3") if isinstance(word, str) else word for word in words])
    shutil.rmtree(tmp_path / "erasers" / "cat-rece")
    before = (tmp_path / "erasers" / "gun-uce" / "manifest.json").stat().st_mtime_ns
    assert [row["state"] for row in ask(*words)] == ["kept", "made", "kept", "kept"]
    assert (tmp_path / "erasers" / "gun-uce" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["gun,nonesuch", "--method", "uce"], "nonesuch"),
        (["gun", "--method", "uce,escape"], "there is no method 'escape'"),
        (["gun,cat", "--method", "uce", "--set", "gamma=1"], "uce has no setting 'gamma'"),
        (["gun,cat", "--mentions", "pistol"], "--mentions and --pairs describe one concept"),
        (["gun,cat", "--k", "5"], "--k is for one eraser; with several, use --set snce.k="),
        (["gun", "--method", "snce,uce", "--sae", "nowhere"], "--sae is for one eraser"),
    ],
)
def test_nothing_is_begun_where_one_of_several_is_wrong(
    call: Callable[..., Any], words: list[str], says: str, tmp_path: Path
) -> None:
    made = call("erase", *words, "--out", tmp_path / "erasers")
    assert made.exit_code == 2
    assert says in made.stderr
    assert not (tmp_path / "erasers").exists()


def test_what_is_refused_is_said_after_all_the_rest(
    call: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    by = ("--method", "concept-steerers,uce", "--model", model_folder)
    made = call("erase", "gun", *by, "--out", tmp_path / "erasers")
    assert made.exit_code == 2
    assert "1 of 2 were refused, the first" in made.stderr
    assert "no SAE was named" in made.stderr
    assert (tmp_path / "erasers" / "gun-uce" / "manifest.json").exists()


@pytest.mark.slow
def test_ctrl_c_ends_several_at_once_and_keeps_their_trainings(
    call: Callable[..., Any], model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The signal comes to this process, which has started two others."""
    words = ["erase", "gun,knife", "--method", "esd-x", "--set", "iterations=5000", "--set", "checkpoint_every=1"]
    words += ["--set", "steps=2", "--model", str(model_folder), "--out", str(tmp_path / "erasers"), "--jobs", "2"]
    kept = [tmp_path / "erasers" / f".{concept}-esd-x.training" / "state.json" for concept in ("gun", "knife")]
    ended = threading.Event()

    def interrupt() -> None:
        while not all(state.exists() for state in kept):
            if ended.wait(0.2):
                return
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        result = call(*words)
    finally:
        ended.set()
        watcher.join()
    said = result.output + "".join(capfd.readouterr())
    assert result.exit_code == 130, said
    assert "Traceback" not in said
    assert all(len(json.loads(state.read_text())["losses"]) >= 1 for state in kept)
    assert not (tmp_path / "erasers" / "gun-esd-x").exists()


def test_a_weak_eraser_is_refused_with_3_unless_it_is_accepted(
    ask: Callable[..., Any], call: Callable[..., Any], common: tuple[Any, ...], model_folder: Path, tmp_path: Path
) -> None:
    words = ("erase", "gun", *common, "--gate", "relu", "--out", tmp_path / "weak")
    refused = call(*words)
    assert refused.exit_code == 3, refused.output
    assert "cannot be relied on" in refused.stderr and "--accept-weak" in refused.stderr
    assert not (tmp_path / "weak").exists()
    made = ask(*words, "--accept-weak")
    assert made["verdict"]["weak"]
    assert "Weak, and accepted as such" in card(Eraser.load(tmp_path / "weak"))
    checked = call("verify", tmp_path / "weak", "--model", model_folder)
    assert (checked.exit_code, "cannot be relied on" in checked.stdout) == (1, False)
    assert "weak: " in " ".join(checked.stdout.split())
    shown = ("--prompt", "a gun", "--eraser", tmp_path / "weak", "--model", model_folder, "--steps", 1)
    drawn = call("generate", *shown, "--out", tmp_path / "a.png")
    assert drawn.exit_code == 0
    assert "is weak: " in drawn.stderr


def test_one_pair_is_too_few_and_the_pairs_own_problems_are_told(
    call: Callable[..., Any], common: tuple[Any, ...], tmp_path: Path
) -> None:
    (tmp_path / "one.csv").write_text("concept,deconcept\na gun,a cat\n")
    refused = call("erase", "gun", *common, "--pairs", tmp_path / "one.csv", "--out", tmp_path / "one")
    assert refused.exit_code == 3, refused.output
    assert "only 1 pairs: at least 20 are needed" in refused.stderr
    assert "only 1 pair of prompts" in refused.stderr
    assert not (tmp_path / "one").exists()
    # Wherever the pairs are from.
    for more in ((), ("--method", "uce+snce")):
        made = call("erase", "gun", "--n", 4, *more, *common[:4], "--out", tmp_path / "one")
        assert (made.exit_code, "only 4 pairs of prompts" in made.stderr) == (3, True), made.output


def test_what_the_bundled_model_does_not_draw_is_not_erased(call: Callable[..., Any], tmp_path: Path) -> None:
    for words in ((), ("--mentions", "submarine"), ("--mentions", "u-boat, submarine")):
        refused = call("erase", "submarine", *words, "--out", tmp_path / "out")
        assert refused.exit_code == 3
        assert "this model does not know " in refused.stderr and "submarine: nothing to erase" in refused.stderr
        assert "syringe" not in refused.stderr
    accepted = call("erase", "submarine", "--accept-weak", "--out", tmp_path / "out")
    assert accepted.exit_code == 2 and "unknown concept 'submarine'" in accepted.stderr, "it has no words yet"
    assert not (tmp_path / "out").exists()


def test_a_concept_with_a_comma_is_one_unless_every_part_is_known(call: Callable[..., Any], tmp_path: Path) -> None:
    text = "the look of old photographs, faded and brown"
    for words, code, says in (
        (text, 3, f"does not know {text}: nothing"),
        ("gun,sword", 2, "'sword' is not a built"),
    ):
        refused = call("erase", words, "--out", tmp_path / "out")
        assert refused.exit_code == code
        assert says in refused.stderr
    one = call("erase", text, "--mentions", "old photographs", "--out", tmp_path / "out")
    assert one.exit_code == 3, "one concept, which the bundled model does not know"


def test_a_weak_one_of_several_does_not_stop_the_others(
    call: Callable[..., Any], model_folder: Path, sae_folder: Path, tmp_path: Path
) -> None:
    given = [f"--set=snce.{part}" for part in (f"sae={sae_folder}", "tolerance=0.9", "gate=relu")]
    words = ("--method", "snce,uce", *given, "--model", model_folder, "--n", 12, "--out", tmp_path / "erasers")
    made = call("erase", "gun", *words, "--json")
    assert made.exit_code == 3, made.output
    assert [row["state"] for row in json.loads(made.stdout)] == ["weak", "made"]
    assert sorted(path.name for path in (tmp_path / "erasers").iterdir()) == ["gun-uce"]
