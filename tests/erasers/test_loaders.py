from __future__ import annotations

import linecache
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import excise
import excise.health
from excise.erasers import Eraser
from excise.erasers.artefact.verdict import WeakEraser
from excise.errors import EraserDidNotFire, ExciseError

GUN = "a gun on grass"


@pytest.fixture
def saved(gun_eraser: Eraser, tmp_path: Path) -> Path:
    gun_eraser.save(tmp_path / "gun")
    return tmp_path / "gun"


def states(pipe: Any, prompt: str = GUN) -> Any:
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, True)[0]


def second(eraser: Eraser) -> Eraser:
    """Another eraser for the same pipeline: the same neuron, turned down further."""
    return replace(eraser, name="second", edits=(replace(eraser.edits[0], lam=3.0),))


def test_load_and_unload_leave_no_trace(tiny_pipe: Any, saved: Path) -> None:
    before = states(tiny_pipe)
    attachment = excise.load_eraser(tiny_pipe, saved, name="gun")
    assert excise.get_active_erasers(tiny_pipe) == ["gun"]
    assert excise.list_erasers(tiny_pipe)["gun"] == attachment.status()
    assert not torch.equal(states(tiny_pipe), before)
    excise.unload_eraser(tiny_pipe, "gun")
    assert torch.equal(states(tiny_pipe), before)
    assert excise.list_erasers(tiny_pipe) == {}
    with excise.load_eraser(tiny_pipe, saved):
        assert excise.get_active_erasers(tiny_pipe) == ["gun-test"]
    assert torch.equal(states(tiny_pipe), before)


