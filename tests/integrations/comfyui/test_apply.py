"""Where an eraser may act: layouts of text encoders, kinds of edits, and the proof; and edits of a MODEL."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.weight_digest import plain, weights_digest
from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.edits.vectors import DirectionEdit, GatedDirectionEdit
from excise.erasers.edits.weights import WeightEdit
from excise.errors import EraserDidNotFire, InvalidSetting, WrongModel
from excise.sites.site import Site
from tests.integrations.comfyui import double
from tests.integrations.comfyui.conftest import Make, eraser_of, make_clip
from tests.integrations.comfyui.test_traps import CAT, GUN, states

CLIP, T5 = "text_model.encoder.layers", "encoder.block"
LAYOUTS: dict[str, dict[str, tuple[str, str, str]]] = {
    "sd1": {"text_encoder": ("clip_l", CLIP, "encoder.layers")},
    "sd2": {"text_encoder": ("clip_h", CLIP, "encoder.layers")},
    "sdxl": {
        "text_encoder": ("clip_l", CLIP, "encoder.layers"),
        "text_encoder_2": ("clip_g", CLIP, "encoder.layers"),
    },
    "refiner": {"text_encoder_2": ("clip_g", CLIP, "encoder.layers")},
    "sd3": {
        "text_encoder": ("clip_l", CLIP, "encoder.layers"),
        "text_encoder_2": ("clip_g", CLIP, "encoder.layers"),
        "text_encoder_3": ("t5xxl", T5, "encoder.block"),
    },
    "flux": {
        "text_encoder": ("clip_l", CLIP, "encoder.layers"),
        "text_encoder_2": ("t5xxl", T5, "encoder.block"),
    },
    "wan": {"text_encoder": ("umt5xxl", T5, "encoder.block")},
    "qwen-image": {"text_encoder": ("qwen25_7b", "model.layers", "model.language_model.layers")},
    "z-image": {"text_encoder": ("qwen3_4b", "model.layers", "layers")},
    "flux2-klein": {"text_encoder": ("qwen3_8b", "model.layers", "model.layers")},
    "lumina2": {"text_encoder": ("gemma2_2b", "model.layers", "layers")},
}


def built(layout: str) -> tuple[Any, dict[str, tuple[str, str]]]:
    """Return a CLIP of a layout, and where an eraser acts in it."""
    parts = LAYOUTS[layout]
    clip = make_clip(**{name: double.Part(path, pair=path != CLIP) for name, path, _ in parts.values()})
    return clip, {component: (name, path) for component, (name, _, path) in parts.items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_erased_in_all_its_encoders(layout: str, pack: SimpleNamespace) -> None:
    clip, places = built(layout)
    eraser = eraser_of(clip, places=places, names="canonical", lengths=dict.fromkeys(places, double.LENGTH))
    erased = pack.apply.applied(clip, eraser)
    before, after = states(clip, GUN).split(double.WIDTH, -1), states(erased, GUN).split(double.WIDTH, -1)
    assert len(before) == len(places)
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True)), "every encoder is erased"
    assert torch.equal(states(erased, CAT), states(clip, CAT))


def test_an_open_encoder_is_refused(pack: SimpleNamespace) -> None:
    clip, places = built("sdxl")
    first = {"text_encoder": places["text_encoder"]}
    with pytest.raises(WrongModel, match="also reads text_encoder_2"):
        pack.apply.applied(clip, eraser_of(clip, places=first), strict=False)
    small, _ = built("sd1")
    with pytest.raises(WrongModel, match="has no text_encoder_2"):
        pack.apply.applied(small, eraser_of(clip, places=places))


def test_an_encoder_that_the_file_lacks_needs_no_edit(pack: SimpleNamespace) -> None:
    whole, places = built("sd3")
    eraser = eraser_of(whole, places=places, names="canonical", lengths={"text_encoder_3": double.LENGTH})
    clip = sd3_without_t5(whole)
    assert list(pack.layouts.parts_of(clip.cond_stage_model)) == ["text_encoder", "text_encoder_2"]
    assert not torch.equal(states(pack.apply.applied(clip, eraser), GUN), states(clip, GUN))


def sd3_without_t5(whole: Any) -> Any:
    """Return the CLIP without T5, whose attribute is None then."""
    stage = double.Stage(clip_l=whole.cond_stage_model.clip_l, clip_g=whole.cond_stage_model.clip_g)
    stage.t5xxl = None
    return double.CLIP(stage)


def test_other_layouts_and_places_are_refused(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    for parts in ({"hydit_clip": double.Part()}, {"clip_l": double.Part(), "llama": double.Part()}):
        with pytest.raises(WrongModel, match="does not know a CLIP with the text encoders"):
            pack.apply.applied(make_clip(**parts), make(clip))
    edit: Any = make(clip).edits[0]
    for path, message in (("encoder.layers.9", "has no module"), ("embeddings", "without running")):
        moved = replace(edit, site=Site("text_encoder", path, double.WIDTH))
        clip.cond_stage_model.clip_l.transformer.text_model.embeddings = nn.Identity()
        with pytest.raises(WrongModel, match=message):
            pack.apply.applied(clip, replace(make(clip), edits=(moved,)), strict=False)
    exact = replace(make(clip), edits=(replace(edit, gate="topk"),))
    with pytest.raises(InvalidSetting, match="whole SAE"):
        pack.apply.applied(clip, exact)


def test_an_eraser_that_changes_nothing_is_refused(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    for weak in (replace(make(clip), canary=("a cat",)), replace(make(clip), canary_shift=1e6)):
        with pytest.raises(EraserDidNotFire, match="canary prompt"):
            pack.apply.applied(clip, weak)
    with pytest.raises(EraserDidNotFire, match="canary prompt"):
        pack.apply.applied(clip, replace(make(clip), canary=("a cat",)), strict=False)


def test_a_layer_that_another_node_replaced_is_noticed(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    erased.encode(GUN)
    layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[1]
    layer.forward = lambda x: x  # over the eraser's wrapper
    with pytest.raises(EraserDidNotFire, match="did not run as Excise wrapped it"):
        erased.cond_stage_model.encode_token_weights(erased.tokenize(GUN))


def test_changed_weights_of_a_text_encoder_are_applied(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    torch.manual_seed(1)
    site = Site("text_encoder", "encoder.layers.0.mix", double.WIDTH)
    change = torch.randn(double.WIDTH, double.WIDTH)
    weights = replace(make(clip), edits=(WeightEdit(site, change),), canary=("a gun",))
    by_hand = make_clip()
    with torch.no_grad():
        by_hand.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mix.weight += 0.5 * change
    erased = pack.apply.applied(clip, weights, 0.5)
    torch.testing.assert_close(states(erased, CAT), states(by_hand, CAT))
    both = pack.apply.applied(erased, make(clip, "pistol"), strict=False)
    torch.testing.assert_close(states(both, CAT), states(by_hand, CAT))


class UNet(nn.Module):
    """A double of the demo model's U-Net: one block behind one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.lead, self.inner.block = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
        self.inner.block.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.inner.block(self.inner.lead(x))
        return made


