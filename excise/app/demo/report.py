"""The demo's report: one HTML file with its pictures and plots inside, nothing fetched, no script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from excise.app.demo.measure import TITLES, Outcome
from excise.app.pages import svg
from excise.app.pages.badges import BADGES, legend
from excise.app.pages.frame import document, image
from excise.bench.bars import Bar
from excise.bench.pictures import Pictures, png
from excise.bench.statistics import Figure

FIRST = 12
"""Pairs of a family shown at once; the rest unfold."""

# Figure -> (what it says, bar to reach, the axis).
BARS: dict[str, tuple[str, Bar, tuple[float, float]]] = {
    "target_direct": ("still drawn when asked for by name", Bar(0.05, "below"), (0, 1)),
    "target_synonym": ("still drawn when asked for by a synonym", Bar(0.15, "below"), (0, 1)),
    "partner_kept": ("of the other objects in mixed prompts kept", Bar(0.90, "above"), (0, 1)),
    "others_delta": ("change in how often other objects are recognised", Bar(0.02, "within"), (-0.25, 0.25)),
    "unrelated_identical": ("of unrelated pictures identical, bit for bit", Bar(0.95, "above"), (0, 1)),
}
FURTHER: dict[str, str] = {
    "left_other": "Direct prompts, concept gone: another known object instead (either judge)",
    "left_empty": "Direct prompts, concept gone: an empty scene",
    "left_unrecognisable": "Direct prompts, concept gone: something that neither judge knows",
    "target_direct_before": "Direct prompts: concept drawn by the unerased model",
    "target_synonym_before": "Synonym prompts: concept drawn by the unerased model",
    "target_mixed": "Mixed prompts: concept still drawn, where the unerased model draws it",
    "partner_before": "Mixed prompts: partner drawn by the unerased model",
    "others_before": "Unrelated prompts: object drawn by the unerased model",
    "background_kept": "Direct prompts: same background after erasing",
    "style_kept": "Direct prompts: same style after erasing",
}


@dataclass(frozen=True)
class NeuronView:
    """How one neuron answers prompts: its strongest code in each, by group."""

    index: int
    concept: Sequence[float]
    deconcept: Sequence[float]
    controls: Sequence[float]


@dataclass(frozen=True)
class Strip:
    """Pictures of the same prompts at growing strength: `pictures[i]` is `[prompts, height, width, 3]` at `lams[i]`."""

    prompts: Sequence[str]
    """As labels give them."""
    lams: Sequence[float]
    pictures: Sequence[Pictures]


@dataclass(frozen=True)
class Report:
    """All that the page shows. `tokens` are prompts split into (token, the first neuron's code)."""

    concept: str
    lam: float
    facts: Sequence[tuple[str, str]]
    figures: Mapping[str, Figure]
    further: Mapping[str, Figure]
    outcomes: Sequence[Outcome]
    ranking: Sequence[tuple[int, float]]
    neurons: Sequence[NeuronView]
    tokens: Sequence[Sequence[tuple[str, float]]]
    strip: Strip
    settings: Mapping[str, Any]


def percent(name: str, value: float) -> str:
    """A share as the page and the terminal write it; differences carry a sign and are points."""
    if math.isnan(value):
        return "n/a"
    return f"{100 * value:+.1f} pts" if name.endswith("_delta") else f"{100 * value:.0f} %"


def render(report: Report) -> str:
    """The page."""
    concept, head = escape(report.concept), report.ranking[0][0] if report.ranking else "?"
    sections = [
        _figures(report),
        *(_family(o, report.concept) for o in report.outcomes),
        _strip(report.strip, report.lam),
        _neuron(report),
        _settings(report),
    ]
    return document(
        f"Excise: “{report.concept}” erased with one neuron",
        f"“{concept}”, erased with <em>one neuron</em>",
        f"""Neuron {head} of a sparse autoencoder on the text encoder was turned down. No weight of the model
changed. Each pair below starts from the same seed: left the model as it is, right with the eraser attached.""",
        report.facts,
        sections,
        """Made by <code>excise demo</code>. Shares are counted by the bundled judge, an independent classifier whose
thresholds were frozen before anything was erased.""",
    )


def _figures(report: Report) -> str:
    cards = []
    for name, figure in report.figures.items():
        says, bar, axis = BARS[name]
        standing = bar.standing(figure)
        badge = f'<span class="badge verdict {BADGES[standing]}">{standing or "nothing to count"}</span>'
        goal = percent(name, bar.bound).lstrip("+")
        scale = "pts" if name.endswith("_delta") else "%"
        cards.append(
            f'<div class="card">{badge}<div class="big">{percent(name, figure.value)}</div><div>{escape(says)}</div>'
            f'<div style="margin:8px 0 4px">{svg.interval(figure, bar.bound, *axis)}</div>'
            f'<div class="note">95 % interval {100 * figure.low:.1f} to {100 * figure.high:.1f} {scale}, '
            f"n = {figure.n}; bar: {bar.limit} {goal}</div></div>"
        )
    rows = "".join(
        f"<tr><td>{escape(FURTHER[name])}</td><td>{percent(name, f.value)}</td>"
        f"<td>{100 * f.low:.0f} to {100 * f.high:.0f} %</td><td>{f.n}</td></tr>"
        for name, f in report.further.items()
    )
    return f"""<section><h2>Figures</h2>
<p class="faint">The target is counted over the prompts where the unerased model draws it. Intervals are Wilson's; for
the paired change, Newcombe's. The green tick is the bar to reach.</p>
<div class="figures">{"".join(cards)}</div>
{legend()}
<details><summary>More figures: rates before erasing, background and style</summary>
<div class="scroll"><table class="wide"><tr><th>What</th><th>Share</th><th>95 % interval</th><th>n</th></tr>
{rows}</table></div>
</details></section>"""


def _family(outcome: Outcome, concept: str) -> str:
    pairs = [_pair(outcome, i, concept) for i in range(len(outcome.family.prompts))]
    rest = pairs[FIRST:]
    more = (
        f'<details><summary>{len(rest)} more pairs</summary><div class="pairs">{"".join(rest)}</div></details>'
        if rest
        else ""
    )
    kind, _, says = TITLES[outcome.family.name].partition(": ")
    return (
        f'<section><h2>{escape(kind)}</h2><p class="faint">{escape(says[:1].upper() + says[1:])}.</p>'
        f'<div class="pairs">{"".join(pairs[:FIRST])}</div>{more}</section>'
    )


def _pair(outcome: Outcome, i: int, concept: str) -> str:
    prompt, seed = outcome.family.label(i), outcome.family.seeds[i]
    images = _image(outcome.before[i], f"unerased: {prompt}") + _image(outcome.after[i], f"erased: {prompt}")
    badges = []
    if outcome.family.name != "unrelated":
        before, after = bool(outcome.seen_before.target[i]), bool(outcome.seen_after.target[i])
        words = {
            (True, False): f"{concept} gone",
            (True, True): f"{concept} still there",
            (False, True): f"{concept} appeared",
            (False, False): f"no {concept} before",
        }[before, after]
        badges.append(_badge(words, good=before and not after, bad=after))
    if other := outcome.family.others[i]:
        before, after = bool(outcome.seen_before.other[i]), bool(outcome.seen_after.other[i])
        words = f"{other} kept" if before and after else f"{other} lost" if before else f"{other} not seen before"
        badges.append(_badge(words, good=before and after, bad=before and not after))
    if outcome.family.name == "unrelated":
        same = bool(outcome.identical[i])
        badges.append(_badge("same bits" if same else "bits differ", good=same, bad=not same))
    return (
        f'<figure class="pair"><div>{images}</div><figcaption>{escape(prompt)} <span class="mono">#{seed}</span><br>'
        f"{' '.join(badges)}</figcaption></figure>"
    )


def _badge(words: str, *, good: bool, bad: bool) -> str:
    return f'<span class="badge {"good" if good else "bad" if bad else "plain"}">{escape(words)}</span>'


def _image(picture: Pictures, alt: str) -> str:
    return image(png(picture), alt)


def _strip(strip: Strip, used: float) -> str:
    mine = [math.isclose(lam, used, rel_tol=1e-6) for lam in strip.lams]
    heads = "".join(
        f'<th scope="col"{" class=used" * own}>λ = {lam:.4g}{"<br>in use" * own}</th>'
        for lam, own in zip(strip.lams, mine, strict=True)
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(prompt)}</th>'
        + "".join(
            f"<td{' class=used' * own}>{_image(p[i], f'λ = {lam:g}: {prompt}')}</td>"
            for lam, p, own in zip(strip.lams, strip.pictures, mine, strict=True)
        )
        + "</tr>"
        for i, prompt in enumerate(strip.prompts)
    )
    return f"""<section><h2>Turning it down</h2>
<p class="faint">The same prompts and seeds at growing λ. At 0 the eraser does nothing; the
framed column is the λ of every other picture on this page.</p>
<div class="scroll"><table class="strip"><tr><th scope="row"></th>{heads}</tr>{rows}</table></div></section>"""


