from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import excise
from excise.erasers import Attachments, Eraser, SAEEdit, eraser_folders, load_erasers, merge
from excise.erasers.guard import self_test
from excise.errors import ExciseError
from excise.sites import capture


def states(pipe: Any, prompt: str = "a gun on grass") -> Any:
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, True)[0]


def further(eraser: Eraser, name: str = "second", lam: float = 3.0) -> Eraser:
    """Another eraser for the same pipeline: the same neuron, turned down further."""
    return replace(eraser, name=name, edits=(replace(eraser.edits[0], lam=lam),))


@pytest.fixture
def erasers(gun_eraser: Eraser, tmp_path: Path) -> Path:
    """A folder of two erasers, as `excise erase gun,knife --out erasers` makes it, and a training that goes on."""
    gun_eraser.save(tmp_path / "erasers" / "gun-snce")
    further(gun_eraser).save(tmp_path / "erasers" / "knife-snce")
    (tmp_path / "erasers" / "cat-esd.training").mkdir()
    (tmp_path / "erasers" / "cat-esd.training" / "checkpoint.safetensors").write_bytes(b"")
    return tmp_path / "erasers"


def test_a_folder_of_erasers_is_loaded_whole(tiny_pipe: Any, gun_eraser: Eraser, erasers: Path) -> None:
    plain = states(tiny_pipe)
    with gun_eraser.attach(tiny_pipe), further(gun_eraser).attach(tiny_pipe):
        both = states(tiny_pipe)
    attached = excise.load_eraser(tiny_pipe, erasers)
    assert isinstance(attached, Attachments)
    assert excise.get_active_erasers(tiny_pipe) == ["gun-test", "second"] == list(attached.status())
    assert torch.equal(states(tiny_pipe), both)
    attached.strength = 0.5
    assert attached.strength == (0.5, 0.5)
    attached.enabled = False
    assert not attached.enabled
    assert torch.equal(states(tiny_pipe), plain)
    attached.detach()
    assert excise.list_erasers(tiny_pipe) == {}
    with excise.load_eraser(tiny_pipe, erasers):
        assert torch.equal(states(tiny_pipe), both)
    assert torch.equal(states(tiny_pipe), plain)


def test_all_are_attached_or_none(tiny_pipe: Any, gun_eraser: Eraser, erasers: Path) -> None:
    before = states(tiny_pipe)
    mute = replace(gun_eraser, name="mute", canary=("a cat",), canary_shift=0.5)
    mute.save(erasers / "zebra")
    with pytest.raises(excise.EraserDidNotFire):
        excise.load_eraser(tiny_pipe, erasers)
    assert excise.list_erasers(tiny_pipe) == {}
    assert torch.equal(states(tiny_pipe), before)


def test_a_damaged_eraser_in_the_folder_is_never_passed_over(tiny_pipe: Any, erasers: Path) -> None:
    (erasers / "knife-snce" / "manifest.json").unlink()
    with pytest.raises(ExciseError, match=r"knife-snce is not a complete eraser: manifest\.json"):
        excise.load_eraser(tiny_pipe, erasers)
    assert excise.list_erasers(tiny_pipe) == {}


def test_names_are_the_folders_where_erasers_share_theirs(gun_eraser: Eraser, tmp_path: Path) -> None:
    gun_eraser.save(tmp_path / "a" / "gun-snce")
    further(gun_eraser, gun_eraser.name).save(tmp_path / "a" / "gun-uce")
    further(gun_eraser, "knife", 2.5).save(tmp_path / "b")
    assert list(load_erasers([tmp_path / "a", tmp_path / "b"])) == ["gun-snce", "gun-uce", "knife"]
    further(gun_eraser, gun_eraser.name, 2.0).save(tmp_path / "c" / "gun-uce")
    names = list(load_erasers([tmp_path / "a", tmp_path / "c"]))
    assert names == ["gun-snce", str(tmp_path / "a" / "gun-uce"), str(tmp_path / "c" / "gun-uce")]
    with pytest.raises(ExciseError, match="are the same eraser"):
        load_erasers([tmp_path / "a" / "gun-uce", tmp_path / "a"])