def model() -> Any:
    """Return a MODEL of the double."""
    torch.manual_seed(0)
    holder = nn.Module()
    holder.diffusion_model = UNet()
    holder.model_sampling = SimpleNamespace(timestep=lambda sigma: sigma * 100)
    return double.Patcher(holder)


def eraser_for(unet: Any, *edits: Any) -> Artefact:
    state = unet.model.diffusion_model.inner.state_dict()
    known = {"unet": {"float16": [weights_digest(plain(state), lambda name: state[name])]}}
    return Artefact(edits, "gun-unet", "gun", made_for={"denoisers": known}, canary=("a gun",))


def predicted(patcher: Any, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Run a MODEL once within its wrappers."""
    patcher.load()
    run: Any = lambda x, t: patcher.model.diffusion_model(x)  # noqa: E731
    for wrappers in patcher.wrappers.get("apply_model", {}).values():
        for wrapper in wrappers:
            run = (lambda inner, outer: lambda x, t: outer(double.Executor(inner, patcher.model), x, t))(run, wrapper)
    with torch.no_grad():
        made: torch.Tensor = run(x, torch.full((len(x),), sigma))
    return made


def test_changed_weights_of_a_model_are_applied(pack: SimpleNamespace) -> None:
    plain_one = model()
    change = torch.randn(4, 4)
    eraser = eraser_for(plain_one, WeightEdit(Site("unet", "lead", 4), change))
    x = torch.randn(2, 3, 4)
    made = pack.denoiser.applied_to_model(plain_one, eraser, 0.5)
    before = predicted(plain_one, x, 1.0)
    by_hand = model()
    with torch.no_grad():
        by_hand.model.diffusion_model.inner.lead.weight += 0.5 * change
    torch.testing.assert_close(predicted(made, x, 1.0), predicted(by_hand, x, 1.0))
    assert torch.equal(predicted(plain_one, x, 1.0), before)
    other = eraser_for(by_hand, WeightEdit(Site("unet", "lead", 4), change))
    with pytest.raises(WrongModel, match="another denoiser"):
        pack.denoiser.applied_to_model(plain_one, other)
    pack.denoiser.applied_to_model(plain_one, other, strict=False)


def test_edits_of_blocks_run_at_every_step_with_its_timestep(pack: SimpleNamespace) -> None:
    unet = model()
    directions = torch.nn.functional.normalize(torch.randn(2, 4), dim=-1)
    edit = DirectionEdit(Site("unet", "block", 4), directions, torch.tensor([300.0, 100.0]), beta=1.0)
    made = pack.denoiser.applied_to_model(unet, eraser_for(unet, edit), 0.5)
    x = torch.randn(2, 3, 4)
    for sigma, direction in ((3.0, directions[0]), (1.0, directions[1])):
        before = predicted(unet, x, sigma)
        along = (before @ direction).clamp(min=0)[..., None]
        torch.testing.assert_close(predicted(made, x, sigma), before - 0.5 * along * direction)
    del made
    assert torch.equal(predicted(unet, x, 1.0), before)


def test_a_gate_that_opened_stays_open_until_the_next_sampling(pack: SimpleNamespace) -> None:
    unet, x = model(), torch.randn(3, 9, 4)
    before = predicted(unet, x, 3.0)
    s = torch.nn.functional.normalize(before.mean((0, 1)), dim=0).expand(2, 4).clone()
    peaks = (before @ s[0]).amax(1)
    assert bool((peaks > 0).all())
    first = torch.stack([peaks.median(), 2 * peaks.max()])  # one image opens it at once, none later
    edit = GatedDirectionEdit(Site("unet", "block", 4), s, torch.tensor([300.0, 100.0]), thresholds=first)
    made = pack.denoiser.applied_to_model(unet, eraser_for(unet, edit))
    for sigma in (3.0, 1.0):
        changed = (predicted(made, x, sigma) != before).flatten(1).any(1)
        assert torch.equal(changed, peaks > first[0])
    ((start,),) = made.wrappers["outer_sample"].values()
    start(lambda: None)
    assert torch.equal(predicted(made, x, 1.0), before)


def test_a_block_that_did_not_run_is_noticed(pack: SimpleNamespace) -> None:
    unet = model()
    edit = DirectionEdit(Site("unet", "block", 4), torch.eye(4)[:1], torch.tensor([100.0]))
    made = pack.denoiser.applied_to_model(unet, eraser_for(unet, edit))
    unet.model.diffusion_model.forward = lambda x: x
    with pytest.raises(EraserDidNotFire, match="did not run"):
        predicted(made, torch.randn(1, 3, 4), 1.0)


def test_other_kinds_and_places_are_refused(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    unet = model()
    for eraser, message in (
        (make(clip), "use Apply Eraser on the CLIP"),
        (eraser_for(unet, WeightEdit(Site("unet", "nowhere", 4), torch.eye(4))), "ComfyUI has no nowhere"),
    ):
        with pytest.raises((InvalidSetting, WrongModel), match=message):
            pack.denoiser.applied_to_model(unet, eraser)
    numbers = {"timesteps": torch.tensor([100.0]), **dict.fromkeys(("level", "gate", "cut"), torch.zeros(1, 1))}
    rows = (torch.tensor([0]), torch.ones(1, 4), torch.zeros(1), torch.zeros(4), torch.ones(1, 4))
    exact = BlockEdit(Site("unet", "block", 4), *rows, **numbers, codes="topk")  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match="whole SAE"):
        pack.denoiser.applied_to_model(unet, eraser_for(unet, exact))
    with pytest.raises(InvalidSetting, match="strength"):
        pack.denoiser.applied_to_model(unet, eraser_for(unet, WeightEdit(Site("unet", "lead", 4), torch.eye(4))), 3)
    unet.model.diffusion_model = nn.Identity()
    unet.model.model_config = SimpleNamespace(unet_config={})
    with pytest.raises(WrongModel, match="not a U-Net"):
        pack.denoiser.applied_to_model(unet, eraser_for(model(), WeightEdit(Site("unet", "lead", 4), torch.eye(4))))
