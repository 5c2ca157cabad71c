from __future__ import annotations

import csv
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from excise.errors import ExciseError
from excise.neurons.contexts import Context
from excise.neurons.database import text_index
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Explanation, Measured, Provenance, Tag

ABOUT = Provenance("ab" * 32, "text_encoder/encoder.layers.2", 64, "some prompts", 3, "cd" * 32, "2026-01-01T00:00:00")
GUN = Context((" a", " gun", " on", " grass", "⟨end⟩"), (0.0, 3.0, 0.0, 0.5, 1.0))
FULL = Entry(
    5,
    density=0.25,
    peak=3.0,
    histogram=(1, 0, 2),
    contexts=(GUN,),
    spread=(Context(("a", " pistol"), (0.0, 0.25)),),
    nearest=(("rifle", 0.5), ("cannon", -0.1)),
    near=((7, 0.75), (9, 0.5)),
    tags=(Tag("weapon", 12.0, 0.99), Tag("metal", None, None)),
    explanation=Explanation("things that shoot", "a person", "2026-01-02T00:00:00"),
    scores={"detection": Measured(0.9, {"n": 20}), "fuzzing": Measured(None)},
    patterns=("a [gun]", {"text": "revolver", "support": 3}),
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[NeuronDatabase]:
    with NeuronDatabase.create(tmp_path / "neurons.db", ABOUT) as made:
        yield made


def found(database: NeuronDatabase, text: str) -> list[int]:
    return [entry.index for entry in database.search(text)]


def test_what_was_written_is_read_back(database: NeuronDatabase) -> None:
    database.add([FULL, Entry(9)])
    with NeuronDatabase.open(database.path) as again:
        assert again.provenance == ABOUT
        assert again.neuron(5) == FULL
        assert again.neuron(9) == Entry(9)
        assert list(again.entries()) == [FULL, Entry(9)]
        assert (len(again), again.indices()) == (2, [5, 9])


def test_neurons_that_are_there_are_kept(database: NeuronDatabase) -> None:
    database.add([FULL])
    database.add([Entry(5, density=0.9), Entry(6)])
    assert database.neuron(5) == FULL
    assert database.indices() == [5, 6]


def test_a_neuron_that_is_not_there(database: NeuronDatabase) -> None:
    database.add([Entry(5)])
    with pytest.raises(ExciseError, match="neuron 7 never fires"):
        database.neuron(7)
    for index in (64, -1, 10**30):
        with pytest.raises(ExciseError, match="there is no neuron"):
            database.set_explanation(index, "something", "somebody")


@pytest.mark.parametrize(
    "text", ["shoot", "SHOO things", "weapon", "revolver", "rifle", "grass", "pistol", "a gun", "5", "  gun  "]
)
def test_every_field_is_searched(text: str, database: NeuronDatabase) -> None:
    database.add([FULL, Entry(6, explanation=Explanation("flowers", "a person", ""))])
    assert found(database, text) == [5]


def test_the_end_of_a_text_is_no_word(database: NeuronDatabase) -> None:
    database.add([FULL])
    assert found(database, "end") == []


def test_what_is_said_counts_more_than_where_it_fires(database: NeuronDatabase) -> None:
    database.add(
        [
            Entry(1, contexts=(Context((" a", " blade"), (1.0, 0.0)),)),
            Entry(2, contexts=(Context((" blade",), (1.0,)),)),
            Entry(3, tags=(Tag("blade"),)),
            Entry(4, explanation=Explanation("a blade", "a person", "")),
        ]
    )
    assert found(database, "blade") == [3, 4, 2, 1]


def test_the_order_of_what_is_found(database: NeuronDatabase) -> None:
    texts = ["a blade", "blade", "Blades", "a blade and more", "blade", "hand and blade"]
    database.add(
        Entry(i, density=i / 10, explanation=Explanation(text, "a person", "")) for i, text in enumerate(texts)
    )
    # Whole words, the nearer to the beginning the better, of equals the one that fires more often; then beginnings.
    assert found(database, "blade") == [4, 1, 3, 0, 5, 2]
    assert text_index.relevance(["cafe", "x"], ["", "a cafe", "", "", "x"]) == 16 * (3 + (1 - 2 / 6) / 4) + 3.25


def test_the_search_against_looking_at_every_word(database: NeuronDatabase) -> None:
    rng = random.Random(0)
    words = ["gun", "gunner", "knife", "knives", "kite", "cat", "category", "dog"]
    texts = {i: " ".join(rng.sample(words, 3)) for i in range(60)}
    database.add(Entry(i, explanation=Explanation(text, "a person", "")) for i, text in texts.items())
    for query in ("gun", "kni", "cat dog", "ca kite gunn", "k", "dogs"):
        expected = {
            i for i, text in texts.items() if all(any(w.startswith(q) for w in text.split()) for q in query.split())
        }
        assert {entry.index for entry in database.search(query, 60)} == expected, query
    assert len(database.search("k", 7)) == 7


@pytest.mark.parametrize(
    "text", ['"', "'; DROP TABLE neurons; --", "NEAR(a b)", "a OR b", "gun NOT pistol", "%", "_", "\\", "*", ""]
)
def test_a_search_is_text_and_nothing_else(text: str, database: NeuronDatabase) -> None:
    database.add([FULL])
    assert found(database, text) == []
    assert len(database) == 1


def test_signs_that_are_no_words_are_found_as_they_stand(database: NeuronDatabase) -> None:
    database.add(
        [Entry(1, patterns=("100 %",)), Entry(2, patterns=("🔫 and 漢字",)), Entry(3, patterns=("100 times",))]
    )
    assert found(database, "%") == [1]
    assert found(database, "🔫") == [2]
    assert found(database, "字") == [2]


def test_a_change_is_searched_at_once_and_what_was_is_forgotten(database: NeuronDatabase) -> None:
    database.add([FULL])
    database.set_explanation(5, "a kind of flower", "somebody", "2026-02-03")
    database.set_patterns(5, ["petal"])
    database.add_tag(5, Tag("plant", 1.0, 0.5))
    database.add_tag(5, Tag("weapon", 2.0, 0.6))
    database.remove_tags("metal")
    assert [found(database, text) for text in ("flower", "petal", "plant", "weapon")] == [[5]] * 4
    assert [found(database, text) for text in ("shoot", "revolver", "metal")] == [[]] * 3
    entry = database.neuron(5)
    assert entry.explanation == Explanation("a kind of flower", "somebody", "2026-02-03")
    assert entry.tags == (Tag("weapon", 2.0, 0.6), Tag("plant", 1.0, 0.5))


def test_scores_stay_beside_each_other_and_what_is_undefined_is_none(database: NeuronDatabase) -> None:
    database.add([FULL])
    database.set_scores(5, {"simulation": Measured(float("nan"), [1, 2]), "detection": Measured(0.5)})
    assert database.neuron(5).scores == {
        "detection": Measured(0.5),
        "fuzzing": Measured(None),
        "simulation": Measured(None, [1, 2]),
    }


def test_a_change_is_whole_or_not_made(database: NeuronDatabase) -> None:
    database.add([FULL])
    with pytest.raises(ExciseError, match="score 'bad' cannot be stored as json"):
        database.set_scores(5, {"good": Measured(1.0), "bad": Measured(1.0, {"x": object()})})
    with pytest.raises(ExciseError, match="cannot be stored as json"):
        database.add([Entry(6), Entry(7, patterns=(float("nan"),))])
    assert database.indices() == [5]
    assert database.neuron(5) == FULL


def test_a_full_disk_leaves_what_was(database: NeuronDatabase) -> None:
    database.add([FULL])
    pages = database._connection.execute("PRAGMA page_count").fetchone()[0]
    database._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ExciseError, match="disk is full"):
        database.set_explanation(5, "words " * 10_000, "somebody")
    assert database.neuron(5) == FULL


