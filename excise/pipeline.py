"""Pipeline: the protocol of the object that Excise edits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from excise.errors import WrongModel


class Pipeline(Protocol):
    """A diffusers pipeline, an `excise.LanguageModel`, an `excise.TextEncoding`, or an object of the same shape.

    `components` is all that type checkers compare, since diffusers' pipelines share nothing else. At run time the
    components are attributes too (`pipe.text_encoder`, `pipe.tokenizer`, `pipe.unet` or `pipe.transformer`), and a
    pipeline that reads prompts has the method `encode_prompt`.
    """

    @property
    def components(self) -> Mapping[str, Any]:
        """Modules, tokenizers and the scheduler by name."""
        ...


def as_diffusers(pipe: Pipeline) -> Any:
    """Return the same object, for what diffusers' pipelines have beyond `components`: a scheduler, a call, settings."""
    return pipe


def check_pipeline(pipe: object) -> None:
    """Raise WrongModel for an object that is not a pipeline, such as a model's name."""
    if not isinstance(getattr(pipe, "components", None), Mapping):
        what = repr(pipe) if isinstance(pipe, str) else f"a {type(pipe).__name__}"
        raise WrongModel(
            f"{what[:80]} is not a pipeline; load one with diffusers.DiffusionPipeline.from_pretrained, and pass it"
        )
