"""docs/explanation/performance.md, from what the benchmarks of speed have written into docs/results.

python benchmarks/speed/performance_page.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from excise.files import write_atomic

RESULTS = Path("docs/results")
PAGE = Path("docs/explanation/performance.md")
GOALS = {3072: 2.0, 16_128: 2.2, 65_280: 2.5}
"""Times dense PyTorch that were aimed at, by width."""
PEERS = ("SAELens", "SAELens, sparse", "sparsify", "overcomplete")


def main() -> None:
    measured = {
        "sae_training": training, "compiling": compiled, "capturing": capture, "erasing": erasing, "encoding": adding,
        "importing": importing, "scaling": scaling, "profiling": profiles,
    }  # fmt: skip
    parts = [write() for name, write in measured.items() if (RESULTS / f"{name}.json").exists()]
    write_atomic(PAGE, "\n".join([INTRODUCTION, *parts, NOT_MEASURED]))
    print(PAGE.read_text())


def told(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def said(name: str, found: Mapping[str, Any]) -> str:
    """Where the figures below are from."""
    date = f", {found['date']}" if "date" in found else ""
    return f"`{found['command']}`, {found['machine']}{date}: [{name}.json](../results/{name}.json)."


def table(head: str, *rows: list[str]) -> list[str]:
    return [head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def added(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio'] - 1:+.1%} ({ratio['low'] - 1:+.1%} to {ratio['high'] - 1:+.1%})"


def training() -> str:
    found = told("sae_training")
    lines = [
        "## Training an SAE",
        "",
        f"Width 768, k = {found['k']}, float32, {found['threads']} threads; states of three layers of the bundled",
        "text encoder, side by side. Each library trains by its own loop in its own environment, a few steps each in",
        "turns; × dense is the median over rounds, with quartiles.",
        said("sae_training", found),
        "",
    ]
    for m, width in found["widths"].items():
        rows = []
        for name, row in width["rows"].items():
            if "failed" in row:
                rows.append([name, "cannot run here", "", "", "", ""])
                continue
            speed, share = row["tokens_a_second"], row["roofline"]["ratio"]
            cells = [f"{speed:,.0f}", spread(row["as_fast_as_dense"]), f"{share:.0%}"]
            rows.append([name, *cells, f"{row['fvu']:.4f}", f"{row['silent']:.1%}"])
        own = width["rows"]["excise"]
        best = max(
            (row["tokens_a_second"], name) for name, row in width["rows"].items() if name in PEERS and "fvu" in row
        )
        lines += [
            f"**m = {int(m):,}** ({width['date']}), {width['steps']} batches of {width['batch']:,}; the encoder's",
            f"product runs at {width['peak'] / 1e9:.0f} GFLOP/s.",
            f"Aim: {GOALS[int(m)]} times dense and 1.3 times every peer. Measured:",
            f"{own['as_fast_as_dense']['ratio']:.2f}, and {own['tokens_a_second'] / best[0]:.2f} times {best[1]}, the "
            "fastest peer.",
            "",
            *table("| | vectors/s | × dense | of the roofline | FVU | silent |", *rows),
        ]
    if rates := found.get("rates"):
        lines += by_rate(rates)
    if seeds := found.get("seeds"):
        lines += by_seed(seeds)
    return "\n".join([*lines, TRAINING_LIMITS, ""])


def by_rate(rates: Mapping[str, Any]) -> list[str]:
    names = list(next(iter(rates["rows"].values())))
    cells = []
    for name, row in rates["rows"].items():
        least = min(names, key=lambda rate: row[rate]["fvu"])
        shown = (f"{row[rate]['fvu']:.4f}" for rate in names)
        cells.append([name, *(f"**{fvu}**" if rate == least else fvu for rate, fvu in zip(names, shown, strict=True))])
    return [
        "One rate does not mean the same to all, since some begin with smaller weights. FVU at m = 3,072 after "
        f"{rates['steps']} steps, by learning rate ({rates['date']}):",
        "",
        *table(f"| | {' | '.join(names)} |", *cells),
    ]


def by_seed(seeds: Mapping[str, Any]) -> list[str]:
    means = {name: statistics.fmean(row["fvu"]) for name, row in seeds.items()}
    said = (
        f"{name} at {row['lr']} {means[name]:.4f} ({min(row['fvu']):.4f} to {max(row['fvu']):.4f})"
        for name, row in seeds.items()
    )
    peer = next(name for name in seeds if name != "excise")
    count = len(seeds["excise"]["fvu"])
    return [
        f"The best two, each at its best rate, mean and range of {count} seeds: {'; '.join(said)}.",
        f"Aim: no worse than the best peer. Measured: {means['excise'] / means[peer] - 1:+.1%} of {peer}'s.",
        "",
    ]


def compiled() -> str:
    found = told("compiling")
    cells = (
        [f"{int(m):,}", spread(row["as_fast"]), f"{row['to_compile']:.0f}", f"{row['differ']:.0e}"]
        for m, row in found["widths"].items()
    )
    return "\n".join([
        "### Compiled",
        "",
        "A step whose codes, decode and loss `torch.compile` compiles, beside the same step as it is. Their",
        "gradients differ by that share of their length. " + said("compiling", found),
        "",
        *table("| m | × as it is | s to compile | differ |", *cells),
        COMPILED_LIMITS,
        "",
    ])  # fmt: skip


def capture() -> str:
    found = told("capturing")
    speed, memory = found["speed"], found.get("memory")
    lines = [
        "## Reading prompts",
        "",
        f"CLIP-L's shape, random weights, {speed['site']}. " + said("capturing", speed),
        "",
    ]
    titles = {"drawn": "random words, lengths like DiffusionDB's", "templated": "a concept's pairs and controls"}
    for name, corpus in speed["corpora"].items():
        cells = ([way, f"{row['prompts_a_second']:.1f}", spread(row["as_fast"])] for way, row in corpus["rows"].items())
        lines += [
            f"**{corpus['prompts']} prompts: {titles[name]}**, {corpus['tokens']:.0f} of 77 tokens on average, "
            f"{corpus['cut']} cut.",
            "",
            *table("| | prompts/s | × padded |", *cells),
        ]
    lines += [CAPTURE_LIMITS, ""]
    if memory is None:
        return "\n".join(lines)
    lines += [
        f"Memory while {memory['prompts']:,} such prompts are read by the bundled encoder to shards, with a tenth of",
        "their padding, and while an SAE is trained on them: resident megabytes at each tenth of the way, without the",
        "pages of files, libraries' code, which the kernel maps at will. " + said("capturing", memory),
        "",
    ]
    for name in ("reading", "training"):
        own, files = ([tenth[key] for tenth in memory[name]] for key in ("own", "files"))
        listed = ", ".join(f"{size / 1e6:.0f}" for size in own)
        growth = max(own[1:]) / min(own[1:]) - 1
        lines += [
            f"- {name}: {listed}; greatest over least behind the first tenth {growth:+.1%} (aim: within 5 %); of files "
            f"{min(files) / 1e6:.0f} to {max(files) / 1e6:.0f}"
        ]
    return "\n".join([*lines, "", MEMORY_LIMITS, ""])


def erasing() -> str:
    found = told("erasing")
    lines = [
        "## Erasing one more concept",
        "",
        f"On a loaded model. SNCE reads {found['prompts']} prompts; `passes` is the text encoder on just these,",
        "padded, all layers.",
        "",
    ]
    for model, own in found["models"].items():
        cells = (
            [name, f"{row['seconds']:.2f}", f"{row['ratio']:.2f}", f"{row['snce']:.2f}"]
            for name, row in own["rows"].items()
        )
        title = {"bundled": "the bundled model", "sd14": "Stable Diffusion 1.4's shape, random weights"}[model]
        lines += [f"**{title}**: {said('erasing', own)}", "", *table("| | s | × passes | × SNCE |", *cells)]
    return "\n".join([*lines, ERASING_LIMITS, ""])


def adding() -> str:
    found = told("encoding")
    rows, picture = found["rows"], found["picture"]
    goals = {"concept": "≤ 0.5 %", "threshold": "≤ 1 %", "topk": "≤ 4 %"}
    cells = ([name, f"{1000 * row['seconds']:.1f}", added(row), goals.get(name, "")] for name, row in rows.items())
    return "\n".join([
        "## What an eraser adds",
        "",
        "To encoding a prompt and its unconditional twin, CLIP-L's shape; median and quartiles over rounds in turns. "
        + said("encoding", found),
        "",
        *table("| | ms | added | aim |", *cells),
        f"To a picture of 20 steps on that shape: {picture['added']:+.3%} (aim ≤ 0.1 %). A look at the states that",
        f"the U-Net is given takes {1000 * picture['look']:.2f} ms, its step {picture['step']:.2f} s.",
        f"On the bundled model, whose U-Net is a fortieth of that: {added(found['bundled'])}.",
        "",
        ADDING_LIMITS,
        "",
    ])  # fmt: skip


def importing() -> str:
    found = told("importing")
    clock, processor = found["clock"], found["processor"]
    cells = (
        [f"`{what}`", f"{clock[name]:.2f}", f"{processor[name]:.2f}", f"{found['modules'].get(name, '')}"]
        for name, what in (
            ("torch", "import torch, safetensors.torch"),
            ("record", "import excise.erasers.artefact.record"),
            ("help", "excise --help"),
            ("python", "python -c pass"),
        )
    )
    return "\n".join([
        "## Importing",
        "",
        "Reading and signing an eraser need torch and safetensors alone; medians of fresh processes in turns.",
        said("importing", found),
        "",
        *table("| | s | s of the processor | modules |", *cells),
        f"The import takes {spread(clock)} times torch's by the clock, {spread(processor)} of the processor's time",
        f"(aim: at most {found['goal']}). Other work on the machine lengthens the first and hardly the second.",
        "",
    ])  # fmt: skip


def scaling() -> str:
    found = told("scaling")
    lines = ["## Scaling", "", said("scaling", found), ""]
    for key, name, what in (("vectors", "n", "vectors"), ("latents", "m", "latents")):
        part = found[key]
        cells = ([f"{row[name]:,}", f"{row['seconds']:.1f}", f"{row['peak'] / 1e6:,.0f}"] for row in part["rows"])
        slopes = part["slopes"]
        lines += [
            *table(f"| {what} | s | peak MB |", *cells),
            f"Time grows as {what}^{slopes['seconds']:.2f}, memory as {what}^{abs(slopes['peak']):.2f}.",
            "",
        ]
    return "\n".join([*lines, SCALING_LIMITS, ""])


def profiles() -> str:
    found = told("profiling")
    cells = (
        [name, ", ".join(f"{operator} {share:.0%}" for operator, share in list(rows.items())[:8])]
        for name, rows in found["shares"].items()
    )
    return "\n".join([
        "## Where the time goes",
        "",
        "Shares of the time in PyTorch's operators. " + said("profiling", found),
        "",
        *table("| | |", *cells),
    ])  # fmt: skip


INTRODUCTION = """# Performance

