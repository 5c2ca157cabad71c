"""Write docs/explanation/performance.md from the results of the speed benchmarks in docs/results.

python benchmarks/speed/performance_page.py
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from excise.app.bench.provenance import in_words
from excise.files import write_atomic

RESULTS = Path("docs/results")
PAGE = Path("docs/explanation/performance.md")
GOALS = {3072: 2.0, 16_128: 2.2, 65_280: 2.5}
"""Goal by width, as a multiple of dense PyTorch's speed."""
PEERS = ("SAELens", "SAELens, sparse", "sparsify", "overcomplete")


def main() -> None:
    write_atomic(PAGE, page())
    print(PAGE.read_text())


def page() -> str:
    """Return the page, from the files of results that exist."""
    measured = {
        "sae_training": training, "compiling": compiled, "capturing": capture, "reading_host": packing,
        "erasing": erasing, "encoding": adding, "merged": merging,
        "guard_cost": guarding, "studio": changing, "importing": importing, "scaling": scaling, "profiling": profiles,
    }  # fmt: skip
    parts = [write() for name, write in measured.items() if (RESULTS / f"{name}.json").exists()]
    return "\n".join([INTRODUCTION, *parts, NOT_MEASURED])


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def source(name: str, found: Mapping[str, Any]) -> str:
    """Return where the figures below come from."""
    return f"{in_words(found)}: [{name}.json](../results/{name}.json)."


