from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from excise import files
from excise.app.models.loader import Loader
from excise.app.reading import tokenising
from excise.app.reading.corpus import Corpus, load_corpus
from excise.app.reading.tokenising import build, id_type
from excise.concepts import parts as corpus_parts
from excise.concepts.parts import parts_of
from excise.errors import ExciseError
from excise.sites.activations.tokenising import tokenise

parquet = pytest.importorskip("pyarrow.parquet")

WORDS = ("gun", "cat", "dog", "bus", "apple") * 5
PROMPTS = [f"{word} number {n} {'on a table ' * (n % 4)}" for n, word in enumerate(WORDS)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """25 prompts, in parts of ten and row groups of four."""
    monkeypatch.setattr(corpus_parts, "ROWS", 10)
    monkeypatch.setattr(tokenising, "GROUP", 4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n\n")
    return path


def made(pipe: Any, source: Path, out: Path, **options: Any) -> Corpus:
    found = build(pipe, "text_encoder", source, list(parts_of(source)), out, Loader(), **options)
    assert found is not None
    return found


def rows_of(corpus: Corpus) -> list[list[int]]:
    rows = []
    for number in range(len(corpus.groups)):
        ids, lengths = corpus.read(number)
        rows += [row.tolist() for row in ids.split(lengths.tolist())]
    return rows


def test_a_corpus_holds_the_tokens_that_the_pipeline_gives(tiny_pipe: Any, source: Path, tmp_path: Path) -> None:
    corpus = made(tiny_pipe, source, tmp_path / "corpus")
    ids, attention, _ = tokenise(tiny_pipe, "text_encoder", [text.strip() for text in PROMPTS])
    known = [row[mask.bool()].tolist() for row, mask in zip(ids, attention, strict=True)]
    assert rows_of(corpus) == known
    assert len(corpus) == corpus.prompts == 25 and corpus.tokens == sum(map(len, known))
    assert corpus.positions == ids.shape[1]
    assert [group[:3] for group in corpus.groups] == [(0, 0, 4), (0, 1, 4), (0, 2, 2), (1, 0, 4), (1, 1, 4), (1, 2, 2),
                                                      (2, 0, 4), (2, 1, 1)]  # fmt: skip
    assert list(corpus.sample) == [text.strip() for text in PROMPTS], "so few are all kept as text"
    assert load_corpus(tmp_path / "corpus") == corpus
    schema = parquet.read_schema(tmp_path / "corpus" / "000000.parquet")
    assert str(schema.field("ids").type) == "list<element: uint16>" or "uint16" in str(schema.field("ids").type)


def test_larger_vocabularies_take_four_bytes(
    tiny_pipe: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [id_type(vocabulary) for vocabulary in (49_408, 65_535, 65_536, 250_000)] == ["uint16"] * 2 + ["uint32"] * 2
    narrow = made(tiny_pipe, source, tmp_path / "narrow")
    monkeypatch.setattr(tokenising, "vocabulary_of", lambda pipe, component: 250_000)
    wide = made(tiny_pipe, source, tmp_path / "wide")
    assert rows_of(wide) == rows_of(narrow)
    assert (narrow.type, wide.type) == ("uint16", "uint32")
    assert "uint32" in str(parquet.read_schema(tmp_path / "wide" / "000000.parquet").field("ids").type)


def test_few_prompts_of_many_are_kept_as_text(
    tiny_pipe: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenising, "SAMPLE", 6)
    texts = [text.strip() for text in PROMPTS]
    assert list(made(tiny_pipe, source, tmp_path / "corpus").sample) == [
        *texts[0:10:5], *texts[10:20:5], *texts[20:25:3],
    ]  # fmt: skip


def test_an_interruption_loses_a_part_at_most(tiny_pipe: Any, source: Path, tmp_path: Path) -> None:
    whole = made(tiny_pipe, source, tmp_path / "whole")
    told: list[int] = []

    def stop(parts: int) -> None:
        told.append(parts)
        if len(told) == 2:
            raise KeyboardInterrupt

    out = tmp_path / "corpus"
    with pytest.raises(KeyboardInterrupt):
        made(tiny_pipe, source, out, progress=stop)
    assert sorted(path.name for path in out.iterdir()) == ["000000.parquet", "000001.parquet", "about.json"]
    with pytest.raises(ExciseError, match="no finished corpus"):
        load_corpus(out)
    before = (out / "000000.parquet").stat().st_mtime_ns
    again = made(tiny_pipe, source, out)
    assert (out / "000000.parquet").stat().st_mtime_ns == before
    assert again.files == whole.files and again.groups == whole.groups and again.sample == whole.sample
    told.clear()
    assert made(tiny_pipe, source, out, progress=told.append) == again and told == [3]


def test_other_prompts_are_not_added_to_a_corpus(tiny_pipe: Any, source: Path, tmp_path: Path) -> None:
    made(tiny_pipe, source, tmp_path / "corpus")
    source.write_text("another corpus\n")
    with pytest.raises(ExciseError, match="holds something else; choose another --out"):
        made(tiny_pipe, source, tmp_path / "corpus")


def test_prompts_that_were_altered_in_place_are_noticed(tiny_pipe: Any, source: Path, tmp_path: Path) -> None:
    """Their number of bytes and the time of the file are as before."""
    known = made(tiny_pipe, source, tmp_path / "corpus")
    before, text = source.stat(), source.read_text()
    source.write_text(text.replace("gun", "cup"))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    with pytest.raises(ExciseError, match="holds something else; choose another --out"):
        made(tiny_pipe, source, tmp_path / "corpus")
    source.write_text(text)
    assert made(tiny_pipe, source, tmp_path / "corpus") == known, "the same prompts, written again"


@pytest.mark.parametrize("text", ["", "\n", "\n  \n" * 8])
def test_a_file_without_prompts_leaves_nothing_behind(tiny_pipe: Any, source: Path, tmp_path: Path, text: str) -> None:
    full = source.read_text()
    source.write_text(text)
    with pytest.raises(ExciseError, match="holds no prompts"):
        made(tiny_pipe, source, tmp_path / "corpus")
    assert not list((tmp_path / "corpus").glob("*"))
    source.write_text(full)
    assert made(tiny_pipe, source, tmp_path / "corpus").prompts == 25


def test_slices_that_start_together_make_one_corpus(
    tiny_pipe: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins while the first one's temporary file is in the folder."""
    write, found = files._write, []

    def second(temporary: Path, data: bytes | str) -> None:
        write(temporary, data)
        monkeypatch.setattr(files, "_write", write)
        found.append(made(tiny_pipe, source, tmp_path / "corpus"))

    monkeypatch.setattr(files, "_write", second)
    assert made(tiny_pipe, source, tmp_path / "corpus") == found[0]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "altered or cut short"),
        (lambda file: file.unlink(), "cannot read"),
    ],
)
def test_a_damaged_file_is_refused(
    tiny_pipe: Any, source: Path, tmp_path: Path, damage: Callable[[Path], Any], says: str
) -> None:
    corpus = made(tiny_pipe, source, tmp_path / "corpus")
    damage(tmp_path / "corpus" / "000001.parquet")
    corpus.read(0)
    with pytest.raises(ExciseError, match=says):
        corpus.read(3)


def test_a_manifest_that_does_not_fit_is_refused(tiny_pipe: Any, source: Path, tmp_path: Path) -> None:
    made(tiny_pipe, source, tmp_path / "corpus")
    path = tmp_path / "corpus" / "corpus.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0][2][0] = [4, 7]
    path.write_text(json.dumps(manifest))
    with pytest.raises(ExciseError, match="does not have the prompts"):
        load_corpus(tmp_path / "corpus").read(0)
    for broken in ("{", json.dumps({**manifest, "schema": "other"}), json.dumps({"schema": "excise.corpus/1"})):
        path.write_text(broken)
        with pytest.raises(ExciseError, match="no finished corpus"):
            load_corpus(tmp_path / "corpus")


def test_a_corpus_of_another_tokenizer_is_refused(
    tiny_pipe: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = made(tiny_pipe, source, tmp_path / "corpus")
    corpus.check(tiny_pipe, "text_encoder")
    tiny_pipe.text_encoder.config.max_position_embeddings = 20
    with pytest.raises(ExciseError, match="another tokenizer or length"):
        corpus.check(tiny_pipe, "text_encoder")
    tiny_pipe.text_encoder.config.max_position_embeddings = corpus.positions
    monkeypatch.setattr(tiny_pipe, "text_encoder", torch.nn.Linear(1, 1))
    with pytest.raises(ExciseError, match="not a CLIP text encoder"):
        corpus.check(tiny_pipe, "text_encoder")


def test_equal_prompts_make_equal_files_whatever_their_place(tiny_pipe: Any, source: Path, tmp_path: Path) -> None:
    """So the digest names the content."""
    one = made(tiny_pipe, source, tmp_path / "one")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "prompts.txt"
    copy.write_text(source.read_text())
    assert made(tiny_pipe, copy, tmp_path / "two").digest == one.digest
    assert torch.equal(one.read(0)[0], load_corpus(tmp_path / "two").read(0)[0])
