"""Choosing every method's settings on Canvas's tuning concepts, with the same budget.

    python benchmarks/peers.py --work build/peers

Tries four settings of every method on four concepts that stand in no other table, and writes what each reaches to
docs/results/peers.json and .md, method by method; what is in that file is not tried again. About five hours on two
cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise.app.benchmark import report, resume, start
from excise.app.demo import machine
from excise.files import write_atomic

TUNED_ON = ("apple", "bus", "pastel", "bold")
COLUMNS = ("ua", "ira_ratio", "cra_ratio", "mixed", "identical")
GRIDS: dict[str, tuple[str, ...]] = {
    "safety-filter": ("threshold=0.3", "threshold=0.45", "threshold=0.6", ""),
    "uce": ("", "lam=0.1", "keep=0.1", "erase=4"),
    "rece": ("", "keep=1", "lam=0.5", "rounds=5"),
    "esd-x": tuple(f"steps=20,iterations=60,lr={lr}" for lr in ("1e-4", "3e-4", "1e-3", "3e-3")),
    "esd-u": tuple(f"steps=20,iterations=60,lr={lr}" for lr in ("3e-5", "1e-4", "3e-4", "1e-3")),
    "sld": ("level=medium,warmup=4", "level=strong,warmup=3", "level=max", "level=max,scale=20000"),
    "ca": tuple(
        f"steps=20,guidance=4,pictures=16,batch=4,iterations=40,lr={lr}" for lr in ("1e-4", "3e-4", "1e-3", "3e-3")
    ),
    "sa": tuple(
        f"steps=20,guidance=4,pictures=16,fisher=16,timesteps=4,batch=4,iterations=60,lr=1e-3,lam={lam}"
        for lam in ("0.005", "0.05", "0.5", "5")
    ),
    "spm": tuple(
        f"steps=20,iterations=80,lr={lr},anchoring={la}"
        for lr, la in (("3e-3", 100), ("1e-2", 100), ("1e-2", 1000), ("3e-2", 1000))
    ),
    "mace": ("guidance=4", "guidance=4,lr=1e-3", "guidance=4,keep=1", "guidance=4,keep=100,lr=1e-3"),
    "safree": ("", "most=20", "most=0", "alpha=0,most=0"),
    "casteer": ("beta=1", "beta=2", "beta=3", "beta=4"),
    "concept-steerers": ("lam=0.25", "lam=0.5", "lam=1", "lam=2"),
    "itd": ("factor=0", "factor=-1", "factor=-3", "factor=-1,features=32"),
    "advunlearn": tuple(
        f"steps=20,iterations=40,attack_steps=5,retain=3,lr={lr}" for lr in ("3e-5", "1e-4", "3e-4", "1e-3")
    ),
    "saeuron": ("percentile=99.8,gamma=-1", "percentile=99.8,gamma=-4", "percentile=99.5,gamma=-1", "percentile=99"),
    "saemnesia": ("gamma=0", "gamma=-0.4", "gamma=-0.7", "gamma=-1"),
    "saemnesia-text": ("lam=0.75", "lam=1", "", "lam=2"),
    "snce": ("lam=0.75", "lam=1", "", "lam=2"),
}
"""Settings that are tried, the same number of each method; an empty one is its defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results/peers.json"))
    parser.add_argument("--methods", default=",".join(GRIDS), help="those to tune")
    options = parser.parse_args()
    told: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"tuning": {}}
    told |= {"command": "python benchmarks/peers.py", "machine": machine()}
    told["date"] = datetime.date.today().isoformat()
    for name in filter(None, options.methods.split(",")):
        if set(told["tuning"].get(name, {})) == set(GRIDS[name]):
            continue
        told["tuning"][name] = tuned(options.work, name)
        write_atomic(options.out, json.dumps(told, indent=1) + "\n")
        write_atomic(options.out.with_suffix(".md"), page(told))
    print(page(told))


def tuned(work: Path, name: str) -> dict[str, Any]:
    """What each setting of a method reaches on the tuning concepts, and how long it fits."""
    labels = {setting: f"{name}:{setting}" if setting else name for setting in GRIDS[name]}
    settings = {"prompts": 4, "searches": False}
    run = start(work / f"tuning-{name}", "canvas", "quick", list(labels.values()), TUNED_ON, settings)
    resume(run, lambda done: print(".", end="", flush=True))
    found = report(run)["methods"]
    return {
        setting: {
            **{key: found[label]["figures"].get(key, {}).get("value") for key in COLUMNS},
            "seconds": found[label]["cost"]["erase_seconds"],
            "refused": len(found[label]["refused"]),
        }
        for setting, label in labels.items()
    }


def score(row: Mapping[str, Any]) -> float:
    """By which settings are chosen: the mean of UA and of IRA and CRA as shares of the unerased model's."""
    values = [row[key] for key in ("ua", "ira_ratio", "cra_ratio")]
    return sum(values) / 3 if None not in values and not row["refused"] else 0.0


def best(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The setting with the highest score; of equal ones that with the most unrelated pictures unchanged, then mixed."""
    return max(rows, key=lambda setting: (score(rows[setting]), rows[setting]["identical"], rows[setting]["mixed"]))


def page(told: Mapping[str, Any]) -> str:
    """Tuning as a table, in per cent; the chosen settings are bold."""
    lines = [
        "# Every method on Canvas",
        "",
        f"`{told['command']}`, {told['date']}, {told['machine']}.",
        "",
        "## Choosing settings",
        f"Four settings of each method on {', '.join(TUNED_ON)}, which stand in no other table. The best mean of UA,",
        "IRA and CRA, the latter two as ratios to none's, is chosen, in bold.",
        "",
        f"| method | settings | {' | '.join(COLUMNS)} | fit, s |",
        "|---" * (len(COLUMNS) + 3) + "|",
    ]
    for name, rows in told["tuning"].items():
        chosen = best(rows)
        for setting, row in rows.items():
            cells = ["n/a" if row[key] is None else f"{100 * row[key]:.1f}" for key in COLUMNS]
            says = (setting or "defaults") + (f" ({row['refused']} refused)" if row["refused"] else "")
            shown = f"**{says}**" if setting == chosen else says
            lines.append(f"| {name} | {shown} | {' | '.join(cells)} | {row['seconds'] or 0:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
