from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from excise.app.demo.measure import figures, further_figures
from excise.app.demo.pictures import comparison_png
from excise.app.demo.report import BARS, NeuronView, Report, Strip, percent, render
from excise.app.pages import charts
from excise.app.pages.rendering import templates
from excise.statistics import Estimate, share

VOID = {"meta", "img", "br", "wbr"}


class Page(HTMLParser):
    """Collects tags and attributes, and checks that every tag is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def page(outcomes: list[Any]) -> str:
    pictures = outcomes[0].before[:2]
    return render(
        Report(
            concept="gun",
            lam=2.5,
            facts=[("neuron", "7"), ("λ", "2.5")],
            figures=figures(outcomes),
            further=further_figures(outcomes),
            outcomes=outcomes,
            ranking=[(7, 224.0), (3, 76.0)],
            neurons=[NeuronView(7, [3.0, 2.5], [0.0, 0.0], [])],
            tokens=[[("a", 0.0), ("<gun>", 3.0), ("⟨end⟩", 2.0)]],
            strip=Strip(["a <i>gun</i>", "b"], [0.0, 1.0], [pictures, pictures]),
            settings={"method": "snce", "config": {"lam": 2.5}},
        )
    )


def test_the_page_is_well_formed_and_fetches_nothing(page: str) -> None:
    parsed = Page()
    parsed.feed(page)
    assert parsed.open == []
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    for tag, attributes in parsed.tags:
        assert not {"onclick", "srcset"} & set(attributes), tag
        assert (attributes.get("href") or "#").startswith("#"), tag
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
            assert attributes["alt"]
    assert not re.search(r"url\(|@import|https?://", page)


def test_prompts_are_escaped(page: str) -> None:
    assert "<b>direct</b>" not in page
    assert "<i>gun</i>" not in page
    assert "&lt;b&gt;direct&lt;/b&gt; &amp; 0" in page


def test_every_pair_and_strip_cell_is_there(page: str) -> None:
    assert page.count("<img ") == 4 * 4 * 2 + 2 * 2


def test_a_page_without_findings_still_renders(outcomes: list[Any]) -> None:
    strip = Strip([], [], [])
    empty = Report("gun", 1.0, [], {"target_direct": share([])}, {}, outcomes, [], [], [], strip, {})
    assert "nothing to count" in render(empty)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("target_direct", 0.05, "point only"),
        ("target_direct", 0.06, "missed"),
        ("partner_kept", 0.9, "point only"),
        ("others_delta", -0.03, "missed"),
        ("others_delta", 0.02, "point only"),
        ("unrelated_identical", math.nan, None),
    ],
)
def test_bars(name: str, value: float, expected: str | None) -> None:
    assert BARS[name][1].standing(Estimate(value, 0, 1, 10)) == expected


def test_percent() -> None:
    assert percent("target_direct", 0.0417) == "4 %"
    assert percent("others_delta", -0.0125) == "-1.2 pts"
    assert percent("partner_kept", math.nan) == "n/a"


def drawn(chart: charts.Chart) -> str:
    return str(templates().get_template("parts.html").module.svg(chart)).strip()


def test_plots_survive_empty_and_zero_data() -> None:
    for chart in (
        charts.bars([], "none"),
        charts.bars([("1", 0.0)], "zero"),
        charts.histogram([("concept", [0.0, 0.0], "accent")], "zero"),
        charts.interval(share([]), 0.05),
    ):
        assert drawn(chart).startswith("<svg")
        assert "nan" not in drawn(chart)


def test_names_of_a_front_never_lie_on_each_other() -> None:
    points = [(f"method-{n}", 0.01 * (n % 3), 0.0) for n in range(20)] + [("far <b>", 0.9, 1.0)]
    scatter = drawn(charts.scatter(points, "drawn", "moved"))
    rows = [float(y) for y in re.findall(r'<text x="458.0" y="([\d.]+)"', scatter)]
    assert len(rows) == 21
    assert all(b - a >= 15 for a, b in pairwise(rows))
    assert "far &lt;b&gt;" in scatter
    front = drawn(charts.scatter([("best", 0.1, 0.1), ("worse", 0.2, 0.1), ("other", 0.0, 0.5)], "drawn", "moved"))
    assert re.findall(r'class="accent">([a-z]+)</text>', front) == ["other", "best"]


def test_labels_say_what_of_a_prompt_is_not_read(outcomes: list[Any]) -> None:
    whole = outcomes[0]
    cut = replace(whole, family=replace(whole.family, lost={whole.family.prompts[0]: "& 0"}))
    assert cut.family.label(0) == "<b>direct</b> (not read: & 0)" and cut.family.label(1) == whole.family.prompts[1]
    strip = Strip([cut.family.label(0)], [1.0], [whole.before[:1]])
    page = render(Report("gun", 1.0, [], {}, {}, [cut], [], [], [], strip, {}))
    label = "&lt;b&gt;direct&lt;/b&gt; (not read: &amp; 0)"
    assert f"<figcaption>{label}" in page and f'<th scope="row">{label}' in page
    assert comparison_png([cut]) != comparison_png([whole])


def test_the_strip_marks_the_strength_in_use(outcomes: list[Any]) -> None:
    pictures = outcomes[0].before[:1]
    strip = Strip(["a gun"], [0.0, 1.885128, 3.0], [pictures] * 3)
    page = render(Report("gun", 1.885128, [], {}, {}, outcomes, [], [], [], strip, {}))
    assert page.count('class="used"') + page.count("class=used") == 2
    assert "λ = 1.885<br>in use" in page


def test_the_page_says_what_its_badges_mean(page: str) -> None:
    for standing, look in (("reached", "good"), ("point only", "part"), ("missed", "bad")):
        assert f'<li><span class="badge {look}">{standing}</span> ' in page


def test_the_grid_shows_before_and_after_of_what_the_unerased_model_draws(make_outcome: Callable[..., Any]) -> None:
    import io

    from PIL import Image

    from excise.app.pages.sheet import APART, GAP, MARGIN

    outcome = make_outcome("direct", target=([0, 1, 1, 0], [0, 0, 0, 0]))
    for n in range(4):
        outcome.before[n], outcome.after[n] = 10 * n, 200 + 10 * n
    with Image.open(io.BytesIO(comparison_png([outcome]))) as sheet:
        pixels = np.asarray(sheet)
    pair = 2 * 184 + GAP
    assert pixels.shape[1] == 2 * MARGIN + 4 * pair + 3 * APART
    row = pixels[-MARGIN - 20]
    lefts = [MARGIN + n * (pair + APART) for n in range(4)]
    assert [int(row[left + 90, 0]) for left in lefts] == [10, 20, 0, 30]
    assert [int(row[left + 184 + GAP + 90, 0]) for left in lefts] == [210, 220, 200, 230]
