"""UnlearnCanvas end to end: the bundled model instead of style50, classifiers with random weights in the published
format. What they say is noise; how they are asked, counted and read is what is tested."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from excise.app.bench import tables
from excise.app.bench.reproduce import saemnesia_table
from excise.app.bench.runs import report, resume, start
from excise.bench.items.cases import picture_of
from excise.bench.items.reusing import _key
from excise.bench.pictures import read
from excise.bench.protocols import published
from excise.bench.protocols.unlearncanvas import OBJECTS, STYLES, UnlearnCanvas
from excise.bench.protocols.vit import ViT, classify, load_vit
from excise.bench.run import Unit
from excise.bench.suite import Picture, in_batches
from excise.cli import app
from excise.errors import ExciseError
from excise.statistics import wilson

pytestmark = pytest.mark.usefixtures("one_bundled_pipe")

SHAPE = {"width": 16, "depth": 2, "heads": 2, "side": 32, "patch": 16}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(0)
    for name, classes in (("style", len(STYLES)), ("object", len(OBJECTS))):
        model = ViT(classes, **SHAPE)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        torch.save({"model_state_dict": model.state_dict()}, folder / f"{name}.pth")
    return {f"{name}_classifier": str(folder / f"{name}.pth") for name in ("style", "object")}


def test_the_network_against_its_arithmetic_head_by_head(checkpoints: dict[str, str]) -> None:
    model = load_vit(checkpoints["object_classifier"], len(OBJECTS), **SHAPE)
    w = {name: value.double() for name, value in model.state_dict().items()}
    pictures = torch.randn(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def norm(x: Any, name: str) -> Any:
        spread = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (spread + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    rows = [w["cls_token"][0, 0]]
    for top in (0, 16):
        for left in (0, 16):
            patch = pictures[0, :, top : top + 16, left : left + 16].reshape(-1)
            rows.append(w["patch_embed.proj.weight"].reshape(16, -1) @ patch + w["patch_embed.proj.bias"])
    x = torch.stack(rows) + w["pos_embed"][0]
    for b in ("blocks.0", "blocks.1"):
        qkv = linear(norm(x, f"{b}.norm1"), f"{b}.attn.qkv")
        heads = []
        for h in range(2):
            q, k, v = (qkv[:, part * 16 + h * 8 : part * 16 + (h + 1) * 8] for part in range(3))
            heads.append(torch.softmax(q @ k.T / math.sqrt(8), -1) @ v)
        x = x + linear(torch.cat(heads, -1), f"{b}.attn.proj")
        inner = linear(norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")
        x = x + linear(0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))), f"{b}.mlp.fc2")
    wanted = linear(norm(x, "norm")[0], "head")
    torch.testing.assert_close(model.double()(pictures)[0], wanted)


def test_a_vit_large_has_timms_shapes() -> None:
    with torch.device("meta"):
        model = ViT(51)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["pos_embed"] == (1, 197, 1024)
    assert shapes["patch_embed.proj.weight"] == (1024, 3, 16, 16)
    assert shapes["blocks.23.attn.qkv.weight"] == (3072, 1024)
    assert shapes["blocks.23.mlp.fc1.weight"] == (4096, 1024)
    assert shapes["head.weight"] == (51, 1024)
    assert sum(math.prod(shape) for shape in shapes.values()) == 303_301_632 + 51 * 1025


def test_a_checkpoint_with_anything_but_tensors_is_not_opened(tmp_path: Path, checkpoints: dict[str, str]) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    for path in (tmp_path / "evil.pth", tmp_path / "missing.pth", Path(checkpoints["style_classifier"])):
        with pytest.raises(ExciseError, match=f"{path.name} is not UnlearnCanvas's classifier of 20 classes"):
            load_vit(path, 20, **SHAPE)
    assert not marker.exists()


def test_the_prompts_are_every_object_in_the_styles() -> None:
    suite = UnlearnCanvas("a", "b")
    assert (len(OBJECTS), len(STYLES)) == (20, 51)
    rows = suite.cases("Dogs", "full")
    assert len(rows) == len({case.id for case in rows}) == 20 * 51
    assert {case.seed for case in rows} == {188}
    by_id = {case.id: case for case in rows}
    assert by_id["Dogs.Cats.Van_Gogh"].prompt == "An image of Cats in Van Gogh style."
    assert by_id["Dogs.Cats.Seed_Images"].prompt == "An image of Cats."
    assert {case.keeps[0] for case in rows if case.family == "target"} == {"Dogs"}
    assert len([case for case in suite.cases("Monet", "standard") if case.family == "target"]) == 20
    assert len(suite.concepts("full")) == 70
    for concept, size, match in (("Gun", "full", "no 'Gun'"), ("Dogs", "huge", "unknown size")):
        with pytest.raises(ExciseError, match=match):
            suite.cases(concept, size)


def test_accuracies_against_counting_by_hand() -> None:
    suite = UnlearnCanvas("a", "b")
    rng = np.random.default_rng(0)
    rows = []
    for case in suite.cases("Monet", "standard"):
        style = case.style if rng.random() < 0.7 else "Rust"
        thing = case.keeps[0] if rng.random() < 0.8 else "Sea"
        sure = {"style": round(rng.random(), 2), "object": 1.0}
        seen = {"style": style, "object": thing, "target": style == "Monet", "sure": sure}
        before = {"style": "Monet", "object": case.keeps[0] if rng.random() < 0.6 else "Flame"}
        rows.append(Picture(case, seen, seen | before, True, Path(), Path()))
    figures = suite.of_concept(rows)
    named = [p for p in rows if p.case.style == "Monet"]
    others = [p for p in rows if p.case.style != "Monet"]
    assert figures["ua"] == wilson(sum(p.seen["style"] != "Monet" for p in named), len(named))
    assert figures["ira"] == wilson(sum(p.seen["style"] == p.case.style for p in others), len(others))
    assert figures["cra"] == wilson(sum(p.seen["object"] == p.case.keeps[0] for p in others), len(others))
    gone = [p for p in named if p.seen["style"] != "Monet"]
    another = sum(p.seen["sure"]["style"] >= 0.5 for p in gone)
    assert 0 < another < len(gone), "the rest of the test says nothing otherwise"
    assert figures["left_class"] == wilson(another, len(gone))
    assert figures["left_unsure"] == wilson(len(gone) - another, len(gone))
    drawn = [p for p in named if p.unerased["object"] == p.case.keeps[0]]
    assert len(drawn) < len(named)
    assert figures["objects"] == wilson(sum(p.seen["object"] == p.case.keeps[0] for p in drawn), len(drawn))
    assert math.isnan(figures["style"].value), "the style is what was to go"
    means = suite.over_concepts({"Monet": rows})
    assert means["style.ua"].value == means["ua"].value == figures["ua"].value
    assert math.isnan(means["object.ua"].value)


def test_records_of_before_have_nothing_to_say_of_what_is_left() -> None:
    suite = UnlearnCanvas("a", "b")
    (case,) = [case for case in suite.cases("Dogs", "quick") if case.id == "Dogs.Dogs.Abstractionism"]
    seen = {"style": "Abstractionism", "object": "Cats", "target": False}
    figures = suite.of_concept([Picture(case, seen, seen, False, Path(), Path())])
    assert (figures["ua"].value, figures["style"].value) == (1, 1)
    assert math.isnan(figures["left_class"].value)
    assert math.isnan(figures["objects"].value), "of styles alone"


def test_the_page_says_what_the_classifiers_make_of_what_is_left() -> None:
    suite = UnlearnCanvas("a", "b")
    rows = []
    for n, case in enumerate(case for case in suite.cases("Dogs", "standard") if case.family == "target"):
        seen = {"style": case.style, "object": "Cats", "target": False, "sure": {"style": 1.0, "object": n / 10}}
        rows.append(Picture(case, seen, seen, False, Path(), Path()))
    figures = {name: figure.to_json() for name, figure in suite.over_concepts({"Dogs": rows}).items()}
    shown = tables.left(suite, {"methods": {name: {"figures": figures} for name in ("none", "snce")}})
    assert shown is not None
    assert [row.label for row in shown.rows] == ["snce"], "the unerased model has nothing erased"
    assert shown.rows[0].stack == [("other", "50.0"), ("unrecognisable", "50.0")]
    assert shown.kinds == [
        ("other", "another known class"),
        ("unrecognisable", "a class that the classifier gives less than 50 %"),
    ]
    assert "Style kept" in shown.heads
    assert "Objects kept" not in shown.heads


def test_the_unerased_model_is_asked_for_few_different_pictures() -> None:
    """`excise.bench.items.making` draws each of them once: tests/bench/test_work.py."""
    suite = UnlearnCanvas("a", "b")
    cases = [case for concept in suite.concepts("full") for case in suite.cases(concept, "full")]
    assert (len(cases), len({_key(case) for case in cases}), suite.batch) == (71_400, 1020, 16)


@pytest.mark.parametrize(("size", "pictures"), [("quick", 68), ("standard", 1320), ("full", 1020)])
def test_batches_that_are_taken_over_whole_cost_few_pictures(size: str, pictures: int) -> None:
    suite = UnlearnCanvas("a", "b")
    drawn = {tuple(map(_key, b)) for c in suite.concepts(size) for b in in_batches(suite.cases(c, size), 16)}
    assert sum(map(len, drawn)) == pictures


def test_it_runs_and_stands_beside_the_published_rows(checkpoints: dict[str, str], tmp_path: Path) -> None:
    settings = {**checkpoints, "shape": SHAPE, "steps": 1}
    run = start(tmp_path / "run", "unlearncanvas", "quick", [], ["Dogs"], settings)
    resume(run)
    records = run.records()
    assert len(records) == 40
    suite = UnlearnCanvas(**settings)
    first = records[0]
    picture = suite.judge(
        [case for case in suite.cases("Dogs", "quick") if case.id == first["case"]], _read(run, first)
    )
    assert picture == [first["seen"]]
    figures = report(run)["methods"]["none"]["figures"]
    made = saemnesia_table([run])
    assert [row[0] for row in made.rows[-2:]] == ["SAEmnesia", "yours: none"]
    assert made.rows[-1][4] == f"{100 * figures['object.ua']['value']:.2f}"
    assert made.rows[-1][1] == ""
    with pytest.raises(ExciseError, match="name them with --object-classifier, --style-classifier"):
        start(tmp_path / "other", "unlearncanvas", "quick", [])


def _read(run: Any, record: dict[str, Any]) -> Any:
    return read(picture_of(run, Unit("none", "Dogs"), record["case"]))[None]


def test_the_published_table_as_printed() -> None:
    means = published.means_of_unlearncanvas()
    assert [name for name, (own, printed) in means.items() if abs(own - printed) > 0.011] == ["SAeUron"]
    shown = CliRunner().invoke(app, ["reproduce", "saemnesia"])
    assert shown.exit_code == 0
    assert "94.85" in shown.output


def test_pictures_are_resized_to_the_networks_side(checkpoints: dict[str, str]) -> None:
    model = load_vit(checkpoints["style_classifier"], len(STYLES), **SHAPE)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with torch.no_grad():
        logits = model(torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None].float())
    ((index, sure),) = classify(model, [picture])
    odds = np.exp(logits[0].double().numpy() - float(logits.max()))
    assert index == int(logits.argmax())
    assert sure == pytest.approx(odds.max() / odds.sum(), abs=1e-5)
    assert len(classify(model, [np.zeros((64, 48, 3), np.uint8)])) == 1


def test_pictures_are_drawn_by_ddim_with_the_published_settings(tiny_pipe: Any) -> None:
    from diffusers import DDIMScheduler

    suite = UnlearnCanvas("a", "b")
    assert (suite.steps, suite.guidance, suite.seed) == (100, 9.0, 188)
    suite = replace(suite, steps=5)
    (case,) = [case for case in suite.cases("Dogs", "quick") if case.id == "Dogs.Cats.Abstractionism"]
    own = tiny_pipe.scheduler
    runs: list[int] = []
    handle = tiny_pipe.unet.register_forward_hook(lambda module, args, output: runs.append(1))
    (picture,) = suite.draw(tiny_pipe, [case]).pixels
    handle.remove()
    assert len(runs) == 5
    assert tiny_pipe.scheduler is own
    tiny_pipe.scheduler = DDIMScheduler.from_config(own.config)
    generator = torch.Generator().manual_seed(188)
    made = tiny_pipe(case.prompt, num_inference_steps=5, guidance_scale=9.0, generator=generator, output_type="np")
    assert np.array_equal(picture, (made.images[0] * 255).round().astype(np.uint8))


def test_exchanged_classifiers_are_told_apart(checkpoints: dict[str, str]) -> None:
    with pytest.raises(ExciseError, match=r"classifier of 51 classes.*it has 20 classes; it is the one for --obj"):
        load_vit(checkpoints["object_classifier"], len(STYLES), **SHAPE)
    with pytest.raises(ExciseError, match=r"classifier of 20 classes.*it has 51 classes; it is the one for --sty"):
        load_vit(checkpoints["style_classifier"], len(OBJECTS), **SHAPE)