def test_without_full_text_search(database: NeuronDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    database.add([FULL, Entry(6, tags=(Tag("shooting star"),))])
    with monkeypatch.context() as old:
        old.setattr(text_index, "has_full_text", lambda connection: False)
        assert found(database, "hoot") == [6, 5]
        database.set_explanation(6, "a hundred percent_sign", "somebody")
        assert found(database, "t_s") == [6]
        database.add([Entry(8, tags=(Tag("comet"),))])
    # The next sqlite that can brings the index up to date, before or after it changes something itself.
    database.set_explanation(8, "a tail", "somebody")
    assert found(database, "tail comet") == [8]
    assert found(database, "hundred") == [6]
    database.set_explanation(8, "ice", "somebody")
    assert found(database, "tail") == []


def test_intermediate_results_are_kept_until_it_is_finished(database: NeuronDatabase) -> None:
    database.keep(1, b"second")
    database.keep(0, b"\0first")
    with NeuronDatabase.open(database.path) as again:
        assert again.kept() == [b"\0first", b"second"]
    database.finish()
    assert database.kept() == []


def test_a_file_that_is_there_is_not_overwritten(database: NeuronDatabase) -> None:
    with pytest.raises(ExciseError, match="exists already"):
        NeuronDatabase.create(database.path, ABOUT)


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "foreign", "schema", "folder"])
def test_other_files_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "neurons.db"
    if kind == "text":
        path.write_text("no database at all\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "foreign":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE songs (name TEXT)")
    elif kind == "schema":
        NeuronDatabase.create(path, ABOUT).close()
        with sqlite3.connect(path) as newer:
            newer.execute("UPDATE meta SET value = '\"excise.neurons/9\"' WHERE key = 'schema'")
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ExciseError) as error:
        NeuronDatabase.open(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_damaged_database_says_so_in_one_line(database: NeuronDatabase) -> None:
    database.add(Entry(i, explanation=Explanation("word " * 200, "a person", "")) for i in range(40))
    database.close()
    whole = database.path.read_bytes()
    database.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExciseError) as error, NeuronDatabase.open(database.path) as cut:
        list(cut.entries())
    assert re.search("damaged|cannot use", str(error.value))
    assert "\n" not in str(error.value)
    database.path.write_bytes(whole)
    with sqlite3.connect(database.path) as other:
        other.execute("UPDATE neurons SET contexts = '[[[]]]' WHERE neuron = 3")
    with NeuronDatabase.open(database.path) as spoilt:
        assert spoilt.neuron(2).index == 2
        with pytest.raises(ExciseError, match="damaged"):
            spoilt.neuron(3)


