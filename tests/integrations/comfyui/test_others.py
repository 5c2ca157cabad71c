"""What other nodes and erasers do to a CLIP or a MODEL: what is refused, and what passes."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from excise.erasers.edits.vectors import DirectionEdit, VectorEdit
from excise.erasers.edits.weights import WeightEdit
from excise.errors import EraserDidNotFire, InvalidSetting, WrongModel
from excise.sites.site import Site
from tests.integrations.comfyui import double
from tests.integrations.comfyui.conftest import PACK, Make, eraser_of, forget, make_clip
from tests.integrations.comfyui.test_apply import eraser_for, model, predicted
from tests.integrations.comfyui.test_traps import CAT, GUN, lora, sampled, states


def injected(clip: Any, key: str) -> Any:
    """Return the CLIP with an injection of another node, which does nothing here."""
    made = clip.clone()
    nothing = sys.modules["comfy.patcher_extension"].PatcherInjection(lambda _: None, lambda _: None)
    made.patcher.set_injections(key, [nothing])
    return made


def patched(clip: Any, kind: str) -> Any:
    made = clip.clone()
    getattr(made.patcher, kind)["clip_l.transformer.norm.weight"] = [object()]
    return made


@pytest.mark.parametrize("late", [False, True])
def test_a_lora_in_bypass_mode_and_other_nodes_are_refused(
    late: bool, pack: SimpleNamespace, clip: Any, make: Make
) -> None:
    eraser = make(clip)
    for change, message in (
        (lambda each: injected(each, "bypass_lora"), "a LoRA changes this text encoder"),
        (lambda each: injected(each, "other"), r"another node \(other\) changes"),
        (lambda each: patched(each, "object_patches"), r"another node \(clip_l.transformer.norm.weight\) changes"),
        (lambda each: patched(each, "weight_wrapper_patches"), r"another node \(clip_l.transformer.norm.weight\)"),
    ):
        with pytest.raises(WrongModel, match=message):
            (change(pack.apply.applied(clip, eraser)) if late else pack.apply.applied(change(clip), eraser)).encode(GUN)
        change(pack.apply.applied(clip, eraser, strict=False)).encode(GUN)


def test_another_node_may_say_how_weights_of_words_are_applied(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    wanted = states(erased, GUN)
    erased.patcher.object_patches["clip_l.encode_token_weights"] = clip.cond_stage_model.clip_l.encode_token_weights
    assert torch.equal(states(erased, GUN), wanted)


def test_a_lora_of_strength_0_on_the_text_encoder_passes(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    key = "clip_l.transformer.text_model.encoder.layers.0.mix.weight"
    change = {key: ("diff", (torch.ones(double.WIDTH, double.WIDTH),))}
    none, other = erased.clone(), erased.clone()
    none.patcher.add_patches(change, 0.0)
    assert torch.equal(states(none, GUN), states(erased, GUN))
    pack.apply.applied(none, make(clip, "pistol"))
    other.patcher.add_patches(change, 0.0, 0.5)  # the weights are halved
    with pytest.raises(WrongModel, match="a LoRA"):
        other.encode(GUN)


def weights_of(clip: Any) -> Any:
    """Return an eraser that changes weights of the text encoder."""
    torch.manual_seed(1)
    edit = WeightEdit(
        Site("text_encoder", "encoder.layers.0.mix", double.WIDTH), torch.randn(double.WIDTH, double.WIDTH)
    )
    return replace(eraser_of(clip), edits=(edit,), name="weights")


def test_erasers_of_weights_and_of_states_are_applied_in_any_order(
    pack: SimpleNamespace, clip: Any, make: Make
) -> None:
    weights, pistol = weights_of(clip), make(clip, "pistol")
    one = pack.apply.applied(pack.apply.applied(clip, weights), pistol)
    other = pack.apply.applied(pack.apply.applied(clip, pistol), weights)
    assert torch.equal(states(one, GUN), states(other, GUN))
    for erased in (one, pack.apply.applied(pack.apply.applied(clip, weights, 0.0), pistol)):
        with pytest.raises(WrongModel, match="a LoRA"):
            lora(erased).encode(GUN)


def test_an_eraser_that_flips_negative_prompts_is_refused(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    eraser, site = make(clip), make(clip).edits[0].site
    for uncond in ("none", "same"):
        steers = VectorEdit(site, torch.ones(double.LENGTH, double.WIDTH), uncond=uncond)  # type: ignore[arg-type]
        pack.apply.applied(clip, replace(eraser, edits=(steers,)))
    steers = VectorEdit(site, torch.ones(double.LENGTH, double.WIDTH), uncond="flip")
    with pytest.raises(InvalidSetting, match=r"opposite sign \(uncond=flip\)"):
        pack.apply.applied(clip, replace(eraser, edits=(steers,)), strict=False)


def test_states_for_a_controlnet_and_for_gligen_are_checked(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    ours, gone, plain = erased.encode(CAT), erased.encode(GUN), clip.encode(GUN)

    def boxes(made: Any) -> Any:
        return "position", object(), [(ours["pooled_output"], 8, 8, 0, 0), (made["pooled_output"], 8, 8, 8, 8)]

    for key, value in (
        ("cross_attn_controlnet", lambda made: made["cross_attn"]),
        ("pooled_output_controlnet", lambda made: made["pooled_output"]),
        ("gligen", boxes),
        ("gligen", lambda made: ("position_batched", object(), [boxes(made)[2]])),
    ):
        assert sampled(pack, erased, {**ours, key: value(gone)}) == "a picture"
        with pytest.raises(EraserDidNotFire, match="also a ControlNet's or GLIGEN's"):
            sampled(pack, erased, {**ours, key: value(plain)})


def test_an_average_of_two_erased_prompts_is_refused_too(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    one, other = erased.encode(CAT), erased.encode(GUN)
    with pytest.raises(EraserDidNotFire, match="as by ConditioningAverage or a style model"):
        sampled(pack, erased, {**one, "cross_attn": (one["cross_attn"] + other["cross_attn"]) / 2})


def test_a_prompt_that_comfyui_kept_is_known_to_a_clip_that_it_made_again(
    pack: SimpleNamespace, clip: Any, make: Make
) -> None:
    eraser = make(clip)
    kept = pack.apply.applied(clip, eraser).encode(GUN)
    assert sampled(pack, pack.apply.applied(clip, eraser), kept) == "a picture"
    loose = pack.apply.applied(clip, eraser, strict=False)
    for other in (pack.apply.applied(clip, eraser, 0.5), pack.apply.applied(clip, make(clip, "pistol")), loose):
        with pytest.raises(EraserDidNotFire):
            sampled(pack, other, kept)
    with pytest.raises(EraserDidNotFire):
        sampled(pack, pack.apply.applied(clip, eraser), loose.encode("a gun and cat"))
    for n in range(pack.apply.LEDGERS):
        pack.apply.applied(clip, eraser, (n + 1) / 100)
    with pytest.raises(EraserDidNotFire):
        sampled(pack, pack.apply.applied(clip, eraser), kept)


def test_an_eraser_of_a_model_is_applied_once_and_a_block_has_one(pack: SimpleNamespace) -> None:
    unet = model()
    weights = eraser_for(unet, WeightEdit(Site("unet", "lead", 4), torch.randn(4, 4)))
    once = pack.denoiser.applied_to_model(unet, weights, 2.0)
    with pytest.raises(InvalidSetting, match="applied twice"):
        pack.denoiser.applied_to_model(once, weights, 2.0)
    one, other = (
        replace(eraser_for(unet, DirectionEdit(Site("unet", "block", 4), s, torch.tensor([100.0]))), name=f"eraser-{n}")
        for n, s in enumerate(torch.eye(4)[:2].split(1))
    )
    both = pack.denoiser.applied_to_model(pack.denoiser.applied_to_model(unet, one), weights)
    predicted(both, torch.randn(1, 3, 4), 1.0)
    for off in (one, other, weights):  # at strength 0 it is not there
        pack.denoiser.applied_to_model(pack.denoiser.applied_to_model(both, off, 0.0), other, 0.0)
    with pytest.raises(InvalidSetting, match=r"'eraser-0' and 'eraser-1' both edit .*\.block,"):
        pack.denoiser.applied_to_model(both, other)
    with pytest.raises(InvalidSetting, match="both edit"):
        pack.denoiser.applied_to_model(unet, replace(one, edits=(*one.edits, *other.edits)))


def enforce(value: str, monkeypatch: pytest.MonkeyPatch, erasers: Path) -> Any:
    """Start the pack with a value of EXCISE_ENFORCE. Return its module `apply`."""
    monkeypatch.setenv("EXCISE_ENFORCE", value)
    double.install(monkeypatch, erasers)
    forget()
    importlib.import_module(PACK)
    return importlib.import_module(f"{PACK}.apply")


@pytest.mark.parametrize("spoil", ["nested", "only nested", "empty", "a link to nothing", "in an eraser"])
def test_it_does_not_start_if_a_folder_below_is_no_eraser(
    spoil: str, monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace
) -> None:
    folder = tmp_path / "enforced"
    clip = make_clip()
    if spoil != "only nested":
        eraser_of(clip).save(folder if spoil == "in an eraser" else folder / "gun")
    if spoil == "empty":
        (folder / "knife").mkdir()
    elif spoil == "a link to nothing":
        (folder / "knife").symlink_to(tmp_path / "gone")
    else:
        eraser_of(clip, "pistol").save(folder / "weapons" / "knife")
    with pytest.raises(SystemExit, match=r"EXCISE_ENFORCE is set, but .*(weapons|knife) is not an eraser"):
        enforce(str(folder), monkeypatch, erasers)


def test_other_files_beside_erasers_are_fine(
    monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace
) -> None:
    folder = tmp_path / "enforced"
    eraser_of(make_clip()).save(folder / "gun")
    (folder / ".git").mkdir()
    (folder / "lost+found").mkdir()
    (folder / "README.md").write_text("Erasers")
    enforce(f"{folder}:{folder / 'gun'}", monkeypatch, erasers)
    assert len(make_clip().patcher.get_attachment("excise").items) == 1, "one that is named twice is applied once"


@pytest.mark.parametrize("value", ["", "{}:", ":{}"])
def test_it_does_not_start_if_the_variable_names_an_empty_folder(
    value: str, monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace
) -> None:
    eraser_of(make_clip()).save(tmp_path / "gun")
    with pytest.raises(SystemExit, match="EXCISE_ENFORCE names an empty folder"):
        enforce(value.format(tmp_path / "gun"), monkeypatch, erasers)


def test_it_does_not_start_with_an_eraser_that_flips_negative_prompts(
    monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace
) -> None:
    eraser = eraser_of(make_clip())
    steers = VectorEdit(eraser.edits[0].site, torch.ones(double.LENGTH, double.WIDTH), uncond="flip")
    replace(eraser, edits=(steers,)).save(tmp_path / "gun")
    with pytest.raises(SystemExit, match="uncond=flip"):
        enforce(str(tmp_path / "gun"), monkeypatch, erasers)


def test_an_eraser_of_more_encoders_than_a_clip_has_does_not_fit_it(
    monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace
) -> None:
    both = make_clip(clip_l=double.Part(), clip_g=double.Part())
    places = {"text_encoder": ("clip_l", "encoder.layers"), "text_encoder_2": ("clip_g", "encoder.layers")}
    small = {"clip_l": both.cond_stage_model.clip_l}  # Stable Diffusion 1.5 and XL have the same CLIP-L
    eraser_of(both, places=places).save(tmp_path / "enforced" / "xl")
    enforce(str(tmp_path / "enforced"), monkeypatch, erasers)
    with pytest.raises(WrongModel, match="no eraser of gun for this text encoder"):
        sys.modules["comfy.sd"].CLIP(double.Stage(**small))  # type: ignore[attr-defined]
    eraser_of(double.CLIP(double.Stage(**small))).save(tmp_path / "enforced" / "sd15")
    enforce(str(tmp_path / "enforced"), monkeypatch, erasers)
    for parts, edits in ((small, 1), (dict(both.cond_stage_model._modules), 2)):
        clip = sys.modules["comfy.sd"].CLIP(double.Stage(**parts))  # type: ignore[attr-defined]
        (item,) = clip.patcher.get_attachment("excise").items
        assert len(item.eraser.edits) == edits


def test_a_workflow_may_apply_an_eraser_that_is_enforced(
    monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace
) -> None:
    eraser = eraser_of(make_clip())
    eraser.save(tmp_path / "gun")
    apply = enforce(str(tmp_path / "gun"), monkeypatch, erasers)
    clip = make_clip()
    for strength in (1.0, 0.3, 0.0):
        assert torch.equal(states(apply.applied(clip, eraser, strength, strict=False), GUN), states(clip, GUN))
    with pytest.raises(InvalidSetting, match="enforced at strength 1; set at most 1"):
        apply.applied(clip, eraser, 1.5)
    cat = eraser_of(clip, "cat")
    more = apply.applied(clip, cat)
    assert apply.applied(more, eraser) is more
    with pytest.raises(InvalidSetting, match="applied twice"):
        apply.applied(more, cat)
