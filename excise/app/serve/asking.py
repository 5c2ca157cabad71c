"""A request for pictures, in OpenAI's words, and the checks that need no model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from excise.app.serve.policy import Policy, strengths
from excise.errors import InvalidSetting, one_line
from excise.files import parse_json

MOST_BYTES = 2**16
"""Most bytes of a request's body."""
LARGEST_SEED = 2**63 - 1
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


class Images(BaseModel):
    """The body of `POST /v1/images`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: str
    model: str | None = None
    """The served model's name, as `/v1/models` gives it."""
    n: Annotated[int, Field(ge=1)] = 1
    size: str | None = None
    """WIDTHxHEIGHT in pixels. Default: the model's."""
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None
    """Seed of the first picture; seeds count up. Default: a random one, which the answer states."""
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    response_format: Literal["b64_json", "png"] = "b64_json"
    erasers: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """Strengths by name. Erasers that are not named have the policy's strength."""
    user: str | None = None
    """Ignored and not logged."""


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
        InvalidSetting: The body is not a request, or exceeds a limit.
        NotAllowed: It asks for an eraser or a strength that the policy does not allow.
    """
    limits = policy.limits
    try:
        given = Images.model_validate(parse_json(body, finite=True))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise InvalidSetting(one_line(f"{where[:100]}: {first['msg']}")) from None
    except ValueError:
        raise InvalidSetting("the body is not JSON in UTF-8") from None
    if not given.prompt.strip():
        raise InvalidSetting("prompt is empty")
    if len(given.prompt) > limits.prompt_characters:
        raise InvalidSetting(f"prompt has {len(given.prompt)} characters; at most {limits.prompt_characters}")
    if given.model not in (None, model):
        raise InvalidSetting(f"this service has the model {model!r} alone; leave `model` out")
    if given.n > limits.pictures:
        raise InvalidSetting(f"n is {given.n}; at most {limits.pictures}")
    if given.steps is not None and given.steps > limits.steps:
        raise InvalidSetting(f"steps is {given.steps}; at most {limits.steps}")
    if given.response_format == "png" and given.n != 1:
        raise InvalidSetting("response_format png gives one picture; leave n out, or ask for b64_json")
    if given.seed is not None and given.seed + given.n - 1 > LARGEST_SEED:
        raise InvalidSetting(f"{given.n} seeds from {given.seed} on exceed {LARGEST_SEED}, the largest")
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


def _size(text: str | None, most: int, multiple: int) -> tuple[int, int] | None:
    if text is None:
        return None
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidSetting("size must be WIDTHxHEIGHT in pixels, such as 512x512")
    width, height = int(found[1]), int(found[2])
    if width % multiple or height % multiple:
        raise InvalidSetting(f"size is {text}; width and height must be multiples of {multiple}")
    if width * height > most:
        raise InvalidSetting(f"size is {text}; at most {most} pixels")
    return width, height
