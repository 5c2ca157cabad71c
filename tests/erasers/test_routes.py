"""The main bypasses by every route: the attached pipeline, a sibling, from_pipe and another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import excise
from excise.erasers import Eraser
from excise.errors import EraserDidNotFire
from tests import tiny

GUN, CAT = "a gun on grass", "a cat on grass"
Options = dict[str, Any]


def states(pipe: Any, prompt: str) -> Tensor:
    with torch.no_grad():
        made: Tensor = pipe.encode_prompt(prompt, "cpu", 1, False)[0]
    return made


def draw(pipe: Any, **options: Any) -> Tensor:
    how = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", **options}
    made: Tensor = pipe(generator=torch.Generator().manual_seed(3), **how).images
    return made


def _attached(pipe: Any, options: Options) -> Tensor:
    return draw(pipe, **options)


def _sibling(pipe: Any, options: Options) -> Tensor:
    from diffusers import StableDiffusionPipeline

    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return draw(other, **options)


def _from_pipe(pipe: Any, options: Options) -> Tensor:
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    return draw(other, **options)


def _thread(pipe: Any, options: Options) -> Tensor:
    done: list[Any] = []

    def run() -> None:
        try:
            done.append(draw(pipe, **options))
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    made: Tensor = done[0]
    return made


ROUTES = (_attached, _sibling, _from_pipe, _thread)


def _written_over(pipe: Any, foreign: Tensor) -> Options:
    own = states(pipe, CAT)
    own.copy_(foreign)
    return {"prompt_embeds": own, "negative_prompt_embeds": states(pipe, CAT)}


def _negative_as_prompt(pipe: Any, foreign: Tensor) -> Options:
    own, negative = excise.encode(pipe, CAT)[0], excise.encode(pipe, GUN, negative=True)[0]
    return {"prompt_embeds": negative, "negative_prompt_embeds": own}


def _negative_without_guidance(pipe: Any, foreign: Tensor) -> Options:
    return {"prompt_embeds": excise.encode(pipe, GUN, negative=True)[0], "guidance_scale": 1.0}


def _halves_swapped(pipe: Any, foreign: Tensor) -> Options:
    def swap(pipe: Any, step: int, timestep: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": given["prompt_embeds"].flip(0)}

    return {
        "prompt": CAT,
        "negative_prompt": GUN,
        "callback_on_step_end": swap,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }


def _foreign_by_callback(pipe: Any, foreign: Tensor) -> Options:
    def put(pipe: Any, step: int, timestep: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": torch.cat([foreign, foreign])}

    return {"prompt": CAT, "callback_on_step_end": put, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}


def _of_another_setting(pipe: Any, foreign: Tensor) -> Options:
    with excise.using(pipe, {"gun-test": 0.0}):
        plain = states(pipe, GUN)
    return {"prompt_embeds": plain, "negative_prompt_embeds": states(pipe, CAT)}


def _ip_adapter(pipe: Any, foreign: Tensor) -> Options:
    """Load a real IP-Adapter of zeros, with image embeddings of width 8."""
    unet, weights, key = pipe.unet, {}, 1
    wide = unet.config.cross_attention_dim
    for name in unet.attn_processors:
        if "attn2" in name:
            attention = unet.get_submodule(name.removesuffix(".processor"))
            for part in "kv":
                weights[f"{key}.to_{part}_ip.weight"] = torch.zeros(attention.inner_dim, wide)
            key += 2
    image = {"proj.weight": torch.zeros(4 * wide, 8), "proj.bias": torch.zeros(4 * wide)}
    image |= {"norm.weight": torch.zeros(wide), "norm.bias": torch.zeros(wide)}
    unet._load_ip_adapter_weights([{"image_proj": image, "ip_adapter": weights}])
    return {"prompt": CAT, "ip_adapter_image_embeds": [torch.ones(2, 1, 8)]}


EMBEDDINGS: dict[str, Callable[[Any, Tensor], Options]] = {
    "embeddings from elsewhere": lambda pipe, foreign: {"prompt_embeds": foreign, "negative_prompt_embeds": foreign},
    "negative embeddings from elsewhere": lambda pipe, foreign: {"prompt": CAT, "negative_prompt_embeds": foreign},
    "embeddings written over": _written_over,
    "embeddings of another setting": _of_another_setting,
    "embeddings from elsewhere, by a callback": _foreign_by_callback,
    "a negative prompt's embeddings as the prompt": _negative_as_prompt,
    "a negative prompt's embeddings without guidance": _negative_without_guidance,
    "a callback that swaps the halves": _halves_swapped,
    "an IP-Adapter": _ip_adapter,
}


def _layer(pipe: Any, n: int) -> Any:
    return tiny.body(pipe.text_encoder).encoder.layers[n]


class KohyaLoRA(nn.Module):
    """A LoRA that replaces the `forward` of the layer it adapts."""

    def __init__(self, adapted: nn.Linear) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(adapted.in_features, 2), nn.Linear(2, adapted.out_features)
        self.of = adapted.forward
        adapted.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.of(x) + self.up(self.down(x))
        return made


class Silent(nn.Module):
    """An activation without parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


