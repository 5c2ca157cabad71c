"""Every bound that a setting declares is a value that its method takes, on a tiny random pipeline."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from excise.concepts import Concept
from excise.erasers import Eraser
from excise.erasers.edits.guidance import GuidanceEdit
from excise.errors import EraserDidNotFire, ExciseError
from excise.methods import method
from excise.methods.lookup import declared
from excise.sae import save
from excise.settings import MOST, Setting

TRAINED = {"iterations": 1, "steps": 1}
SHORT: dict[str, dict[str, Any]] = {
    "safety-filter": {"threshold": 0.3},
    "uce": {},
    "rece": {"rounds": 1},
    "speed": {},
    "esd-x": TRAINED,
    "sld": {"level": "max"},
    "ca": {**TRAINED, "pictures": 1, "batch": 1},
    "sa": {**TRAINED, "pictures": 1, "fisher": 1, "timesteps": 1, "batch": 1},
    "spm": {**TRAINED, "anchors": 1},
    "mace": {**TRAINED, "pictures": 1},
    "dumo": {**TRAINED, "pairs": 1, "bins": 1, "alpha_iterations": 1},
    "advunlearn": {**TRAINED, "attack_steps": 1, "retain": 1},
    "hirm": {"iterations": 1},
    "receler": {**TRAINED, "rank": 2, "attack_steps": 1},
    "leace": {},
    "cgce": {"iterations": 60, "batch": 4, "noise": 0.0},
    "stg": {"pairs": 2, "steps": 2, "iterations": 2, "batch": 2, "threshold": 1e-6},
    "safree": {"most": 0},
    "adavd": {},
    "casteer": {"pairs": 2, "steps": 1},
    "snce": {"permutations": 5},
    "itd": {},
    "concept-steerers": {},
}
QUICK = ("uce", "rece", "speed", "sld", "safree", "adavd", "safety-filter", "itd", "concept-steerers")
ON_AN_SAE = ("snce", "itd", "concept-steerers")
TRIED_LONG = ("sld", "warmup", 1000)
"""Its trial takes 1,002 steps, so that it is slow; `test_a_long_warm_up_is_taken` is its sibling."""
LONG = ("steps", "k", "neurons")
"""Settings whose upper bound takes too long, or depends on the SAE."""
TOGETHER = {
    ("mace", "t1"): {"t2": 1000.0},
    ("mace", "t2"): {"t1": 0.0},
    ("stg", "start"): {"stop": 0.0},
    ("stg", "stop"): {"start": 1000.0},
}
"""Other settings that a bound needs: the two ends of a window."""


def bounds(setting: Setting) -> Iterator[int | float]:
    """Yield a setting's smallest value, and its largest if it declares one: of an exclusive bound, the next number."""
    low, high = setting.bounds
    yield low if setting.above is None else math.nextafter(low, high) if low else 1e-6
    if abs(high) < MOST and setting.name not in LONG:
        yield high if setting.below is None else math.nextafter(high, low)


def cases() -> Iterator[Any]:
    for name in SHORT:
        for key, own in declared(name).items():
            if own.bare in (int, float):
                for value in bounds(own):
                    marks = [] if name in QUICK and (name, key, value) != TRIED_LONG else [pytest.mark.slow]
                    given = (int(value),) if own.several else int(value) if own.bare is int else value
                    yield pytest.param(name, key, given, marks=marks, id=f"{name}-{key}={value}")


def test_a_long_warm_up_is_taken(tiny_pipe: Any, gun: Concept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest that its setting declares. Only the trial is cut short, in which nothing is steered yet."""
    name, key, most = TRIED_LONG
    assert declared(name)[key].bounds[1] == most
    monkeypatch.setattr(GuidanceEdit, "trial_steps", 4)
    with pytest.raises(EraserDidNotFire):
        method(name).fit(tiny_pipe, gun, method(name).Config(warmup=most, **SHORT[name]))


@pytest.mark.parametrize(("name", "key", "value"), list(cases()))
def test_a_method_takes_the_bounds_of_its_settings(
    tiny_pipe: Any, word_sae: Any, tiny_site: Any, gun: Concept, tmp_path: Path, name: str, key: str, value: Any
) -> None:
    settings = {**SHORT[name], key: value, **TOGETHER.get((name, key), {})}
    if name in ON_AN_SAE:
        save(word_sae, tmp_path / "sae", {"site": asdict(tiny_site)})
        settings["sae"] = str(tmp_path / "sae")
    chosen = method(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = chosen.fit(tiny_pipe, gun, chosen.Config(**settings))
        except EraserDidNotFire:
            return  # it was taken, and changes nothing
        except ExciseError as error:  # it was taken, and found nothing that tells the concept apart, or no step
            if not str(error).startswith(("no neuron separates", "no classifier tells", "none of ")):
                raise
            return
    assert isinstance(made, Eraser)
