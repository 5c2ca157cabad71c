"""Reading files from strangers: only regular ones, of bounded size, in bounded time and memory."""

from __future__ import annotations

import json
import os
import pickle
import resource
import sqlite3
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from excise.bench.protocols.clip import convert_q16, load_q16
from excise.bench.run import Run
from excise.concepts import load_pairs, read_prompts
from excise.erasers import Eraser, SAEEdit
from excise.erasers.artefact.files import manifest
from excise.errors import ExciseError
from excise.files import SMALL, open_regular, parse_json, read_file, read_json, read_tensors
from excise.loading import refuse_foreign_modules
from excise.neurons.context import Context
from excise.neurons.database import stored
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Provenance
from excise.sae import SAEConfig, TopKSAE, load
from excise.sae.exchange.importers import read_published
from excise.sae.storage import pack
from excise.sites import Site
from tests.untrusted import DEEP, FILES, SURROGATE, put


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Fail an allocation of more than 512 MB instead of swapping."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("read", [open_regular, read_file, read_tensors, read_json])
def test_what_is_not_a_plain_file_is_refused_at_once(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"regular file|holes|more than the|[Dd]irectory"):
        read(put(kind, tmp_path / "it"))


def test_plain_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "it"
    for data in (b"", b"{}", b"a" * 70_000):
        path.write_bytes(data)
        assert read_file(path) == read_tensors(path) == data
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link") == data
    with pytest.raises(OSError, match="70000 bytes, more than the 69999 allowed"):
        read_file(path, 69_999)


def test_a_file_without_a_size_is_refused() -> None:
    with pytest.raises(OSError, match="more than its size says"):
        read_file(Path("/proc/self/maps"))


def test_a_large_file_is_read_only_if_its_tensors_fill_it(tmp_path: Path) -> None:
    path, size = tmp_path / "it.safetensors", SMALL + 1000
    for end, fits in ((size, True), (size - 1, False), ("x", False)):
        header = b'{"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,%d]}}'
        text = header % end if isinstance(end, int) else b"[1]"
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" * size)
        if fits:
            assert len(read_tensors(path)) == size + 8 + len(text)
        else:
            with pytest.raises(OSError, match="table of tensors"):
                read_tensors(path)


@pytest.mark.parametrize("text", [DEEP, SURROGATE, "[" * 100_000, "[1", b"\xff", "9" * 5000, '{"\\ud800": 1}'])
def test_json_that_cannot_be_used_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_json_with_whole_pairs_is_read() -> None:
    assert parse_json('"\\ud83d\\ude00 \\u00e9"') == "\U0001f600 é"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["eraser.json", "eraser.safetensors", "manifest.json"])
def test_an_erasers_files_are_plain_files(name: str, kind: str, tmp_path: Path) -> None:
    for other in {"eraser.json", "eraser.safetensors", "manifest.json"} - {name}:
        (tmp_path / other).write_text("{}")
    put(kind, tmp_path / name)
    with pytest.raises(ExciseError, match="is not a complete eraser") as caught:
        Eraser.load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert os.path.lexists(tmp_path / name)


def test_an_eraser_with_more_canaries_than_fitting_makes_is_refused(tmp_path: Path) -> None:
    edit = SAEEdit(Site("text_encoder", "it", 1), torch.tensor([0]), *map(torch.ones, ((1, 1), 1, 1, (1, 1), 1, 1)))
    for canary in (("a gun",) * 14, ("g" * 2001,)):
        eraser = Eraser((edit,), "gun", "gun", canary=("a gun",), canary_shift=0.1)
        content = json.loads(eraser.pack()["eraser.json"]) | {"canary": canary}
        files = eraser.pack() | {"eraser.json": json.dumps(content).encode()}
        for name, data in (files | {"manifest.json": manifest(files)}).items():
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ExciseError, match="canary prompts of up to"):
            Eraser.load(tmp_path)


def _an_sae(folder: Path, name: str) -> Path:
    sae = TopKSAE(SAEConfig(d=3, m=5, k=2))
    for each, data in pack(sae.config, sae.state_dict(), {}).items():
        (folder / each).write_bytes(data)
    return folder / name