def _kohya(n: int) -> Callable[[Any], Any]:
    return lambda pipe: KohyaLoRA(_layer(pipe, n).mlp.fc1)


def _at_the_site(pipe: Any) -> None:
    layer = _layer(pipe, 2)
    of = layer.forward
    layer.forward = lambda *args, **kwargs: of(*args, **kwargs)


def _written(pipe: Any) -> None:
    with torch.no_grad():
        _layer(pipe, 0).mlp.fc1.weight.add_(1e-3)


def _hooked(module: Any, change: Callable[[Any], Any] = lambda made: 1.01 * made) -> None:
    def hook(module: Any, given: Any, made: Any) -> Any:
        if isinstance(made, tuple):
            changed = change(made[0])
            return None if changed is None else (changed, *made[1:])
        return change(made)

    module.register_forward_hook(hook)


def _pre_hooked(module: Any, prepend: bool = False, *, of: Callable[[Any], Any] = lambda x: 1.01 * x) -> None:
    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        name, value = next(((n, v) for n, v in [*enumerate(args), *kwargs.items()] if isinstance(v, Tensor)))
        args = tuple(of(value) if n == name else v for n, v in enumerate(args))
        return args, {n: of(value) if n == name else v for n, v in kwargs.items()}

    module.register_forward_pre_hook(hook, prepend=prepend, with_kwargs=True)


def _in_place(made: Tensor) -> None:
    made.mul_(1.01)


def _behind_the_counter(made: Tensor) -> None:
    made.data.mul_(1.01)


def _skipped(module: Any) -> None:
    module.register_forward_hook(lambda module, given, made: given[0])


def _last(pipe: Any) -> Any:
    return tiny.body(pipe.text_encoder).final_layer_norm


def _embeddings(pipe: Any) -> Any:
    return tiny.body(pipe.text_encoder).embeddings


class OtherNorm(nn.LayerNorm):
    """A class to put a module into."""


