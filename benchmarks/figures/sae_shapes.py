"""The SAE shape that gives a concept one neuron: width and k of the bundled SAE, chosen on nine objects.

    python benchmarks/figures/sae_shapes.py --out docs/results/sae_shapes.json

For every shape, the script trains an SAE on the bundled text encoder's last layer and finds the neurons of nine
objects; shapes that the file has are kept. One of the objects, cow, is among Canvas's standard concepts; none is in the
frozen test set. `dominance` is the median over the objects of the first score divided by the second. `cosine` is the
mean cosine between the neuron's decoder row and the change that the object's word makes at the padding positions, whose
states carry the sentence. `control_share` is how often the neuron fires on prompts without the object. About five
minutes a shape on one core.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from excise import reference
from excise.app.bench.provenance import provenance
from excise.app.training.text import BUNDLED
from excise.concepts import from_templates
from excise.files import read_json, write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.finding import find
from excise.reference.world import OBJECTS
from excise.sae import TopKSAE, card, train
from excise.sites import PRESETS, Site, capture

MEASURED = ("gun", "knife", "cat", "rocket")
TUNING = [name for name in OBJECTS if name not in MEASURED][::4]
SHAPES = "4,32 4,16 4,8 8,16 8,8 16,8"
PADDING = 40
"""Number of the first position at which all of these prompts have padding."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="expansion,k pairs, separated by spaces")
    parser.add_argument("--tokens", type=int, default=1_500_000, help="vectors to train each SAE on")
    parser.add_argument("--out", type=Path, default=Path("docs/results/sae_shapes.json"))
    options = parser.parse_args()
    pipe, site = reference.load(), PRESETS["reference"][0]
    prompts = list(reference.sae_corpus())
    random.Random(0).shuffle(prompts)
    features = states(pipe, site, prompts).flatten(0, 1)
    results = provenance(f"python benchmarks/figures/sae_shapes.py --tokens {options.tokens}")
    results |= {"site": site.key, "objects": ", ".join(TUNING)}
    rows: list[dict[str, Any]] = read_json(options.out)["rows"] if options.out.exists() else []
    known = {(row["expansion"], row["k"]) for row in rows}
    for shape in options.shapes.split():
        expansion, k = map(int, shape.split(","))
        if (expansion, k) in known:
            continue
        config = replace(BUNDLED, expansion=expansion, k=k, tokens=options.tokens)
        with tempfile.TemporaryDirectory() as scratch:
            sae = train(features, config, Path(scratch) / "sae", card={"site": site.key})
            fvu = card(Path(scratch) / "sae")["metrics"]["train"]["fvu"]
        rows.append({"expansion": expansion, "k": k, "fvu": round(fvu, 4), **of_objects(pipe, site, sae)})
        print(rows[-1], flush=True)
        write_atomic(options.out, json.dumps(results | {"rows": rows}, indent=1) + "\n")


def states(pipe: Any, site: Site, prompts: list[str]) -> Tensor:
    """Return the states at the site, `[N, 77, d]`."""
    return torch.cat([batch.states[site] for batch in capture(pipe, [site], prompts)])


def of_objects(pipe: Any, site: Site, sae: TopKSAE) -> dict[str, float]:
    """Return the four figures of one SAE over the tuning objects."""
    dominance, cosine, auroc, control = [], [], [], []
    for name in TUNING:
        pairs = from_templates(name, (name,))
        found = find(pipe, sae, pairs, SNCEConfig(site=site.path, examine=1, permutations=10))
        if not found.ranking.entries:
            dominance.append(0.0)
            continue
        with_it = states(pipe, site, [pair.concept for pair in pairs.pairs])
        without = states(pipe, site, [pair.deconcept for pair in pairs.pairs])
        change = (with_it - without)[:, PADDING:].mean((0, 1))
        row = sae.W_dec.detach()[found.ranking.entries[0].index]
        dominance.append(found.ranking.dominance)
        cosine.append(F.cosine_similarity(change, row, dim=0).item())
        auroc.append(found.validation[0].auroc or 0.0)
        control.append(found.validation[0].control_share or 0.0)
    means = {"cosine": cosine, "auroc": auroc, "control_share": control}
    return {
        "dominance": round(statistics.median(dominance), 2),
        **{name: round(statistics.fmean(values or [0.0]), 4) for name, values in means.items()},
        "found": len(cosine),
    }


if __name__ == "__main__":
    main()
