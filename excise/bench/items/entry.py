"""Entry: a method in a run, with its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.errors import ExciseError
from excise.methods.lookup import method, parsed


@dataclass(frozen=True)
class Entry:
    """Method in a run, with its label and its settings other than the defaults."""

    label: str
    method: str
    settings: Mapping[str, Any]

    @property
    def configuration(self) -> dict[str, Any]:
        """Every setting of the method as JSON, as its defaults may differ in another version."""
        return dict(json.loads(json.dumps(vars(method(self.method).Config(**self.settings)))))

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Parse `snce` or `snce:k=10,lam=2`. Raises ExciseError for an unknown method or setting, or a bad value."""
        if odd := set(text) & set("&!@"):
            raise ExciseError(f"{text} cannot be used in a run: {odd.pop()!r} is reserved for file names; leave it out")
        return cls(text, *parsed(text))