CODE: dict[str, Callable[[Any], Any]] = {
    "a kohya LoRA before the Site": _kohya(0),
    "a kohya LoRA in the Site's layer": _kohya(2),
    "a kohya LoRA behind the Site": _kohya(-1),
    "the Site's forward": _at_the_site,
    "a forward hook behind the Site": lambda pipe: _hooked(_last(pipe)),
    "a forward hook before the Site": lambda pipe: _hooked(_layer(pipe, 0)),
    "a forward hook that writes": lambda pipe: _hooked(_layer(pipe, 0), _in_place),
    "a forward hook that writes behind the counter": lambda pipe: _hooked(_layer(pipe, 0), _behind_the_counter),
    "a forward hook that skips a layer": lambda pipe: _skipped(_last(pipe)),
    "a pre-hook": lambda pipe: _pre_hooked(_last(pipe)),
    "a pre-hook on the encoder": lambda pipe: _pre_hooked(pipe.text_encoder, of=lambda ids: ids.flip(1)),
    "the first pre-hook on the encoder": lambda pipe: _pre_hooked(pipe.text_encoder, True, of=lambda ids: ids.flip(1)),
    "an activation": lambda pipe: setattr(_layer(pipe, 0).mlp, "activation_fn", Silent()),
    "eps": lambda pipe: setattr(_last(pipe), "eps", 0.5),
    "position_ids": lambda pipe: setattr(_embeddings(pipe), "position_ids", _embeddings(pipe).position_ids.flip(1)),
    "position_ids in place": lambda pipe: _embeddings(pipe).position_ids.data.zero_(),
    "a class": lambda pipe: setattr(_last(pipe), "__class__", OtherNorm),
}
WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "weights": _written,
    "weights behind the counter": lambda pipe: _layer(pipe, 0).mlp.fc1.weight.data.mul_(3),
}


@pytest.mark.parametrize("route", ROUTES)
def test_ordinary_prompts_come_through(tiny_pipe: Any, gun_eraser: Eraser, route: Any) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        own, negative = excise.encode(tiny_pipe, CAT)[0], excise.encode(tiny_pipe, GUN, negative=True)[0]
        route(tiny_pipe, {"prompt": GUN, "negative_prompt": GUN})
        route(tiny_pipe, {"prompt_embeds": own, "negative_prompt_embeds": negative})
        assert attachment.status()["bypasses"] == 0


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", EMBEDDINGS)
def test_states_that_no_edited_encoder_made(tiny_pipe: Any, gun_eraser: Eraser, way: str, route: Any) -> None:
    foreign = states(tiny_pipe, GUN)
    with gun_eraser.attach(tiny_pipe) as attachment:
        options = EMBEDDINGS[way](tiny_pipe, foreign)
        with pytest.raises(EraserDidNotFire):
            route(tiny_pipe, options)
        assert attachment.status()["bypasses"] == 1


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", {**CODE, **WEIGHTS})
def test_an_altered_encoder(tiny_pipe: Any, gun_eraser: Eraser, way: str, route: Any) -> None:
    changed = "the text encoder changed" if way in WEIGHTS else "the text encoder's code changed"
    with gun_eraser.attach(tiny_pipe) as attachment:
        route(tiny_pipe, {"prompt": CAT})
        {**CODE, **WEIGHTS}[way](tiny_pipe)
        with pytest.raises(EraserDidNotFire, match=changed):
            route(tiny_pipe, {"prompt": CAT})
        assert attachment.status()["bypasses"] == 1


def test_image_embeddings_given_to_the_denoiser(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """An IP-Adapter is refused also where the denoiser is called by hand, with a prompt that is known."""
    with gun_eraser.attach(tiny_pipe), torch.no_grad():
        _ip_adapter(tiny_pipe, torch.empty(0))
        own = states(tiny_pipe.__class__(**tiny_pipe.components, requires_safety_checker=False), CAT)
        given = {"encoder_hidden_states": own, "added_cond_kwargs": {"image_embeds": [torch.ones(1, 1, 8)]}}
        with pytest.raises(EraserDidNotFire, match="an IP-Adapter feeds images past eraser"):
            tiny_pipe.unet(torch.zeros(1, 4, 8, 8), 10, **given)


def test_code_put_back_is_accepted_again(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    with gun_eraser.attach(tiny_pipe):
        before = draw(tiny_pipe, prompt=CAT)
        handle = _last(tiny_pipe).register_forward_hook(lambda module, given, made: 1.01 * made)
        with pytest.raises(EraserDidNotFire, match="remove it, or attach the eraser again"):
            draw(tiny_pipe, prompt=CAT)
        handle.remove()
        assert torch.equal(draw(tiny_pipe, prompt=CAT), before)
