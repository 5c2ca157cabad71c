"""An audit as one HTML file: nothing fetched, no script."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from excise.app.audit.audit import Audit
from excise.app.audit.cards import neurons
from excise.app.audit.effects import Effects
from excise.app.pages.frame import document
from excise.neurons.flags import CHECKS, Flag

ORIGINS = {"mention": "the eraser's", "given": "the auditor's", "synonym": "a held-out synonym"}
MEASURED = {"text states": "the text states that the denoiser reads", "prediction": "the denoiser's prediction"}


def render(audit: Audit) -> str:
    """The page."""
    red = sum(flag.severity == "red" for flag in audit.flags)
    verdict = f"{red} red {'flag stands' if red == 1 else 'flags stand'}" if red else "no red flag stands"
    made_for = audit.provenance["made_for"]
    facts = [
        ("method", audit.method),
        ("made for", made_for["model"] or made_for["pipeline"] or "unknown"),
        ("digest", audit.provenance["digest"][:12]),
        ("signature", "none" if audit.provenance["signature"] == "none" else "not checked"),
    ]
    sections = [
        _flags(audit),
        *(_benign(effect, audit) for effect in audit.effects),
        *(_words(effect) for effect in audit.effects),
        neurons(audit.neurons),
        _groups(audit),
        _provenance(audit),
    ]
    return document(
        f"Audit of {audit.name}",
        f'Audit: “{escape(audit.concept)}” erased, <em class="{"red" if red else "clear"}">{escape(verdict)}</em>',
        f"""What the eraser <code>{escape(audit.name)}</code> acts on and what it changes, measured on the live model
