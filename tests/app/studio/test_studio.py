"""What the studio does without a page: pictures, readings, neurons turned, and failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from excise import sae
from excise.app.studio import answers, steering
from excise.app.studio.readings import PADDING, cut_note, read_neurons, verdict
from excise.app.studio.studio import (
    Candidate,
    Studio,
    checked_lines,
    checked_prompt,
    checked_seed,
    checked_strength,
    load_candidates,
)
from excise.concepts.everyday import everyday
from excise.erasers.edits.sae_rows import sae_digest
from excise.errors import EraserDidNotFire, ExciseError, InvalidSetting, NotFound, WrongModel
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Provenance
from excise.sites import capture

GUN, CAT = "a gun on grass", "a cat on grass"


@pytest.fixture
def open_studio(tiny_pipe: Any, gun_eraser: Any, tmp_path: Path) -> Callable[..., Studio]:
    """Return a function that opens a studio on the tiny pipeline, with the options of `Studio`."""

    def made(**options: Any) -> Studio:
        candidates = {"gun": Candidate(gun_eraser, tmp_path)}
        given = {"bundled": False, "model": "tiny", "steps": 2, "guidance": None, **options}
        return Studio(tiny_pipe, candidates, **given)

    return made


@pytest.fixture
def sae_folder(word_sae: Any, tiny_site: Any, tmp_path: Path) -> Path:
    sae.save(word_sae, tmp_path / "sae", {"site": asdict(tiny_site), "corpus": "made for a test"})
    return tmp_path / "sae"


def states(pipe: Any, site: Any, prompt: str) -> torch.Tensor:
    (features,) = capture(pipe, [site], [prompt])
    return features.states[site][0]


def test_a_picture_changes_where_the_neuron_fires_and_is_identical_where_it_is_silent(
    open_studio: Callable[..., Studio], gun_eraser: Any, tiny_pipe: Any
) -> None:
    studio = open_studio()
    fired, silent = (studio.compare(gun_eraser, prompt, 7) for prompt in (GUN, CAT))
    assert fired.rows > 0 and not fired.identical and (fired.before != fired.after).any()
    assert silent.rows == 0 and silent.identical
    none = studio.compare(gun_eraser, GUN, 7, 0.0)
    assert none.rows == 0 and none.identical and (none.before == fired.before).all()
    texts = [
        verdict(gun_eraser, read_neurons(tiny_pipe, gun_eraser, prompt), seen, strength).text
        for prompt, seen, strength in ((GUN, fired, 1.0), (CAT, silent, 1.0), (GUN, none, 0.0))
    ]
    assert texts[0].startswith("Fires: neuron 5 reaches ") and texts[0].endswith("the picture is different.")
    assert f"{fired.rows} text states were edited" in texts[0].lower()
    assert texts[1].startswith("Silent: neuron 5 ") and "No text state was edited, and" in texts[1]
    assert texts[1].endswith("the picture is identical, bit for bit.")
    assert "At strength 0 nothing is edited, and the picture is identical" in texts[2]


def test_only_the_erased_picture_is_generated_again(
    open_studio: Callable[..., Studio], gun_eraser: Any, tiny_pipe: Any
) -> None:
    studio, calls = open_studio(), []
    tiny_pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    each = []
    for strength in (1.0, 0.5, 1.0):
        calls.clear()
        studio.compare(gun_eraser, GUN, 7, strength)
        each.append(len(calls))
    assert each == [4, 2, 2], "two steps a picture, and the plain one only the first time"
    read = studio.read(gun_eraser, GUN)
    assert read == read_neurons(tiny_pipe, gun_eraser, GUN) and studio.read(gun_eraser, GUN) is read
    assert studio.read(gun_eraser, CAT) != read


def test_a_refused_eraser_stops_the_studio_before_it_opens(
    open_studio: Callable[..., Studio], build_pipe: Callable[..., Any], gun_eraser: Any, tmp_path: Path
) -> None:
    with pytest.raises(WrongModel):
        Studio(build_pipe(seed=1), {"gun": Candidate(gun_eraser, tmp_path)}, bundled=False)


def test_a_tampered_encoder_is_refused_and_nothing_is_rendered(
    open_studio: Callable[..., Studio], gun_eraser: Any, tiny_pipe: Any
) -> None:
    studio = open_studio()
    studio.compare(gun_eraser, GUN, 7)
    with torch.no_grad():
        tiny_pipe.text_encoder.get_input_embeddings().weight.mul_(2.0)
    with pytest.raises(EraserDidNotFire) as caught:
        studio.compare(gun_eraser, GUN, 7)
    line = answers.refusal(caught.value)
    assert 'role="alert"' in line and "<b>Refused:</b>" in line


def test_the_pipeline_is_as_before_and_files_are_gone_when_it_closes(
    open_studio: Callable[..., Studio], gun_eraser: Any, tiny_pipe: Any
) -> None:
    before = sorted(name for name, value in vars(tiny_pipe).items() if callable(value))
    studio = open_studio()
    (studio.scratch / "picture.png").write_bytes(b"x")
    studio.compare(gun_eraser, GUN, 7)
    studio.close()
    assert not studio.scratch.exists()
    assert sorted(name for name, value in vars(tiny_pipe).items() if callable(value)) == before
    assert not any(module._forward_hooks for module in tiny_pipe.text_encoder.modules())


def test_readings_are_the_eraser_rows_on_the_prompts_states(tiny_pipe: Any, gun_eraser: Any, tiny_site: Any) -> None:
    (reading,) = read_neurons(tiny_pipe, gun_eraser, GUN)
    (edit,) = gun_eraser.edits
    h = states(tiny_pipe, tiny_site, GUN)
    by_hand = [
        max(0.0, sum(float(a) * float(b) for a, b in zip(row - edit.b_pre, edit.W_enc[0], strict=True)) + edit.b_enc[0])
        for row in h
    ]
    words = ["a", "gun", "on", "grass", "⟨end⟩"]
    assert [token.text for token in reading.tokens] == [*words, PADDING]
    codes = [token.code for token in reading.tokens]
    np.testing.assert_allclose(codes[:5], by_hand[1:6], atol=1e-4)
    np.testing.assert_allclose(codes[5], max(by_hand[6:]), atol=1e-4)
    assert reading.fires and reading.peak == max(codes) and (reading.neuron, reading.site) == (5, tiny_site.key)
    assert [token.fires for token in reading.tokens] == [code > reading.threshold for code in codes]
    (silent,) = read_neurons(tiny_pipe, gun_eraser, CAT)
    assert not silent.fires


def test_a_long_prompt_says_what_is_not_read(tiny_pipe: Any, gun_eraser: Any) -> None:
    prompt = f"{'a cat and ' * 30}a gun"
    note = cut_note(tiny_pipe, prompt, gun_eraser)
    assert note.startswith("The model reads 77 tokens of a prompt. It did not read the end: “")
    assert note.endswith("a gun”. “gun” is in that end.")
    assert cut_note(tiny_pipe, GUN, gun_eraser) == ""
    (reading,) = read_neurons(tiny_pipe, gun_eraser, prompt)
    assert len(reading.tokens) == 76 and reading.tokens[-1].text == "⟨end⟩"


def database_of(sae: str, path: Path) -> Path:
    """Write a database that knows neuron 5 of an SAE, whose peak is 2.5."""
    about = Provenance(sae, "text_encoder/encoder.layers.2", 64, "a corpus", 1, "", "2026")
    with NeuronDatabase.create(path, about) as database:
        database.add([Entry(5, density=0.1, peak=2.5)])
    return path


def test_a_neuron_turned_down_loses_what_it_writes(
    open_studio: Callable[..., Studio], sae_folder: Path, tiny_pipe: Any, tiny_site: Any, word_sae: Any
) -> None:
    studio = open_studio(sae=sae_folder)
    h = states(tiny_pipe, tiny_site, GUN)
    pre = (h - word_sae.b_pre) @ word_sae.W_enc.T + word_sae.b_enc
    best = pre.topk(8, 1)
    z = torch.zeros_like(pre).scatter(1, best.indices, best.values.clamp(min=0))[:, 5:6]
    z[0] = 0  # BOS
    down = steering.turn_down(studio, GUN, 5)
    assert down is not None and bool((z > 0).any())
    torch.testing.assert_close(down.codes[:, None], z, atol=1e-4, rtol=1e-4)
    (edit,) = down.eraser.edits
    torch.testing.assert_close(edit.apply(h[None], 1.0)[0], h - z @ word_sae.W_dec[5:6], atol=1e-4, rtol=1e-4)
    assert steering.turn_down(studio, CAT, 5) is None, "it is silent there"


def test_a_neuron_turned_up_adds_its_peak_to_every_state_but_the_first(
    open_studio: Callable[..., Studio], sae_folder: Path, tiny_pipe: Any, tiny_site: Any, word_sae: Any, tmp_path: Path
) -> None:
    studio = open_studio(sae=sae_folder, database=database_of(sae_digest(word_sae), tmp_path / "neurons.db"))
    up, cat = steering.turn_up(studio, CAT, 5), states(tiny_pipe, tiny_site, CAT)
    wanted = cat + 2.5 * word_sae.W_dec[5]
    wanted[0] = cat[0]
    (edit,) = up.eraser.edits
    torch.testing.assert_close(edit.apply(cat[None], -1.0)[0], wanted, atol=1e-4, rtol=1e-4)
    seen = studio.compare(up.eraser, CAT, 7, -1.0, amplify=True)
    assert not seen.identical and seen.rows == 76
    with pytest.raises(ExciseError, match="neuron 6 never fires on the corpus"):
        steering.turn_up(studio, CAT, 6)
    for value in (-1, 64, 1.5, None):
        with pytest.raises(InvalidSetting, match="has 64 neurons"):
            steering.checked_neuron(studio, value)


def test_without_a_database_a_neurons_peak_is_measured(
    open_studio: Callable[..., Studio], sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "PROMPTS", 20)
    studio = open_studio(sae=sae_folder)
    found = {neuron: steering.known(studio, neuron) for neuron in range(64)}
    loudest = max(found, key=lambda neuron: found[neuron][0].peak or 0.0)
    entry, corpus = found[loudest]
    codes = [steering.prompt_codes(studio, steering.site_of(studio), text, loudest)[1:] for text in everyday(20)]
    assert corpus == "20 everyday prompts"
    assert entry.peak == pytest.approx(max(float(code.max()) for code in codes), abs=1e-4)
    assert steering.usual_peak(studio, loudest) == entry.peak == pytest.approx(entry.contexts[0].peak)
    studio.close()
    with pytest.raises(InvalidSetting, match="start the studio with --sae"):
        steering.site_of(open_studio())


def test_a_database_of_another_sae_is_refused(
    open_studio: Callable[..., Studio], sae_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(WrongModel, match="describes another SAE than"):
        open_studio(sae=sae_folder, database=database_of("0" * 64, tmp_path / "other.db"))


@pytest.mark.parametrize(
    ("check", "value", "says"),
    [
        (checked_prompt, "  \n ", "write a prompt first"),
        (checked_prompt, None, "write a prompt first"),
        (checked_prompt, "a" * 4001, "4,001 characters"),
        (checked_seed, -1, "whole number"),
        (checked_seed, 1.5, "whole number"),
        (checked_seed, float("nan"), "whole number"),
        (checked_seed, None, "whole number"),
        (checked_strength, 2.1, "from 0 to 2"),
        (checked_strength, float("nan"), "from 0 to 2"),
        (checked_strength, "1", "from 0 to 2"),
        (lambda text: checked_lines(text, 2), "a\nb\nc", "there are 3 prompts"),
    ],
)
def test_bad_input_is_one_clear_line(check: Callable[[Any], Any], value: Any, says: str) -> None:
    with pytest.raises(InvalidSetting, match=says):
        check(value)


def test_good_input_is_taken_as_it_is() -> None:
    assert checked_prompt(" a gun\n on grass ") == GUN and checked_seed(7.0) == 7 and checked_strength(0) == 0.0
    assert checked_lines("a gun\n\na cat\na gun\n", 3) == ["a gun", "a cat"]


def test_a_failure_empties_what_was_shown_and_never_quotes_a_defects_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(prompt: str) -> Any:
        raise EraserDidNotFire(f"<b>{prompt}</b>")

    def broken(prompt: str) -> Any:
        raise ValueError(prompt)

    def flowing(prompt: str) -> Any:
        yield {"table": "one"}
        raise EraserDidNotFire(prompt)

    shown = answers.guarded(refused, "notice", ["picture"])("secret")
    assert shown["picture"] is None and "Refused:</b> &lt;b&gt;secret" in shown["notice"]
    shown = answers.guarded(broken, "notice", ["picture"])("secret")
    assert shown["picture"] is None and "ValueError" in shown["notice"] and "secret" not in shown["notice"]
    first, second = answers.guarded(flowing, "notice", ["table"])("secret")
    assert first == {"notice": "", "table": "one"} and second["table"] is None and second["notice"]
    out = capsys.readouterr()
    assert "secret" not in out.out + out.err and "in broken" in out.err


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    small = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = answers.enlarged(small)
    assert large.shape == (384, 384, 3) and (large[::192, ::192] == small).all()
    assert answers.enlarged(np.zeros((512, 512, 3), np.uint8)).shape == (512, 512, 3)


def test_erasers_are_loaded_with_their_folders(gun_eraser: Any, tmp_path: Path) -> None:
    gun_eraser.save(tmp_path / "erasers" / "one")
    loaded = load_candidates([tmp_path / "erasers"])
    assert {name: one.folder for name, one in loaded.items()} == {"gun-test": tmp_path / "erasers" / "one"}
    with pytest.raises(NotFound):
        load_candidates([tmp_path / "nothing"])