What Excise costs, against what else there is and against what the machine can do. Every table is printed by a script in
`benchmarks/`; ratios are of runs in turns, so that what else the machine did met all alike.
"""
TRAINING_LIMITS = """\
**Limits.** The roofline counts multiplications alone: 2dm of the encoder, 8dk of all that is sparse. Of a step at m =
3,072 the encoder's product is half, and no latent can be left out of it; choosing the k largest takes an eighth, the
sparse decode and its gradients a fifth ([where the time goes](#where-the-time-goes)). At the greatest width Adam and
the pass that keeps the decoder's rows unit vectors read and write 2dm weights a step, which larger batches spread.
The 70 % aimed at are missed at every width. Three ways to come closer did not pay: pre-activations by blocks of
vectors, each written over the last; the k largest sought among the groups with the greatest maxima; the loss as one
dot product. A product in bfloat16 (`bfloat16`; `shortlist` computes what it has chosen anew in float32) is faster by
less than the 1.8 and 2.5 times aimed at: these cores multiply bfloat16 in AVX-512, not in a matrix unit, and the choice
itself takes as long as before. Where a row passes 100 %, its product is not the float32 one that the roofline counts.

SAELens's sparse activations have no kernel on the CPU in this torch. The auxiliary loss begins once the vectors were
seen once: at the smallest width alone. At one rate for all, ours leaves least variance unexplained at every width; at
each one's best it does not, and it varies more from seed to seed than sparsify, whose encoder starts shorter. More
latents of ours are silent after so few steps than of sparsify's.
"""
COMPILED_LIMITS = """\
Little is gained, and least where a step is long: products, `topk` and `embedding_bag` are library calls that a compiler
leaves alone, and what it joins together is a tenth of a step at most. So nothing of training is compiled.
"""
CAPTURE_LIMITS = """\
**Limits.** The Site is the ninth of twelve layers, so that stopping there saves a quarter; the rest is the share of
positions that are not computed: all padding but a tenth leaves 28 of 77. Where prompts begin alike, several stand in
one row, and what they share is computed once.
"""
MEMORY_LIMITS = """\
Reading keeps nothing of a prompt but what goes into the shard. Batches go from long to short, so that what each one
allocates fits where the last one's was freed: from short to long, memory in use is the same, but the heap is full of
holes, and grew by 7.5 %. A second run gave +4.7 % and +0.6 %. A third, which counted files' pages too, gave +8.5 % and
+6.9 %, by one step of 50 to 70 MB in each, whose cause was not seen; it has not come again.
"""
ERASING_LIMITS = """\
**Limits.** SNCE must read its prompts: the passes are the floor, and on Stable Diffusion's shape all there is to it,
since the encoder stops behind the Site. On the bundled model, whose encoder is small, the rest goes into the SAE's
codes of all positions, the digests of what the eraser is made for, and the proof that it bites. UCE and RECE read a few
names, and take their time for a proof too, a prediction of the U-Net with and without them. ESD-x's authors train for
200 steps, each at a picture drawn up to 50 steps: what is timed is one, at a picture of one, so that the aim of ten
times is met on both.
"""
ADDING_LIMITS = """\
**Limits.** What is added is fixed: a few operations on 77 states, and a comparison of the pipeline's weights with what
they were. The spread between rounds is greater than that. `topk` multiplies all of the SAE's rows, 2.6 % of the
encoder's own work, for those states in which the neuron is positive at all.
"""
SCALING_LIMITS = """\
Where a row is short, the process's constant part is most of it.
"""
NOT_MEASURED = """\
## Not measured

A GPU: none was at hand when these scripts were written, so CUDA graphs were not tried. Every script takes
`--device cuda` but `scaling.py` and `profiling.py`.
"""


if __name__ == "__main__":
    main()
