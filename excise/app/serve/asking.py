"""A request for pictures, in OpenAI's words, and the checks that need no model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from excise.app.serve.policy import Policy, first_mistake, strengths
from excise.errors import InvalidSetting, one_line
from excise.files import parse_json
from excise.settings import LARGEST_SEED

MOST_BYTES = 2**16
"""Most bytes of a request's body."""
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class BadField(InvalidSetting):
    """A field of a request is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NoSuchModel(BadField):
    """The request names another model than the one that is served."""

    def __init__(self, model: str) -> None:
        super().__init__("model", f"this service has the model {model!r} alone; name it, or leave model out")


class Images(BaseModel):
    """The body of `POST /v1/images/generations`. A field that is null counts as left out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str
    model: str | None = None
    """The served model's name, as `/v1/models` gives it."""
    n: Annotated[int, Field(ge=1)] = 1
    size: str = "auto"
    """WIDTHxHEIGHT in pixels, or auto: the model's."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None
    """Seed of the first picture; seeds count up. Default: a random one, which the answer states."""
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    response_format: Literal["b64_json", "png"] = "b64_json"
    """The pictures in JSON, or one PNG as the body. OpenAI's `url` would need files that others can fetch."""
    erasers: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """Strengths by name. Erasers that are not named have the policy's strength."""
    user: str | None = None
    """Ignored and not logged."""
    safety_identifier: str | None = None
    """Ignored and not logged."""
    quality: Literal["auto", "standard"] = "auto"
    """There is one quality, which `steps` sets. So this and the rest take only what they are anyway."""
    background: Literal["auto", "opaque"] = "auto"
    output_format: Literal["png"] = "png"
    moderation: Literal["auto"] = "auto"
    stream: Literal[False] = False


@dataclass(frozen=True)
class Asked:
    """A request that the policy allows."""

    prompt: str
    n: int
    size: tuple[int, int] | None
    """Width and height in pixels; None for the model's own."""
    seed: int | None
    steps: int
    guidance: float | None
    png: bool
    strengths: dict[str, float]
    """By name of an eraser, if the request names any."""


def read(body: bytes, policy: Policy, *, model: str, steps: int, multiple: int) -> Asked:
    """Read a request's body.

    Args:
        body: JSON.
        policy: The policy, whose limits apply.
        model: Name of the served model.
        steps: Denoising steps of a request that names none.
        multiple: Width and height must be multiples of this.

    Raises:
        InvalidSetting: The body is not JSON.
        BadField: A field is unknown, wrong, or exceeds a limit.
        NotAllowed: It asks for an eraser or a strength that the policy does not allow.
    """
    limits = policy.limits
    try:
        found = parse_json(body, finite=True)
    except ValueError:
        raise InvalidSetting("the body is not JSON in UTF-8") from None
    if isinstance(found, dict):
        found = {name: value for name, value in found.items() if value is not None}
    try:
        given = Images.model_validate(found)
    except ValidationError as error:
        raise _first(error) from None
    if not given.prompt.strip():
        raise BadField("prompt", "prompt is empty")
    if len(given.prompt) > limits.prompt_characters:
        raise BadField("prompt", f"prompt has {len(given.prompt)} characters; at most {limits.prompt_characters}")
    if given.model not in (None, model):
        raise NoSuchModel(model)
    if given.n > limits.pictures:
        raise BadField("n", f"n is {given.n}; at most {limits.pictures}")
    if given.steps is not None and given.steps > limits.steps:
        raise BadField("steps", f"steps is {given.steps}; at most {limits.steps}")
    if given.response_format == "png" and given.n != 1:
        raise BadField("response_format", "response_format png gives one picture; leave n out, or ask for b64_json")
    if given.seed is not None and given.seed + given.n - 1 > LARGEST_SEED:
        raise BadField("seed", f"{given.n} seeds from {given.seed} on exceed {LARGEST_SEED}, the largest")
    strengths(policy, given.erasers)
    return Asked(
        given.prompt,
        given.n,
        _size(given.size, limits.pixels, multiple),
        given.seed,
        given.steps or min(steps, limits.steps),
        given.guidance_scale,
        given.response_format == "png",
        given.erasers,
    )


def _first(error: ValidationError) -> InvalidSetting:
    """Return the first mistake that a check of the fields found."""
    where, what = first_mistake(error)
    if not where:
        return InvalidSetting('the body must be a JSON object, such as {"prompt": "a cat"}')
    return BadField(where[0], one_line(f"{'.'.join(where)}: {what}"))


def _size(text: str, most: int, multiple: int) -> tuple[int, int] | None:
    if text == "auto":
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise BadField("size", "size must be WIDTHxHEIGHT in pixels, such as 512x512, or auto")
    width, height = int(found[1]), int(found[2])
    if width % multiple or height % multiple:
        raise BadField("size", f"size is {text}; width and height must be multiples of {multiple}")
    if width * height > most:
        raise BadField("size", f"size is {text}; at most {most} pixels")
    return width, height