def table(head: str, *rows: list[str]) -> list[str]:
    return [head, "|---" * (head.count("|") - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def added(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio'] - 1:+.1%} ({ratio['low'] - 1:+.1%} to {ratio['high'] - 1:+.1%})"


def training() -> str:
    found = results("sae_training")
    lines = [
        "## Training an SAE",
        "",
        f"Width 768, k = {found['k']}, float32, {found['threads']} threads; states of three layers of the bundled",
        "text encoder, side by side. Each library trains with its own loop in its own environment. The libraries take",
        "a few steps each, in turns. × dense is the median over rounds, with quartiles.",
        source("sae_training", found),
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
        ours = width["rows"]["excise"]
        best = max(
            (row["tokens_a_second"], name) for name, row in width["rows"].items() if name in PEERS and "fvu" in row
        )
        lines += [
            f"**m = {int(m):,}** ({width['date']}), {width['steps']} batches of {width['batch']:,}; the encoder's",
            f"product runs at {width['peak'] / 1e9:.0f} GFLOP/s.",
            f"Goal: {GOALS[int(m)]} times dense and 1.3 times every peer. Measured: "
            f"{ours['as_fast_as_dense']['ratio']:.2f} times dense,",
            f"and {ours['tokens_a_second'] / best[0]:.2f} times {best[1]}, the fastest peer.",
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
        "A learning rate does not mean the same to all, because some libraries start with smaller weights. FVU at "
        f"m = 3,072 after {rates['steps']} steps, by learning rate ({rates['date']}):",
        "",
        *table(f"| | {' | '.join(names)} |", *cells),
    ]


def by_seed(seeds: Mapping[str, Any]) -> list[str]:
    means = {name: statistics.fmean(row["fvu"]) for name, row in seeds.items()}
    listed = (
        f"{name} at {row['lr']} {means[name]:.4f} ({min(row['fvu']):.4f} to {max(row['fvu']):.4f})"
        for name, row in seeds.items()
    )
    peer = next(name for name in seeds if name != "excise")
    count = len(seeds["excise"]["fvu"])
    return [
        f"The best two, each at its best rate, mean and range of {count} seeds: {'; '.join(listed)}.",
        f"Goal: no worse than the best peer. Measured: {means['excise'] / means[peer] - 1:+.1%} relative to {peer}.",
        "",
    ]


def compiled() -> str:
    found = results("compiling")
    cells = (
        [f"{int(m):,}", spread(row["as_fast"]), f"{row['to_compile']:.0f}", f"{row['differ']:.0e}"]
        for m, row in found["widths"].items()
    )
    return "\n".join([
        "### Compiled",
        "",
        "A step with codes, decode and loss compiled by `torch.compile`, compared with the eager step. The last column",
        "is the difference of their gradients relative to their length. " + source("compiling", found),
        "",
        *table("| m | × eager | s to compile | difference |", *cells),
        COMPILED_LIMITS,
        "",
    ])  # fmt: skip


def capture() -> str:
    found = results("capturing")
    speed, memory = found["speed"], found.get("memory")
    lines = [
        "## Reading prompts",
        "",
        f"CLIP-L's shape, random weights, {speed['site']}. " + source("capturing", speed),
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
        f"Memory while the bundled encoder reads {memory['prompts']:,} such prompts to shards, with a tenth of their",
        "padding, and while an SAE is trained on them: resident megabytes in each tenth of the work. Pages of files",
        "(libraries' code) are counted separately, because the kernel decides how many to map. "
        + source("capturing", memory),
        "",
    ]
    for name in ("reading", "training"):
        allocated, files = ([tenth[key] for tenth in memory[name]] for key in ("own", "files"))
        listed = ", ".join(f"{size / 1e6:.0f}" for size in allocated)
        growth = max(allocated[1:]) / min(allocated[1:]) - 1
        lines += [
            f"- {name}: {listed}; largest over smallest after the first tenth {growth:+.1%} (goal: within 5 %); "
            f"pages of files {min(files) / 1e6:.0f} to {max(files) / 1e6:.0f}"
        ]
    return "\n".join([*lines, "", MEMORY_LIMITS, ""])


def packing() -> str:
    (found,) = results("reading_host").values()
    cells = (
        [name, f"{row['before_prompts_a_second']:,.0f}", f"{row['now_prompts_a_second']:,.0f}", spread(row["as_fast"])]
        for name, row in (("processor time", found["cpu"]), ("by the clock", found["wall"]))
    )
    return "\n".join([
        "## Tokenising and packing prompts",
        "",
        f"What one process does for {found['prompts']:,} prompts of random words, the encoder's layers replaced by the",
        "identity: tokenising, sorting by length, packing, cutting. Now, against commit",
        f"{found['before_commit']}, before this was done by tensor operations, in turns; both give the same bits.",
        "Goal: 5 times.",
        source("reading_host", found),
        "",
        *table("| | before, prompts/s | now, prompts/s | × before |", *cells),
    ])  # fmt: skip


def erasing() -> str:
    found = results("erasing")
    lines = [
        "## Erasing one more concept",
        "",
        f"Times on a loaded model. SNCE reads {found['prompts']} prompts; `passes` runs all layers of the text encoder",
        "on these prompts, padded.",
        "",
    ]
    for model, part in found["models"].items():
        cells = (
            [name, f"{row['seconds']:.2f}", f"{row['ratio']:.2f}", f"{row['snce']:.2f}"]
            for name, row in part["rows"].items()
        )
        title = {"bundled": "the bundled model", "sd14": "Stable Diffusion 1.4's shape, random weights"}[model]
        lines += [f"**{title}**: {source('erasing', part)}", "", *table("| | s | × passes | × SNCE |", *cells)]
    return "\n".join([*lines, ERASING_LIMITS, ""])


def adding() -> str:
    found = results("encoding")
    rows, picture = found["rows"], found["picture"]
    goals = {"concept": "≤ 0.5 %", "threshold": "≤ 1 %", "topk": "≤ 4 %"}
    cells = ([name, f"{1000 * row['seconds']:.1f}", added(row), goals.get(name, "")] for name, row in rows.items())
    return "\n".join([
        "## What an eraser adds",
        "",
        "To encoding a prompt and the unconditional prompt, on CLIP-L's shape: median and quartiles over rounds in "
        "turns. " + source("encoding", found),
        "",
        *table("| | ms | added | goal |", *cells),
        f"To a picture of 20 steps on that shape: {picture['added']:+.3%} (goal: ≤ 0.1 %). A check of the states that",
        f"the U-Net receives takes {1000 * picture['look']:.2f} ms, and a step {picture['step']:.2f} s.",
        f"On the bundled model, whose U-Net is a fortieth of that: {added(found['bundled'])}.",
        "",
        ADDING_LIMITS,
        "",
    ])  # fmt: skip


def changing() -> str:
    found = results("studio")
    seconds = {name: f"{value:.2f}" for name, value in found["seconds"].items()}
    return "\n".join([
        "## What a change of the strength costs in the studio",
        "",
        "On the bundled model, 20 steps, one thread: seconds of its processor, medians. " + source("studio", found),
        "",
        f"A first answer (two pictures, and what the neuron does) takes {seconds['first']} s. A change of the strength",
        f"takes {seconds['change']} s, because the picture without the eraser is kept:",
        f"{spread(found['change_to_first'])} of a first answer. The bare pipeline's picture takes {seconds['bare']} s;",
        f"a change is {spread(found['change_to_bare'])} of that. Other work ran on the machine: read the ratios.",
        "",
        f"In Chromium, a new strength is a new picture {seconds['page']} s later by the clock, with as many threads as",
        f"cores. The studio's process computes {seconds['page_processor']} s for it. Just before, {found['load']:g}",
        "processes per core wanted to run. The clock was not read on an idle machine.",
        "",
    ])  # fmt: skip


def guarding() -> str:
    found = results("guard_cost")
    cells = (
        [
            name,
            ", ".join("×".join(map(str, shape)) for shape in row["shapes"]),
            f"{row['first']:.1f}",
            f"{row['later']:.2f}",
            f"{row['step']:,.0f}",
            f"{row['share']:.4%}",
            f"{row['picture']:.4%}",
        ]
        for name, row in found["families"].items()
    )
    pictures = found["pictures"]
    return "\n".join([
        "## The denoiser guard",
        "",
        "Milliseconds of the guard in a denoiser call, for the states in float32 that each family's denoiser reads, on",
        "one thread. The step is arithmetic: operations of a forward pass, a lower bound, at the",
        f"{found['gflops']:.0f} GFLOP/s that a matrix product reaches here. The last column spreads the first look",
        f"over a picture of {found['steps']} steps. Goal: ≤ 0.5 %.",
        source("guard_cost", found),
        "",
        *table("| | states | first, ms | later, ms | step, s | of a step | of a picture |", *cells),
        f"Whole pictures of {found['steps']} steps with an eraser, measured in turns with the bare pipeline in "
        "processor time: median",
        "ratio, and what the eraser adds outside of the U-Net, which does the same in both, as a share of a picture;",
        "95 % intervals. Goal: ≤ 0.5 %.",
        "",
        *table(
            "| | s | pairs | added | without the U-Net | of it, ms |",
            *(
                [PICTURES[name], f"{row['seconds']:.2f}", str(row["rounds"]), _between(row["ratio"] - 1, row, 1),
                 _between(row["added"]["share"], row["added"]), f"{row['added']['ms']:.1f}"]
                for name, row in pictures.items()
            ),
        ),
        *where(),
        GUARD_LIMITS,
        "",
    ])  # fmt: skip


def where() -> Iterator[str]:
    found = results("guard_where")
    yield "Where the bundled model's milliseconds go, and what three ways to save some would give. Here the U-Net only"
    yield "sweeps the caches. Medians with 95 % intervals. Eight other jobs shared the two cores, so every figure is"
    yield "larger than above: compare the rows with each other."
    yield source("guard_where", found)
    yield ""
    rows = found["added"].items()
    cells = ([name, f"{row['ms']:.1f} ({row['low']:.1f} to {row['high']:.1f})"] for name, row in rows)
    yield from table(f"| {found['rounds']} pictures each | added, ms |", *cells)


def _between(share: float, row: Mapping[str, float], less: float = 0) -> str:
    return f"{share:+.2%} ({row['low'] - less:+.2%} to {row['high'] - less:+.2%})"


def merging() -> str:
    found = results("merged")
    cells = (
        [
            name if name.endswith("separate") else f"{int(name):,}",
            spread(row["encode"]),
            f"{row['attach']:.1f}" if "attach" in row else "not measured",
            f"{row['bytes'] / 1000:.1f}" if "bytes" in row else "",
        ]
        for name, row in found["rows"].items()
    )
    return "\n".join([
        "## Many concepts",
        "",
        "An eraser of each concept, merged into one by `excise merge`, or attached separately, on a text encoder of",
        "CLIP-L's shape with random weights, one thread. The prompt, encoded with guidance, opens no gate. × is the",
        f"median of {found['rounds']} rounds, with quartiles, over the encoder without erasers. Attaching proves every",
        "concept on a prompt of its own.",
        source("merged", found),
        "",
        *table("| concepts | encoding, × | attaching, s | kB each |", *cells),
    ])  # fmt: skip


def importing() -> str:
    found = results("importing")
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
        "Reading and signing an eraser need only torch and safetensors. Medians of fresh processes in turns.",
        source("importing", found),
        "",
        *table("| | s | processor s | modules |", *cells),
        f"The import takes {spread(clock)} times torch's wall-clock time and {spread(processor)} times its processor",
        f"time (goal: at most {found['goal']}). Other load on the machine affects the first and hardly the second.",
        "",
    ])  # fmt: skip


def scaling() -> str:
    found = results("scaling")
    lines = ["## Scaling", "", source("scaling", found), ""]
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
    found = results("profiling")
    cells = (
        [name, ", ".join(f"{operator} {share:.0%}" for operator, share in list(rows.items())[:8])]
        for name, rows in found["shares"].items()
    )
    return "\n".join([
        "## Where the time goes",
        "",
        "Shares of the time spent in PyTorch's operators. " + source("profiling", found),
        "",
        *table("| | |", *cells),
    ])  # fmt: skip


INTRODUCTION = """# Performance

This page measures what Excise costs, compared with other libraries and with what the machine can do. A script in
`benchmarks/` prints each table. Ratios compare runs in turns, so that other load on the machine affected all equally.
"""
TRAINING_LIMITS = """\
**Limits.** The roofline counts only multiplications: 2dm for the encoder and 8dk for the sparse parts. In a step at
m = 3,072, the encoder's product takes half of the time, and it needs every latent. Choosing the k largest takes an
eighth, and the sparse decode with its gradients a fifth ([where the time goes](#where-the-time-goes)). At the greatest
width, Adam and the normalisation of the decoder's rows read and write 2dm weights a step; larger batches spread this
cost.

The goal of 70 % of the roofline is missed at every width. Three attempts did not help: computing pre-activations in
blocks of vectors that reuse one buffer; searching the k largest only in the groups with the greatest maxima; and
computing the loss as one dot product. A product in bfloat16 (`bfloat16`; `shortlist` recomputes the chosen latents in
float32) gains less than the goals of 1.8 and 2.5 times: these cores multiply bfloat16 in AVX-512, not in a matrix unit,
and choosing the k largest takes as long as before. A row above 100 % does not use the float32 product that the roofline
counts.

SAELens's sparse activations have no CPU kernel in this torch. The auxiliary loss starts after one pass over the
vectors, which happens only at the smallest width. At one rate for all, Excise has the lowest FVU at every width. With
each library's best rate it does not, and it varies more between seeds than sparsify, whose encoder starts shorter.
After so few steps, Excise has more silent latents than sparsify.
"""
COMPILED_LIMITS = """\
Compiling gains little, and least where a step is long. Products, `topk` and `embedding_bag` are library calls that the
compiler does not change, and what it fuses is at most a tenth of a step. So training is not compiled.
"""
CAPTURE_LIMITS = """\
**Limits.** The Site is the ninth of twelve layers, so stopping there saves a quarter. The rest comes from positions
that are not computed: with a tenth of the padding, 28 of 77 are left. Prompts with a common prefix share a row, and the
prefix is computed once.
"""
MEMORY_LIMITS = """\
Reading keeps nothing of a prompt except what goes into the shard. Batches go from long to short, so that each one's
memory fits into what the previous one freed. From short to long, the memory in use is the same, but the heap fragments,
and grew by 7.5 %. A second run gave +4.7 % and +0.6 %. A third, which included pages of files, gave +8.5 % and +6.9 %,
with one jump of 50 to 70 MB in each. We did not find its cause, and it has not occurred again.
"""
ERASING_LIMITS = """\
**Limits.** SNCE must read its prompts, so the passes are the floor. On Stable Diffusion's shape they are the whole
cost, because the encoder stops after the Site. On the bundled model, whose encoder is small, the rest is the SAE's
codes of all positions, the digests of the model's parts, and the self-test. UCE and RECE read a few names, and also
run the self-test, a prediction of the U-Net with and without the edit. ESD-x's authors train for 200 steps,
each on a picture generated in up to 50 steps. We timed one training step on a picture of one step. So the goal of ten
times is met on both.
"""
ADDING_LIMITS = """\
**Limits.** The added cost is fixed: a few operations on 77 states, and a comparison of the pipeline's weights with
those at attach time. The spread between rounds is larger. `topk` multiplies all of the SAE's rows, which is 2.6 % of
the encoder's work, for the states in which the neuron's pre-activation is positive.
"""
PICTURES = {"bundled": "the bundled model", "clip_l": "CLIP-L's shape, a U-Net of 0.3 of SD 1.4's width, 256 x 256"}
GUARD_LIMITS = """\
**Limits.** Pictures vary by more than an eraser adds, because the U-Net does, so the column without it says more. On
the bundled model the goal of 0.5 % is missed. Its U-Net is a fortieth of Stable Diffusion's, and what is added does not
grow with it: hooks in each of the 20 steps, the edit, and checks of the encoder before a prompt. No step of a large
model ran here.

Three ways to save some were tried: to keep the setting's key for an image, to compare the states as 64-bit integers,
and to drop two of the four module hooks. Their intervals overlap with that of the guard as it is, also with all three,
so the guard stays as it is. With no check of the states at all, three fifths of the time were left, and the goal is
half. So 0.5 % seems out of reach on a model of this size. The machine was too busy to say more.

On a GPU a step is thousands of times shorter, and the guard waits for the device once a step
([decision 44](../decisions/0044-values-in-every-step.md)). This was counted on a simulated device, not timed on a real
one.
"""
SCALING_LIMITS = """\
In short runs, the process's constant cost dominates.
"""
NOT_MEASURED = """\
## Not measured

Nothing on this page was timed on a GPU, and CUDA graphs were not tried. Every script except `scaling.py` and
`profiling.py` takes `--device cuda`.
"""


if __name__ == "__main__":
    main()