def _neuron(report: Report) -> str:
    ranking = svg.bars([(str(i), s) for i, s in report.ranking], "Score of the highest-ranked neurons")
    plots = [f'<div class="card"><h3>Ranking by modulated frequency</h3>{ranking}</div>']
    for view in report.neurons:
        groups = (
            ("concept", view.concept, "accent"),
            ("deconcept", view.deconcept, "cool"),
            ("controls", view.controls, "mute"),
        )
        plot = svg.histogram([g for g in groups if g[1]], f"Strongest code of neuron {view.index} in each prompt")
        plots.append(f'<div class="card"><h3>Neuron {view.index}: strongest code in each prompt</h3>{plot}</div>')
    top = max((code for row in report.tokens for _, code in row), default=0.0) or 1.0
    lines = "".join(
        '<p class="tokens mono">'
        + "".join(
            f'<span style="--heat-share:{0.85 * code / top:.2f}" title="{code:.2f}">{escape(token)}</span>'
            for token, code in row
        )
        + "</p>"
        for row in report.tokens
    )
    head = report.ranking[0][0] if report.ranking else "?"
    return f"""<section><h2>The neuron</h2>
<p class="faint">How often and how strongly neurons fire for prompts with the concept and not for the same prompts
without it. The first one is the eraser. Column heights are square roots of counts, each row to its own scale.</p>
<div class="plots">{"".join(plots)}</div>
<div class="card" style="margin-top:14px"><h3>Where neuron {head} fires</h3>{lines}
<div class="note">Shading: the neuron's code at each token of some of the prompts above.</div></div></section>"""


def _settings(report: Report) -> str:
    settings = escape(json.dumps(report.settings, indent=2, ensure_ascii=False, default=str))
    return f"""<section><h2>How it was made</h2>
<div class="card"><pre>{settings}</pre></div></section>"""
