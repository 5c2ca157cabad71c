"""The neuron browser in a real browser, from the disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from excise.app.neurons.page import page, write_browser
from excise.erasers.edits.sae_rows import sae_digest
from excise.errors import ExciseError
from excise.neurons.contexts import Context
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Explanation, Measured, Provenance, Tag
from tests.app.conftest import needs_browser

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!--"


class Dom(HTMLParser):
    """Elements as (tag, attributes, text within), in order, without the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[int] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in ("meta", "input", "link", "br", "img"):
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.elements[self.open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(self.elements[n][0] in ("script", "style") for n in self.open):
            for n in self.open:
                self.elements[n][2].append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (own, "".join(text))
            for name, own, text in self.elements
            if name == tag and all(own.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [text for _, text in self.all(tag, **attributes)]


@pytest.fixture
def about(word_sae: Any) -> Provenance:
    return Provenance(
        sae_digest(word_sae), "text_encoder/encoder.layers.2", 64, "<b>60</b> prompts", 60, "", "2026-01-01"
    )


@pytest.fixture
def database(about: Provenance, tmp_path: Path) -> Iterator[NeuronDatabase]:
    """Neurons 0 to 59: 5 has all fields, 6 is hostile, 7 to 9 are about blades, others fire more with their number."""
    entries = [
        Entry(i, density=(i + 1) / 1000, peak=1.0, histogram=(1, 2), contexts=(Context((" a", f" word{i}"), (0, 1.0)),))
        for i in range(60)
    ]
    entries[5] = Entry(
        5,
        density=0.0005,
        peak=4.0,
        histogram=(5, 0, 3),
        contexts=(Context(("a", " gun", ",", " café", "⟨end⟩"), (0.0, 4.0, 0.0, 1.0, 2.0)),),
        spread=(Context(("the", " hand", "gun"), (0.0, 0.0, 2.0)),),
        nearest=(("rifle", 0.75), ("⟨end⟩", 0.25)),
        near=((7, 0.5), (63, 0.25)),
        tags=(Tag("weapon", 12.0, 0.995),),
        explanation=Explanation("things that shoot", "a person", "2026-01-02T00:00:00"),
        scores={"detection": Measured(0.9, {"asked": 20}), "fuzzing": Measured(None)},
        patterns=("a [gun]", {"text": "revolver *", "support": 3}),
    )
    entries[6] = Entry(
        6,
        peak=1.0,
        contexts=(Context((HOSTILE, " <b>x</b>"), (1.0, 0.5)),),
        nearest=((HOSTILE, 0.5),),
        tags=(Tag(HOSTILE),),
        explanation=Explanation(HOSTILE, HOSTILE, HOSTILE),
        scores={HOSTILE: Measured(0.5, {HOSTILE: HOSTILE})},
        patterns=(HOSTILE, {"text": HOSTILE, HOSTILE: HOSTILE}),
    )
    entries[7] = replace(entries[7], nearest=(("blade", 0.5),))
    entries[8] = replace(entries[8], tags=(Tag("blade"),))
    entries[9] = replace(entries[9], patterns=("the blades of",), scores={"detection": Measured(0.99)})
    with NeuronDatabase.create(tmp_path / "neurons.db", about) as made:
        made.add(entries)
        yield made


@pytest.fixture
def browse(database: NeuronDatabase, browser: Any, tmp_path: Path) -> Callable[..., Dom]:
    """Return the DOM of the page at an address: `browse("#n=5")`."""
    index = write_browser(database, tmp_path / "site")

    def look(address: str = "", file: Path = index, until: str = "h1") -> Dom:
        page = browser.new_page()
        page.goto(f"{file.as_uri()}{address}")
        page.wait_for_selector(until, state="attached")
        found = Dom(page.content())
        page.close()
        return found

    return look


@needs_browser
def test_a_neuron_s_view(browse: Callable[..., Dom]) -> None:
    dom = browse("#n=5")
    assert dom.texts("title")[0] == "Neuron 5: weapon"
    assert dom.texts("h1") == ["Neuron 5"]
    assert dom.texts("p", class_="lead") == ["things that shoot"]
    assert dom.texts("p", class_="note") == ["Explained by a person on 2026-01-02"]
    assert dom.texts("p", class_="text") == ["a gun, caféend", "the handgun"]
    spans = [own for own, _ in dom.all("span") if "title" in own]
    shares = {own["title"]: float(re.findall(r"[\d.]+", str(own["style"]))[0]) for own in spans}
    assert shares == {
        "gun: 4.00": pytest.approx(0.72),
        "café: 1.00": pytest.approx(0.18),
        "end of text: 2.00": pytest.approx(0.36),
        "gun: 2.00": pytest.approx(0.36),
    }
    facts = dict(zip(dom.texts("dt"), dom.texts("dd"), strict=True))
    assert facts == {
        "Fires at": "1 in 2,000 tokens",
        "Codes": "8",
        "Largest code": "4.00",
        "weapon": "score 12.0, AUROC 0.99",
    }
    assert [own.get("aria-label") for own, _ in dom.all("svg", role="img")] == [
        "Histogram of 8 codes between 0 and 4.00"
    ]
    assert len(dom.all("rect", class_="bar")) == 2
    assert dom.texts("span", class_="value") == ["0.90", "–", "0.75", "0.25", "0.50", "0.25"]
    assert {own["href"] for own, _ in dom.all("a")} >= {"#n=7", "#n=63", "#q=weapon"}
    assert dom.texts("code") == ["a [gun]", "revolver *"]
    assert [own["href"] for own, _ in dom.all("a") if "aria-current" in own] == ["#n=5"]


@needs_browser
def test_the_whole_in_pages_of_fifty(browse: Callable[..., Dom]) -> None:
    dom = browse("#p=2&sort=number")
    assert dom.texts("span", class_="index") == [str(i) for i in range(50, 60)]
    assert dom.texts("p", id="count") == ["60 neurons"]
    assert dom.texts("p", id="pages") == ["‹ Previous51–60"]
    assert dom.texts("h1") == ["Neurons at text_encoder/encoder.layers.2"]
    assert dict(zip(dom.texts("dt"), dom.texts("dd"), strict=True))["Neurons"] == "60 of 64"
    assert "measured on <b>60</b> prompts." in dom.texts("p", class_="lead faint")[0]
    assert dom.texts("option") == [
        "relevance",
        "number",
        "fires most often",
        "fires least often",
        "largest code",
        f"{HOSTILE} score",
        "detection score",
        "fuzzing score",
    ]


@needs_browser
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("#q=blade", ["8", "9", "7"]),
        ("#q=SHOOT", ["5"]),
        ("#q=cafe", ["5"]),
        ("#q=word1&sort=often", ["19", "18", "17", "16", "15", "14", "13", "12", "11", "10", "1"]),
        ("#q=things+gun", ["5"]),
        ("#q=33", ["33"]),
        ("#sort=score-detection&q=a", ["9", "5", "8", "7"]),
        ("#q=nowhere", []),
    ],
)
def test_a_search_in_the_address(address: str, expected: list[str], browse: Callable[..., Dom]) -> None:
    dom = browse(address)
    assert dom.texts("span", class_="index") == expected
    words = f"{len(expected)} neuron{'' if len(expected) == 1 else 's'}" if expected else "No neuron found"
    assert dom.texts("p", id="count") == [words]


