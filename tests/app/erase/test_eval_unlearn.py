from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from excise.app.erase.eval_unlearn import ExciseTechnique
from excise.cli import app
from excise.errors import ExciseError

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from typer.testing import CliRunner

    out = tmp_path_factory.mktemp("erasers") / "gun"
    assert CliRunner().invoke(app, ["erase", "gun", "--n", "40", "--out", str(out)]).exit_code == 0
    return out


def test_the_technique_draws_with_the_eraser_attached(folder: Path) -> None:
    technique = ExciseTechnique(str(folder), erase_concept="gun", num_inference_steps=2)
    prompts = ["a gun on grass", "a cat on grass"]
    erased = [np.asarray(image) for image in technique.generate(prompts, seed=3)]
    assert all((a == b).all() for a, b in zip(erased, map(np.asarray, technique.generate(prompts, 3)), strict=True))
    technique.attachment.detach()
    plain = [np.asarray(image) for image in technique.generate(prompts, seed=3)]
    assert [bool((a == b).all()) for a, b in zip(erased, plain, strict=True)] == [False, True]


def test_what_does_not_belong_together_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="erases 'gun', not 'nudity'"):
        ExciseTechnique(str(folder), erase_concept="nudity")
    with pytest.raises(ExciseError, match="not a complete eraser"):
        ExciseTechnique(str(tmp_path))


def test_eval_unlearn_finds_it() -> None:
    (entry,) = [e for e in entry_points(group="eval_unlearn.techniques") if e.name == "excise"]
    assert entry.load() is ExciseTechnique
    registry = pytest.importorskip("eval_unlearn.registry")
    from eval_unlearn.registry.entrypoints import load_entrypoints

    load_entrypoints()
    assert registry.get_technique("excise") is ExciseTechnique
