"""Settings, each declared once: its default, meaning, unit, range and the paper's value.

The declaration is a field of a frozen dataclass. It validates the value, parses it from text, and is the help that
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
"""Largest magnitude of a number whose setting states no bound. It catches typing errors before any work."""
LARGEST_SEED: Final = 2**64 - 1
"""Largest seed that `torch.Generator.manual_seed` takes."""
LARGEST_FIRST_SEED: Final = 2**63 - 1
"""Largest first seed of several that count up, which leaves room for them."""
SEEDS: Final = 2**32
"""Number of seeds with noise of their own: the CPU's generator reads the lowest 32 bits of a seed alone."""
UNSTATED: Final[Any] = object()
"""Stands for the paper's value if the paper gives none."""


@dataclass(frozen=True)
class Setting:
    """A setting: its meaning and the values that it takes.

    Numbers are at least 0 and at most 1,000,000 unless the declaration says otherwise.
    """

    name: str = ""
    default: Any = None
    kind: Any = str
    """Type of its values: bool, int, float, str, a Literal, `tuple[int, ...]`, or one of these or None."""
    help: str = ""
    unit: str = ""
    least: float | None = None
    """Smallest value."""
    above: float | None = None
    """Exclusive lower bound, instead of `least`."""
    most: float | None = None
    below: float | None = None
    """Exclusive upper bound, instead of `most`."""
    paper: Any = UNSTATED
    """Value in the method's paper or in its authors' code."""
    tuned: bool = False
    """Whether the default was chosen by measuring on the bundled model, and may not be the best for another."""

    @property
    def departs(self) -> bool:
        """Whether the default differs from the paper's value."""
        return self.paper is not UNSTATED and self.paper != self.default

    @property
    def choices(self) -> tuple[str, ...]:
        """The values it takes, if only certain words are allowed."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def optional(self) -> bool:
        """Whether None is an allowed value."""
        return NoneType in get_args(self.kind)

    @property
    def bare(self) -> Any:
        """The type of its values without None; for a tuple, of its elements."""
        kind = next(part for part in get_args(self.kind) if part is not NoneType) if self.optional else self.kind
        return get_args(kind)[0] if get_origin(kind) is tuple else kind

    @property
    def several(self) -> bool:
        """Whether a value is a tuple of numbers."""
        return get_origin(self.kind) is tuple

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound, exclusive ones included."""
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
        """Return the value, a path as text and a list as a tuple. Raises InvalidSetting for an invalid one."""
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
        """Parse a text such as `0.5`, `true`, `none` or `1+2`, and return the value as `check` does.

        Raises InvalidSetting for an invalid one.
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
    tuned: bool = False,
) -> T:
    """Declare a field of a frozen dataclass as a setting, with its default.

    A subclass that gives a setting another default inherits what it leaves out, except `paper` and `tuned`.
    """
    declared = Setting("", default, None, help, unit, least, above, most, below, paper, tuned)
    return field(default=default, metadata={_KEY: declared})


class Settings:
    """Base of frozen dataclasses of settings, which validates every value at construction.

    A rule between two settings goes into a subclass's `__post_init__`, which calls this one first.
    """

    PAPER: ClassVar[bool] = True
    """Whether the paper's values of inherited settings apply to this class."""

    def __post_init__(self) -> None:
        """Raise InvalidSetting for an invalid value."""
        for own in described(type(self)).values():
            value = getattr(self, own.name)
            checked = own.check(value)
            if checked is not value:
                object.__setattr__(self, own.name, checked)


def described(cls: type[Any]) -> Mapping[str, Setting]:
    """Return the settings of a dataclass by name, in its order."""
    if cls not in _DESCRIBED:
        hints = get_type_hints(cls)
        _DESCRIBED[cls] = {
            own.name: replace(_declared(cls, own.name), name=own.name, default=own.default, kind=hints[own.name])
            for own in fields(cls)
        }
    return _DESCRIBED[cls]


_DESCRIBED: Final[dict[Any, Mapping[str, Setting]]] = {}


def _declared(cls: type[Any], name: str) -> Setting:
    """Return a class's declaration of a setting, completed from its bases except for the paper's value."""
    classes = (base for base in cls.__mro__ if name in get_annotations(base))
    own: list[Setting] = [base.__dict__["__dataclass_fields__"][name].metadata.get(_KEY, Setting()) for base in classes]
    ranged = next((d for d in own if {d.least, d.above, d.most, d.below} != {None}), own[0])
    return replace(
        ranged,
        help=next((d.help for d in own if d.help), ""),
        unit=next((d.unit for d in own if d.unit), ""),
        paper=own[0].paper if getattr(cls, "PAPER", True) else UNSTATED,
        tuned=own[0].tuned,
    )


def document(cls: type[Any]) -> None:
    """Append the settings to the class's docstring, for `help()`; once."""
    if cls.__doc__ is None or "Args:" in cls.__doc__ or not described(cls):
        return
    lines = [f"    {own.name}: {own.help} {own.takes[0].upper()}{own.takes[1:]}." for own in described(cls).values()]
    cls.__doc__ = "\n".join([cls.__doc__, "", "Args:", *lines])


def settings_in(made: object) -> Mapping[str, Setting]:
    """Return a configuration's settings: ours as declared, a plugin's by their values' types."""
    if isinstance(made, Settings):
        return described(type(made))
    return {name: Setting(name, value, _kind(value), least=-MOST) for name, value in vars(made).items()}


def _kind(value: Any) -> Any:
    if value is None:
        return float | None
    return tuple[int, ...] if isinstance(value, tuple) else type(value)


def check_names(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise InvalidSetting for a name that is not among the known settings."""
    if unknown := sorted(set(names) - set(known)):
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known) or 'none'}"
        raise InvalidSetting(f"{what} has no setting {unknown[0]!r}{hint}")
