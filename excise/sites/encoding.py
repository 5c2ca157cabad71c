"""Running a pipeline's `encode_prompt`, whatever its signature, and a pipeline for a text encoder alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
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
    known = inspect.signature(as_diffusers(pipe).encode_prompt).parameters
    wanted: dict[str, Any] = {
        name: None for name, p in known.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }
    # A copy, since some pipelines write their template into the given list.
    texts = prompt if isinstance(prompt, str) else list(prompt)
    wanted |= {"prompt": texts, "device": device or device_of(pipe), "do_classifier_free_guidance": guidance}
    wanted |= {"batch_size": 1 if isinstance(prompt, str) else len(prompt)}
    wanted |= {"num_images_per_prompt": 1, "num_videos_per_prompt": 1}
    return as_diffusers(pipe).encode_prompt(**{name: value for name, value in wanted.items() if name in known})


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
