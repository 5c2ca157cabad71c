"""All pages together: each is accessible, and hostile text in it does nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import excise
from excise.app.audit import page as audit_page
from excise.app.audit.audit import Audit
from excise.app.audit.effects import Changed, Effects, Spoken
from excise.app.audit.neurons import Neighbour, Side
from excise.app.audit.neurons import NeuronView as AuditedNeuron
from excise.app.bench import page as bench_page
from excise.app.demo.measure import figures, further_figures
from excise.app.demo.report import NeuronView, Report, Strip
from excise.app.demo.report import render as render_report
from excise.app.neurons.page import page as neuron_page
from excise.bench.canvas.suite import Canvas
from excise.bench.items.cases import picture_of
from excise.bench.machine import machine
from excise.bench.pictures import png
from excise.bench.results import results
from excise.bench.run import Run, Unit
from excise.files import sha256, write_atomic
from excise.neurons.contexts import Context
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Explanation, Provenance, Tag
from excise.neurons.flags import CHECKS, Flag, Group
from excise.neurons.wording import Use
from tests.app.conftest import needs_browser

HOSTILE = (
    "</script></style><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">{{ 7*7 }}"
)
LONG = f"{HOSTILE} {'unbroken' * 40} https://example.org/never-fetched"
COMMAND = f"excise of '{HOSTILE}'"
NAMES = ("report", "audit", "bench", "neurons")
VOID = {"meta", "img", "br", "wbr", "input", "link", "hr"}


class Page(HTMLParser):
    """A page's elements as (tag, attributes, text within, enclosing tags), in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str], list[str]]] = []
        self.open: list[int] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        within = [self.elements[n][0] for n in self.open]
        self.elements.append((tag, dict(attrs), [], within))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for n in self.open:
            self.elements[n][2].append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for tag, attributes, text, _ in self.elements if tag in tags]


def report(outcomes: list[Any]) -> str:
    hostile = [replace(o, family=replace(o.family, prompts=(LONG,) * 4)) for o in outcomes]
    return render_report(
        Report(
            concept=LONG,
            lam=1.0,
            facts=[("site", LONG)],
            figures=figures(outcomes),
            further=further_figures(outcomes),
            outcomes=hostile,
            ranking=[(7, 224.0), (3, 76.0)],
            neurons=[NeuronView(7, [3.0, 2.5], [0.0, 0.0], [])],
            tokens=[[("a", 0.0), (LONG, 3.0)]],
            strip=Strip([LONG], [0.0, 1.0, 2.0], [outcomes[0].before[:1]] * 3),
            settings={LONG: LONG},
            command=COMMAND,
        )
    )


def audit() -> str:
    context = Context(("a", f" {LONG}"), (0.0, 2.0))
    uses = (Use(LONG, 3, 2, 1.5),)
    seen = AuditedNeuron(
        site=LONG,
        neuron=7,
        exact=True,
        threshold=0.5,
        sides={name: Side(9, 2, (2.0, 1.0), (context,) * 6) for name in ("concept", "deconcept", "controls", "benign")},
        uses=uses,
        effective_words=1.2,
        free=uses,
        neighbours=(Neighbour(3, 0.5, 0.9, 0.0, True, (context,)),),
    )
    effects = Effects(
        measured="text states",
        name=LONG,
        name_change=1.3,
        sentences=(LONG,),
        words=(Spoken(LONG, 4, 4, 1.0, "given", 1.3), Spoken("gun", 0, 4, None, "mention", 0.0)),
        benign=10,
        touched=1,
        worst=(Changed(LONG, 0.1, 0.1),),
    )
    made_for = {"pipeline": LONG, "model": LONG, "encoders": {LONG: LONG}, "tokenizers": {}}
    provenance = {
        "digest": "f" * 64,
        "signature": "none",
        "mentions": [LONG],
        "edits": [{"site": LONG, "kind": "sae", "neurons": [7], "lambda": 1.0}],
        "made_for": made_for,
        "created": {LONG: LONG},
        "measured": {},
        "canary": [LONG],
        "canary_shift": {"fitted": 1.0, "now": None},
        "written": "2026-01-01",
        "command": COMMAND,
        "excise": "0",
    }
    return audit_page.render(
        Audit(
            concept=LONG,
            name=LONG,
            method="snce",
            flags=(Flag("structural", "red", LONG, LONG, (LONG,) * 10),),
            checks=dict(zip(CHECKS, ("clear", "note", "red", "clear", "not applicable") * 2, strict=False)),
            neurons=(seen,) * 7,
            effects=(effects,),
            groups=(Group(LONG, LONG, 3, 1, 2, 0.3, LONG), Group("none", "none", 3, 0, 0, None, None)),
            benign={"source": LONG, "prompts": 10, "dropped": 1},
            left_out=(LONG,),
            provenance=provenance,
        )
    )


