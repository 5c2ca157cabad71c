"""A short training on the bundled model takes the concept out of its pictures: of the methods whose own tests train a
tiny random one."""

from __future__ import annotations

from typing import Any

import pytest

from excise import reference
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.methods import method

SHORT: dict[str, dict[str, Any]] = {
    "esd-x": {"iterations": 60, "lr": 1e-3},
    "esd-u": {"iterations": 60, "lr": 3e-4},
    "spm": {"iterations": 80, "lr": 3e-3, "anchoring": 100.0},
    "advunlearn": {"iterations": 40, "attack_steps": 5, "retain": 3, "lr": 3e-4},
    "hirm": {},
    "receler": {"iterations": 40, "attack_steps": 5, "lr": 1e-3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_short_training_lowers_the_target_s_accuracy(name: str) -> None:
    suite, pipe = Canvas(steps=10), reference.load()
    asked = [case for case in cases("apple", 4) if case.family == "direct"]

    def drawn() -> int:
        return sum(seen["target"] for seen in suite.judge(asked, suite.draw(pipe, asked).pixels))

    before = drawn()
    assert before >= 3
    chosen = method(name)
    config = chosen.Config(**SHORT[name], **({} if name == "hirm" else {"steps": 20}))
    with chosen.fit(pipe, suite.concept("apple"), config).attach(pipe):
        assert drawn() <= 1
    assert drawn() == before