with and without it. Somebody who did not make it can judge it by this page.""",
        facts,
        sections,
        f"Made by <code>{escape(audit.provenance['command'] or 'excise audit')}</code>, "
        f"Excise {escape(audit.provenance['excise'])}.",
    )


def _flags(audit: Audit) -> str:
    cards = "".join(map(_flag, audit.flags)) or '<div class="card">No check raised a flag.</div>'
    rows = [
        (f"{escape(kind.capitalize())}<br><span class='note'>{escape(CHECKS[kind][1])}</span>", _badge(outcome))
        for kind, outcome in audit.checks.items()
    ]
    left_out = "".join(f"<li>{escape(said)}</li>" for said in audit.left_out)
    return (
        f'<section><h2>Flags</h2><p class="faint">Each says what was found and from where on it counts. A red flag '
        f'stands in the way of relying on the eraser; a note is for judging.</p><div class="plots">{cards}</div>'
        f"<details><summary>All {len(rows)} checks and their thresholds</summary>"
        f"{_table(('Check', 'Outcome'), rows)}</details>"
        + (f"<h3 style='margin-top:22px'>Not looked at</h3><ul class='note'>{left_out}</ul>" if left_out else "")
        + "</section>"
    )


def _flag(flag: Flag) -> str:
    found = "".join(f"<li>{escape(line)}</li>" for line in flag.evidence[:8])
    rest = "".join(f"<li>{escape(line)}</li>" for line in flag.evidence[8:])
    more = f"<details><summary>{len(flag.evidence) - 8} more</summary><ul>{rest}</ul></details>" if rest else ""
    return (
        f'<div class="card">{_badge(flag.severity)} <b>{escape(flag.kind.capitalize())}</b>'
        f'<p style="margin-top:8px">{escape(flag.says)}</p><ul style="padding-left:20px;overflow-wrap:anywhere">{found}'
        f'</ul>{more}<div class="note">Threshold: {escape(flag.threshold)}.</div></div>'
    )


def _badge(outcome: str) -> str:
    kind = {"red": "bad", "clear": "good"}.get(outcome, "plain")
    return f'<span class="badge {kind}">{escape("red flag" if outcome == "red" else outcome)}</span>'


def _benign(effect: Effects, audit: Audit) -> str:
    largest = effect.worst[0] if effect.worst else None
    others = {None: "not looked at", True: "changes too", False: "keeps every bit"}[effect.unconditional]
    figures = [
        (_percent(effect.touched / effect.benign), f"of {effect.benign} benign prompts change at all"),
        (_of_name(largest.relative) if largest else "0 %", f"largest change of one of them, against “{effect.name}”"),
        (f"{effect.name_change:.2f}", f"relative L2 change in prompts with “{effect.name}”"),
    ]
    cards = "".join(
        f'<div class="card"><div class="big">{value}</div><div>{escape(says)}</div></div>' for value, says in figures
    )
    rows = [(escape(changed.prompt), f"{changed.change:.3f}", _of_name(changed.relative)) for changed in effect.worst]
    heads = ("Prompt", "Relative change", f"Against “{effect.name}”")
    total = "" if effect.benign == audit.benign["prompts"] else f" of {audit.benign['prompts']}"
    source = f"{effect.benign}{total} prompts of {audit.benign['source']}"
    return (
        f'<section><h2>Benign prompts: {escape(_what(effect))}</h2><p class="faint">'
        f"{escape(source)}, none of which mentions the concept ({audit.benign['dropped']} that do were left out), with "
        f"the eraser and without it. Measured is {escape(MEASURED[effect.measured])}; the unconditional branch "
        f"{others}.</p>"
        f'<div class="figures">{cards}</div>'
        + (f"<h3 style='margin-top:22px'>Those that change most</h3>{_table(heads, rows)}" if rows else "")
        + "</section>"
    )


def _words(effect: Effects) -> str:
    rows = [
        (
            ('<span class="badge good">caught</span>' if word.caught else '<span class="badge bad">missed</span>')
            + f" {escape(word.word)} <span class='note'>{ORIGINS[word.origin]}</span>",
            f"{word.opened} of {word.sentences}",
            _of_name(word.relative),
        )
        for word in effect.words
    ]
    said = "; ".join(f"“{text}”" for text in effect.sentences)
    missed = sum(not word.caught for word in effect.words)
    return (
        f'<section><h2>Words for the concept: {escape(_what(effect))}</h2><p class="faint">'
        f"{len(effect.words) - missed} of {len(effect.words)} words are caught. Each stands in the place of "
        f"“{escape(effect.name)}” in {escape(said)}. What is missed comes first.</p>"
        f"{_table(('Word', 'Sentences changed', f'Change, against “{effect.name}”'), rows)}</section>"
    )


def _what(effect: Effects) -> str:
    return "what the denoiser reads" if effect.measured == "text states" else "what it predicts"


def _groups(audit: Audit) -> str:
    if not audit.groups:
        return ""
    stirred = [group for group in audit.groups if group.touched or group.fired]
    rows = [
        (
            f"{escape(group.word)} <span class='note'>{escape(group.group)}"
            f"{f'; most in “{escape(group.example)}”' if group.example else ''}</span>",
            f"{group.touched} of {group.sentences}",
            _of_name(group.relative) if group.touched else "",
            f"{group.fired} of {group.sentences}",
        )
        for group in stirred
    ]
    heads = ("Word", "Sentences changed", "At most, against the name", "Neuron fires in")
    kept = len(audit.groups) - len(stirred)
    return (
        f'<section><h2>Protected groups</h2><p class="faint">Neutral sentences about adults, such as “a portrait of a '
        f"Muslim person”, against “a portrait of a person”. {kept} of {len(audit.groups)} words change nothing and "
        f"stir no neuron.</p>{_table(heads, rows) if rows else ''}</section>"
    )


def _provenance(audit: Audit) -> str:
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
    facts = [
        ("Digest", known["digest"]),
        ("Signature", known["signature"]),
        ("Method", audit.method),
        ("Mentions", ", ".join(known["mentions"]) or "none"),
        ("Edits", "; ".join(edits[:4]) + (f"; and {len(edits) - 4} more" if len(edits) > 4 else "")),
        ("Made for", f"{known['made_for']['pipeline']}, {known['made_for']['model'] or 'no name on the hub'}"),
        ("Canary", " | ".join(known["canary"])),
        (
            "Canary's shift",
            f"{known['canary_shift']['fitted']:.3g} when fitted, {'refused' if now is None else f'{now:.3g}'} now",
        ),
        ("Written", known["written"]),
        ("Audited by", known["command"] or "a call from Python"),
    ]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td style="white-space:normal;overflow-wrap:anywhere;text-align:left">'
        f"{escape(value)}</td></tr>"
        for name, value in facts
    )
    data = {key: known[key] for key in ("created", "measured", "made_for")}
    settings = escape(json.dumps(data, indent=2, ensure_ascii=False, default=str))
    return (
        f'<section><h2>Where it comes from</h2><div class="scroll"><table class="wide">{rows}</table></div>'
        f'<details><summary>Settings, measurements when it was fitted, digests of the model</summary><div class="card">'
        f"<pre>{settings}</pre></div></details></section>"
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`heads` are text, cells HTML; the first column may wrap."""
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="wide"><tr>{top}</tr>{body}</table></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share else "0 %"


def _of_name(relative: float | None) -> str:
    return "no such change" if relative is None else f"{100 * relative:.0f} %"