def bench(folder: Path) -> str:
    suite = Canvas(prompts=3, only=("direct", "unrelated"), searches=False)
    methods = ("none", "snce", "snce:lam=1", "snce:lam=3")
    plan = {"suite": "canvas", "size": "quick", "settings": suite.settings, "model": None, "concepts": ["gun"]}
    run = Run.create(folder, plan | {"methods": list(methods), "configurations": {m: {} for m in methods}})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for method in methods:
        records = []
        for case in suite.cases("gun", "quick"):
            seen: dict[str, Any] = {"target": method == "none", "kept": [True] * len(case.keeps), "alignment": -0.1}
            seen |= {"style": True, "background": True, "nothing": False}
            record = {"method": method, "concept": "gun", "case": case.id, "family": case.family, "lost": LONG}
            record |= {"prompt": case.prompt, "seed": case.seed, "seconds": 1.0, "fault": None}
            records.append(record | {"seen": {**seen, "second": seen}, "picture": sha256(picture.tobytes())})
            write_atomic(picture_of(run, Unit(method, "gun"), case.id), png(picture))
        text = "\n".join(map(json.dumps, records)) + "\n"
        write_atomic(folder / "records" / f"{method}=gun@by.hand.jsonl", text)
    found = results(run, suite) | {"machine": machine(), "date": "2026-01-01", "disclosed": {LONG: LONG}}
    found["methods"]["snce"]["failed"] = {LONG: LONG}
    return bench_page.render(run, suite, found)


def neurons(folder: Path) -> str:
    context = Context((LONG, " <b>x</b>"), (1.0, 0.5))
    entry = Entry(
        6,
        density=0.1,
        peak=1.0,
        histogram=(1, 2),
        contexts=(context,),
        nearest=((LONG, 0.5),),
        tags=(Tag(LONG),),
        explanation=Explanation(LONG, LONG, LONG),
        patterns=(LONG,),
    )
    with NeuronDatabase.create(folder / "neurons.db", Provenance("0" * 64, LONG, 64, LONG, 60, "", "2026")) as made:
        made.add([entry])
        return neuron_page(made, (), ("excise", "of", HOSTILE))


@pytest.fixture
def pages(outcomes: list[Any], tmp_path: Path) -> dict[str, Callable[[], str]]:
    return {
        "report": lambda: report(outcomes),
        "audit": audit,
        "bench": lambda: bench(tmp_path / "run"),
        "neurons": lambda: neurons(tmp_path),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_well_formed_and_accessible(name: str, pages: dict[str, Callable[[], str]]) -> None:
    html = pages[name]()
    page = Page(html)
    assert html.startswith("<!doctype html>")
    assert [attributes.get("lang") for attributes, _ in page.all("html")] == ["en"]
    assert len(page.all("title")) - len(page.all("svg", "rect")) <= 1 and page.all("title")[0][1].strip()
    levels = [int(tag[1]) for tag, *_ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), "headings are in order"
    ids = [attributes["id"] for _, attributes, *_ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes, _ in page.all("img"):
        assert (attributes["src"] or "").startswith("data:image/png;base64,") and attributes["alt"]
    for attributes, _ in page.all("svg"):
        assert attributes["role"] == "img" and attributes["aria-label"]
    for attributes, _ in page.all("th"):
        assert attributes["scope"] in ("row", "col")
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(text.strip() for _, text in page.all("caption"))
    links = [attributes["href"] for attributes, _ in page.all("a")]
    assert links[0] == "#main" and "main" in ids, "the first link skips to the content"


@pytest.mark.parametrize("name", NAMES)
def test_text_in_a_page_cannot_run_or_load_anything(name: str, pages: dict[str, Callable[[], str]]) -> None:
    html = pages[name]()
    page = Page(html)
    assert "{{" in html and "49" not in re.findall(r"owned[^{]{0,20}(49)", html), "no text is a template"
    assert len(page.all("script")) == (2 if name == "neurons" else 0)
    for tag, attributes, *_ in page.elements:
        assert not any(key.startswith("on") for key in attributes), (tag, attributes)
        for key in ("href", "src", "action", "data", "poster", "srcset"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert not re.search(r"url\(|@import", "".join(text for _, text in page.all("style")))
    policy = next(a["content"] for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; style-src ")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_s_footer_states_its_origin(name: str, pages: dict[str, Callable[[], str]]) -> None:
    ((_, footer),) = Page(pages[name]()).all("footer")
    command = {"bench": "excise bench report "}.get(name, "excise of ")
    for line in (f"Excise {excise.__version__}", f"Command {command}", f"Machine {machine()}", "Date 20"):
        assert line in footer


def test_markup_is_in_templates_alone() -> None:
    element = re.compile(r"</?(a|b|div|details|figure|h[1-6]|img|li|p|section|span|svg|table|t[dhr]|ul)\b[^>]*>")
    rooms = Path(excise.__file__).parent / "app"
    assert [
        f"{path.name}: {found[0]}" for path in rooms.rglob("*.py") for found in element.finditer(path.read_text())
    ] == []


MEASURE = """() => {
  for (const details of document.querySelectorAll("details")) details.open = true;
  const { scrollWidth, clientWidth } = document.documentElement;
  const wide = [...document.querySelectorAll("body *")].filter((one) =>
    !one.closest(".scroll, nav, .unseen, .skip") && one.getBoundingClientRect().right > clientWidth + 1);
  return {
    widths: [scrollWidth, clientWidth],
    headings: document.querySelectorAll("h1").length,
    wide: wide.slice(0, 3).map((one) => `${one.tagName}.${one.getAttribute("class")}`),
  };
}"""


@needs_browser
def test_no_page_scrolls_sideways_on_a_phone(pages: dict[str, Callable[[], str]], browser: Any, tmp_path: Path) -> None:
    for name, make in pages.items():
        write_atomic(tmp_path / f"{name}.html", make())
    fits = {"widths": [390, 390], "headings": 1, "wide": []}
    for name in (*NAMES, "neurons#n=6"):
        page = browser.new_page(viewport={"width": 390, "height": 800})
        file, _, view = name.partition("#")
        page.goto((tmp_path / f"{file}.html").as_uri() + (f"#{view}" if view else ""))
        assert page.evaluate(MEASURE) == fits, name
        page.close()