def _published(folder: Path, name: str) -> Path:
    (folder / "config.json").write_text('{"d_model": 3, "n_dirs_local": 5, "k": 2}')
    shapes = {"encoder.weight": (5, 3), "latent_bias": (5,), "decoder.weight": (3, 5), "pre_bias": (3,)}
    torch.save({each: torch.ones(shape) for each, shape in shapes.items()}, folder / "state_dict.pth")
    return folder / name


def _a_run(folder: Path, name: str) -> Path:
    (folder / "records").mkdir()
    (folder / "run.json").write_text('{"schema": "excise.run/1"}')
    return folder / name


def _q16(path: Path) -> None:
    convert_q16(path, path.with_name("out.safetensors"))


READERS: dict[str, tuple[Callable[[Path, str], Path], Callable[[Path], object]]] = {
    "cfg.json": (_an_sae, lambda path: load(path.parent)),
    "sae.safetensors": (_an_sae, lambda path: load(path.parent)),
    "config.json": (_published, lambda path: read_published(path.parent)),
    "state_dict.pth": (_published, lambda path: read_published(path.parent)),
    "pairs.jsonl": (Path.joinpath, load_pairs),
    "pairs.csv": (Path.joinpath, load_pairs),
    "prompts.txt": (Path.joinpath, lambda path: list(read_prompts(path))),
    "neurons.db": (Path.joinpath, NeuronDatabase.open),
    "run.json": (_a_run, lambda path: Run(path.parent)),
    "records/a@1.jsonl": (_a_run, lambda path: Run(path.parent.parent).records()),
    "prompts.p": (Path.joinpath, _q16),
    "q16.safetensors": (Path.joinpath, load_q16),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", READERS)
def test_every_reader_takes_plain_files_alone(name: str, kind: str, tmp_path: Path) -> None:
    make, read = READERS[name]
    put(kind, make(tmp_path, name))
    with pytest.raises(ExciseError) as caught:
        read(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("shape", [(5000, 200_000), (3, 10**12), (10**30, 5)])
def test_an_sae_of_a_shape_its_weights_do_not_have_is_not_allocated(shape: tuple[int, int], tmp_path: Path) -> None:
    path = _an_sae(tmp_path, "cfg.json")
    content = json.loads(path.read_bytes())
    content["sae"] |= {"d": shape[0], "m": shape[1]}
    path.write_text(json.dumps(content))
    with pytest.raises(ExciseError, match=r"not what cfg\.json announces"):
        load(tmp_path)


def test_published_tensors_are_dense_and_not_compressed(tmp_path: Path) -> None:
    path = _published(tmp_path, "state_dict.pth")
    good = torch.load(path, weights_only=True)
    for name, odd in (
        ("repeats its values", torch.ones(1, 1).expand(10**6, 10**6)),
        ("not a dense tensor", torch.ones(5, 3).to_sparse()),
    ):
        torch.save(good | {"encoder.weight": odd}, path)
        with pytest.raises(ExciseError, match=name):
            read_published(tmp_path)
    torch.save(good, path)
    with zipfile.ZipFile(path) as archive:
        parts = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each, data in parts.items():
            archive.writestr(each, data)
    with pytest.raises(ExciseError, match="compressed"):
        read_published(tmp_path)


@pytest.mark.parametrize("text", [DEEP, SURROGATE, f'{{"concept": {SURROGATE}, "deconcept": "a"}}', "1e400", "NaN"])
def test_json_of_strangers_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(text)
    with pytest.raises(ExciseError, match=r"not JSON|not a JSON object"):
        load_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ExciseError, match=r"damaged|has the format"):
        Run(tmp_path)


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE VIEW meta AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i key, i value FROM n",
        "CREATE TABLE meta (key, value); CREATE TRIGGER t AFTER INSERT ON meta BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE meta USING fts5(key, value)",
    ],
)
def test_a_database_holds_tables_alone(schema: str, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "it.db")
    connection.executescript(schema)
    connection.close()
    with pytest.raises(ExciseError, match=r"it holds the (view|trigger|virtual table)"):
        NeuronDatabase.open(tmp_path / "it.db")


def test_a_database_hides_nothing_behind_many_tables(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "it.db")
    connection.executescript("".join(f"CREATE TABLE t{n} (a);" for n in range(100)) + "CREATE VIEW meta AS SELECT 1")
    connection.close()
    with pytest.raises(ExciseError, match="more than 100 tables"):
        NeuronDatabase.open(tmp_path / "it.db")


