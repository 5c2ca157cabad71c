from __future__ import annotations

import sys

import pytest
import torch

from excise.errors import ExciseError
from excise.neurons import Neuron, Ranking, Score, plots

F = torch.tensor([3.0, 2.0, 0.0, 4.0], dtype=torch.float64)
MEAN = torch.tensor([0.5, 0.2, 0.0, 0.3], dtype=torch.float64)
SIDES = Score(F * MEAN, F, MEAN), Score(MEAN * torch.tensor([0, 0, 0, 2.0]), torch.tensor([0, 0, 0, 2.0]), MEAN)
RANKING = Ranking((Neuron(0, 24.0, 3, 0.0), Neuron(1, 0.4, 2, 0.0)), (Neuron(3, 1.2, 4, 0.6),), "snce", 0.0)


def test_as_many_bars_as_were_asked_for_on_a_logarithmic_axis_with_their_words():
    pytest.importorskip("matplotlib")
    entries = (*RANKING.entries, Neuron(2, 0.004, 1, 0.002))
    figure = plots.ranked(Ranking(entries, (), "snce", 0.0), tokens={0: ["gun", "next"], 1: ["$a$"]}, top=5)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0", "1", "2"]
    first, *rest = (bar.get_width() for bar in axes.patches)
    assert [first, *rest] == [24.0, 0.4, 0.004, 0.002]  # the last one is what neuron 2 scores without the concept
    low, high = axes.get_xlim()
    assert low < 0.002 and high > 24
    (right,) = axes.child_axes
    assert [t.get_text() for t in right.get_yticklabels()] == ["gun  next", "$a$", ""]
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "first neuron: the one an eraser turns down",
        "the next ones",
        "the same prompts without the concept",
        "the paper draws those above 10",
    ]
    assert "with the concept and not without it" in figure.get_suptitle()
    (one,) = plots.ranked(RANKING, top=1).axes
    assert [bar.get_width() for bar in one.patches] == [24.0]


def test_other_scores_have_no_bound_of_the_papers():
    pytest.importorskip("matplotlib")
    other = Ranking((Neuron(0, 24.0, 3, 0.5),), (), "mean_difference", 0.0)
    figure = plots.ranked(other)
    assert len(figure.axes[0].patches) == 1 and len(figure.legends[0].get_texts()) == 1


def test_controls_that_wake_a_neuron_are_named_beside_it():
    pytest.importorskip("matplotlib")
    figure = plots.ranked(RANKING, tokens={0: ["gun"], 1: ["a" * 60]}, controls={0: 0.25})
    (right,) = figure.axes[0].child_axes
    assert [t.get_text() for t in right.get_yticklabels()] == ["gun  (and 25% of controls)", ""]


def test_distribution_shows_both_sides():
    pytest.importorskip("matplotlib")
    upper, lower = plots.distribution(*SIDES, RANKING).axes
    assert {t.get_text() for t in upper.texts} == {"0", "1", "3"}
    assert {t.get_text() for t in lower.texts} == {"3"}


def test_histograms_are_shares_of_their_side():
    pytest.importorskip("matplotlib")
    sides = {"gun": (torch.tensor([1.0, 1.0, 0.5]), torch.zeros(4)), "ink": (torch.ones(2), torch.tensor([]))}
    figure = plots.histograms(sides, bins=4)
    drawn = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in drawn] == ["gun", "ink"]
    heights = [patch.get_height() for patch in drawn[0].patches]
    assert heights == pytest.approx([1, 0, 0, 0, 0, 0, 1 / 3, 2 / 3])
    with pytest.raises(ExciseError, match="no concept to draw"):
        plots.histograms({})


def test_curves_are_lines_in_per_cent():
    pytest.importorskip("matplotlib")
    figure = plots.curves(
        {"erased": {"a": [(1, 1.0), (9, 0.5)], "b": [(1, 0.0)]}, "kept": {"a": [(1, 0.25)]}}, "objects"
    )
    assert [axes.get_ylabel() for axes in figure.axes] == ["erased, %", "kept, %"]
    assert [line.get_xydata().tolist() for line in figure.axes[0].lines] == [[[1, 100], [9, 50]], [[1, 0]]]
    with pytest.raises(ExciseError, match="no curve to draw"):
        plots.curves({"erased": {}}, "objects")


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_files_are_the_same_each_time(tmp_path, ending, start):
    pytest.importorskip("matplotlib")
    for name in ("a", "b"):
        plots.save(plots.distribution(*SIDES, RANKING), tmp_path / f"{name}.{ending}")
    data = (tmp_path / f"a.{ending}").read_bytes()
    assert data.startswith(start)
    assert data == (tmp_path / f"b.{ending}").read_bytes()


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(ExciseError, match="nothing to draw"):
        plots.ranked(Ranking((), (), "snce", 0.0))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ExciseError, match="pip install"):
        plots.ranked(RANKING)
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    with pytest.raises(ExciseError, match=r"svg, \.png or \.pdf"):
        plots.save(plots.ranked(RANKING), tmp_path / "figure.gif")


def test_the_front_is_what_no_other_point_beats() -> None:
    points = {"a": (0.9, 0.5), "b": (0.9, 0.9), "c": (0.2, 1.0), "d": (0.1, 1.0), "e": (1.0, 0.1), "f": (0.9, 0.9)}
    assert plots.unbeaten(points) == ["b", "c", "e", "f"]
    assert plots.render(plots.front(points, "kept", "erased"), "png") == plots.render(
        plots.front(points, "kept", "erased"), "png"
    )
    with pytest.raises(ExciseError, match="no point to draw"):
        plots.front({}, "kept", "erased")


def test_names_at_the_front_cover_neither_each_other_nor_a_point() -> None:
    pytest.importorskip("matplotlib")
    points = {f"method-{n}": (1 - n / 500, 1.0 - (n % 3) / 100) for n in range(15)} | {"far": (0.5, 0.0)}
    figure = plots.front(points, "kept", "erased")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    assert list(boxes) == list(points)
    names = list(boxes)
    for n, name in enumerate(names):
        assert not any(boxes[name].overlaps(boxes[other]) for other in names[:n])
        for x, y in points.values():
            assert not boxes[name].contains(*axes.transData.transform((100 * x, 100 * y)))