def test_a_name_is_for_one_eraser(tiny_pipe: Any, erasers: Path) -> None:
    with pytest.raises(ExciseError, match="holds 2 erasers, which keep their own names"):
        excise.load_eraser(tiny_pipe, erasers, name="gun")
    only = erasers / "gun-snce"
    assert eraser_folders(only) == [only]
    assert eraser_folders(erasers / "nowhere") == [erasers / "nowhere"]
    with excise.load_eraser(tiny_pipe, only, name="gun"):
        assert excise.get_active_erasers(tiny_pipe) == ["gun"]


@pytest.fixture
def alone(gun_eraser: Eraser, word_sae: Any, tiny_site: Any) -> list[Eraser]:
    """Two erasers of a neuron each behind SNCE's gate: of "gun", and of a random one that any prompt activates."""
    gun, other = (SAEEdit.from_sae(word_sae, tiny_site, [n], gate="whole", lam=lam) for n, lam in ((5, 1.5), (11, 2.0)))
    return [
        replace(gun_eraser, edits=(gun,), canary_shift=0.01),
        replace(
            gun_eraser,
            edits=(other,),
            name="cat",
            concept="cat",
            mentions=("cat", "kitten"),
            canary=("a cat", "a gun"),
            canary_shift=0.015,
            verdict={"mentions": [{"word": "cat", "caught": True}], "weak": ["it is random"]},
        ),
    ]


def test_merged_erasers_do_what_they_do_together(tiny_pipe: Any, alone: list[Eraser], tmp_path: Path) -> None:
    plain = states(tiny_pipe)
    with alone[0].attach(tiny_pipe), alone[1].attach(tiny_pipe):
        together = states(tiny_pipe)
    merge(alone, "policy").save(tmp_path / "policy")
    merged = Eraser.load(tmp_path / "policy")
    with merged.attach(tiny_pipe) as attachment:
        assert torch.allclose(states(tiny_pipe), together, atol=1e-4)
        assert not torch.allclose(together, plain, atol=1e-2)
        assert attachment.status()["neurons"] == [[5, 11]]
    assert torch.equal(states(tiny_pipe), plain)


def test_what_a_merged_eraser_says_of_its_parts(alone: list[Eraser]) -> None:
    merged = merge(alone, "policy")
    assert (merged.name, merged.concept, merged.method) == ("policy", "gun, cat", "merged")
    assert merged.mentions == ("gun", "cat", "kitten")
    assert merged.canary == ("a gun", "a cat")
    assert merged.canary_shift == 0.01
    assert [(one["concept"], one["digest"]) for one in merged.created["erasers"]] == [
        ("gun", alone[0].digest),
        ("cat", alone[1].digest),
    ]
    assert merged.weak == ("gun: it was not tested", "cat: it is random")
    again = merge([merged, replace(alone[0], name="other", concept="other")])
    assert [one["concept"] for one in again.created["erasers"]] == ["gun", "cat", "other"]
    tested = replace(alone[0], verdict={"mentions": [{"word": "gun", "caught": False}], "weak": []})
    merged = merge([tested, alone[1]])
    assert merged.weak == ("cat: it is random",)
    assert [row["word"] for row in merged.verdict["mentions"]] == ["gun", "cat"]


