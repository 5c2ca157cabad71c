"""Several methods' edits in one eraser, such as of a text encoder and of a block: `snce+saemnesia`."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from excise.concepts import Concept
from excise.erasers import Attachment, Eraser
from excise.errors import InvalidSetting
from excise.methods.base import AND, Method
from excise.methods.judging import with_verdict
from excise.pipeline import Pipeline
from excise.settings import check_names


class Joined:
    """Method that fits several methods separately and combines their edits in one eraser."""

    def __init__(self, parts: tuple[Method, ...]) -> None:
        self.parts, self.name = parts, AND.join(part.name for part in parts)
        names = [part.name for part in parts]
        if len(set(names)) < len(names) or "none" in names:
            raise InvalidSetting(f"{self.name!r} cannot be joined; name methods that edit something, each once")

    def Config(self, **settings: Any) -> SimpleNamespace:
        """Make a configuration of every part's settings, named by method: `{"snce.k": 2, "saemnesia.gamma": -2.0}`.

        Raises ExciseError for a setting that no part has, or an invalid value.
        """
        known = {f"{part.name}.{key}": value for part in self.parts for key, value in vars(part.Config()).items()}
        check_names(self.name, settings, known)
        made = SimpleNamespace(**{**known, **settings})
        for part in self.parts:
            self._part_config(part, made)
        return made

    def fit(self, pipe: Pipeline, concept: Concept, config: SimpleNamespace) -> Eraser:
        """Fit every part and build one eraser of all edits, self-tested on the first part's canary prompt.

        Raises ExciseError as the parts do, and EraserDidNotFire if one kind of edit has no effect on that prompt.
        """
        made = [part.fit(pipe, concept, self._part_config(part, config)) for part in self.parts]
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
        with Attachment(whole, pipe, trial=True) as attachment:
            both = with_verdict(attachment, concept)
        # The parts' measurements go into the verdict too; the whole eraser's own values take precedence.
        found = {key: value for eraser in made for key, value in eraser.verdict.items()}
        weak = [reason for eraser in (both, *made) for reason in eraser.weak]
        return replace(both, verdict={**found, **both.verdict, "weak": list(dict.fromkeys(weak))})

    @staticmethod
    def _part_config(part: Method, config: SimpleNamespace) -> Any:
        """Return the part's own configuration."""
        prefix = f"{part.name}."
        given = {key.removeprefix(prefix): value for key, value in vars(config).items() if key.startswith(prefix)}
        return part.Config(**given)
