from __future__ import annotations

import json
from pathlib import Path

import pytest

from excise.concepts import parts, read_prompts
from excise.concepts.parts import Part, parts_of, read_part
from excise.errors import ExciseError

PROMPTS = [
    "a gun",
    "",
    "  an owl on a «branch»  ",
    "ein Mädchen",
    *(f"prompt {n}" for n in range(20)),
    "\u2028 the end",
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROWS", 4)


def write(folder: Path, ending: str) -> Path:
    path = folder / f"corpus{ending}"
    if ending == ".txt":
        path.write_text("\ufeff" + "\n".join(PROMPTS), encoding="utf-8")
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({"prompt": text}) + "\r\n" for text in PROMPTS), encoding="utf-8")
    elif ending == ".csv":
        path.write_text("prompt\n" + "".join(f'"{text}"\n' for text in PROMPTS), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"prompt": [*PROMPTS, None]}), path, row_group_size=4)
    return path


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet"])
def test_the_parts_of_a_file_are_all_its_prompts_in_order(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, ending)
    found = list(parts_of(path))
    read = [row for part in found for row in read_part(part)]
    assert [text for _, text in read] == list(read_prompts(path))
    assert [part.number for part in found] == list(range(len(found))) and len(found) == (1 if ending == ".csv" else 7)
    if ending != ".csv":
        assert all(PROMPTS[row].strip() == text for row, text in read)


def test_a_folders_files_are_read_by_name(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second\n"), ("a.txt", "first\n"), ("c.json", "{}")):
        (tmp_path / name).write_text(text)
    found = list(parts_of(tmp_path))
    assert [read_part(part) for part in found] == [[(0, "first")], [(0, "second")]]
    assert [part.number for part in found] == [0, 1]


def test_bad_corpora_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, why in (
        (tmp_path / "empty", "has no file of prompts; its files must end in .txt"),
        (tmp_path / "gone.txt", "cannot read .*gone.txt: No such file"),
        (tmp_path / "prompts.doc", "a .txt, .jsonl, .csv, .parquet file is needed"),
    ):
        with pytest.raises(ExciseError, match=why):
            list(parts_of(path))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 5 + '{"text": "b"}\n')
    (first, second) = parts_of(tmp_path / "rows.jsonl")
    assert len(read_part(first)) == 4
    with pytest.raises(ExciseError, match="line 6: no column 'prompt'; the columns are text"):
        read_part(second)
    (tmp_path / "bad.txt").write_bytes(b"a\xff\n")
    with pytest.raises(ExciseError, match="not UTF-8"):
        read_part(Part(0, str(tmp_path / "bad.txt"), "lines", 0, 3))
