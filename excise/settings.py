"""Settings, each declared once: its default, meaning, unit, range and the paper's value.

The declaration is a field of a frozen dataclass. It validates the value, reads it from text, and is the help that
`excise methods show`, the command line's options and the documentation print.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from inspect import get_annotations
from os import PathLike, fspath
from types import NoneType
from typing import Any, ClassVar, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from excise.errors import InvalidSetting

T = TypeVar("T")
MOST: Final = 1_000_000
"""The largest magnitude of a number whose setting states no bound. It stops slips of the keyboard before any work."""
UNSTATED: Final[Any] = object()
"""The paper's value where the paper gives none."""


@dataclass(frozen=True)
class Setting:
    """A setting: what it means and which values it takes.

    Numbers are at least 0 and at most 1,000,000 unless the declaration says otherwise.
    """

    name: str = ""
    default: Any = None
    kind: Any = str
    """The type of its values: bool, int, float, str, a Literal, `tuple[int, ...]`, or one of these or None."""
    help: str = ""
    unit: str = ""
    least: float | None = None
    """The smallest value."""
    above: float | None = None
    """Instead of `least`: what every value is above."""
    most: float | None = None
    below: float | None = None
    """Instead of `most`: what every value is below."""
    paper: Any = UNSTATED
    """The value in the method's paper or in its authors' code."""

    @property
    def departs(self) -> bool:
        """Whether the default is not the paper's value."""
        return self.paper is not UNSTATED and self.paper != self.default

    @property
    def choices(self) -> tuple[str, ...]:
        """The values it takes, where it takes only certain words."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def optional(self) -> bool:
        """Whether None is a value of it."""
        return NoneType in get_args(self.kind)

    @property
    def bare(self) -> Any:
        """The type of its values, None left out, and of a tuple the type of its elements."""
        kind = next(part for part in get_args(self.kind) if part is not NoneType) if self.optional else self.kind
        return get_args(kind)[0] if get_origin(kind) is tuple else kind

    @property
    def several(self) -> bool:
        """Whether a value is a tuple of numbers."""
        return get_origin(self.kind) is tuple

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value, or what lies just outside of them."""
        low = self.least if self.above is None else self.above
        high = self.most if self.below is None else self.below
        return 0 if low is None else low, MOST if high is None else high

    @property
    def takes(self) -> str:
        """The values it takes, in words: `a whole number, at least 1 and at most 1000`."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.bare is bool:
            return "true or false"
        if self.bare not in (int, float):
            return "text"
        low, high = self.bounds
        numbers = "whole numbers" if self.several else "a whole number" if self.bare is int else "a number"
        range_ = f"{'at least' if self.above is None else 'above'} {low:.10g} and "
        range_ += f"{'at most' if self.below is None else 'below'} {high:.10g}"
        return f"{numbers}, {range_}{', or none' if self.optional else ''}"

    def check(self, value: Any) -> Any:
        """The value, a path as text and a list as a tuple. Raises InvalidSetting where the setting does not take it."""
        if value is None and self.optional:
            return None
        if self.several:
            if not isinstance(value, tuple | list):
                self._refuse(value)
            for part in value:
                self._check_number(part)
            return tuple(value)
        if self.choices:
            if value not in self.choices:
                raise InvalidSetting(f"{self.name} cannot be {value!r}; it is one of {', '.join(self.choices)}")
        elif self.bare in (int, float):
            self._check_number(value)
        elif self.bare is str:
            if isinstance(value, PathLike):
                value = fspath(value)
            if not isinstance(value, str):
                self._refuse(value)
        elif self.bare is bool and not isinstance(value, bool):
            self._refuse(value)
        return value

    def _check_number(self, value: Any) -> None:
        kinds = (int,) if self.bare is int else (int, float)
        # True is an int in Python, and nan compares false with everything.
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            self._refuse(value)
        low, high = self.bounds
        inside_low = value >= low if self.above is None else value > low
        inside_high = value <= high if self.below is None else value < high
        if not (inside_low and inside_high):
            self._refuse(value)

    def _refuse(self, value: Any) -> None:
        raise InvalidSetting(f"{self.name} is {value!r}; it must be {self.takes}")

    def parse(self, text: str) -> Any:
        """The value that a text such as `0.5`, `true`, `none` or `1+2` means, as `check` returns it.

        Raises InvalidSetting where the setting does not take it.
        """
        value: Any = text
        try:
            if self.optional and text == "none":
                value = None
            elif self.several:
                value = tuple(int(part) for part in text.split("+")) if text else ()
            elif self.bare is bool:
                value = {"true": True, "false": False}[text]
            elif self.bare in (int, float):
                value = self.bare(text)
        except (ValueError, KeyError):
            raise InvalidSetting(f"{self.name} cannot be {text!r}; it must be {self.takes}") from None
        return self.check(value)


_KEY: Final = "excise.setting"


def setting(
    default: T,
    help: str = "",
    *,
    unit: str = "",
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    paper: Any = UNSTATED,
) -> T:
    """Declare a field of a frozen dataclass as a setting, with its default.

    In a subclass that gives a setting another default, what is left out is as the base class says, but for `paper`.
    """
    declared = Setting("", default, None, help, unit, least, above, most, below, paper)
    return field(default=default, metadata={_KEY: declared})


class Settings:
    """Base of frozen dataclasses of settings: every value is checked when one is made.

    A rule between two settings is a `__post_init__` of the subclass, which calls this one first.
    """

    PAPER: ClassVar[bool] = True
    """Whether the papers' values of inherited settings are this class's too."""

    def __post_init__(self) -> None:
        """Raises InvalidSetting for a value that its setting does not take."""
        for own in described(type(self)).values():
            value = getattr(self, own.name)
            checked = own.check(value)
            if checked is not value:
                object.__setattr__(self, own.name, checked)


def described(cls: type[Any]) -> Mapping[str, Setting]:
    """The settings of a dataclass by name, in its order."""
    if cls not in _DESCRIBED:
        hints = get_type_hints(cls)
        _DESCRIBED[cls] = {
            own.name: replace(_declared(cls, own.name), name=own.name, default=own.default, kind=hints[own.name])
            for own in fields(cls)
        }
    return _DESCRIBED[cls]


_DESCRIBED: Final[dict[Any, Mapping[str, Setting]]] = {}


def _declared(cls: type[Any], name: str) -> Setting:
    """What a class declares of a setting; what it leaves out is as its bases say, but for the paper's value."""
    classes = (base for base in cls.__mro__ if name in get_annotations(base))
    own: list[Setting] = [base.__dict__["__dataclass_fields__"][name].metadata.get(_KEY, Setting()) for base in classes]
    ranged = next((d for d in own if {d.least, d.above, d.most, d.below} != {None}), own[0])
    return replace(
        ranged,
        help=next((d.help for d in own if d.help), ""),
        unit=next((d.unit for d in own if d.unit), ""),
        paper=own[0].paper if getattr(cls, "PAPER", True) else UNSTATED,
    )


def document(cls: type[Any]) -> None:
    """Append the settings to the class's docstring, for `help()`; once."""
    if cls.__doc__ is None or "Args:" in cls.__doc__ or not described(cls):
        return
    lines = [f"    {own.name}: {own.help} {own.takes[0].upper()}{own.takes[1:]}." for own in described(cls).values()]
    cls.__doc__ = "\n".join([cls.__doc__, "", "Args:", *lines])


def settings_in(made: object) -> Mapping[str, Setting]:
    """The settings of a configuration that may be of a plugin: ours as declared, others by their values' types."""
    if isinstance(made, Settings):
        return described(type(made))
    return {name: Setting(name, value, _kind(value), least=-MOST) for name, value in vars(made).items()}


def _kind(value: Any) -> Any:
    if value is None:
        return float | None
    return tuple[int, ...] if isinstance(value, tuple) else type(value)


def check_names(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises InvalidSetting for a name that is none of the known settings."""
    if unknown := sorted(set(names) - set(known)):
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known) or 'none'}"
        raise InvalidSetting(f"{what} has no setting {unknown[0]!r}{hint}")