@needs_browser
def test_nothing_that_a_token_says_is_done(browse: Callable[..., Dom]) -> None:
    for address in ("#n=6", "#q=script"):
        dom = browse(address)
        assert "owned" not in dom.texts("title")
        assert dom.all("img") == []
        assert len(dom.all("script")) == 2
    dom = browse("#n=6")
    assert dom.texts("p", class_="lead") == [HOSTILE]
    assert dom.texts("p", class_="text") == [f"{HOSTILE} <b>x</b>"]
    assert dom.texts("code") == [HOSTILE] * 2


@needs_browser
def test_neurons_that_are_not_there(browse: Callable[..., Dom]) -> None:
    assert dom_lead(browse("#n=63")) == "It does not fire on <b>60</b> prompts, so the database has no data on it."
    assert dom_lead(browse("#n=64")) == "This database does not have that neuron."
    assert browse("#n=x&p=none").texts("h1") == ["Neurons at text_encoder/encoder.layers.2"]


def dom_lead(dom: Dom) -> str:
    (lead,) = dom.texts("p", class_="lead faint")
    return lead


@needs_browser
def test_an_eraser_is_linked_with_what_it_edits(
    browse: Callable[..., Dom], database: NeuronDatabase, gun_eraser: Any, tmp_path: Path
) -> None:
    gun_eraser.save(tmp_path / "gun")
    index = write_browser(database, tmp_path / "site", [tmp_path / "gun"])
    shown = f" · λ = 1 · {gun_eraser.digest[:12]}"
    plain = {"class_": "plain"}
    assert f"gun-test erases gun by snce{shown}" in browse("#n=5", index).texts("ul", **plain)[0]
    assert browse("#n=7", index).texts("ul", **plain) == []
    dom = browse("", index)
    assert dom.texts("ul", **plain) == [f"gun-test erases gun through neuron 5{shown}"]
    assert "#n=5" in [own["href"] for own, text in dom.all("a") if text == "neuron 5"]


