"""Time to erase one more concept on a loaded model: SNCE, UCE, RECE and ESD.

    python benchmarks/speed/erasing.py --out docs/results/erasing.json

On the bundled model, every method erases the same concept in turns; UCE, RECE and ESD use the settings chosen in
docs/results/peers.md. SNCE needs the text encoder's states of the concept's pairs and controls. `passes` computes only
these, with all layers, as the baseline for SNCE. On Stable Diffusion 1.4's shape (`sd14`, random weights and a random
SAE), UCE and RECE use their defaults. ESD-x takes one training step of the 200 that its authors take, on a picture that
was generated in one step instead of up to 50, so a full training takes more than 200 times as long.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import sd14
from timing import compared, interleaved

from excise import reference
from excise.app.bench.provenance import provenance
from excise.app.models.resolve import bundled_settings
from excise.concepts import Concept, from_templates
from excise.files import write_atomic
from excise.methods import method
from excise.methods.configs.sae import SNCEConfig
from excise.methods.sae.snce import fit
from excise.sae import SAEConfig, TopKSAE
from excise.sites import PRESETS, capture
from excise.sites.activations.capture import run

METHODS = ("snce", "uce", "rece", "esd-x")
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="bundled,sd14")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("docs/results/erasing.json"))
    options = parser.parse_args()
    concept = from_templates("gun", ("gun",))
    results: dict[str, Any] = {"models": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    results["prompts"] = len(prompts_of(concept))
    for model in options.models.split(","):
        seconds = interleaved(VARIANTS[model](concept, options.device), options.rounds)
        rows = {
            name: {**compared(times, seconds["passes"]), "snce": compared(times, seconds["snce"])["ratio"]}
            for name, times in seconds.items()
        }
        results["models"][model] = {
            **provenance(
                f"python benchmarks/speed/erasing.py --models {model} --rounds {options.rounds} "
                f"--device {options.device}",
                bundled=False,
                device=options.device,
            ),
            "rows": rows,
        }
        for name, row in rows.items():
            print(
                f"{model:8} {name:13} {row['seconds']:8.2f} s  {row['ratio']:6.2f} x passes  {row['snce']:6.2f} x snce"
            )
        write_atomic(options.out, json.dumps(results, indent=1) + "\n")


def bundled(concept: Concept, device: str) -> dict[str, Callable[[], Any]]:
    """Return every method with the settings chosen for the bundled model."""
    pipe = reference.load().to(device)
    return {
        "passes": lambda: passes(pipe, concept),
        **{name: fitting(pipe, concept, name, bundled_settings().get(name, {})) for name in METHODS},
    }


def of_sd14_shape(concept: Concept, device: str) -> dict[str, Callable[[], Any]]:
    """Return the methods on random weights, with one training step of ESD-x."""
    pipe = sd14(device)
    return {
        "passes": lambda: passes(pipe, concept),
        "snce": on_random_weights(pipe, concept),
        "uce": fitting(pipe, concept, "uce", {}),
        "rece": fitting(pipe, concept, "rece", {}),
        "esd-x, 1 step": fitting(pipe, concept, "esd-x", {"iterations": 1, "steps": 2}),
    }


VARIANTS = {"bundled": bundled, "sd14": of_sd14_shape}


def prompts_of(concept: Concept) -> list[str]:
    """Return the prompts that SNCE reads."""
    pairs = concept.pairs
    return [*(pair.concept for pair in pairs), *(pair.deconcept for pair in pairs), *concept.controls]


def passes(pipe: Any, concept: Concept) -> None:
    """Run all layers of the text encoder on these prompts, padded."""
    prompts = prompts_of(concept)
    for start in range(0, len(prompts), BATCH):
        run(pipe, "text_encoder", prompts[start : start + BATCH])
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fitting(pipe: Any, concept: Concept, name: str, settings: dict[str, Any]) -> Callable[[], Any]:
    """Return a function that fits the concept's eraser again at every call."""
    chosen = method(name)
    config = chosen.Config(**settings)
    return lambda: chosen.fit(pipe, concept, config)


def on_random_weights(pipe: Any, concept: Concept) -> Callable[[], Any]:
    """Return a function that fits SNCE with the most separating neuron of a random SAE of the paper's shape."""
    site = PRESETS["sd14"][0]
    sae = TopKSAE(SAEConfig(d=site.width, m=4 * site.width, k=32)).to(pipe.device)
    sides = [
        torch.cat([batch.states[site] for batch in capture(pipe, [site], side, BATCH)])
        for side in ([pair.concept for pair in concept.pairs], [pair.deconcept for pair in concept.pairs])
    ]
    with torch.no_grad():
        sae.b_pre.copy_(sides[1].mean((0, 1)))
        present, absent = (sae.preactivations(side).mean((0, 1)) for side in sides)
    config = SNCEConfig(site=site.path, neurons=(int((present - absent).argmax()),), gate="relu")
    return lambda: fit(pipe, concept, config, sae=sae)


if __name__ == "__main__":
    main()
