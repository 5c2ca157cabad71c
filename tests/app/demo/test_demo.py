"""The demo's steps in full, on a tiny random model: real pipeline, SAE, eraser and (untrained) judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from excise.app.demo.demo import DemoConfig, run
from excise.erasers import Eraser
from excise.errors import ExciseError


class Recorder:
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.seen: list[str] = []

    def step(self, title: str) -> None:
        self.steps.append(title)

    def say(self, text: str) -> None:
        self.seen.append(text)

    def ranking(self, found: Any) -> None:
        self.seen.append(f"top {found.rows[0]['neuron']}")

    def figures(self, measured: Any, further: Any) -> None:
        self.seen.append(f"{len(measured)} figures")

    @contextmanager
    def working(self, title: str, total: int | None, unit: str = "") -> Iterator[Callable[[float], None]]:
        done: list[float] = []
        yield done.append
        if unit == "steps":
            assert done == [1.0] * (total or 0)


def aim(pipe: Any, site: Any, sae: Any, neuron: int) -> None:
    """Point the neuron at the word "gun" and lower its bias until no position of another prompt wakes it."""
    import torch

    from excise.concepts import from_templates
    from excise.sites import capture

    concept = from_templates("gun", ("gun",))
    (word,) = pipe.tokenizer("gun", add_special_tokens=False)["input_ids"]
    loud = [f.states[site][f.ids == word] for f in capture(pipe, [site], [p.concept for p in concept.pairs])]
    others = [p.deconcept for p in concept.pairs] + list(concept.controls)
    quiet = [f.states[site].flatten(0, 1) for f in capture(pipe, [site], others)]
    guns, rest = torch.cat(loud), torch.cat(quiet)
    centre = rest.mean(0)
    within = (rest - centre).T @ (rest - centre) / len(rest) + 0.01 * torch.eye(site.width)
    direction = torch.linalg.solve(within, guns.mean(0) - centre)
    direction /= direction.norm()
    with torch.no_grad():
        sae.b_pre.copy_(centre)
        sae.W_dec[neuron] = direction
        sae.W_enc[neuron] = 50 * direction
        sae.b_enc[neuron] = -50 * ((rest - centre) @ direction).max() - 1e-3


@pytest.fixture
def tiny_reference(
    monkeypatch: pytest.MonkeyPatch, tiny_pipe: Any, tiny_site: Any, word_sae: Any, tmp_path: Path
) -> None:
    from dataclasses import asdict

    import torch

    from excise import reference, sae
    from excise.reference import classifier

    aim(tiny_pipe, tiny_site, word_sae, 5)
    tiny_pipe.unet.register_to_config(sample_size=64 // tiny_pipe.vae_scale_factor)  # what judges and scenes measure
    torch.manual_seed(0)
    judges = {name: kind().eval() for name, kind in classifier.JUDGES.items()}
    sae.save(word_sae, tmp_path / "sae", {"site": asdict(tiny_site)})
    monkeypatch.setattr(reference, "load", lambda: tiny_pipe)
    monkeypatch.setattr(reference, "sae_folder", lambda: tmp_path / "sae")
    monkeypatch.setattr(reference, "judge", lambda name="classifier": partial(classifier.judge, judges[name]))


@pytest.mark.usefixtures("tiny_reference")
def test_the_demo_goes_through_its_steps_and_writes_everything(tmp_path: Path) -> None:
    stage, out = Recorder(), tmp_path / "demo"
    result = run(DemoConfig("gun", out, n=2, steps=1), stage)
    order = ["Load", "Build pairs", "Rank", "Generate the same", "Judge", "Write"]
    assert [any(s.startswith(word) for s in stage.steps) for word in order] == [True] * 6
    assert [next(i for i, s in enumerate(stage.steps) if s.startswith(w)) for w in order] == sorted(range(6))
    saved = json.loads((out / "result.json").read_text())
    assert saved == result
    assert list(saved) == ["figures", "neuron", "lambda", "seconds", "machine", "weak"]
    assert set(saved["figures"]) == {
        "target_direct",
        "target_synonym",
        "partner_kept",
        "others_delta",
        "unrelated_identical",
    }
    for figure in saved["figures"].values():
        assert set(figure) == {"value", "low", "high", "n"}
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert (out / "grid.png").read_bytes().startswith(b"\x89PNG")
    weak = Eraser.load(out / "eraser").weak
    assert weak and "carries 0 % of what the concept's word changes" in weak[0]
    assert saved["weak"] == list(weak) == [line.removeprefix("weak: ") for line in stage.seen if line[:6] == "weak: "]
    assert weak[0] in unescape((out / "report.html").read_text())


@pytest.mark.parametrize(("concept", "word"), [("dragon", "does not know"), ("panda", "synonyms")])
def test_concepts_the_demo_cannot_show_are_refused(concept: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match=word):
        run(DemoConfig(concept, tmp_path), Recorder())
    assert list(tmp_path.iterdir()) == []
