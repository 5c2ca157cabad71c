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


def test_bars_above_ten_alone():
    pytest.importorskip("matplotlib")
    axes = plots.ranked(RANKING).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0"]
    assert "above 10" in axes.get_title()
    low = Ranking(RANKING.entries[1:], (), "snce", 0.0)
    assert "none above 10" in plots.ranked(low).axes[0].get_title()


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
