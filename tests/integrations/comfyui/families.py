"""Program that compares ComfyUI's own encoder classes with those of transformers, plain and erased, family by family.

It needs ComfyUI's tree as the current folder. It prints a JSON object: for each family its `measured`.
"""

# ruff: noqa: E402  ComfyUI reads its settings while it is imported.
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, ".")

from comfy.cli_args import args

args.cpu = True  # read when the modules below are imported

import comfy.model_patcher
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.lumina2
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import comfy.text_encoders.z_image
import torch
from torch import Tensor

sys.path.remove(".")  # its package `tests` would hide ours
package = ModuleType("integrations.comfyui")  # without its `__init__`, which needs a server
package.__path__ = [str(Path(__file__).parents[3] / "integrations" / "comfyui")]
sys.modules["integrations.comfyui"] = package

from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.weight_digest import canonical
from excise.erasers.edits.text_sae import SAEEdit
from excise.erasers.guard.model_digest import encoder_digests
from excise.sites.site import Site
from integrations.comfyui.injection import Applied, Injection
from integrations.comfyui.layouts import parts_of
from integrations.comfyui.weights import differences
from tests.tiny import encoders

WORDS, LENGTH, LAYERS = 100, 24, 3
CONCEPT, OTHERS = 17, (21, 34, 55)


class Kind(NamedTuple):
    """One text encoder: how it is built, and what it is called in ComfyUI."""

    make: Callable[[], Any]
    """Makes the encoder of transformers."""
    path: str
    """Path of its layers in diffusers."""
    config: Callable[[Any], dict[str, Any]]
    """Returns ComfyUI's configuration of the encoder."""
    tap: int | None = None
    """The hidden state that is read; None for the last one behind the final norm."""
    masked: bool = False


def clip(width: int, projected: bool = False, tap: int | None = None, more: int = 0) -> Kind:
    """Return a CLIP. ComfyUI has `more` layers, which are not read."""

    def config(encoder: Any) -> dict[str, Any]:
        names = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "eos_token_id")
        return {**{name: getattr(encoder.config, name) for name in names}, "num_hidden_layers": LAYERS + more}

    return Kind(lambda: encoders.clip(width, projection=width if projected else None), "encoder.layers", config, tap)


def t5(width: int, masked: bool = False) -> Kind:
    """Return a T5, or with a mask a UMT5."""

    def make() -> Any:
        from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

        shape = {"d_model": width, "d_kv": 8, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2, "vocab_size": WORDS}
        config = (UMT5Config if masked else T5Config)(**shape, feed_forward_proj="gated-gelu")
        return encoders.telling(lambda: (UMT5EncoderModel if masked else T5EncoderModel)(config))

    def config(encoder: Any) -> dict[str, Any]:
        shape = encoder.config
        names = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads", "vocab_size")
        return {name: getattr(shape, name) for name in names}

    return Kind(make, "encoder.block", config, None, masked)


def language(model: str, path: str, tap: int | None) -> Kind:
    """Return a language model with the width of head that ComfyUI's class has."""
    head = 256 if model == "gemma2" else 128

    def make() -> Any:
        import transformers

        shape = {**encoders._decoder(64, WORDS, LAYERS), "head_dim": head}
        if model == "qwen3":
            return encoders.telling(lambda: transformers.Qwen3Model(transformers.Qwen3Config(**shape, rope_theta=1e6)))
        if model == "gemma2":
            config = transformers.Gemma2Config(**shape, query_pre_attn_scalar=head)
            return encoders.telling(lambda: transformers.Gemma2Model(config))
        return encoders.qwen2_5_vl(256, WORDS, LAYERS)

    def config(encoder: Any) -> dict[str, Any]:
        shape = getattr(encoder.config, "text_config", None) or encoder.config
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        return {name: getattr(shape, name) for name in (*names, "num_key_value_heads")}

    return Kind(make, path, config, tap)


