"""What ComfyUI does that could take an eraser away, one test for each trap. `real_traps.py` tries some in ComfyUI."""

from __future__ import annotations

import gc
import importlib
import json
import math
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from excise.errors import EraserDidNotFire, ExciseError, InvalidSetting, NotFound, WrongModel
from tests.integrations.comfyui import double
from tests.integrations.comfyui.conftest import PACK, Make, eraser_of, forget, make_clip
from tests.integrations.comfyui.server import PYTHON, ROOT, STUB, TREE, Server, environment, needs_comfyui
from tests.integrations.comfyui.test_server import simple

GUN, CAT = "a gun on grass", "a cat on grass"


def states(clip: Any, text: str) -> torch.Tensor:
    made: torch.Tensor = clip.encode(text)["cross_attn"]
    return made


def by_hand(clip: Any, erasers: list[Any], text: str, strength: float = 1.0) -> torch.Tensor:
    """Return the states of a prompt of one row, with the edits computed from the formula (eqs. 8-9)."""
    (row,) = clip.tokenize(text)["clip_l"]
    part = clip.cond_stage_model.clip_l
    with torch.no_grad():
        x = part.transformer.words(torch.tensor([[token for token, _ in row]]))
        for n, layer in enumerate(part.transformer.get_submodule(part.transformer.path)):
            x = layer(x)
            taken = torch.zeros_like(x)
            for edit in [edit for eraser in erasers for edit in eraser.edits if edit.site.path.endswith(f".{n}")]:
                z = (x @ edit.W_enc[0] + edit.b_enc[0]).clamp(min=0)
                z[:, : edit.lead] = 0
                if z.max() > 0:
                    taken += strength * edit.lam * max(1, edit.typical[0] / z.max()) * z[..., None] * edit.W_dec[0]
            x = x - taken
        return part.transformer.norm(x)


