"""`excise generate`: prompts from a file, pictures one by one, and what is refused before anything is generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_prompts_of_a_file_become_numbered_pictures(call: Any, model_folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.csv", tmp_path / "each"
    file.write_text("prompt,seed\na cat,7\na dog,\n")
    arguments = ("generate", "--model", model_folder, "--prompts", file, "--steps", 1, "--seed", 2, "--out-dir", out)
    made = call(*arguments)
    assert made.exit_code == 0, made.output
    assert sorted(path.name for path in out.iterdir()) == ["0001-seed-7-unerased.png", "0002-seed-2-unerased.png"]
    assert f"{out}: 2 pictures, seeds 2 to 7" in made.stdout
    again = call(*arguments)
    assert again.exit_code == 2 and "is there already" in again.stderr
    assert call(*arguments, "--force").exit_code == 0
    file.write_text("prompt,seed,guidance\na cat,7,3\na schoolboy,8,3\n")
    dropped = call(*arguments, "--force")
    assert dropped.exit_code == 0 and "left out 1 of 2 prompts, which mention minors" in dropped.stderr
    assert f"{out}: 1 picture, seed 7" in dropped.stdout
    assert "ignored guidance; all pictures use --guidance" in dropped.stderr
    none = call("generate", "--model", model_folder)
    assert none.exit_code == 2 and "give --prompt TEXT, or a file with --prompts" in none.stderr
    assert "erases nothing" not in none.stderr
    at_zero = call("generate", "--model", model_folder, "--eraser", tmp_path, "--strength", 0)
    assert at_zero.exit_code == 2 and "warning: --strength 0 erases nothing" in at_zero.stderr