def test_a_merged_eraser_proves_every_concept(
    tiny_pipe: Any, alone: list[Eraser], word_sae: Any, tiny_site: Any
) -> None:
    whole = SAEEdit.from_sae(word_sae, tiny_site, list(range(6, 64)), gate="whole", lead=1)
    (read,) = capture(tiny_pipe, [tiny_site], ["a cat", "a gun"])
    cat, gun = whole.preacts(read.states[tiny_site])[:, 1:].amax(1)
    n = int((cat - gun).argmax())
    level = {"threshold": (cat + gun)[n : n + 1] / 2, "lead": 1}
    of_cat = SAEEdit.from_sae(word_sae, tiny_site, [6 + n], gate="whole", lam=2.0, **level)
    erasers = [alone[0], replace(alone[1], canary=("a cat",), edits=(of_cat,))]
    erasers[0] = replace(erasers[0], edits=(replace(alone[0].edits[0], lead=1),))  # type: ignore[arg-type]
    with merge(erasers).attach(tiny_pipe):
        pass
    mute = replace(erasers[0].edits[0], threshold=torch.tensor([9e9]))  # type: ignore[arg-type]
    with pytest.raises(excise.EraserDidNotFire):
        merge([replace(erasers[0], edits=(mute,)), erasers[1]]).attach(tiny_pipe)


def test_many_canary_prompts_are_proved_in_batches(
    tiny_pipe: Any, alone: list[Eraser], monkeypatch: pytest.MonkeyPatch
) -> None:
    gun, _ = alone
    canary = tuple(f"a gun and {n} cats" for n in range(5))
    one_by_one = [self_test.moved_text(attached(gun, tiny_pipe, canary), [prompt]) for prompt in canary]
    monkeypatch.setattr(self_test, "MOST_CANARIES", 4)
    monkeypatch.setattr(self_test, "BATCH", 2)
    together = self_test.moved_text(attached(gun, tiny_pipe, canary), canary)
    (part,) = together
    assert together[part] == pytest.approx(min(found[part] for found in one_by_one), rel=1e-4)
    with pytest.raises(excise.EraserDidNotFire, match="shift 0"):
        attached(gun, tiny_pipe, (*canary[:3], "a dog", *canary[3:]))
    encode = type(tiny_pipe).encode_prompt

    @functools.wraps(encode)
    def whole(self: Any, *given: Any, **options: Any) -> Any:
        made = encode(self, *given, **options)
        return tuple(states.flatten(0, 1) for states in made if states is not None)

    monkeypatch.setattr(type(tiny_pipe), "encode_prompt", whole)
    unbatched = self_test.moved_text(attached(gun, tiny_pipe, canary), canary)
    assert min(unbatched.values()) == pytest.approx(together[part], rel=1e-4)


def attached(eraser: Eraser, pipe: Any, canary: tuple[str, ...]) -> Any:
    """Attach an eraser with these canary prompts for as long as it takes, and return its attachment."""
    with replace(eraser, canary=canary).attach(pipe) as attachment:
        return attachment


def test_what_cannot_be_merged(alone: list[Eraser], gun_eraser: Eraser) -> None:
    gun, cat = alone
    for given in ([gun], [gun, cat, gun], []):
        with pytest.raises(ExciseError, match="give at least two erasers to merge, each once"):
            merge(given)
    with pytest.raises(ExciseError, match="'gun-test' cannot be merged: only SNCE's with gate=whole and without ortho"):
        merge([cat, gun_eraser])
    unproved = replace(cat, canary_shift=0.0)
    with pytest.raises(ExciseError, match="'cat' has no canary shift to prove it by"):
        merge([gun, unproved])
    for changed in ("W_enc", "b_enc", "W_dec"):
        row = {changed: getattr(gun.edits[0], changed) * 1.001}
        with pytest.raises(excise.Tampered, match="different rows of neuron 5"):
            merge([gun, replace(gun, name="other", edits=(replace(gun.edits[0], **row),))])  # type: ignore[arg-type]
    spoken = replace(cat, made_for={**cat.made_for, "pipeline": "LanguageModel"})
    with pytest.raises(ExciseError, match="'gun-test' cannot be merged"):
        merge([replace(gun, made_for=spoken.made_for), spoken])
    elsewhere = replace(cat, made_for={**cat.made_for, "encoders": {}})
    with pytest.raises(excise.WrongModel, match="'gun-test' and 'cat' were made for different models"):
        merge([gun, elsewhere])
