"""Several methods' edits in one eraser, such as a text encoder's and a block's: `snce+saemnesia`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.errors import InvalidSetting
from excise.methods.base import AND, Method
from excise.methods.judging import judged
from excise.pipeline import Pipeline
from excise.settings import check_names


class Joined:
    """Fits every part by itself and puts their edits together."""

    def __init__(self, parts: tuple[Method, ...]) -> None:
        self.parts, self.name = parts, AND.join(part.name for part in parts)
        names = [part.name for part in parts]
        if len(set(names)) < len(names) or "none" in names:
            raise InvalidSetting(f"{self.name!r} cannot be joined; name methods that edit something, each once")

    def Config(self, **settings: Any) -> SimpleNamespace:
        """Every part's settings under its name and a dot: `Config(**{"snce.k": 2, "saemnesia.gamma": -2.0})`.

        Raises ExciseError for a setting that no part has, or an impossible value.
        """
        known = {f"{part.name}.{key}": value for part in self.parts for key, value in vars(part.Config()).items()}
        check_names(self.name, settings, known)
        made = SimpleNamespace(**{**known, **settings})
        for part in self.parts:
            self._own(part, made)
        return made

    def fit(self, pipe: Pipeline, concept: Concept, config: SimpleNamespace) -> Eraser:
        """One eraser with every part's edits, proved with the canary that the first part chose.

        Raises ExciseError as the parts do; EraserDidNotFire where either kind of edit does not show on that canary.
        """
        made = [part.fit(pipe, concept, self._own(part, config)) for part in self.parts]
        whole = replace(
            made[0],
            edits=tuple(edit for eraser in made for edit in eraser.edits),
            name=f"{concept.name}-{self.name}",
            made_for={key: value for eraser in made for key, value in eraser.made_for.items()},
            created={"method": self.name, "parts": [dict(eraser.created) for eraser in made]},
            measured={eraser.method: dict(eraser.measured) for eraser in made},
            method=self.name,
            canary=made[0].canary[:1],
            canary_shift=0.0,
        )
        with whole.attach(pipe) as attachment:
            both = judged(attachment, concept)
        # What the parts found of themselves stands beside what the whole moves.
        found = {key: value for eraser in made for key, value in eraser.verdict.items()}
        weak = [reason for eraser in (both, *made) for reason in eraser.weak]
        return replace(both, verdict={**found, **both.verdict, "weak": list(dict.fromkeys(weak))})

    @staticmethod
    def _own(part: Method, config: SimpleNamespace) -> Any:
        """The part's own configuration."""
        prefix = f"{part.name}."
        given = {key.removeprefix(prefix): value for key, value in vars(config).items() if key.startswith(prefix)}
        return part.Config(**given)