@pytest.mark.parametrize("figure", ["1e400", "NaN", "-Infinity", '"nan"', "true", "null", "9" * 400])
@pytest.mark.parametrize(
    ("column", "content"),
    [
        ("contexts", '[[["a"],[{}]]]'), ("spread", '[[["a"],[{}]]]'), ("nearest", '[["a",{}]]'), ("near", "[[1,{}]]"),
        ("near", "[[{},0.5]]"), ("histogram", "[{}]"), ("patterns", '[{{"text":"a","share":{}}}]'),
    ],
)  # fmt: skip
def test_a_databases_figures_are_finite(column: str, content: str, figure: str, tmp_path: Path) -> None:
    about = Provenance("ab", "text_encoder/it", 64, "some prompts", 3, "cd", "2026-01-01")
    with NeuronDatabase.create(tmp_path / "it.db", about) as database:
        database.add([Entry(3, contexts=(Context(("a",), (0.5,)),))])
        assert database.neuron(3).peak is None
        database._connection.execute(f"UPDATE neurons SET {column} = ?", (content.format(figure),))
        database._connection.commit()
    with NeuronDatabase.open(tmp_path / "it.db") as database:
        if column == "patterns" and figure in ('"nan"', "true", "null", "9" * 400):  # any JSON may describe a pattern
            assert database.neuron(3).patterns
            return
        with pytest.raises(ExciseError, match=r"it\.db is damaged"):
            database.neuron(3)


@pytest.mark.parametrize("sign", ["\x0b", "\x0c", "\x1c", "\x1d", "\x85", "\u2028"])
def test_a_csv_header_splits_no_message(sign: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(f"con{sign}cept,other{'x' * 5000}\na,b\n", encoding="utf-8")
    with pytest.raises(ExciseError, match="no column 'concept'") as caught:
        load_pairs(tmp_path / "pairs.csv")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1010


def test_a_long_setting_of_a_published_sae_is_not_printed_whole(tmp_path: Path) -> None:
    _published(tmp_path, "config.json")
    for setting in ({"x" * 10**5: 1}, {"hat": "x" * 10**5}, {"hat": [{"x": "y" * 10**5}] * 100}):
        text = json.dumps({"d_model": 3, "n_dirs_local": 5, "k": 2} | setting)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ExciseError, match="unknown setting") as caught:
            read_published(tmp_path)
        assert len(str(caught.value)) < 600


def test_a_query_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = Provenance("ab", "text_encoder/it", 64, "some prompts", 3, "cd", "2026-01-01")
    NeuronDatabase.create(tmp_path / "it.db", about).close()
    monkeypatch.setattr(stored, "PATIENCE", 0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT count(*) FROM n"
    with NeuronDatabase.open(tmp_path / "it.db") as database, pytest.raises(ExciseError, match="interrupted"):
        database._all(endless)


def test_a_pickle_that_changes_its_dtype_is_only_read(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    whole = pickle.dumps(array, 2)
    (tmp_path / "prompts.p").write_bytes(whole)
    convert_q16(tmp_path / "prompts.p", tmp_path / "q16.safetensors")
    assert load_q16(tmp_path / "q16.safetensors").tolist() == array.tolist()
    for old, new in ((b"f8", b"O8"), (b"f8", b"V8"), (b"K\x03\x86", b"K\x04\x86"), (b"K\x02K\x03", b"K\x02K\xff")):
        (tmp_path / "prompts.p").write_bytes(whole.replace(old, new))
        with pytest.raises(ExciseError, match=r"two vectors|plain NumPy"):
            convert_q16(tmp_path / "prompts.p", tmp_path / "out")


def test_a_models_index_names_no_module_that_nobody_imported() -> None:
    name = {"_class_name": "StableDiffusionPipeline"}
    known = {"unet": ["diffusers", "UNet2DConditionModel"], "checker": ["stable_diffusion", "Any"]}
    refuse_foreign_modules({**name, **known})
    for module in ("this", "antigravity", "os", "os.path", "subprocess", "nowhere"):
        with pytest.raises(ExciseError, match=f"takes unet from the module '{module}'"):
            refuse_foreign_modules({**name, "unet": [module, "system"]})
    assert "antigravity" not in sys.modules
