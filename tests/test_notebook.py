"""How objects are displayed: one short line, and in notebooks a table that escapes all of their text."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

import excise
from excise.concepts import Concept, Pair
from excise.erasers import Eraser
from excise.neurons import Neuron, Ranking
from excise.sae import SAEConfig, TopKSAE

HOSTILE = "<img src=x onerror=alert(1)>\n\x1b[31m' \"&" + 500 * "x"
RANKING = Ranking(tuple(Neuron(n, 10.0 - n, 40 - n, 0.1) for n in range(12)), (), "snce", 0.02)


class Cells(HTMLParser):
    """Parser for the texts of the cells by row, and every opening tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_reprs_are_one_line(tiny_pipe: Any, gun_eraser: Eraser, gun: Concept) -> None:
    sae = TopKSAE(SAEConfig(d=6, m=12, k=2))
    with gun_eraser.attach(tiny_pipe) as attachment:
        assert repr(attachment) == "Attachment('gun-test', active, strength=1, on StableDiffusionPipeline)"
        attachment.enabled = False
        assert "off" in repr(attachment)
        several = excise.erasers.Attachments([attachment])
        assert repr(several) == "Attachments('gun-test')"
    assert "detached" in repr(attachment)
    shown = {
        gun_eraser: "Eraser('gun-test', concept='gun', method='snce', edits: text_encoder/encoder.layers.2 neuron 5)",
        gun: "Concept('gun', mentions: 'gun', 48 pairs, 16 controls, kind='object')",
        RANKING: "Ranking(12 neurons: 0 (10), 1 (9), 2 (8), 9 more, score='snce', tolerance=0.02)",
        sae: "TopKSAE(d=6, m=12, k=2, device='cpu')",
    }
    assert {thing: repr(thing) for thing in shown} == shown
    sae.card = {"site": {"component": "text_encoder", "path": "encoder.layers.2"}}
    assert "site='text_encoder/encoder.layers.2'" in repr(sae)
    assert repr(Ranking((), (), "snce", 0.0)) == "Ranking(0 neurons, score='snce', tolerance=0)"


def test_hostile_names_stay_text_on_one_line(gun_eraser: Eraser, tiny_pipe: Any) -> None:
    eraser = replace(
        gun_eraser, name=HOSTILE, concept=HOSTILE, mentions=(HOSTILE,), method=HOSTILE, verdict={"weak": [HOSTILE]}
    )
    concept = Concept(HOSTILE, (HOSTILE,) * 9, (Pair(HOSTILE, HOSTILE),))
    with eraser.attach(tiny_pipe) as attachment:
        for thing in (eraser, concept, attachment, excise.erasers.Attachments([attachment])):
            assert len(repr(thing)) < 420
            assert repr(thing).isprintable()
    sae = TopKSAE(SAEConfig(d=6, m=12, k=2))
    sae.card = {"site": {"component": HOSTILE, "path": HOSTILE}}
    assert len(repr(sae)) < 200 and repr(sae).isprintable()


@pytest.mark.parametrize("name", ["gun", HOSTILE])
def test_notebooks_show_tables_in_which_nothing_is_markup(name: str, gun_eraser: Eraser) -> None:
    eraser = replace(gun_eraser, name=name, concept=name, mentions=(name, name), verdict={"weak": [name]})
    page = Cells(eraser._repr_html_())
    assert page.tags == {"table", "caption", "tbody", "tr", "th", "td"}
    rows = {row[0]: row[1] for row in page.rows}
    assert rows["concept"] == rows["weaknesses"] == name
    assert rows["mentions"] == f"{name}, {name}"
    assert rows["digest"] == eraser.digest
    assert rows["edit at text_encoder/encoder.layers.2"] == "neuron 5, lambda = 1"
    ranking = Cells(Ranking(RANKING.entries, (), name, 0.02)._repr_html_())
    assert ranking.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert len(ranking.rows) == 11
    assert ranking.rows[1] == ["0", "10", "40", "0.1"]
