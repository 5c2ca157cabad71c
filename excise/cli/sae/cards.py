"""What `excise sae` prints of SAEs: their cards, and how well they reconstruct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from excise.cli.terminal import emit, key_values, table


def show(cards: dict[Path, dict[str, Any]], as_json: bool) -> None:
    """Print SAEs' cards."""

    def printed() -> None:
        for folder, card in cards.items():
            metrics = dict(card.get("metrics") or {})
            found = metrics.pop("positions", None)
            plain = {**card, "metrics": metrics or None}
            key_values(f"SAE {folder}", [(name, _plain(value)) for name, value in plain.items() if value is not None])
            if found:
                positions(folder, found)

    data = [{"folder": str(folder), "card": card} for folder, card in cards.items()]
    emit(as_json, data[0] if len(data) == 1 else data, printed)


def positions(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """Print the variance that an SAE leaves unexplained, by kind of position."""
    rows = [
        (
            name.replace("_", " "),
            f"{figures['vectors']:,}",
            _share(figures["variance"]),
            _share(figures["fvu"]),
            _share(figures["median"]),
        )
        for name, figures in found.items()
    ]
    columns = ("positions", "vectors", "of the variance %", "FVU %", "median vector %")
    table(f"Variance that the SAE in {folder} leaves unexplained", columns, rows)


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2f}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k} {line}" for k, v in value.items() if v is not None for line in _plain(v).splitlines())
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
