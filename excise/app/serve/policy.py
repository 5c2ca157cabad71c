"""The operator's policy of a service: which erasers, at which strengths, and what happens to a prompt that they act
on."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from excise.erasers.artefact.signing import Signer
from excise.errors import ExciseError, InvalidSetting, NotFound, one_line, reason
from excise.files import read_text

MOST_STRENGTH = 20.0
"""Largest factor on a fitted strength, as in `excise generate --strength`."""
WhenFired = Literal["erase", "flag", "refuse"]
"""What happens to a prompt that an eraser acts on: the picture is generated without the concept; the answer also names
the eraser; or nothing is generated."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EraserRule(_Strict):
    """The rule for one eraser."""

    folder: Annotated[str, Field(min_length=1)]
    """Its folder, relative to the policy's file."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{12,64}$")] | None = None
    """Its digest, or at least the first 12 digits. Another eraser in the folder is refused."""
    strength: Annotated[float, Field(gt=0, le=MOST_STRENGTH)] = 1.0
    """Factor on its fitted strength in every request that names none."""
    allow: tuple[float, float] | None = None
    """Smallest and largest strength that a request may ask for. Without it, `strength` alone."""
    when_fired: WhenFired = "erase"
    accept_weak: bool = False
    """Whether to serve it although it was accepted as weak when it was made."""

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, given: Any) -> Any:
        # YAML has no tuples, which a strict model wants.
        if isinstance(given, dict) and isinstance(given.get("allow"), list):
            return {**given, "allow": tuple(given["allow"])}
        return given

    @model_validator(mode="after")
    def _ordered(self) -> EraserRule:
        low, high = self.bounds
        if not 0 <= low <= self.strength <= high <= MOST_STRENGTH:
            raise ValueError(
                f"allow is [{low:g}, {high:g}]; it must hold the strength {self.strength:g}, "
                f"and lie between 0 and {MOST_STRENGTH:g}"
            )
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest strength that a request may ask for."""
        return self.allow or (self.strength, self.strength)


class SignedBy(_Strict):
    """The signer that every eraser must have: a public key, or an identity and its provider."""

    public_key: str | None = None
    """PEM file, relative to the policy's file."""
    identity: str | None = None
    identity_provider: str | None = None


class Limits(_Strict):
    """Limits of one request, and of the requests that wait."""

    prompt_characters: Annotated[int, Field(ge=1, le=100_000)] = 2000
    pictures: Annotated[int, Field(ge=1, le=100)] = 4
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    pixels: Annotated[int, Field(ge=64, le=2**26)] = 2**20
    """Most pixels of one picture, width times height."""
    waiting: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Most requests that are being answered or wait. Further ones are refused with 429."""


class Policy(_Strict):
    """A policy. `read` reads one from a file."""

    erasers: Annotated[dict[str, EraserRule], Field(min_length=1)]
    """Rules by the name under which a request asks for the eraser."""
    signed_by: SignedBy | None = None
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _named(self) -> Policy:
        for name in self.erasers:
            if not name.strip() or not name.isprintable() or len(name) > 100:
                raise ValueError(f"{name!r} cannot be an eraser's name; give 1 to 100 printable characters")
        return self


def read(path: Path, require_signature: bool = False) -> Policy:
    """Read a policy from a YAML file, with the paths in it made absolute.

    Raises:
        NotFound: There is no such file.
        InvalidSetting: It is not YAML, or not a policy, or names no signer although signatures are required. The
            message is one line, for the first mistake.
    """
    try:
        found = yaml.load(read_text(path), _Loader)
        policy = Policy.model_validate(found)
    except FileNotFoundError as error:
        raise NotFound(f"there is no policy {path}; write one as docs/how-to/http-service.md shows") from error
    except ValidationError as error:
        where, what = first_mistake(error)
        raise InvalidSetting(one_line(f"policy {path}: {'.'.join(where) or 'the file'}: {what}")) from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InvalidSetting(f"policy {path} cannot be read: {reason(error)}") from error
    home = path.absolute().parent
    rules = {n: r.model_copy(update={"folder": str(home / r.folder)}) for n, r in policy.erasers.items()}
    signed_by = policy.signed_by
    if require_signature and signed_by is None:
        raise InvalidSetting(f"policy {path} names no signer, and signatures are required; add signed_by")
    if signed_by is not None and signed_by.public_key is not None:
        signed_by = signed_by.model_copy(update={"public_key": str(home / signed_by.public_key)})
    return policy.model_copy(update={"erasers": rules, "signed_by": signed_by})


def first_mistake(error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Return where the first mistake is, from the outside in, and what it is."""
    first = error.errors()[0]
    plain = {
        "extra_forbidden": "there is no such key; leave it out, or correct its name",
        "missing": "it is missing",
        "model_type": "it must have keys with values; docs/how-to/http-service.md shows an example",
    }
    where = tuple(str(part)[:100] for part in first["loc"])
    return where, plain.get(first["type"], first["msg"].removeprefix("Value error, "))


def signer(policy: Policy) -> Signer | None:
    """Return the signer that the policy requires, if any. Raises InvalidSetting for an incomplete one."""
    return None if policy.signed_by is None else Signer(**policy.signed_by.model_dump())


def strengths(policy: Policy, asked: dict[str, float]) -> dict[str, float]:
    """Return the strength of every eraser in a request.

    Raises NotAllowed for an unknown name or a strength that the policy does not allow.
    """
    for name, strength in asked.items():
        if name not in policy.erasers:
            raise NotAllowed(f"there is no eraser {name!r}; there are {', '.join(policy.erasers)}")
        low, high = policy.erasers[name].bounds
        if not low <= strength <= high:
            allowed = f"{low:g} alone" if low == high else f"{low:g} to {high:g}"
            raise NotAllowed(f"the strength of {name!r} is {strength:g}; this service allows {allowed}")
    return {name: asked.get(name, rule.strength) for name, rule in policy.erasers.items()}


class NotAllowed(ExciseError):
    """A request for what the policy does not allow."""


class _Loader(yaml.SafeLoader):
    """A loader of plain values that refuses aliases, and a key given twice: YAML would keep the last."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias (*name); write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{twice!r} is given twice")
        return super().construct_mapping(node, deep)
