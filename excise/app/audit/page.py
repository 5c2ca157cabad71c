"""Data for an audit's page (pages/templates/audit.html)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from excise.app.audit.audit import Audit
from excise.app.audit.cards import FEW, NEURONS, neuron
from excise.app.audit.effects import Effects
from excise.app.pages.parts import Badge, Cell, Table
from excise.app.pages.rendering import Made
from excise.app.pages.rendering import render as render_template
from excise.neurons.flags import CHECKS, percent

ORIGINS = {"mention": "from the eraser", "given": "from the auditor", "synonym": "a held-out synonym"}
MEASURED = {"text states": "the text states that the denoiser reads", "prediction": "the denoiser's prediction"}
WHAT = {"text states": "text states", "prediction": "predictions"}
OUTCOMES = {
    "red": Badge("red flag", "bad"),
    "note": Badge("note", "part"),
    "clear": Badge("clear", "good"),
    "not applicable": Badge("not applicable"),
}


@dataclass(frozen=True)
class Benign:
    """The effect on prompts that do not mention the concept. `figures` are (value, description)."""

    what: str
    source: str
    measured: str
    others: str
    figures: list[tuple[str, str]]
    worst: Table


@dataclass(frozen=True)
class Words:
    """The words for the concept, caught or missed."""

    what: str
    name: str
    sentences: str
    caught: int
    table: Table


def render(audit: Audit, device: str = "cpu") -> str:
    """Return the page as HTML. `device` is what the model ran on."""
    red = sum(flag.severity == "red" for flag in audit.flags)
    known = audit.provenance
    settings = {key: known[key] for key in ("created", "measured", "made_for")}
    return render_template(
        "audit.html",
        Made.now(known["command"], device),
        audit=audit,
        verdict=f"{red or 'no'} red {'flag' if red == 1 else 'flags'}",
        facts=[
            ("method", audit.method),
            ("made for", known["made_for"]["model"] or known["made_for"]["pipeline"] or "unknown"),
            ("digest", known["digest"][:12]),
            ("signature", "none" if known["signature"] == "none" else "not checked"),
        ],
        outcomes=OUTCOMES,
        checks=_checks(audit),
        benign=[_benign(effect, audit) for effect in audit.effects],
        words=[_words(effect) for effect in audit.effects],
        neurons=[neuron(seen) for seen in audit.neurons],
        first=NEURONS,
        few=FEW,
        groups=_groups(audit),
        provenance=_provenance(audit),
        settings=json.dumps(settings, indent=2, ensure_ascii=False, default=str),
    )


def _checks(audit: Audit) -> Table:
    rows = [
        (Cell(kind.capitalize(), CHECKS[kind][1]), Cell("", badge=OUTCOMES[outcome]))
        for kind, outcome in audit.checks.items()
    ]
    return Table("Checks", ("Check", "Outcome"), rows)


def _benign(effect: Effects, audit: Audit) -> Benign:
    largest = effect.worst[0] if effect.worst else None
    total = "" if effect.benign == audit.benign["prompts"] else f" of {audit.benign['prompts']}"
    rows = [(changed.prompt, f"{changed.change:.3f}", _of_name(changed.relative)) for changed in effect.worst]
    share = effect.touched / effect.benign
    return Benign(
        what=WHAT[effect.measured],
        source=f"{effect.benign:,}{total} prompts from {audit.benign['source']}",
        measured=MEASURED[effect.measured],
        others={
            None: "was not measured",
            True: "changes as well",
            False: "stays the same, bit for bit",
        }[effect.unconditional],
        figures=[
            (percent(share, 1) if share else "0 %", f"of {effect.benign:,} benign prompts change at all"),
            (
                _of_name(largest.relative) if largest else "0 %",
                f"largest change of a benign prompt, relative to “{effect.name}”",
            ),
            (f"{effect.name_change:.2f}", f"mean relative L2 change of prompts with “{effect.name}”"),
        ],
        worst=Table("Benign prompts that change most", ("Prompt", "L2 change", f"Relative to “{effect.name}”"), rows),
    )


def _words(effect: Effects) -> Words:
    caught, missed = Badge("caught", "good"), Badge("missed", "bad")
    rows = [
        (
            Cell(word.word, ORIGINS[word.origin], caught if word.caught else missed),
            f"{word.opened} of {word.sentences}",
            _of_name(word.relative),
        )
        for word in effect.words
    ]
    return Words(
        WHAT[effect.measured],
        effect.name,
        "; ".join(f"“{text}”" for text in effect.sentences),
        sum(word.caught for word in effect.words),
        Table("Words for the concept", ("Word", "Sentences changed", f"Change relative to “{effect.name}”"), rows),
    )


def _groups(audit: Audit) -> Table | None:
    """Return the group words that change something or make a neuron fire, or None if no group was checked."""
    if not audit.groups:
        return None
    rows = [
        (
            Cell(group.word, group.group + (f"; largest change in “{group.example}”" if group.example else "")),
            f"{group.touched} of {group.sentences}",
            _of_name(group.relative) if group.touched else "",
            f"{group.fired} of {group.sentences}",
        )
        for group in audit.groups
        if group.touched or group.fired
    ]
    heads = ("Word", "Sentences changed", "Largest change", "Neuron fires in")
    return Table("Words about protected groups", heads, rows)


def _provenance(audit: Audit) -> Table:
    known = audit.provenance
    now = known["canary_shift"]["now"]
    edits = [
        ", ".join(
            filter(
                None,
                (
                    edit["site"],
                    f"neuron {', '.join(map(str, edit['neurons'][:6]))}" if edit["neurons"] else edit["kind"],
                    *(f"{key} {edit[key]:.4g}" for key in edit if key not in ("site", "kind", "neurons")),
                ),
            )
        )
        for edit in known["edits"]
    ]
    rows = [
        ("Digest", known["digest"]),
        ("Signature", known["signature"]),
        ("Method", audit.method),
        ("Mentions", ", ".join(known["mentions"]) or "none"),
        ("Edits", "; ".join(edits[:4]) + (f"; and {len(edits) - 4} more" if len(edits) > 4 else "")),
        ("Made for", f"{known['made_for']['pipeline']}, {known['made_for']['model'] or 'not named on the hub'}"),
        ("Canary prompts", " | ".join(known["canary"])),
        (
            "Canary shift",
            f"{known['canary_shift']['fitted']:.3g} when fitted, {'refused' if now is None else f'{now:.3g}'} now",
        ),
        ("Written", known["written"]),
        ("Audited by", known["command"] or "a call from Python"),
    ]
    return Table("The eraser", (), rows, prose=True)


def _of_name(relative: float | None) -> str:
    return "n/a" if relative is None else percent(relative)
