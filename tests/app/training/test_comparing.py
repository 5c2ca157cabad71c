"""Comparing SAEs on concepts, and a sweep over a grid of them: real encoders, real trainings, small."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from excise import sae as library
from excise.app.models.loader import Loader
from excise.app.reading import vectors as reading
from excise.app.training import grid_sweep
from excise.app.training.comparing import Comparing, compare, concepts_of
from excise.app.training.grid_sweep import grid, sweep
from excise.engine import engines
from excise.engine.local import Local
from excise.errors import ExciseError, ItemsFailed
from excise.locks import locked
from excise.sae import SAEConfig, TopKSAE, TrainConfig
from excise.sites import Site

SMALL = TrainConfig(expansion=2, k=4, batch=256, tokens=1000)


@pytest.fixture
def folders(word_sae: Any, tiny_site: Any, tmp_path: Path) -> tuple[Path, Path]:
    """An SAE with a neuron for "gun", and one of the same shape that is untrained."""
    said = {"site": asdict(tiny_site), "corpus": "made for a test"}
    for name, sae in (("word", word_sae), ("random", TopKSAE(SAEConfig(d=64, m=64, k=8), seed=3))):
        library.save(sae, tmp_path / name, said)
    return tmp_path / "word", tmp_path / "random"


def test_the_sae_that_knows_the_concept_comes_first(tiny_pipe: Any, folders: tuple[Path, Path], gun: Any) -> None:
    word, random = folders
    rows = compare(tiny_pipe, [random, word], [gun], Comparing(by="best"))
    assert [row["sae"] for row in rows] == [str(word), str(random)]
    first, concept = rows[0], rows[0]["concepts"][0]
    assert (first["m"], first["k"], first["site"]) == (64, 8, "text_encoder/encoder.layers.2")
    assert concept["neuron"] == 5
    assert concept["auroc"] > 0.9 and concept["best"] > 0.8 and concept["probing_1"] > 0.9
    assert first["tpp"] is None  # with one concept there is no other to spare


def test_taking_the_neuron_out_costs_its_own_concept_most(tiny_pipe: Any, folders: tuple[Path, Path], gun: Any) -> None:
    others = concepts_of("cat,rose", 40)
    (row,) = compare(tiny_pipe, folders[:1], [gun, *others])
    found = row["concepts"][0]
    assert found["tpp"] == pytest.approx(found["tpp_target"] - found["tpp_others"])
    assert found["tpp_target"] > 0.2 > 0.1 > found["tpp_others"]


def test_concepts_from_names_lines_and_pairs(tmp_path: Path) -> None:
    assert [concept.name for concept in concepts_of("gun, knife", 10)] == ["gun", "knife"]
    lines = tmp_path / "concepts.txt"
    lines.write_text("gun\n\nweapon: halberd, mace\n")
    named = concepts_of(str(lines), 10)
    assert [concept.name for concept in named] == ["gun", "weapon"]
    assert named[1].mentions == ("halberd", "mace")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("name,concept,deconcept\nfire,a fire,a lake\nice,some ice,some tea\nfire,two fires,two lakes\n")
    assert [(concept.name, len(concept.pairs)) for concept in concepts_of(str(pairs))] == [("fire", 2), ("ice", 1)]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.txt", "\n", "names no concept"),
        ("odd.csv", "name,concept,deconcept\nfire,,a lake\n", "line 2: no concept"),
        ("missing.txt", None, "cannot read"),
    ],
)
def test_bad_files_of_concepts(name: str, content: str | None, complaint: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ExciseError, match=complaint):
        concepts_of(str(tmp_path / name))


def test_impossible_comparisons_are_refused() -> None:
    for odd in ({"by": "beauty"}, {"t": 0.0}, {"threshold": -1.0}, {"ablated": 0}):
        with pytest.raises(ExciseError):
            Comparing(**odd)


def test_a_sweep_trains_a_grid_once_and_goes_on(tiny_pipe: Any, gun: Any, tmp_path: Path) -> None:
    sites = [Site("text_encoder", f"encoder.layers.{n}", 64) for n in (1, 2)]
    prompts = [pair.concept for pair in gun.pairs] + [pair.deconcept for pair in gun.pairs]
    cells, out = grid(sites, [2], [4, 8]), tmp_path / "sweep"
    read: list[int] = []

    def stop(cell: Any, line: Any) -> None:
        if cell == cells[1]:
            raise KeyboardInterrupt

    arguments = (tiny_pipe, cells, prompts, [gun], SMALL, out)
    with pytest.raises(KeyboardInterrupt):
        sweep(*arguments, card_of={"corpus": "pairs"}, captured=read.append, trained=stop)
    assert sum(read) == len(prompts)  # once for all of the grid
    first = (out / cells[0].name / "sae.safetensors").stat().st_mtime_ns
    rows = sweep(*arguments, card_of={"corpus": "pairs"})
    assert {Path(row["sae"]).name for row in rows} == {cell.name for cell in cells}
    assert (out / cells[0].name / "sae.safetensors").stat().st_mtime_ns == first
    assert not list(out.glob(".*"))
    assert [row["i_cdf"] for row in rows] == sorted((row["i_cdf"] for row in rows), reverse=True)
    with pytest.raises(ExciseError, match="trained with another tokens"):
        sweep(tiny_pipe, cells, prompts, [gun], TrainConfig(expansion=2, k=4, batch=256, tokens=2000), out, card_of={})


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sweep_on_an_engine_trains_the_same_bits(
    apart: bool, tiny_pipe: Any, gun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers load a saved pipeline, and the features that this process read."""
    if not apart:
        monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    prompts = [pair.concept for pair in gun.pairs] + [pair.deconcept for pair in gun.pairs]
    cells = grid([Site("text_encoder", "encoder.layers.1", 64)], [2], [4, 8])
    tiny_pipe.save_pretrained(tmp_path / "model")
    made = []
    for out, options in (("here", {}), ("there", {"engine": "processes:2", "loader": Loader(str(tmp_path / "model"))})):
        sweep(tiny_pipe, cells, prompts, [gun], SMALL, tmp_path / out, card_of={"corpus": "pairs"}, **options)
        made.append([(tmp_path / out / cell.name / "sae.safetensors").read_bytes() for cell in cells])
        assert sorted(path.name for path in (tmp_path / out).iterdir()) == sorted(cell.name for cell in cells)
    assert made[0] == made[1]