def test_an_eraser_of_another_sae_is_refused(about: Provenance, gun_eraser: Any, tmp_path: Path) -> None:
    gun_eraser.save(tmp_path / "gun")
    with (
        NeuronDatabase.create(tmp_path / "other.db", replace(about, sae="0" * 64)) as other,
        pytest.raises(ExciseError, match="edits no neuron of the SAE"),
    ):
        write_browser(other, tmp_path / "site", [tmp_path / "gun"])
    assert not (tmp_path / "site").exists()


def test_the_page_fetches_nothing(database: NeuronDatabase) -> None:
    html = page(database)
    own = html.replace("http://www.w3.org/2000/svg", "")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', own, re.DOTALL)
    assert data is not None
    assert "<" not in data[1]
    assert not re.search(r"url\(|@import|https?://|\bsrc=|fetch\(|XMLHttp", own.replace(data[1], ""))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]


def test_other_files_in_the_folder_are_kept(database: NeuronDatabase, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    with pytest.raises(ExciseError, match=r"mine\.txt"):
        write_browser(database, tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["mine.txt"]


ACTS = """
(async () => {
  const seen = [];
  const note = () => seen.push(`${location.hash} ${document.activeElement.id || document.activeElement.tagName}`);
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const settle = () => new Promise((done) => setTimeout(done, 50));
  press("/"); note();
  query.value = "blade"; query.dispatchEvent(new Event("input")); note();
  press("j"); note();
  press("ArrowDown"); press("ArrowDown"); note();
  document.activeElement.click(); await settle(); note();
  press("k"); await settle(); note();
  press("j"); await settle(); press("j"); await settle(); note();
  sort.value = "number"; sort.dispatchEvent(new Event("change")); note();
  press("Escape"); await settle(); note();
  query.value = ""; query.dispatchEvent(new Event("input")); note();
  document.getElementById("search").requestSubmit(); await settle(); note();
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: seen.join("\\n") }));
})();
"""


@needs_browser
def test_keys_and_typing_change_the_address(
    browse: Callable[..., Dom], database: NeuronDatabase, tmp_path: Path
) -> None:
    # Allow the test's own script to run.
    open_ = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page(database))
    file = tmp_path / "acts.html"
    file.write_text(open_.replace("</body>", f"<script>{ACTS}</script></body>"), encoding="utf-8")
    (seen,) = browse("", file, until="#seen").texts("pre", id="seen")
    assert seen.splitlines() == [
        " query",
        "#q=blade query",
        "#q=blade query",  # in the field, j is a letter
        "#q=blade A",
        "#q=blade&n=9 H1",
        "#q=blade&n=8 H1",
        "#q=blade&n=7 H1",
        "#q=blade&sort=number&n=7 BODY",
        "#q=blade&sort=number A",
        "#sort=number BODY",
        "#sort=number&n=0 H1",
    ]
