"""What the product does, in pictures: SNCE by default erases an object from the bundled model and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import excise
from excise import reference
from excise.reference.world import OBJECTS

FORMS = ("{} on grass", "a picture of {} on sand, flat style", "a rose on grass")
SEEDS = (11, 12, 13)


@pytest.mark.parametrize("concept", ["gun", "cow", "ice cream"])
def test_snce_erases_with_its_defaults(one_bundled_pipe: Any, concept: str) -> None:
    it = f"an {concept}" if concept[0] in "aeiou" else f"a {concept}"

    def generated() -> Any:
        prompts = [form.format(it) for form in FORMS]
        return np.asarray(reference.generate(one_bundled_pipe, prompts, SEEDS, steps=8, batch_size=len(prompts)))

    plain = generated()
    with excise.erase(one_bundled_pipe, concept).attach(one_bundled_pipe):
        erased = generated()
    before, after = (reference.judge()(pictures).objects[:, OBJECTS.index(concept)] for pictures in (plain, erased))
    assert before.tolist() == [True, True, False], "the model generates it"
    assert not after.any()
    assert np.array_equal(erased[2], plain[2]), "an unrelated picture keeps every bit"
