"""Grid sweep of SAEs over layer, width and k. All are trained on one pass over the prompts, then compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from excise.app.training.comparing import Comparing, compare
from excise.app.training.text import train_on, vectors
from excise.concepts import Concept
from excise.errors import ExciseError
from excise.outputs import check_untrained
from excise.pipeline import Pipeline
from excise.sae import Progress, TrainConfig, card, load
from excise.sites import Site


@dataclass(frozen=True)
class Cell:
    """One SAE of a grid."""

    site: Site
    expansion: int
    k: int

    @property
    def name(self) -> str:
        """Name of its folder, such as `encoder.layers.5-x8-k8`."""
        return f"{self.site.path}-x{self.expansion}-k{self.k}"


def grid(sites: Sequence[Site], expansions: Sequence[int], ks: Sequence[int]) -> list[Cell]:
    """Return every combination. Raises ExciseError if there is none, one appears twice, or k exceeds a width."""
    cells = [Cell(*combination) for combination in product(sites, expansions, ks)]
    if not cells:
        raise ExciseError("a sweep needs at least one site, one expansion and one k")
    if len(set(cells)) < len(cells):
        raise ExciseError("a sweep's sites, expansions and ks must be distinct")
    if len({site.component for site in sites}) > 1:
        raise ExciseError("a sweep reads one text encoder; run a separate sweep for each")
    for cell in cells:
        if not 1 <= cell.k <= cell.expansion * cell.site.width:
            raise ExciseError(f"k = {cell.k} does not fit {cell.expansion * cell.site.width} latents ({cell.name})")
    return cells


def sweep(
    pipe: Pipeline,
    cells: Sequence[Cell],
    prompts: Sequence[str],
    concepts: Sequence[Concept],
    config: TrainConfig,
    out: Path,
    *,
    card_of: Mapping[str, Any],
    comparing: Comparing | None = None,
    captured: Callable[[int], Any] | None = None,
    trained: Callable[[Cell, Progress | None], Any] | None = None,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Train the missing SAEs into folders of `out` and compare all. Return the rows of `compare`.

    SAEs finished by an earlier call are kept, and unfinished trainings are resumed.

    Args:
        pipe: The pipeline.
        cells: The SAEs.
        prompts: Prompts to train on.
        concepts: Concepts to compare on.
        config: Settings of each training, except expansion and k.
        out: Folder of the SAEs' folders.
        card_of: Entries for each SAE's card.
        comparing: Settings of the comparison.
        captured: Called with the prompts read since its last call.
        trained: Called with a cell and its progress, which is None once the SAE is done.
        device: Device to train on.

    Raises:
        ExciseError: A folder holds an SAE trained with other settings.
    """
    left = [cell for cell in cells if not _is_trained(out / cell.name, cell, config)]
    if left:
        sites = list(dict.fromkeys(cell.site for cell in left))
        for cell in left:
            check_untrained(out / cell.name)
        with vectors(pipe, sites, prompts, out / ".features", captured) as read:
            for cell in left:
                settings = replace(config, expansion=cell.expansion, k=cell.k)

                def report(line: Progress, cell: Cell = cell) -> None:
                    if trained is not None:
                        trained(cell, line)

                train_on(
                    pipe, cell.site, prompts, read[cell.site], settings, out / cell.name, card=card_of,
                    progress=report, device=device,
                )  # fmt: skip
                if trained is not None:
                    trained(cell, None)
    return compare(pipe, [out / cell.name for cell in cells], concepts, comparing)


def _is_trained(folder: Path, cell: Cell, config: TrainConfig) -> bool:
    """Return whether the cell's SAE is finished. Raises ExciseError if its folder holds another SAE."""
    if not (folder / "cfg.json").exists():
        return False
    load(folder)
    about = card(folder)
    # Cards without this entry are older than the option: those SAEs were trained on BOS.
    if about.get("bos", True):
        raise ExciseError(f"{folder} holds an SAE that was trained on BOS too; choose another --out")
    recipe = about.get("recipe") or {}
    wanted = replace(config, expansion=cell.expansion, k=cell.k).to_json()
    if odd := sorted(name for name, value in wanted.items() if name in recipe and recipe[name] != value):
        raise ExciseError(f"{folder} holds an SAE trained with another {odd[0]}; choose another --out")
    return True