@pytest.mark.parametrize("engine", ["slice:0/2", None])
def test_a_sweep_shares_no_working_folder_with_another_process(
    engine: str | None, tiny_pipe: Any, gun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper, or a process that finds the folder locked, trains elsewhere and leaves what the other one has."""
    monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    prompts = [pair.concept for pair in gun.pairs] + [pair.deconcept for pair in gun.pairs]
    cells, out = grid([Site("text_encoder", "encoder.layers.1", 64)], [2], [4, 8]), tmp_path / "sweep"
    tiny_pipe.save_pretrained(tmp_path / "model")
    loader = Loader(str(tmp_path / "model"))
    sweep(tiny_pipe, cells, prompts, [gun], SMALL, tmp_path / "whole", card_of={"corpus": "pairs"})
    checkpoint = out / f"{cells[1].name}.training" / "checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "theirs").write_text("being written")
    with locked(checkpoint.parent / "lock") as mine:
        assert mine
        sweep(tiny_pipe, cells, prompts, [gun], SMALL, out, card_of={"corpus": "pairs"}, engine=engine, loader=loader)
    assert [path.name for path in checkpoint.iterdir()] == ["theirs"]
    for cell in cells:
        one, other = (folder / cell.name / "sae.safetensors" for folder in (out, tmp_path / "whole"))
        assert one.read_bytes() == other.read_bytes()
    assert {path.name for path in out.iterdir()} == {*(cell.name for cell in cells), checkpoint.parent.name}


def test_a_slice_does_not_compare_what_another_could_not_train(
    tiny_pipe: Any, gun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    prompts = [pair.concept for pair in gun.pairs]
    cells = grid([Site("text_encoder", "encoder.layers.1", 64)], [2], [4, 8])
    tiny_pipe.save_pretrained(tmp_path / "model")

    def training(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("cuda is on fire")

    def of(part: str) -> Any:
        how: dict[str, Any] = {"card_of": {"corpus": "pairs"}, "loader": Loader(str(tmp_path / "model"))}
        return sweep(tiny_pipe, cells, prompts, [gun], SMALL, tmp_path / "sweep", engine=part, **how)

    monkeypatch.setattr(grid_sweep, "train_on", training)
    for part in ("slice:1/3", "slice:0/3"):
        with pytest.raises(ItemsFailed, match=r"2 of 2 failed, the first encoder\.layers\.1-x2-k"):
            of(part)
    assert of("slice:2/3") == []


def test_features_on_disk_are_read_once_and_never_shared(
    tiny_pipe: Any, gun: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    monkeypatch.setattr(reading, "IN_MEMORY", 0)
    prompts = [pair.concept for pair in gun.pairs] + [pair.deconcept for pair in gun.pairs]
    cells = grid([Site("text_encoder", f"encoder.layers.{n}", 64) for n in (1, 2)], [2], [4])
    tiny_pipe.save_pretrained(tmp_path / "model")
    out, loader, train_on = tmp_path / "sweep", Loader(str(tmp_path / "model")), grid_sweep.train_on
    shards: list[dict[str, int]] = []

    def training(*arguments: Any, **options: Any) -> Any:
        shards.append({f"{p.parent.name}/{p.name}": p.stat().st_mtime_ns for p in out.glob(".features*/*[0-9]*")})
        if len(shards) == 2:
            raise KeyboardInterrupt
        return train_on(*arguments, **options)

    def again(on: list[Any]) -> None:
        sweep(tiny_pipe, on, prompts, [gun], SMALL, out, card_of={}, engine="processes:2", loader=loader)

    monkeypatch.setattr(grid_sweep, "train_on", training)
    with pytest.raises(KeyboardInterrupt):
        again(cells)
    (folder,) = out.glob(".features*")
    again(cells)
    assert shards[0] == shards[1] == shards[2] != {}, "one SAE is made, and the other still finds its features"
    assert not list(out.glob(".*"))
    shutil.rmtree(out / cells[0].name)
    folder.mkdir()
    (folder / "theirs").touch()
    with locked(folder.with_name(f"{folder.name}.lock")):
        again(cells)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert shards[3]
    assert not any(name.startswith(f"{folder.name}/") for name in shards[3]), "they are read into its own folder"
    assert [path for path in out.glob(".*") if path.is_dir()] == [folder]


def test_a_folder_with_something_else_is_refused_before_any_prompt_is_read(
    tiny_pipe: Any, gun: Any, tmp_path: Path
) -> None:
    cells = grid([Site("text_encoder", "encoder.layers.1", 64)], [2], [4, 8])
    (tmp_path / cells[1].name).mkdir()
    (tmp_path / cells[1].name / "notes").touch()
    read: list[int] = []
    with pytest.raises(ExciseError, match="not an empty folder"):
        sweep(tiny_pipe, cells, ["a gun"], [gun], SMALL, tmp_path, card_of={}, captured=read.append)
    assert not read


def test_impossible_grids_are_refused() -> None:
    site = Site("text_encoder", "encoder.layers.1", 64)
    other = Site("text_encoder_2", "encoder.layers.1", 64)
    for sites, expansions, ks in (
        ([], [2], [4]), ([site, site], [2], [4]), ([site, other], [2], [4]), ([site], [2], [200])
    ):  # fmt: skip
        with pytest.raises(ExciseError):
            grid(sites, expansions, ks)
