"""Drawing prompts into a sheet or into a file each, what the files say of themselves, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from excise.app.erase.pictures import Asked, _blocks, check, counted, denoising_steps, draw_prompts, read_asked
from excise.erasers.guard.model_digest import model_digests
from excise.errors import ExciseError
from excise.sites.truncation import cuts

GUN, CAT = Asked("a gun on grass", (3, 4)), Asked("a cat", (3,))


def test_a_file_each_and_a_sheet_that_say_how_they_were_made(tiny_pipe: Any, gun_eraser: Any, tmp_path: Path) -> None:
    told: list[float] = []
    data = draw_prompts(
        tiny_pipe,
        [GUN, CAT],
        {"gun-test": gun_eraser},
        tmp_path / "sheet.png",
        out_dir=tmp_path / "each",
        compare=True,
        strength=0.8,
        steps=2,
        progress=told.append,
    )
    names = [
        f"{number:04d}-seed-{seed}-{side}.png"
        for number, seed in ((1, 3), (1, 4), (2, 3))
        for side in ("unerased", "erased")
    ]
    assert data["files"] == [str(tmp_path / "each" / name) for name in names]
    assert sorted(file.name for file in (tmp_path / "each").iterdir()) == sorted(names)
    assert data["pictures"] == 6 and data["seeds"] == [3, 4] and sum(told) == 2 * denoising_steps([GUN, CAT], 2) == 4
    with Image.open(tmp_path / "each" / "0001-seed-4-erased.png") as image:
        said = json.loads(image.info["excise"])
        assert image.size == (16, 16) and "Description" not in image.info
    assert said["seed"] == 4 and said["strength"] == 0.8 and said["steps"] == 2
    assert said["erasers"] == {"gun-test": gun_eraser.digest}
    assert said["model"]["sha256"] == model_digests(tiny_pipe) and set(said["model"]["sha256"]) == {
        "text_encoder",
        "unet",
    }
    with Image.open(tmp_path / "each" / "0002-seed-3-unerased.png") as image:
        plain = json.loads(image.info["excise"])
        assert "erasers" not in plain and "strength" not in plain
    with Image.open(tmp_path / "sheet.png") as image:
        assert json.loads(image.info["excise"])["seeds"] == [3, 4] and "Description" not in image.info
        assert all("gun" not in str(value) for key, value in image.info.items() if key == "Software")


def test_the_prompt_is_noted_only_where_asked(tiny_pipe: Any, tmp_path: Path) -> None:
    draw_prompts(tiny_pipe, [CAT], {}, None, out_dir=tmp_path / "each", keep_prompt=True, steps=1)
    (file,) = (tmp_path / "each").iterdir()
    with Image.open(file) as image:
        assert image.info["Description"] == "a cat"
        assert json.loads(image.info["excise"])["model"]["pipeline"] == "StableDiffusionPipeline"


def test_files_hold_what_the_sheet_shows_whatever_the_batch(tiny_pipe: Any, tmp_path: Path) -> None:
    many = [Asked(f"a cat {n}", (n,)) for n in range(9)]  # more than are drawn together
    draw_prompts(tiny_pipe, many, {}, None, out_dir=tmp_path, steps=1)
    from excise.reference import generate

    whole = generate(tiny_pipe, [one.prompt for one in many], list(range(9)), steps=1, batch_size=8)
    for n, file in enumerate(sorted(tmp_path.iterdir())):
        with Image.open(file) as image:
            assert (np.asarray(image) == whole[n]).all()


def test_a_sheets_heading_says_what_of_a_prompt_is_not_read(tiny_pipe: Any) -> None:
    long = "cat " * 100 + "a gun"
    found = cuts(tiny_pipe, [long])
    (block,) = _blocks([Asked(long, (0,))], {"unerased": np.zeros((1, 8, 8, 3), np.uint8)}, {}, found)
    read, lost = block.heading.split(" (not read: ")
    assert lost.endswith("a gun)") and "gun" not in read and f"{read} {found[0].lost}" == long
    (plain,) = _blocks([CAT], {"unerased": np.zeros((1, 8, 8, 3), np.uint8)}, {}, cuts(tiny_pipe, [CAT.prompt]))
    assert plain.heading == "a cat"


def test_a_broken_picture_leaves_its_neighbours(tiny_pipe: Any, tmp_path: Path) -> None:
    def spoil(_: Any, __: Any, made: Any) -> Any:
        made[1] = float("nan")
        return made

    hook = tiny_pipe.vae.decoder.register_forward_hook(spoil)
    try:
        with pytest.raises(ExciseError, match=r"2 of 10 pictures are broken \(seed 1: values that are not finite"):
            draw_prompts(tiny_pipe, [Asked("a cat", tuple(range(10)))], {}, None, out_dir=tmp_path / "each", steps=1)
        with pytest.raises(ExciseError, match="1 of 3 pictures are broken"):
            draw_prompts(tiny_pipe, [GUN, CAT], {}, tmp_path / "sheet.png", steps=1)
    finally:
        hook.remove()
    kept = {file.name for file in (tmp_path / "each").glob("*.png")}
    assert kept == {f"0001-seed-{seed}-unerased.png" for seed in range(10) if seed not in (1, 9)}
    assert not (tmp_path / "sheet.png").exists()


def test_the_same_call_draws_only_what_is_missing(tiny_pipe: Any, tmp_path: Path) -> None:
    asked, folder = [Asked("a cat", tuple(range(10)))], tmp_path / "each"

    def draw(asked: list[Asked], **options: Any) -> dict[str, Any]:
        check(asked, (), options.get("out"), folder, force=options.get("force", False))
        return draw_prompts(tiny_pipe, asked, {}, options.pop("out", None), out_dir=folder, steps=1, **options)

    def spoil(_: Any, __: Any, made: Any) -> Any:
        made[1] = float("nan")
        return made

    hook = tiny_pipe.vae.decoder.register_forward_hook(spoil)
    with pytest.raises(ExciseError, match=r"2 of 10 pictures are broken.*; 8 others are in .*each, and the same call"):
        draw(asked)
    hook.remove()
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.png")}
    for other, options in (([Asked("a dog", tuple(range(10)))], {}), (asked, {"guidance": 2.0})):
        with pytest.raises(ExciseError, match=r"0001-seed-0-unerased\.png is there already; replace it with --force"):
            draw(other, **options)
    told: list[float] = []
    data = draw(asked, out=tmp_path / "sheet.png", progress=told.append)
    assert (data["kept"], data["pictures"], sum(told)) == (8, 10, denoising_steps(asked, 1))
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    whole = draw_prompts(tiny_pipe, asked, {}, tmp_path / "again.png", out_dir=tmp_path / "whole", steps=1)
    assert whole["kept"] == 0
    for file in (tmp_path / "whole").iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()
    assert (tmp_path / "sheet.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    with pytest.raises(ExciseError, match="is there already; replace it with --force"):
        draw(asked)  # it is finished
    assert draw(asked, force=True)["kept"] == 0 and len(list(folder.iterdir())) == 10


def test_pictures_that_another_call_is_replacing_are_not_taken_for_its_own(tiny_pipe: Any, tmp_path: Path) -> None:
    draw_prompts(tiny_pipe, [CAT], {}, None, out_dir=tmp_path, steps=1)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_prompts(tiny_pipe, [Asked("a dog", (3,))], {}, None, out_dir=tmp_path, steps=1, force=True, progress=stop)
    with pytest.raises(ExciseError, match="is there already"):
        draw_prompts(tiny_pipe, [Asked("a dog", (3,))], {}, None, out_dir=tmp_path, steps=1)


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    there = tmp_path / "0001-seed-4-unerased.png"
    there.write_bytes(b"mine")
    with pytest.raises(ExciseError, match=r"0001-seed-4-unerased\.png is there already.*--force"):
        check([GUN], (), None, tmp_path)
    with pytest.raises(ExciseError, match="is there already"):
        check([GUN], ["eraser"], None, tmp_path, compare=True)
    check([GUN], ["eraser"], None, tmp_path)
    check([GUN], (), None, tmp_path, force=True)
    assert there.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("asked", "out", "out_dir", "says"),
    [
        ([], "a.png", None, "prompt is empty"),
        ([Asked("  ", (0,))], "a.png", None, "prompt is empty"),
        ([CAT], "a.jpg", None, r"must end in \.png"),
        ([CAT], "", None, "is a folder; name a file"),
        ([CAT], None, "file.txt", "is a file; name a folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused_first(
    asked: list[Asked], out: str | None, out_dir: str | None, says: str, tmp_path: Path
) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ExciseError, match=says):
        check(asked, (), None if out is None else tmp_path / out, None if out_dir is None else tmp_path / out_dir)


def test_prompts_come_from_files_with_their_own_seeds(tmp_path: Path) -> None:
    text, rows, more = tmp_path / "p.txt", tmp_path / "p.csv", tmp_path / "p.jsonl"
    text.write_text("a cat\n\na dog\n")
    rows.write_text("prompt,seed\na cat,7\na dog,\n")
    more.write_text('{"prompt": "a cat", "evaluation_seed": 18446744073}\n')
    assert read_asked(text, 2, 2).asked == [Asked("a cat", (2, 3)), Asked("a dog", (2, 3))]
    assert read_asked(rows, 1).asked == [Asked("a cat", (7,)), Asked("a dog", (1,))]
    assert read_asked(more).asked == [Asked("a cat", (18446744073,))]


def test_files_are_read_as_the_bench_reads_them(tmp_path: Path) -> None:
    rows, text, odd = tmp_path / "p.csv", tmp_path / "p.txt", tmp_path / "odd.csv"
    rows.write_text("case_number,prompt,evaluation_seed,guidance\n0,a cat,7.0,3\n1,a schoolboy,8,3\n")
    read = read_asked(rows)
    assert read.asked == [Asked("a cat", (7,))] and read.dropped == 1 and read.unread == ("guidance",)
    text.write_text("a cat\na schoolboy\n")
    assert (read_asked(text).asked, read_asked(text).dropped) == ([Asked("a cat", (0,))], 1)
    odd.write_text("prompt,sed\na cat,7\n")
    with pytest.raises(ExciseError, match="unknown columns: 'sed'"):
        read_asked(odd)


def test_seeds_of_64_bits_count_up_to_the_largest(tmp_path: Path) -> None:
    import torch

    assert counted(2**63 - 1, 2) == (2**63 - 1, 2**63)
    for seed in counted(2**64 - 2, 2):
        torch.Generator().manual_seed(seed)
    with pytest.raises(ExciseError, match="exceed 18446744073709551615"):
        counted(2**64 - 1, 2)
    (tmp_path / "p.csv").write_text(f"prompt,seed\na cat,{2**64 - 1}\n")
    with pytest.raises(ExciseError, match="exceed"):
        read_asked(tmp_path / "p.csv", n=2)


@pytest.mark.parametrize(
    ("seed", "says"), [("7.5", "line 2: seed is '7.5'"), ("-1", "a seed must be from 0"), ("x", "whole")]
)
def test_a_seed_that_is_no_whole_number_is_refused(seed: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text(f"prompt,seed\na cat,{seed}\n")
    with pytest.raises(ExciseError, match=says):
        read_asked(file)
