"""Running a pipeline's `encode_prompt`, whatever its signature, and a pipeline for a text encoder alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from excise.errors import WrongModel
from excise.pipeline import Pipeline, as_diffusers


class Enough(Exception):
    """Raised by a hook that has all it needs, to stop the pipeline early."""


def encode_prompt(
    pipe: Pipeline, prompt: str | list[str], guidance: bool = False, device: torch.device | None = None
) -> Any:
    """Return the result of the pipeline's `encode_prompt`, by default without the unconditional branch.

    Prompts are encoded as for an image (see `call_defaults`).

    Args:
        pipe: The pipeline.
        prompt: A prompt, or several.
        guidance: Whether to encode the unconditional branch too.
        device: `device_of` the pipeline, if known: to find it takes longer than a small encoder.

    Raises:
        WrongModel: if the pipeline has no `encode_prompt`.
    """
    if not callable(getattr(pipe, "encode_prompt", None)):
        raise WrongModel(f"{type(pipe).__name__} has no encode_prompt; wrap its encoder in excise.TextEncoding")
    takes = call_defaults(pipe)
    several = not isinstance(prompt, str)
    given = {
        "prompt": list(prompt) if several else prompt,  # a copy, since some pipelines write their template into it
        "device": device or device_of(pipe),
        "do_classifier_free_guidance": guidance,
        "batch_size": len(prompt) if several else 1,
        "num_images_per_prompt": 1,
        "num_videos_per_prompt": 1,
    }
    return as_diffusers(pipe).encode_prompt(**takes | {name: value for name, value in given.items() if name in takes})


def call_defaults(pipe: Pipeline) -> dict[str, Any]:
    """Return what an image's call gives each parameter of `encode_prompt` by default; None where there is no default.

    The call's own default counts: Sana's has an instruction that comes before each prompt, and Wan's reads 512 tokens,
    where their `encode_prompt` alone has none and reads 226.
    """
    call = inspect.signature(type(pipe).__call__).parameters
    known = inspect.signature(as_diffusers(pipe).encode_prompt).parameters
    found = {
        name: next((p.default for p in (call.get(name, own), own) if p.default is not p.empty), None)
        for name, own in known.items()
        if own.default is not own.empty or own.kind is own.POSITIONAL_OR_KEYWORD
    }
    if "clean_caption" in found and not (find_spec("bs4") and find_spec("ftfy")):
        found["clean_caption"] = False  # as diffusers sets it then, with a warning each time
    return found


def device_of(pipe: Pipeline) -> torch.device:
    """Return the device that the pipeline encodes on."""
    device = getattr(pipe, "_execution_device", None)
    encoder = getattr(pipe, "text_encoder", None)
    return torch.device(device if device is not None else getattr(encoder, "device", "cpu"))


def tensors_of(made: Any) -> Iterable[Tensor]:
    """Yield every tensor in nested tuples, lists and dicts."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, dict):
        for part in made.values():
            yield from tensors_of(part)
    elif isinstance(made, tuple | list):
        for part in made:
            yield from tensors_of(part)


class TextEncoding:
    """A text encoder alone (BERT, MiniLM, ...) as a pipeline, so that SAEs and erasers work on it.

    `encode_prompt` returns the last hidden states `[B, T, d]`.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any) -> None:
        self.text_encoder, self.tokenizer = encoder, tokenizer

    @property
    def components(self) -> dict[str, Any]:
        """Components by name, like a pipeline's."""
        return {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}

    def encode_prompt(self, prompt: str | list[str], prompt_embeds: Tensor | None = None) -> Tensor:
        """Return states `[B, T, d]`, or `prompt_embeds` if given, as a diffusion pipeline does."""
        if prompt_embeds is not None:
            return prompt_embeds
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        batch = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        device = next(self.text_encoder.parameters()).device
        states: Tensor = self.text_encoder(
            batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)
        ).last_hidden_state
        return states


def conditional(pipe: Pipeline, made: Any) -> list[Tensor]:
    """Return the conditional tensors among `encode_prompt`'s results.

    An unconditional tensor follows each conditional one, or they follow all conditional ones if there are masks.
    """
    if not isinstance(made, tuple | list):
        return list(tensors_of(made))
    if "do_classifier_free_guidance" in inspect.signature(as_diffusers(pipe).encode_prompt).parameters:
        masks = len(made) > 2 and isinstance(made[1], Tensor) and made[1].ndim < getattr(made[0], "ndim", 0)
        made = made[: len(made) // 2] if masks else made[::2]
    return list(tensors_of(made))


_NO_STATES = ("logits", "attentions", "cross_attentions", "loss")


def handed_on(output: Any, first: int, taps: Sequence[int] | None) -> Any:
    """What a pipeline may hand on of an encoder's output: the last state, pooled vectors, and of the hidden states
    those that at least `first` layers made, since no edit has reached the others; of them `taps` alone where it is
    known which the pipeline reads."""

    def chosen(states: Any) -> Any:
        return states[first:] if taps is None else [states[tap] for tap in taps if first <= tap < len(states)]

    if isinstance(output, tuple):
        return [chosen(part) if isinstance(part, tuple) else part for part in output]
    parts = {name: part for name, part in dict(output).items() if name not in _NO_STATES}
    return {name: chosen(part) if name == "hidden_states" and part else part for name, part in parts.items()}
