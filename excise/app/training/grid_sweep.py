"""Which layer, width and k isolate a concept best: a grid of SAEs, trained on one reading of the prompts, compared."""

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
        """Its folder: `encoder.layers.5-x8-k8`."""
        return f"{self.site.path}-x{self.expansion}-k{self.k}"


def grid(sites: Sequence[Site], expansions: Sequence[int], ks: Sequence[int]) -> list[Cell]:
    """Every combination. Raises ExciseError where there is none, one stands twice, or k does not fit a width."""
    cells = [Cell(*combination) for combination in product(sites, expansions, ks)]
    if not cells:
        raise ExciseError("a sweep needs at least one site, one expansion and one k")
    if len(set(cells)) < len(cells):
        raise ExciseError("a sweep's sites, expansions and ks must each stand once")
    if len({site.component for site in sites}) > 1:
        raise ExciseError("a sweep reads one text encoder; run another for the other")
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
    """Train what is not there yet into `out`, an SAE a folder, and compare all: rows as `compare` gives them.

    `config` is every training's but for expansion and k. `captured` hears of the prompts read, `trained` of each SAE's
    progress, with None once it is done. What an earlier call finished is kept, what it began goes on. Raises
    ExciseError where a folder holds an SAE that was trained otherwise.
    """
    left = [cell for cell in cells if not _is_there(out / cell.name, cell, config)]
    if left:
        sites = list(dict.fromkeys(cell.site for cell in left))
        for cell in left:
            check_untrained(out / cell.name)
        with vectors(pipe, sites, prompts, out / ".features", captured) as read:
            for cell in left:
                own = replace(config, expansion=cell.expansion, k=cell.k)

                def tell(line: Progress, cell: Cell = cell) -> None:
                    if trained is not None:
                        trained(cell, line)

                train_on(
                    pipe, cell.site, prompts, read[cell.site], own, out / cell.name, card=card_of, progress=tell,
                    device=device,
                )  # fmt: skip
                if trained is not None:
                    trained(cell, None)
    return compare(pipe, [out / cell.name for cell in cells], concepts, comparing)


def _is_there(folder: Path, cell: Cell, config: TrainConfig) -> bool:
    """Whether the cell's SAE is finished. Raises ExciseError where another one has its folder."""
    if not (folder / "cfg.json").exists():
        return False
    load(folder)
    said = card(folder)
    # Cards without a word of it are older than the choice: the first state was trained on then.
    if said.get("bos", True):
        raise ExciseError(f"{folder} holds an SAE that was trained on BOS too; choose another --out")
    recipe = said.get("recipe") or {}
    wanted = replace(config, expansion=cell.expansion, k=cell.k).to_json()
    if odd := sorted(name for name, value in wanted.items() if name in recipe and recipe[name] != value):
        raise ExciseError(f"{folder} holds an SAE trained with another {odd[0]}; choose another --out")
    return True