def test_an_index_that_a_damaged_page_lost_is_refused(
    database: NeuronDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQL writes no NULL into a primary key, but SQLite reads one from a damaged page."""
    monkeypatch.setattr(database, "_all", lambda query: [(3,), (None,)])
    with pytest.raises(ExciseError, match=r"damaged .a neuron's index is not a whole number"):
        list(database.entries())


def test_export_as_jsonl(database: NeuronDatabase, tmp_path: Path) -> None:
    database.add([FULL, Entry(9)])
    database.export(tmp_path / "out.jsonl")
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines())
    assert first == json.loads(json.dumps(FULL.row()))
    assert first["contexts"] == [{"text": "a gun on grass", "tokens": list(GUN.tokens), "codes": list(GUN.codes)}]
    assert (second["neuron"], second["explanation"], second["tags"]) == (9, None, [])


def test_export_as_csv(database: NeuronDatabase, tmp_path: Path) -> None:
    database.add([FULL])
    database.export(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["neuron"], row["explanation"], row["explained_by"]) == ("5", "things that shoot", "a person")
    assert json.loads(row["tags"])[0] == {"concept": "weapon", "score": 12.0, "auroc": 0.99}
    assert json.loads(row["patterns"]) == list(FULL.patterns)


def test_an_explanation_is_no_formula_in_a_csv(database: NeuronDatabase, tmp_path: Path) -> None:
    texts = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1+1", "-2+3", "\tx", "\rx"]
    database.add([Entry(n, density=0.5) for n in range(100, 100 + len(texts))])
    for n, text in enumerate(texts, 100):
        database.set_explanation(n, text, "=by")
    database.export(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["neuron"]) >= 100]
    assert [row["explanation"] for row in rows] == [f"'{text}" for text in texts]
    assert {row["explained_by"] for row in rows} == {"'=by"}
    assert all(float(row["density"]) == 0.5 for row in rows)


def test_export_as_parquet(database: NeuronDatabase, tmp_path: Path) -> None:
    parquet: Any = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    database.add([FULL, Entry(9)])
    database.export(tmp_path / "out.parquet")
    full, bare = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert full["contexts"][0]["codes"] == list(GUN.codes)
    assert full["near"] == [{"neuron": 7, "cosine": 0.75}, {"neuron": 9, "cosine": 0.5}]
    assert json.loads(full["scores"][0]["detail"]) == {"n": 20}
    assert json.loads(full["patterns"][1]) == {"text": "revolver", "support": 3}
    assert (bare["neuron"], bare["explanation"], bare["histogram"]) == (9, None, [])


def test_export_refuses_another_ending(database: NeuronDatabase, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=r"\.jsonl, \.csv, \.parquet"):
        database.export(tmp_path / "out.xlsx")


def test_top_tokens_are_words_first() -> None:
    entry = Entry(1, contexts=(Context((" a", ",", " gun", "⟨end⟩"), (0.0, 5.0, 2.0, 9.0)), GUN))
    assert entry.top_tokens() == ["gun", "grass", ","]
    assert Entry(1, contexts=(Context((" a", "⟨end⟩"), (0.0, 1.0)),)).top_tokens() == ["⟨end⟩"]
