"""Hardening on the bundled model: what the vocabulary's nearest words still generate, before and after.

    python benchmarks/figures/hardening.py dog,bus

Writes docs/results/hardening.json and .md. About three minutes a concept on one core. Concepts that are done are kept;
name more to add them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import excise
from excise import reference
from excise.app.bench.provenance import by_concept, in_words, provenance
from excise.app.erase.hardening import harden
from excise.bench.canvas.captioned import is_style
from excise.bench.canvas.families import near_synonyms, synonyms_of_others
from excise.bench.canvas.sizes import TUNING
from excise.bench.canvas.suite import Canvas
from excise.erasers import Eraser
from excise.files import read_json
from excise.sites.site import encoder_of, tokenizer_of
from excise.statistics import in_percent, share

COMMAND = "python benchmarks/figures/hardening.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concepts", help="concepts to measure, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("docs/results/hardening.json"))
    options = parser.parse_args()
    names = options.concepts.split(",")
    asked = f"--rounds {options.rounds} --words {options.words}"
    known = read_json(options.out) if options.out.exists() else {"concepts": {}, "options": asked}
    if known["options"] != asked:
        parser.error(f"{options.out} was measured with {known['options']}; give these, or another --out")

    def origin() -> dict[str, Any]:
        done = [*known["concepts"], *(name for name in names if name not in known["concepts"])]
        return {"options": asked, **provenance(f"{COMMAND} {','.join(done)} {asked}", ["snce"])}

    measure = partial(measured, reference.load(), options.rounds, options.words)
    print(page(by_concept(options.out, names, measure, page, origin)))


def measured(pipe: Any, rounds: int, words: int, name: str) -> dict[str, Any]:
    """Return what hardening found, and the near synonyms lost before and after."""
    eraser = excise.erase(pipe, name)
    hardened = harden(pipe, eraser, rounds=rounds, words=words)
    found = {**hardened.eraser.measured["hardening"], "near": {}}
    if not is_style(name):
        found["near"] = {"before": near(pipe, eraser, name), "after": near(pipe, hardened.eraser, name)}
    return found


def near(pipe: Any, eraser: Eraser, concept: str) -> dict[str, Any]:
    """Return how many pictures of other objects' synonyms lose their object, over all synonyms.

    Pictures are generated only for synonyms in which the eraser changes a text state: all others keep every bit.
    """
    tokenizer, encoder = tokenizer_of(pipe, "text_encoder"), encoder_of(pipe, "text_encoder")
    canvas, rows = Canvas(), near_synonyms(concept, tuple(synonyms_of_others(concept)))
    ids = [tokenizer(case.prompt, return_tensors="pt").input_ids for case in rows]
    plain = [encoder(one)[0].detach() for one in ids]
    with eraser.attach(pipe):
        edited = [not encoder(one)[0].equal(states) for one, states in zip(ids, plain, strict=True)]
        changed = [case for case, differs in zip(rows, edited, strict=True) if differs]
        after = canvas.judge(changed, canvas.draw(pipe, changed).pixels) if changed else []
    before = canvas.judge(changed, canvas.draw(pipe, changed).pixels) if changed else []
    drawn = [n for n, seen in enumerate(before) if all(seen["kept"])]
    return {
        "prompts": len(rows),
        "changed": len(changed),
        "drawn": len(drawn),
        "lost": sum(not all(after[n]["kept"]) for n in drawn),
    }


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    rows = []
    for name, found in results["concepts"].items():
        first, best = found["rounds"][0], found["rounds"][found["best"]]
        cells = [
            f"{name}{' (tuning)' if name in TUNING else ''}",
            ", ".join(first["leaks"]) or "none",
            *(in_percent(shown(each).to_json()) for each in (first, best)),
            str(found["best"]),
            *(", ".join(f"{100 * each[name]:.1f}" for each in (first, best)) for name in ("controls", "others")),
            *(lost(found["near"].get(side)) for side in ("before", "after")),
            found["why"],
        ]
        rows.append(f"| {' | '.join(cells)} |")
    words = {each["pictures"] for found in results["concepts"].values() for each in found["rounds"]}
    return "\n".join(
        [
            "# Hardening",
            "",
            f"{in_words(results, f'{COMMAND} ' + ','.join(results['concepts']) + ' ' + results['options'])}.",
            f"{' or '.join(map(str, sorted(words)))} pictures a round, from the words of the whole vocabulary that are",
            "nearest to the concept under the eraser; either judge counts. Per cent, with Wilson's 95 % intervals. The",
            "columns of changed prompts have the first eraser's share and the hardened one's: of the concept's control",
            "prompts, and of prompts about other things (objects' names, everyday English). The last columns count",
            "synonyms of all other objects, one picture each, under both: lost of those that the unerased model",
            "generates and whose text states the eraser changes.",
            "",
            "| concept | words that got through | shown before | shown after | round | controls changed | others "
            "changed | near synonyms lost before | after | ended because |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def shown(found: Mapping[str, Any]) -> Any:
    return share([True] * found["shown"] + [False] * (found["pictures"] - found["shown"]))


def lost(found: Mapping[str, Any] | None) -> str:
    return f"{found['lost']} of {found['drawn']} ({found['prompts']} prompts)" if found else "n/a"


if __name__ == "__main__":
    main()