FAMILIES: dict[str, tuple[Any, dict[str, tuple[str, str, Kind]]]] = {
    "Stable Diffusion 1": (comfy.sd1_clip.SD1ClipModel, {"text_encoder": ("clip_l", "l", clip(32))}),
    "Stable Diffusion 2": (
        comfy.text_encoders.sd2_clip.SD2ClipModel,
        {"text_encoder": ("clip_h", "h", clip(32, more=1))},
    ),
    "SDXL": (
        comfy.sdxl_clip.SDXLClipModel,
        {
            "text_encoder": ("clip_l", "l", clip(32, tap=-2)),
            "text_encoder_2": ("clip_g", "g", clip(48, projected=True, tap=-2)),
        },
    ),
    "Stable Diffusion 3": (
        comfy.text_encoders.sd3_clip.SD3ClipModel,
        {
            "text_encoder": ("clip_l", "l", clip(32, projected=True, tap=-2)),
            "text_encoder_2": ("clip_g", "g", clip(48, projected=True, tap=-2)),
            "text_encoder_3": ("t5xxl", "t5xxl", t5(4096)),
        },
    ),
    "FLUX.1": (
        comfy.text_encoders.flux.FluxClipModel,
        {"text_encoder": ("clip_l", "l", clip(32)), "text_encoder_2": ("t5xxl", "t5xxl", t5(64))},
    ),
    "Qwen-Image": (
        comfy.text_encoders.qwen_image.QwenImageTEModel,
        {"text_encoder": ("qwen25_7b", "qwen25_7b", language("qwen2.5-vl", "model.language_model.layers", None))},
    ),
    "Z-Image": (
        comfy.text_encoders.z_image.ZImageTEModel,
        {"text_encoder": ("qwen3_4b", "qwen3_4b", language("qwen3", "layers", -2))},
    ),
    "Lumina 2": (
        comfy.text_encoders.lumina2.LuminaModel,
        {"text_encoder": ("gemma2_2b", "gemma2_2b", language("gemma2", "layers", -2))},
    ),
    "Wan": (comfy.text_encoders.wan.WanT5Model, {"text_encoder": ("umt5xxl", "umt5xxl", t5(32, masked=True))}),
}
LENGTHS = {"t5xxl": LENGTH}


def named(encoder: Any) -> dict[str, Tensor]:
    """Return an encoder's weights under the names that ComfyUI loads."""
    state = encoder.state_dict()
    if "shared.weight" in state:
        return dict(state)
    if any("language_model" in name for name in state):
        return {name.replace("language_model.", ""): t for name, t in state.items() if "visual" not in name}
    if any(name.startswith("layers.") for name in state):
        return {f"model.{name}": t for name, t in state.items()}
    plain = {name.removeprefix("text_model."): t for name, t in state.items()}
    return {name if name.startswith("text_projection") else f"text_model.{name}": t for name, t in plain.items()}


def prompt(kind: Kind, word: int) -> list[int]:
    """Return the ids of a prompt with one word, padded as ComfyUI pads it."""
    if kind.path == "encoder.layers":
        ids = [49406, 320, word, 525, 9, 49407]
        return ids + [49407] * (77 - len(ids))
    if kind.path == "encoder.block":
        ids = [40, word, 41, 1]
        return ids + [0] * (LENGTH - len(ids))
    return [40, 41, word, 42, 43]


