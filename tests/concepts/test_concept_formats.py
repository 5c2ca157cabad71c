from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from excise.concepts import Pair, builtin, load_pairs, read_prompts, save_pairs
from excise.errors import ExciseError

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_round_trip(tmp_path, ending):
    pairs = builtin("gun").pairs
    save_pairs(pairs, tmp_path / f"pairs.{ending}")
    assert load_pairs(tmp_path / f"pairs.{ending}") == pairs


@settings(max_examples=20, deadline=None)
@given(st.lists(st.builds(Pair, text, text, text | st.just("")), min_size=1, max_size=5))
def test_round_trip_of_any_text(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("pairs")
    for ending in ("csv", "jsonl"):
        save_pairs(pairs, folder / f"p.{ending}")
        assert load_pairs(folder / f"p.{ending}") == tuple(pairs)


def test_template_column_is_optional(tmp_path):
    (tmp_path / "p.csv").write_text("deconcept,concept\na cat,a gun\n")
    assert load_pairs(tmp_path / "p.csv") == (Pair("a gun", "a cat"),)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.csv", b"", "no pairs"),
        ("p.csv", b"concept,deconcept\n", "no pairs"),
        ("p.csv", b"with,without\na gun,a cat\n", "no column 'concept'; the columns are with, without"),
        ("p.csv", b"concept,deconcept\na gun,\n", "line 2: an empty side"),
        ("p.csv", b"concept,deconcept\na gun\n", "empty side"),
        ("p.csv", "concept,deconcept\na gün,a cat\n".encode("latin-1"), "not UTF-8"),
        ("p.jsonl", b'{"concept": "a gun", "deconcept"\n', "line 1: not JSON"),
        ("p.jsonl", b"[1]\n", "not a JSON object"),
        ("p.jsonl", b'{"concept": 3, "deconcept": "a"}\n', "is int, not text"),
        ("p.txt", b"a gun", ".csv or .jsonl"),
    ],
)
def test_broken_pairs(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ExciseError) as error:
        load_pairs(tmp_path / name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_endings_are_not_written(tmp_path):
    with pytest.raises(ExciseError, match="csv"):
        save_pairs(builtin("gun").pairs, tmp_path / "pairs.xml")
    assert list(tmp_path.iterdir()) == []


PROMPTS = ["a cat", "ein Bär, müde", 'a "quoted" dog']


def write(folder, ending, column="prompt"):
    path = folder / f"prompts.{ending}"
    if ending == "txt":
        path.write_text("\ufeff" + "\r\n\r\n".join(PROMPTS), encoding="utf-8")
    elif ending == "jsonl":
        path.write_text("".join(json.dumps({"id": 1, column: p}) + "\n\n" for p in PROMPTS), encoding="utf-8")
    elif ending == "csv":
        rows = [f'1,"{p.replace(chr(34), chr(34) * 2)}"' for p in PROMPTS]
        path.write_text("\n".join([f"id,{column}", *rows, "2,"]), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": [1, 2, 3, 4], column: [*PROMPTS, None]}), path)
    return path


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl", "parquet"])
def test_prompts_of_every_kind_of_file(tmp_path, ending):
    assert list(read_prompts(write(tmp_path, ending))) == PROMPTS


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_wrong_column_names_those_found(tmp_path, ending):
    with pytest.raises(ExciseError, match="no column 'text'; the columns are id, prompt"):
        read_prompts(write(tmp_path, ending), "text")
    assert list(read_prompts(write(tmp_path, ending, "text"), "text")) == PROMPTS


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"\n  \n", "no prompts"),
        ("p.csv", b"prompt\n", "no prompts"),
        ("p.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("p.csv", b"prompt\n\xe9\n", "not UTF-8"),
        ("p.doc", b"a cat", ".parquet"),
    ],
)
def test_broken_prompts_are_refused_at_the_call(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ExciseError) as error:
        read_prompts(tmp_path / name)
    assert message in str(error.value)


def test_missing_file_folder_and_false_parquet(tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name in ("none.txt", "folder.txt", "none.parquet"):
        with pytest.raises(ExciseError):
            read_prompts(tmp_path / name)
    (tmp_path / "false.parquet").write_bytes(b"a cat")
    with pytest.raises(ExciseError):
        read_prompts(tmp_path / "false.parquet")


def test_prompts_are_streamed(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"a cat\n" * 100_000 + b"\xff\n")
    prompts = read_prompts(path)
    assert next(prompts) == "a cat"
    with pytest.raises(ExciseError, match="UTF-8"):
        list(prompts)
