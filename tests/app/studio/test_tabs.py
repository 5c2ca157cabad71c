"""What the tabs choose to show, without a page."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from excise.app.studio.answers import html, offered
from excise.app.studio.tabs import audit, find, untouched
from excise.concepts.concept import mentioned
from excise.errors import InvalidSetting
from excise.neurons.flags import CHECKS


@pytest.mark.parametrize("bundled", [True, False])
def test_what_should_be_left_alone_does_not_ask_for_the_concept(bundled: bool, gun_eraser: Any) -> None:
    groups = untouched.groups_for(SimpleNamespace(bundled=bundled, benign=None), gun_eraser)
    assert [group.title for group in groups][-2:] == ["Controls", "Anything else"]
    for group in groups:
        assert len(group.prompts) == 3 == len(set(group.prompts))
        if group.title != "Other things with its name":
            assert not any(mentioned(prompt, ("gun",)) for prompt in group.prompts)
    if bundled:
        assert groups[0].prompts == ("a knife on grass", "a dagger on grass", "a bomb on grass")
        assert groups[1].prompts == (
            "a glue gun on grass",
            "a gunmetal grey tray on grass",
            "a top gun poster on grass",
        )


def test_neighbours_of_a_style_are_styles_and_of_an_unknown_thing_none() -> None:
    kin, shared = untouched._neighbours("pastel")
    assert kin.prompts == ("a cat in the outlined style", "a cat in the cartoon style", "a cat in the flat style")
    assert "a pasta on grass" in shared.prompts
    assert untouched._neighbours("teapot") == []


def test_prompts_of_a_file_come_instead_of_captions(gun_eraser: Any, tmp_path: Path) -> None:
    (tmp_path / "benign.txt").write_text("a gun\na quiet river\na red tram\n")
    groups = untouched.groups_for(SimpleNamespace(bundled=False, benign=tmp_path / "benign.txt"), gun_eraser)
    assert groups[-1].prompts == ("a quiet river", "a red tram") and groups[-1].why == "benign.txt"


def test_every_check_of_an_audit_has_plain_words() -> None:
    assert list(audit.PASSED) == list(CHECKS)


def test_words_are_needed_and_an_sae() -> None:
    for words in (" ", ",, ,"):
        with pytest.raises(InvalidSetting, match="write a word for the concept first"):
            find._find(SimpleNamespace(), words, "object")


def test_a_ranking_is_a_table_with_warnings() -> None:
    row = {
        "neuron": 7,
        "score": 1.5,
        "auroc": None,
        "control_share": 0.25,
        "structural": True,
        "top_tokens": ["<b>", ","],
    }
    found = SimpleNamespace(
        concept=SimpleNamespace(name="<i>gun"), found=SimpleNamespace(site=SimpleNamespace(key="here")),
        warnings=["a warning"], rows=[row],
    )  # fmt: skip
    made = html("ranking", found)
    assert "&lt;i&gt;gun" in made and "a warning" in made and "25.0 %" in made and "structural" in made
    assert "<td>–</td>" in made and '<td class="words">&lt;b&gt;</td>' in made


def test_a_download_stays_while_gradio_deletes_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The button stays on the page, so what it offers does."""
    gr = pytest.importorskip("gradio")
    from gradio.processing_utils import move_files_to_cache
    from gradio.route_utils import delete_files_created_by_app

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    with gr.Blocks() as page:
        button, picture = gr.DownloadButton(), gr.File()
    report, shown = tmp_path / "audit.html", tmp_path / "shown.png"
    for file, part in ((report, button), (shown, picture)):
        file.write_text("made by the studio")
        move_files_to_cache(
            {"path": str(file), "meta": {"_type": "gradio.FileData"}}, part, postprocess=True, keep_in_cache=False
        )
    assert offered(button, report)["value"] == str(report)
    delete_files_created_by_app(page, None)
    assert report.exists() and not shown.exists()