@torch.no_grad()
def states(encoder: Any, kind: Kind, ids: list[int], edit: SAEEdit | None = None) -> Tensor:
    """Return what diffusers reads of an encoder for a prompt, with an edit or without."""
    handle = None
    if edit is not None:
        module = layer_of(encoder, edit.site.path)

        def edited(_: Any, __: Any, output: Any) -> Any:
            rest = output[1:] if isinstance(output, tuple) else ()
            made = edit.apply(output[0] if isinstance(output, tuple) else output)
            return (made, *rest) if isinstance(output, tuple) else made

        handle = module.register_forward_hook(edited)
    tokens = torch.tensor([ids])
    mask = (tokens != 0).long() if kind.masked else None
    if kind.masked:
        mask[:, ids.index(1)] = 1  # type: ignore[index]
    try:
        body = encoder.model if hasattr(encoder, "lm_head") else encoder
        output = body(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
    finally:
        if handle is not None:
            handle.remove()
    made: Tensor = output.last_hidden_state if kind.tap is None else output.hidden_states[kind.tap]
    return made * mask[..., None] if mask is not None else made


def layer_of(encoder: Any, path: str) -> Any:
    """Return the module at a path of diffusers, in any version of transformers."""
    names = dict(encoder.named_modules())
    return names.get(path) or names[f"text_model.{path}"]


@torch.no_grad()
def edit_of(encoder: Any, component: str, kind: Kind) -> SAEEdit:
    """Return an edit of the first layer whose neuron fires for the concept's word only."""
    path, found = f"{kind.path}.0", []
    handle = layer_of(encoder, path).register_forward_hook(
        lambda _, __, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    for word in (CONCEPT, *OTHERS):
        states(encoder, kind, prompt(kind, word))
    handle.remove()
    at = prompt(kind, CONCEPT).index(CONCEPT)
    mine, others = found[0][0, at], torch.stack([state[0, at] for state in found[1:]])
    every = torch.cat([state[0, 1:] for state in found[1:]])
    direction = mine - others.mean(0)
    direction = direction / direction.norm()
    top, rest = mine @ direction, (every @ direction).max()
    assert top > rest, "the neuron would fire for others"
    site = Site(component, path, len(mine))
    numbers = {"threshold": torch.zeros(1), "typical": ((top - rest) / 2)[None]}
    rows = (direction[None], -(top + rest)[None] / 2, torch.zeros(len(mine)), direction[None])
    return SAEEdit(site, torch.tensor([3]), *rows, gate="whole", lead=1, lam=2.0, **numbers)  # type: ignore[arg-type]


@torch.no_grad()
def measured(family: str) -> dict[str, Any]:
    """Return by component the largest difference to transformers, plain and erased, and what the eraser changes."""
    make, layout = FAMILIES[family]
    torch.manual_seed(0)
    made = {component: kind.make() for component, (_, _, kind) in layout.items()}
    configs = {f"{name}_model_config": kind.config(made[c]) for c, (name, _, kind) in layout.items()}
    model = make(dtype=torch.float32, model_options=configs)
    for component, (name, _, _) in layout.items():
        missing, _ = getattr(model, name).load_sd(named(made[component]))
        extra = [
            key for key in missing if "text_projection" not in key and "visual" not in key and f".{LAYERS}." not in key
        ]
        assert not extra, extra
    edits = {component: edit_of(made[component], component, kind) for component, (_, _, kind) in layout.items()}
    known = {component: encoder_digests(encoder, canonical) for component, encoder in made.items()}
    lengths = {component: LENGTHS[name] for component, (name, _, _) in layout.items() if name in LENGTHS}
    about = {"encoders": known, "names": "canonical", "lengths": lengths}
    eraser = Artefact(tuple(edits.values()), "word", "word", made_for=about, canary=("word",))
    device = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    injection = Injection((Applied(eraser, 1.0, True),))
    assert list(parts_of(model)) == list(layout)
    found: dict[str, Any] = {"differences": differences(patcher, eraser)}

    def run(word: int) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        rows = {key: [[(n, 1.0) for n in prompt(kind, word)]] for _, key, kind in layout.values()}
        model.reset_clip_options()
        by_part = {c: getattr(model, name).encode_token_weights(rows[key])[0] for c, (name, key, _) in layout.items()}
        return by_part, model.encode_token_weights(rows)

    plain = {word: run(word) for word in (CONCEPT, OTHERS[0])}
    injection.inject(patcher)
    erased = {word: run(word) for word in (CONCEPT, OTHERS[0])}
    injection.eject(patcher)
    again = run(CONCEPT)
    for component, (_, _, kind) in layout.items():
        encoder, edit = made[component], edits[component]
        wanted = {way: states(encoder, kind, prompt(kind, CONCEPT), way) for way in (None, edit)}
        scale = float(wanted[None].abs().max())
        found[component] = {
            "plain": float((plain[CONCEPT][0][component] - wanted[None]).abs().max()) / scale,
            "erased": float((erased[CONCEPT][0][component] - wanted[edit]).abs().max()) / scale,
            "changed": float((wanted[edit] - wanted[None]).abs().max()) / scale,
            "other_identical": torch.equal(erased[OTHERS[0]][0][component], plain[OTHERS[0]][0][component]),
            "restored": torch.equal(again[0][component], plain[CONCEPT][0][component]),
        }
    found["tag"] = erased[CONCEPT][1][2]["excise"] == (eraser.digest,)
    found["known"] = injection.known.knows(erased[CONCEPT][1][0])
    return found


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(FAMILIES)
    print(json.dumps({family: measured(family) for family in wanted}))
