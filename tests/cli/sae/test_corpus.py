"""`excise sae corpus`, and `excise sae train` on it, on every engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.app.models.loader import Loader
from excise.app.reading.reading import Reading
from excise.app.reading.tokenising import build
from excise.app.reading.vectors import help_with
from excise.concepts.parts import parts_of
from excise.files import sha256
from excise.sites import Site
from excise.sites.activations.token_shards import ABOUT, Capture, TextParts
from tests.tiny import families

SMALL = ("--tokens", 2000, "--expansion", 2, "--k", 4, "--batch", 256, "--site", "encoder.layers.1")
SITES = (Site("text_encoder", "encoder.layers.1", 64), Site("text_encoder", "encoder.layers.2", 64))
PROMPTS = [f"{word} number {n}" for n, word in enumerate(("gun", "cat", "dog", "bus") * 3)]


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Twelve prompts in three files. Each file is a part."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.txt").write_text("".join(f"{text}\n" for text in PROMPTS[4 * n : 4 * n + 4]))
    return folder


@pytest.mark.slow
def test_every_engine_makes_the_same_corpus(
    ask: Callable[..., Any], call: Callable[..., Any], model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    common = ("sae", "corpus", "--prompts", prompts, "--model", model_folder)
    made = ask(*common, "--out", tmp_path / "local")
    assert (made["prompts"], made["files"], made["type"]) == (12, 3, "uint16")
    known = digests(tmp_path / "local")
    assert sorted(known) == ["000000.parquet", "000001.parquet", "000002.parquet", ABOUT, "corpus.json"]
    assert ask(*common, "--out", tmp_path / "two", "--workers", 2)["digest"] == made["digest"]
    assert digests(tmp_path / "two") == known
    slices = (*common, "--out", tmp_path / "sliced")
    second = call(*slices, "--engine", "slice:1/2")
    assert second.exit_code == 0 and "the first slice writes the manifest" in second.stderr
    assert not (tmp_path / "sliced" / "corpus.json").exists()
    assert ask(*slices, "--engine", "slice:0/2")["digest"] == made["digest"]
    assert digests(tmp_path / "sliced") == known


def test_a_corpus_is_trained_on(
    ask: Callable[..., Any], call: Callable[..., Any], model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    corpus = ("--corpus", tmp_path / "corpus", "--model", model_folder)
    unmade = call("sae", "train", "--out", tmp_path / "sae", *corpus, *SMALL)
    assert unmade.exit_code == 2 and "excise sae corpus --out" in unmade.stderr
    ask("sae", "corpus", "--prompts", prompts, "--model", model_folder, "--out", tmp_path / "corpus")
    for n, states in enumerate(((), ("--states", "made"), ("--states", "stored"))):
        card = ask("sae", "train", "--out", tmp_path / f"sae{n}", *corpus, *SMALL, *states)["card"]
        assert (card["prompts"], card["corpus"]) == (12, "prompts: 12 prompts")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--prompts", "p.txt", "--corpus", "c"), "give one of --prompts FILE, --recipe NAME and --corpus FOLDER"),
        (("--prompts", "p.txt", "--states", "made"), "--states made needs --corpus"),
        (("--corpus", "c", "--states", "kept"), "states are made or stored, not 'kept'"),
        (("--corpus", "c", "--states", "made", "--workers", 2), "leave out the engine"),
        (("--prompts", "p.txt", "--engine", "nosuch"), "there is no engine 'nosuch'"),
        (("--corpus", "nowhere"), "nowhere holds no finished corpus"),
    ],
)
def test_options_that_disagree_are_refused(
    call: Callable[..., Any], tmp_path: Path, options: tuple[Any, ...], says: str
) -> None:
    result = call("sae", "train", "--out", tmp_path / "sae", *options)
    assert result.exit_code == 2 and says in result.stderr
    assert not (tmp_path / "sae").exists()


@pytest.mark.slow
def test_every_engine_writes_the_same_states(model_folder: Path, tmp_path: Path) -> None:
    load = Loader(str(model_folder))
    pipe = load()
    parts = TextParts(tuple(PROMPTS), 0.5, size=3)

    def written(name: str, *engines: str) -> tuple[dict[str, str], Any]:
        made: dict[int, tuple[str, int]] = {}
        for engine in engines:
            capture = Capture(tmp_path / name, SITES, parts, load=load)
            capture.begin(pipe)
            made = capture.make(engine)
        shards = capture.finish(made)
        return digests(tmp_path / name), shards

    known, shards = written("local", "local")
    assert len(shards.files) == 4 and len(known) == 6
    assert [sha256(tmp_path / "local" / name) for name, *_ in shards.files] == [digest for _, digest, _ in shards.files]
    assert shards.sizes == tuple(len(shards.read(n, SITES[0])) for n in range(4))
    for name, engines in {"two": ["processes:2"], "sliced": ["slice:1/2", "slice:0/2"]}.items():
        found, others = written(name, *engines)
        assert found == known, name
        assert others.files == shards.files


@pytest.mark.slow
def test_an_array_job_reads_and_its_first_slice_trains(
    ask: Callable[..., Any], call: Callable[..., Any], model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{text}\n" for text in PROMPTS))
    common = ("sae", "train", "--prompts", file, "--model", model_folder, *SMALL)
    known = ask(*common, "--out", tmp_path / "one", "--states", "stored")["card"]
    out = tmp_path / "sae"
    second = call(*common, "--out", out, "--engine", "slice:1/2")
    assert second.exit_code == 0 and "the first slice trains" in second.stderr
    assert not out.exists()
    assert "00000.safetensors" in digests(tmp_path / "sae.features"), "it helped with the first slice's too"
    assert ask(*common, "--out", out, "--engine", "slice:0/2")["card"] == known
    assert sha256(out / "sae.safetensors") == sha256(tmp_path / "one" / "sae.safetensors")
    assert not (tmp_path / "sae.features").exists()
    # A slice that comes too late leaves nothing behind.
    load = Loader(str(model_folder))
    help_with(load(), SITES[0], PROMPTS, out, reading=Reading("slice:1/2", load=load))
    assert not (tmp_path / "sae.features").exists()


def test_states_of_another_reading_are_not_mixed_in(
    call: Callable[..., Any], model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n")
    (tmp_path / "sae.features").mkdir()
    (tmp_path / "sae.features" / ABOUT).write_text(json.dumps({"schema": "excise.tokens/1"}))
    common = ("sae", "train", "--prompts", file, "--model", model_folder, *SMALL, "--out", tmp_path / "sae")
    refused = call(*common, "--engine", "slice:0/2")
    assert refused.exit_code == 2 and "delete it to read again" in refused.stderr
    assert call(*common, "--states", "stored").exit_code == 0, "this process alone replaces them"


def test_a_slice_that_comes_after_the_training_has_nothing_to_do(
    call: Callable[..., Any], sae_folder: Path, tmp_path: Path
) -> None:
    before = digests(sae_folder)
    common = ("sae", "train", "--prompts", tmp_path / "none.txt", "--out", sae_folder)
    late = call(*common, "--engine", "slice:1/2")
    assert late.exit_code == 0 and "the first slice has trained it already" in late.stderr
    for others in (("--engine", "slice:0/2"), ()):
        refused = call(*common, *others)
        assert refused.exit_code == 2 and "is there already and not an empty folder" in refused.stderr
    assert digests(sae_folder) == before


def test_a_corpus_is_refused_before_the_first_of_several_saes_is_trained(
    call: Callable[..., Any], tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stable Diffusion 3 has two CLIP encoders, then T5."""
    pytest.importorskip("pyarrow")
    from excise.app.models import resolve

    pipe = families.build("sd3")
    assert build(pipe, "text_encoder", prompts, list(parts_of(prompts)), tmp_path / "corpus", Loader())
    monkeypatch.setattr(resolve, "load_pipeline", lambda *_: pipe)
    small = ("--tokens", 2000, "--expansion", 2, "--k", 4, "--batch", 256)
    refused = call("sae", "train", "--corpus", tmp_path / "corpus", "--model", "sd3", "--out", tmp_path / "sae", *small)
    assert refused.exit_code == 2 and "text_encoder_3 is not a CLIP text encoder" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "prompts"]