def test_a_weak_eraser_warns_once_at_the_users_line_and_its_status_says_why(
    tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path
) -> None:
    def weak(eraser: Eraser) -> Eraser:
        return replace(eraser, verdict={"weak": ["“pistol” is missed"]})

    weak(gun_eraser).save(tmp_path / "both" / "gun")
    weak(second(gun_eraser)).save(tmp_path / "both" / "second")
    second(gun_eraser).save(tmp_path / "sound")
    for folder, names in (("both/gun", 1), ("both", 2)):
        with pytest.warns(WeakEraser) as warned:
            excise.load_eraser(tiny_pipe, tmp_path / folder)  # this line
        (warning,) = warned
        assert warning.filename == __file__
        assert linecache.getline(__file__, warning.lineno).endswith("# this line\n")
        assert str(warning.message).count("is weak: “pistol” is missed") == names
        assert [status["weak"] for status in excise.list_erasers(tiny_pipe).values()] == [
            ["“pistol” is missed"]
        ] * names
        excise.unload_eraser(tiny_pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached = excise.load_eraser(tiny_pipe, tmp_path / "sound", name="gun")
    assert attached.status()["weak"] == []
    with pytest.warns(WeakEraser) as warned:
        excise.replace_eraser(tiny_pipe, "gun", tmp_path / "both" / "gun")
    assert [warning.filename for warning in warned] == [__file__]
    excise.unload_eraser(tiny_pipe)


def test_setting_erasers_makes_exactly_those_active(tiny_pipe: Any, gun_eraser: Eraser, saved: Path) -> None:
    plain = states(tiny_pipe)
    excise.load_eraser(tiny_pipe, saved, name="gun")
    alone = states(tiny_pipe)
    second(gun_eraser).attach(tiny_pipe)
    both = states(tiny_pipe)
    excise.set_erasers(tiny_pipe, "gun")
    assert torch.equal(states(tiny_pipe), alone)
    assert excise.get_active_erasers(tiny_pipe) == ["gun"]
    excise.set_erasers(tiny_pipe, ["gun", "second"], [1.0, 1.0])
    assert torch.equal(states(tiny_pipe), both)
    excise.set_erasers(tiny_pipe, ["second", "gun"], [0.5, 0.0])
    assert excise.get_active_erasers(tiny_pipe) == ["second"]
    excise.set_erasers(tiny_pipe, [])
    assert torch.equal(states(tiny_pipe), plain)
    excise.enable_erasers(tiny_pipe)
    assert excise.list_erasers(tiny_pipe)["second"]["strength"] == 0.5
    excise.disable_erasers(tiny_pipe)
    assert torch.equal(states(tiny_pipe), plain)
    excise.unload_eraser(tiny_pipe)
    assert excise.list_erasers(tiny_pipe) == {}


def test_an_impossible_setting_changes_nothing(tiny_pipe: Any, saved: Path) -> None:
    excise.load_eraser(tiny_pipe, saved, name="gun", strength=0.7)
    cases: list[tuple[Any, Any, str]] = [
        (["gun", "knife"], 1.0, "no eraser called 'knife' is loaded; loaded are gun"),
        (["gun"], [1.0, 2.0], "1 erasers but 2 strengths"),
        (["gun"], -1.0, "would amplify 'gun'"),
        (["gun"], float("nan"), "must be a finite number"),
    ]
    for names, strengths, message in cases:
        with pytest.raises(ExciseError, match=message):
            excise.set_erasers(tiny_pipe, names, strengths)
        assert excise.list_erasers(tiny_pipe)["gun"]["strength"] == 0.7
    with pytest.raises(ExciseError, match="no eraser called 'knife'"):
        excise.unload_eraser(tiny_pipe, "knife")


def test_what_is_not_a_pipeline_is_refused(tiny_pipe: Any, saved: Path) -> None:
    excise.load_eraser(tiny_pipe, saved, name="gun")
    calls: list[Any] = [
        excise.unload_eraser,
        excise.enable_erasers,
        excise.disable_erasers,
        excise.list_erasers,
        excise.get_active_erasers,
        lambda pipe: excise.set_erasers(pipe, []),
        lambda pipe: excise.delete_erasers(pipe, []),
        lambda pipe: excise.replace_eraser(pipe, "gun", saved),
        lambda pipe: excise.using(pipe, {}).__enter__(),
        excise.health.ready,
    ]
    for given, what in (("gun", "'gun'"), (tiny_pipe.unet, "a UNet2DConditionModel"), (None, "a NoneType")):
        for call in calls:
            with pytest.raises(excise.WrongModel, match=f"^{what} is not a pipeline; load one"):
                call(given)
    assert excise.get_active_erasers(tiny_pipe) == ["gun"]


def test_a_name_is_given_once(tiny_pipe: Any, gun_eraser: Eraser, saved: Path) -> None:
    excise.load_eraser(tiny_pipe, saved, name="gun")
    with pytest.raises(ExciseError, match="an eraser called 'gun' is attached already"):
        second(gun_eraser).attach(tiny_pipe, name="gun")
    assert list(excise.list_erasers(tiny_pipe)) == ["gun"]


def test_an_eraser_comes_from_the_hubs_cache(
    tiny_pipe: Any, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo, commit = tmp_path / "cache" / "models--someone--gun", "0" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "snapshots").mkdir()
    saved.rename(repo / "snapshots" / commit)
    with excise.load_eraser(tiny_pipe, "someone/gun") as attachment:
        assert attachment.active
    with pytest.raises(ExciseError, match="not a folder, and no eraser was found on the hub"):
        excise.load_eraser(tiny_pipe, "someone/nothing")


def test_amplifying_has_to_be_asked_for(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    plain = states(tiny_pipe)
    with pytest.raises(ExciseError, match="allow_amplify=True"):
        gun_eraser.attach(tiny_pipe, strength=-1.0)
    with gun_eraser.attach(tiny_pipe, strength=-1.0, allow_amplify=True) as attachment:
        up = states(tiny_pipe)
        assert attachment.status()["allow_amplify"]
        attachment.strength = 1.0
        down = states(tiny_pipe)
    assert not torch.equal(up, plain)
    assert not torch.equal(up, down)


def test_what_becomes_of_a_bypass_is_a_choice_that_shows(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    foreign = states(tiny_pipe)

    def encode() -> Any:
        with torch.no_grad():
            return tiny_pipe.encode_prompt(None, "cpu", 1, False, prompt_embeds=foreign)

    with gun_eraser.attach(tiny_pipe) as attachment:
        with pytest.raises(EraserDidNotFire, match="prompt_embeds were not encoded under"):
            encode()
        assert (attachment.status()["on_bypass"], attachment.status()["bypasses"]) == ("raise", 1)
    with gun_eraser.attach(tiny_pipe, on_bypass="warn") as attachment:
        with pytest.warns(UserWarning, match="were not encoded under"):
            encode()
        assert attachment.status()["bypasses"] == 1
    with gun_eraser.attach(tiny_pipe, on_bypass="allow") as attachment:
        encode()
        assert attachment.status()["bypasses"] == 1
    with pytest.raises(ExciseError, match="it is raise, warn or allow"):
        gun_eraser.attach(tiny_pipe, on_bypass="ignore")  # type: ignore[arg-type]


def test_deleting_takes_off_the_named_erasers_alone(tiny_pipe: Any, gun_eraser: Eraser, saved: Path) -> None:
    plain = states(tiny_pipe)
    excise.load_eraser(tiny_pipe, str(saved), name="gun")
    second(gun_eraser).attach(tiny_pipe)
    with pytest.raises(excise.NotFound, match="no eraser called 'knife'"):
        excise.delete_erasers(tiny_pipe, ["gun", "knife"])
    assert list(excise.list_erasers(tiny_pipe)) == ["gun", "second"]
    excise.delete_erasers(tiny_pipe, "gun")
    assert list(excise.list_erasers(tiny_pipe)) == ["second"]
    excise.delete_erasers(tiny_pipe, ["second"])
    assert torch.equal(states(tiny_pipe), plain)
    excise.delete_erasers(tiny_pipe, [])


def test_an_eraser_that_is_being_proved_is_not_listed(
    tiny_pipe: Any, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch
) -> None:
    from excise.erasers import attachment as module

    seen, moved = list[Any](), module.moved

    def proving(attachment: Any) -> Any:
        seen.append((excise.get_active_erasers(tiny_pipe), excise.list_erasers(tiny_pipe)))
        return moved(attachment)

    monkeypatch.setattr(module, "moved", proving)
    with gun_eraser.attach(tiny_pipe, name="gun"):
        assert excise.get_active_erasers(tiny_pipe) == ["gun"]
    assert seen == [([], {})]


def test_a_setting_made_while_the_new_eraser_loads_is_taken_over(
    tiny_pipe: Any, gun_eraser: Eraser, saved: Path, tmp_path: Path
) -> None:
    """Another thread sets the old eraser while the new one is being proved."""
    second(gun_eraser).save(tmp_path / "second")
    old = excise.load_eraser(tiny_pipe, saved, name="gun", on_bypass="warn")
    encode = tiny_pipe.text_encoder.register_forward_hook(lambda module, given, made: setting_it())

    def setting_it() -> None:
        excise.set_erasers(tiny_pipe, "gun", 0.25)
        old.on_bypass = "raise"  # type: ignore[union-attr]

    new = excise.replace_eraser(tiny_pipe, "gun", tmp_path / "second")
    encode.remove()
    assert (new.name, new.eraser.name, new.strength, new.on_bypass) == ("gun", "second", 0.25, "raise")
    given = excise.replace_eraser(tiny_pipe, "gun", saved, strength=0.5, on_bypass="warn")
    assert (given.strength, given.on_bypass) == (0.5, "warn")
    assert excise.get_active_erasers(tiny_pipe) == ["gun"]


def test_a_negative_strength_is_taken_over_only_if_the_new_eraser_may_amplify(
    tiny_pipe: Any, gun_eraser: Eraser, saved: Path, tmp_path: Path
) -> None:
    second(gun_eraser).save(tmp_path / "second")
    old = excise.load_eraser(tiny_pipe, saved, name="gun", strength=-1.0, allow_amplify=True)
    with pytest.raises(excise.InvalidSetting, match="would amplify"):
        excise.replace_eraser(tiny_pipe, "gun", tmp_path / "second", allow_amplify=False)
    assert excise.list_erasers(tiny_pipe) == {"gun": old.status()}
    assert excise.replace_eraser(tiny_pipe, "gun", tmp_path / "second").strength == -1.0


def test_replacing_an_eraser_by_itself_keeps_it_attached(tiny_pipe: Any, gun_eraser: Eraser, saved: Path) -> None:
    old = excise.load_eraser(tiny_pipe, saved, name="gun", strength=0.75)
    assert excise.replace_eraser(tiny_pipe, "gun", saved) is old
    assert (old.attached, old.strength, excise.get_active_erasers(tiny_pipe)) == (True, 0.75, ["gun"])  # type: ignore
    assert excise.replace_eraser(tiny_pipe, "gun", saved, strength=0.5, strict=True, sae=None).strength == 0.5
    for wrong in ({"strict": False}, {"strength": float("nan"), "on_bypass": "warn"}, {"strength": -1.0}):
        with pytest.raises(excise.InvalidSetting):
            excise.replace_eraser(tiny_pipe, "gun", saved, **wrong)
    with pytest.raises(TypeError, match="strenght"):
        excise.replace_eraser(tiny_pipe, "gun", saved, strenght=1.0)
    assert (old.strength, old.on_bypass, old.strict) == (0.5, "raise", True)
    excise.replace_eraser(tiny_pipe, "gun", saved, strength=-1.0, allow_amplify=True)
    with pytest.raises(excise.InvalidSetting, match="amplify"):
        excise.replace_eraser(tiny_pipe, "gun", saved, allow_amplify=False)
    assert old.allow_amplify and old.strength == -1
    excise.replace_eraser(tiny_pipe, "gun", saved, strength=0.5, allow_amplify=False)
    with pytest.raises(excise.Tampered, match="digest"):
        excise.replace_eraser(tiny_pipe, "gun", saved, digest="0" * 64)
    second(gun_eraser).save(saved.parent / "both" / "second")
    gun_eraser.save(saved.parent / "both" / "gun")
    with pytest.raises(excise.InvalidSetting, match="several erasers; name the folder of one"):
        excise.replace_eraser(tiny_pipe, "gun", saved.parent / "both")
