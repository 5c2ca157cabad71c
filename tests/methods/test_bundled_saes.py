"""The SAEs that ship with the bundled model: each fits its Site, knows its concepts, and erases one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from excise import reference
from excise.app.models.resolve import bundled_settings
from excise.bench.canvas.families import cases
from excise.bench.canvas.suite import Canvas
from excise.bench.suite import Case
from excise.erasers import Eraser
from excise.methods import method
from excise.methods.lookup import settings_of
from excise.reference.bundle import SAES
from excise.reference.world import OBJECTS, STYLES
from excise.sae import Supervision, card, load
from excise.sites import BLOCKS, PRESETS


@pytest.fixture(scope="module")
def pipe(one_bundled_pipe: Any) -> Any:
    return one_bundled_pipe


@pytest.fixture(scope="module")
def plain(pipe: Any) -> Callable[[Canvas, list[Case]], Any]:
    """Pictures without an eraser, generated once for each number of steps."""
    made: dict[int, Any] = {}

    def draw(canvas: Canvas, rows: list[Case]) -> Any:
        if canvas.steps not in made:
            made[canvas.steps] = rows, canvas.draw(pipe, rows).pixels
        assert made[canvas.steps][0] == rows
        return made[canvas.steps][1]

    return draw


@pytest.mark.parametrize("name", SAES)
def test_each_lies_at_its_site_and_knows_every_concept(name: str) -> None:
    folder = reference.sae_folder(name)
    site = BLOCKS["reference"][0] if folder.name.startswith("block") else PRESETS["reference"][0]
    assert load(folder).config.d == site.width
    described = card(folder)
    where = described["site"]
    assert where in (site.key, {"component": site.component, "path": site.path, "width": site.width})
    if name.startswith("saemnesia"):
        assert Supervision.from_json(described["supervision"]).concepts == (*OBJECTS, *STYLES)
    else:
        assert "supervision" not in described


def fitted(pipe: Any, name: str, concept: str, **short: Any) -> Eraser:
    chosen = method(name)
    settings = {**settings_of(name, bundled_settings()), **short}
    return chosen.fit(pipe, Canvas().concept(concept), chosen.Config(**settings))


@pytest.mark.parametrize(
    ("name", "steps", "short"),
    [
        ("saemnesia", 5, {"steps": 5, "pictures": 6}),
        ("saemnesia-text", 5, {}),
        # As they ship; minutes each.
        pytest.param("saemnesia", 20, {}, marks=pytest.mark.slow),
        pytest.param("saemnesia-text", 20, {}, marks=pytest.mark.slow),
    ],
)
def test_one_neuron_erases_an_object_and_spares_the_rest(
    pipe: Any, plain: Callable[..., Any], name: str, steps: int, short: dict[str, Any], tmp_path: Path
) -> None:
    canvas = Canvas(steps=steps, batch=8)
    eraser = fitted(pipe, name, "gun", **short)
    (edit,) = eraser.edits
    own = Supervision.from_json(card(reference.sae_folder(name))["supervision"])
    assert edit.indices.tolist() == [own.assigned[own.concepts.index("gun")]]
    eraser.save(tmp_path / "gun")
    assert sum(file.stat().st_size for file in (tmp_path / "gun").iterdir()) < 20_000
    direct, others = ([c for c in cases("gun", 4) if c.family == family] for family in ("direct", "unrelated"))
    before = plain(canvas, [*direct, *others])
    assert sum(seen["target"] for seen in canvas.judge(direct, before[:4])) >= 3
    with Eraser.load(tmp_path / "gun").attach(pipe):
        erased = canvas.draw(pipe, [*direct, *others]).pixels
    assert sum(seen["target"] for seen in canvas.judge(direct, erased[:4])) <= 1
    assert np.array_equal(erased[4:], before[4:])


def test_the_unsupervised_one_needs_several_neurons(pipe: Any) -> None:
    (edit,) = fitted(pipe, "saeuron", "gun", steps=2, pictures=4).edits
    assert len(edit.indices) > 1
