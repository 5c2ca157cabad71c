"""Entry: a method in a run, with its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from excise.errors import ExciseError
from excise.methods.lookup import method, parsed, split


@dataclass(frozen=True)
class Entry:
    """Method in a run, with its label and its settings other than the defaults."""

    label: str
    method: str
    settings: Mapping[str, Any]

    @property
    def preset(self) -> str | None:
        """The preset that its label names."""
        return dict(split(self.label)[1]).get("preset")

    def configuration(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return every setting of the method as JSON, as defaults may differ in another version.

        `defaults` are the settings on this machine that the label does not give. Paths of SAEs among them are left out.
        """
        known = {key: value for key, value in defaults.items() if key.rpartition(".")[2] != "sae"}
        return dict(json.loads(json.dumps(vars(method(self.method).Config(**{**known, **self.settings})))))

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Parse `snce` or `snce:k=10,lam=2`. Raises ExciseError for an unknown method or setting, or a bad value."""
        if odd := set(text) & set("&!@"):
            raise ExciseError(f"{text} cannot be used in a run: {odd.pop()!r} is reserved for file names; leave it out")
        return cls(text, *parsed(text))
