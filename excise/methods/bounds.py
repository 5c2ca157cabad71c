"""The numbers that methods' settings take, by a setting's name.

The upper bounds stop slips of the keyboard before any work; honest work does not come near them. What a method alone
asks of a setting is checked by its configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from excise.errors import InvalidSetting

MOST = 1_000_000
"""The largest magnitude of a setting that is not named below."""
SIGNED = {"gamma": -1000, "factor": -1000, "threshold": -1, "warmup": -1, "margin": -10}
"""The least value of settings that may be negative."""
GREATEST = {
    "steps": 1000,
    "warmup": 1000,
    "timesteps": 1000,
    "guidance": 100,
    "percentile": 100,
    "tolerance": 1,
    "lr": 1,
    "attack_lr": 1,
    "alpha_lr": 1,
    "margin": 10,
    "gamma": 1000,
    "neurons": 2**31 - 1,
    "seed": 2**32 - 1,
}
"""The greatest value. A training multiplies its seed, and the products have to fit into 64 bits."""


def check_numbers(method: str, settings: Mapping[str, Any]) -> None:
    """Raise ExciseError for a number that is not finite or outside of its bounds.

    A joined method's settings bear their method's name and a dot (`snce.k`); one that is no number is left alone.
    """
    for name, value in settings.items():
        own = name.rpartition(".")[2]
        least, most = SIGNED.get(own, 0), GREATEST.get(own, MOST)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not (math.isfinite(number) and least <= number <= most):
                raise InvalidSetting(f"{method}: {name} is {number}; it lies between {least} and {most}")


def check_types(method: str, settings: Mapping[str, Any], config: Callable[..., Any]) -> dict[str, Any]:
    """Settings by name, each of the type that the dataclass `config` declares; lists become tuples.

    What another callable than a dataclass makes of its settings is its own affair. Raises InvalidSetting for a value
    of another type.
    """
    try:
        hints = get_type_hints(config) if isinstance(config, type) and is_dataclass(config) else {}
    except NameError:  # a plugin's, declared with names that it imports for type checkers alone
        hints = {}
    made = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    for name, value in made.items():
        if name in hints and not _fits(value, hints[name]):
            raise InvalidSetting(f"{method}: {name} is {settings[name]!r}; it is {_in_words(hints[name])}")
    return made


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type: whole numbers count as numbers, true and false as neither."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if kind is Literal:
        return isinstance(value, tuple({type(one) for one in get_args(hint)}))  # which ones, the configuration says
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind is tuple:
        (each, *rest) = get_args(hint) or (Any,)
        if rest and rest != [...]:
            return isinstance(value, tuple) and len(value) == len(rest) + 1
        return isinstance(value, tuple) and all(_fits(one, each) for one in value)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _in_words(hint: Any) -> str:
    """A declared type as a person would say it."""
    kind = get_origin(hint) or hint
    if kind in (Union, UnionType):
        return " or ".join(_in_words(one) for one in get_args(hint))
    if kind is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if kind is tuple:
        return f"a list, each of it {_in_words((get_args(hint) or (Any,))[0])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))