def test_the_concepts_prompt_changes_by_the_formula_and_no_other_does(
    pack: SimpleNamespace, clip: Any, make: Make
) -> None:
    gun, pistol = make(clip), make(clip, "pistol")
    erased = pack.apply.applied(clip, gun, 0.7)
    torch.testing.assert_close(states(erased, GUN), by_hand(clip, [gun], GUN, 0.7), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(states(erased, GUN), states(clip, GUN), atol=1e-2)
    assert torch.equal(states(erased, CAT), states(clip, CAT))
    both = pack.apply.applied(pack.apply.applied(clip, gun), pistol)
    again = pack.apply.applied(pack.apply.applied(clip, pistol), gun)
    assert torch.equal(states(both, "a gun and pistol"), states(again, "a gun and pistol"))
    wanted = by_hand(clip, [gun, pistol], "a gun and pistol")
    torch.testing.assert_close(states(both, "a gun and pistol"), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(states(pack.apply.applied(clip, gun, 0.0), GUN), states(clip, GUN))
    for strength in (-0.1, 2.1, float("nan")):
        with pytest.raises(InvalidSetting, match="strength"):
            pack.apply.applied(clip, gun, strength)
    with pytest.raises(InvalidSetting, match="twice"):
        pack.apply.applied(erased, gun)


def test_1_a_clone_that_dies_leaves_the_living_ones_eraser(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    wanted = states(erased, GUN)
    assert erased.patcher.is_injected
    clone = erased.clone()
    assert not clone.patcher.is_injected, "a clone was not injected"
    clone.patcher.is_injected = True  # as where a node pack clones without the callback
    del clone
    gc.collect()
    with torch.no_grad():  # without loading, as encoders of other packs do
        made = erased.cond_stage_model.encode_token_weights(erased.tokenize(GUN))[0]
    assert torch.equal(made, wanted)
    copy = erased.clone()
    assert torch.equal(states(copy, GUN), wanted)
    del copy, erased
    gc.collect()
    assert "_excise" not in vars(clip.cond_stage_model) or not vars(clip.cond_stage_model)["_excise"]
    assert torch.equal(states(clip, GUN), by_hand(clip, [], GUN))
    assert not [m for m in clip.cond_stage_model.modules() if "forward" in vars(m)]


def test_two_clips_of_one_model_take_turns(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    one, other = pack.apply.applied(clip, make(clip)), pack.apply.applied(clip, make(clip, "cat"))
    for _ in range(2):
        assert torch.equal(states(clip, GUN), by_hand(clip, [], GUN))
        assert torch.equal(states(one, CAT), states(clip, CAT))
        assert torch.equal(states(other, GUN), states(clip, GUN))
        assert not torch.equal(states(one, GUN), states(clip, GUN))
        assert not torch.equal(states(other, CAT), states(clip, CAT))
    assert not one.patcher.injections.keys() & other.patcher.injections.keys(), "ComfyUI would take them for the same"


def test_2_another_devices_model_under_the_old_one_is_seen_by_the_guard(
    pack: SimpleNamespace, clip: Any, make: Make
) -> None:
    erased = pack.apply.applied(clip, make(clip))
    moved = erased.clone()
    moved.patcher = erased.patcher.clone(make_clip().cond_stage_model)
    plain = moved.encode(GUN)  # ComfyUI loads the new model and encodes with the old one
    assert "excise" not in plain
    with pytest.raises(EraserDidNotFire, match="not made by a CLIP"):
        sampled(pack, erased, plain)
    wired = moved.clone()
    wired.cond_stage_model = moved.patcher.model  # as the node for VAEs does
    assert torch.equal(states(wired, GUN), states(erased, GUN)), "the injection holds no module of the old model"


def test_3_a_clip_skip_past_the_eraser_is_refused(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    eraser = make(clip, layer=1)
    erased = pack.apply.applied(clip, eraser)
    for skip, changed in ((-1, True), (-2, True)):
        clone = erased.clone()
        clone.layer_idx = skip
        plain = clip.clone()
        plain.layer_idx = skip
        assert torch.equal(states(clone, GUN), states(plain, GUN)) is not changed
    clone.layer_idx = -3
    with pytest.raises(InvalidSetting, match="clip skip reads layer 0"):
        clone.encode(GUN)
    loose = pack.apply.applied(clip, eraser, strict=False)
    loose.layer_idx = -3
    loose.encode(GUN)


def lora(clip: Any) -> Any:
    made = clip.clone()
    key = "clip_l.transformer.text_model.encoder.layers.0.mix.weight"
    made.patcher.add_patches({key: ("diff", (torch.full((double.WIDTH, double.WIDTH), 0.05),))})
    return made


def test_4_a_lora_on_the_text_encoder_is_refused(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    eraser, patched = make(clip), lora(clip)
    patched.encode(GUN)  # its weights are patched in place now
    assert pack.weights.differences(patched.patcher, eraser) == [], "13: the model's own weights count"
    for wired in (lambda: pack.apply.applied(patched, eraser), lambda: lora(pack.apply.applied(clip, eraser))):
        with pytest.raises(WrongModel, match="LoraLoaderModelOnly"):
            wired().encode(GUN)
    assert torch.equal(states(clip, GUN), by_hand(clip, [], GUN)), "nothing is left behind by a refusal"
    loose = lora(pack.apply.applied(clip, eraser, strict=False))
    assert not torch.equal(states(loose, GUN), states(patched, GUN))


def test_5_an_eraser_replaced_on_disk_is_noticed(
    pack: SimpleNamespace, clip: Any, make: Make, erasers: Path, tmp_path: Path
) -> None:
    make(clip).save(erasers / "group" / "gun")
    make(clip, "pistol").save(tmp_path / "other")
    assert pack.folders.names() == ["group/gun"]
    load = pack.nodes.LoadEraser
    before = load.fingerprint_inputs("group/gun")
    assert load.fingerprint_inputs("group/gun") == before
    assert load.execute("group/gun").args[0].concept == "gun"
    shutil.rmtree(erasers / "group" / "gun")
    shutil.copytree(tmp_path / "other", erasers / "group" / "gun")
    assert load.fingerprint_inputs("group/gun") != before
    assert load.execute("group/gun").args[0].concept == "pistol"
    for name in ("../../other", "/etc", "group", "", "gun"):
        with pytest.raises(NotFound, match="no eraser"):
            pack.folders.load(name)
    data = json.loads((erasers / "group/gun/eraser.json").read_text())
    (erasers / "group/gun/eraser.json").write_text(json.dumps({**data, "canary": []}))
    with pytest.raises(ExciseError, match="altered"):
        load.execute("group/gun")


def test_6_weights_of_words_act_behind_the_eraser(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    empty, plain, gone = states(clip, ""), states(clip, "a gun"), states(erased, "a gun")
    row = 2
    for weight in (1.4, 0.0, -1.0):
        made = states(erased, f"a gun:{weight}")
        wanted = (gone[0, row] - empty[0, row]) * weight + empty[0, row]
        torch.testing.assert_close(made[0, row], wanted, atol=1e-5, rtol=1e-5)
        assert torch.equal(made[0, 1], gone[0, 1])
    assert not torch.allclose(plain, gone, atol=1e-2)
    assert torch.equal(states(erased, "a cat:1.4 on grass:0.7"), states(clip, "a cat:1.4 on grass:0.7"))
    report = pack.report.report(erased)
    assert "fired in 4 of 5 prompts" in report, report


def test_7_every_row_of_a_long_prompt_has_its_own_gate(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    tail = "and a red tree on grass"
    for text, changed in (
        (f"a gun {tail} {tail}", [True, False, False]),
        (f"{tail} {tail} a gun", [False, False, True]),
        (f"{tail} {tail}", [False, False]),
    ):
        pairs = zip(states(erased, text)[0].split(8), states(clip, text)[0].split(8), strict=True)
        assert [not torch.equal(*pair) for pair in pairs] == changed


def sampled(pack: SimpleNamespace, clip: Any, positive: Any, negative: Any = None, cfg: float = 7.0) -> Any:
    import comfy.samplers

    model = pack.guard.guarded(double.Patcher(torch.nn.Linear(1, 1)), clip)
    return comfy.samplers.CFGGuider(model, positive, negative, cfg).sample()


def test_8_break_is_a_word_like_others(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    # ComfyUI cuts a prompt by length alone: `test_7` covers the rows. Nothing in the pack reads the text.
    source = "".join(path.read_text() for path in Path(pack.apply.__file__).parent.glob("*.py"))
    assert "BREAK" not in source


def test_9_a_negative_prompt_may_come_from_any_clip(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    positive, negative = erased.encode(CAT), clip.encode(GUN)
    assert sampled(pack, erased, positive, negative) == "a picture"
    with pytest.raises(EraserDidNotFire, match="negative"):
        sampled(pack, erased, positive, negative, cfg=0.5)  # then the negative prompt is what is drawn
    assert sampled(pack, erased, positive, erased.encode(GUN), cfg=0.5) == "a picture"
    with pytest.raises(EraserDidNotFire, match="positive"):
        sampled(pack, erased, negative, positive)


def test_10_states_blended_behind_the_encoder_are_refused(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    erased = pack.apply.applied(clip, make(clip))
    ours, plain = erased.encode(CAT), clip.encode(GUN)
    joined = torch.cat([ours["cross_attn"], plain["cross_attn"]], 1)
    blended = 0.1 * ours["cross_attn"] + 0.9 * plain["cross_attn"]
    for cross_attn in (joined, blended):
        with pytest.raises(EraserDidNotFire, match="blended with others"):
            sampled(pack, erased, {**ours, "cross_attn": cross_attn})
    with pytest.raises(EraserDidNotFire):
        sampled(pack, erased, {**ours, "pooled_output": plain["pooled_output"]})
    assert sampled(pack, erased, {**ours, "cross_attn": torch.zeros(1, 8, double.WIDTH)}) == "a picture"
    assert sampled(pack, erased, {**ours, "cross_attn": ours["cross_attn"].half()}) == "a picture"
    twice = torch.cat([ours["cross_attn"], erased.encode(GUN)["cross_attn"]], 1)
    assert sampled(pack, erased, {**ours, "cross_attn": twice}) == "a picture"
    with pytest.raises(InvalidSetting, match="no eraser"):
        sampled(pack, clip, ours)


def test_11_only_the_models_own_weights_fit(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    eraser = make(clip)
    assert pack.weights.differences(clip.patcher, eraser) == []
    assert pack.weights.differences(make_clip(seed=1).patcher, eraser) == ["text_encoder's weights differ"]
    with pytest.raises(WrongModel, match="another model: text_encoder's weights differ"):
        pack.apply.applied(make_clip(seed=1), eraser)
    # 14: the digest is kept, and a changed weight is still noticed.
    with torch.no_grad():
        clip.cond_stage_model.clip_l.transformer.norm.bias[0] += 0.5
    assert pack.weights.differences(clip.patcher, eraser) == ["text_encoder's weights differ"]
    eight = make_clip()
    eight.cond_stage_model.clip_l.transformer.to(torch.float8_e4m3fn)
    (clause,) = pack.weights.differences(eight.patcher, eraser)  # 15
    assert "float8_e4m3fn" in clause
    assert pack.weights.differences(clip.patcher, eraser_of(clip, encoders={})) == [
        "the eraser does not know text_encoder"
    ]


def test_11_a_projection_that_only_comfyui_has_does_not_count(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    eraser, part = make(clip), clip.cond_stage_model.clip_l
    part.transformer.text_projection = torch.nn.Linear(4, 4, bias=False)
    assert pack.weights.differences(clip.patcher, eraser) == []
    with_it = make(clip)
    assert with_it.made_for != eraser.made_for
    assert pack.weights.differences(clip.patcher, with_it) == []


def t5_clip() -> Any:
    return make_clip(t5xxl=double.Part("encoder.block", pair=True))


def test_12_t5_is_padded_to_the_length_of_the_fit(pack: SimpleNamespace) -> None:
    clip, places = t5_clip(), {"text_encoder": ("t5xxl", "encoder.block")}
    old = eraser_of(clip, places=places)
    eraser, other = (
        eraser_of(clip, word, places=places, names="canonical", lengths={"text_encoder": length})
        for word, length in (("gun", 6), ("pistol", 5))
    )
    erased = pack.apply.applied(clip, eraser)
    assert erased.encode(GUN)["cross_attn"].shape[1] == 6
    assert states(erased, CAT).shape != states(clip, CAT).shape, "ComfyUI's own length is another: no state is the same"
    padded = clip.clone()
    padded.set_tokenizer_option("t5xxl_min_length", 6)
    assert torch.equal(states(erased, CAT), states(padded, CAT)), "only the padding differs"
    assert clip.tokenizer_options == {}
    erased.set_tokenizer_option("t5xxl_min_length", 7)
    with pytest.raises(InvalidSetting, match="7 tokens, but eraser 'gun-eraser' was fitted at 6"):
        erased.encode(GUN)
    with pytest.raises(InvalidSetting, match="does not state the length"):
        pack.apply.applied(clip, old)
    pack.apply.applied(clip, old, strict=False)
    with pytest.raises(InvalidSetting, match="6 and 5 tokens"):
        pack.apply.applied(erased, other)


def test_16_codes_of_a_fixed_length_refuse_another_length(pack: SimpleNamespace, clip: Any) -> None:
    from dataclasses import replace

    eraser = eraser_of(clip)
    edit = replace(
        eraser.edits[0],
        source="concept",
        lead=0,
        concept_codes=torch.ones(double.LENGTH, 1),  # type: ignore[arg-type]
    )
    fixed = replace(eraser, edits=(edit,))
    erased = pack.apply.applied(clip, fixed)
    erased.set_tokenizer_option("clip_l_min_length", 12)  # as an encoder with more positions does
    with pytest.raises(ExciseError, match="12 positions, the eraser's concept codes 8"):
        erased.encode(GUN)


def test_17_a_pack_that_cannot_be_imported_answers_no_health_check(
    monkeypatch: pytest.MonkeyPatch, erasers: Path, pack: SimpleNamespace
) -> None:
    # ComfyUI only logs the error and starts without the pack.
    monkeypatch.setitem(sys.modules, "excise.erasers.artefact.record", None)  # as where Excise is not installed
    double.install(monkeypatch, erasers)
    forget()
    import server

    with pytest.raises(ImportError):
        importlib.import_module(PACK)
    assert server.PromptServer.instance.routes.by_path == {}  # type: ignore[attr-defined]
    monkeypatch.setenv("EXCISE_ENFORCE", str(erasers))
    forget()
    with pytest.raises(SystemExit, match="EXCISE_ENFORCE is set, but Excise did not start: "):
        importlib.import_module(PACK)
    assert server.PromptServer.instance.routes.by_path == {}  # type: ignore[attr-defined]


@needs_comfyui
def test_17_comfyui_starts_without_a_pack_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "excise").mkdir()
    (tmp_path / "excise" / "__init__.py").write_text("raise ImportError('not installed')")
    path = ":".join(map(str, (STUB, tmp_path, ROOT)))
    server = Server(tmp_path / "comfyui", PYTHONPATH=path)
    try:
        server.wait()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.get("/excise/status")
        assert server.run(simple(GUN)).status == "HTTP 400", "a workflow with its nodes is refused"
    finally:
        server.stop()
    server = Server(tmp_path / "comfyui", PYTHONPATH=path, EXCISE_ENFORCE=str(tmp_path))
    try:
        assert server.process.wait(300) != 0
    except subprocess.TimeoutExpired:
        server.stop()
        raise
    assert "EXCISE_ENFORCE is set, but Excise did not start: not installed" in server.log.read_text()


def cosine(steps: int = 1000) -> list[float]:
    """Return σ_t of the cosine schedule: Nichol & Dhariwal (2021), eq. 17, with β of at most 0.999."""

    def kept(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    alphas, made = 1.0, []
    for t in range(steps):
        alphas *= 1 - min(1 - kept(t + 1) / kept(t), 0.999)
        made.append(math.sqrt((1 - alphas) / alphas))
    return made


def test_18_the_demo_model_brings_the_noise_levels_of_its_schedule(pack: SimpleNamespace) -> None:
    model = importlib.import_module(f"{PACK}.demo_model")._model().model
    assert model.kind == "v"
    torch.testing.assert_close(model.model_sampling.sigmas, torch.tensor(cosine()), atol=0, rtol=1e-3)


@pytest.fixture(scope="module")
def real() -> Any:
    """Return what `real_traps.py` finds in ComfyUI."""
    program = Path(__file__).parent / "real_traps.py"
    done = subprocess.run([PYTHON, "-s", str(program)], cwd=TREE, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_comfyui
def test_2_in_comfyui_a_clip_on_another_device_is_plain_and_the_guard_sees_it(real: Any) -> None:
    found = real["devices"]
    assert found["the node, same device"] == "erased"
    assert found["another device"] == "plain", "ComfyUI loads the copy's weights and encodes with the old model"
    assert "changes the states of its canary prompt by 0" in found["applied on another device"]
    assert found["another device, wired"] == "erased"
    assert found["sampled, erased"] == "a picture"
    assert "not made by a CLIP with eraser" in found["sampled, another device"]


@needs_comfyui
def test_18_comfyui_has_no_such_schedule_but_the_demo_models_levels(real: Any) -> None:
    assert real["own schedule"] == "TypeError", "if ComfyUI can do it now, demo_model.sigmas may go"
    torch.testing.assert_close(torch.tensor(real["sigmas"]), torch.tensor(cosine()), atol=0, rtol=1e-3)
