"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from excise.cli import bounds
from excise.methods.configs.sae import SNCEConfig
from excise.settings import described

# Output

Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]

# Model

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Folder, .safetensors checkpoint or hub name of a pipeline, or a language model, or smollm2. Default: the "
        "bundled model.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="Device to run the model on: cpu, cuda, cuda:1, mps.")]
Workers = Annotated[
    int,
    typer.Option("--workers", "--jobs", help="How many to work on at once; each loads the model.", **bounds.JOBS),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        envvar="EXCISE_ENGINE",
        help="Where to work: local, processes:N, slice:I/N in an array job, ray, or ray://HOST:PORT. Default: this "
        "process, or --workers processes.",
    ),
]
Parallel = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        help="How several processes divide one training: data=2,latents=4 is for eight of them. torchrun starts them, "
        "or, of `sae train`, --engine ray.",
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try again what failed before and was set aside in `failures`.")
]
SiteOption = Annotated[
    str | None,
    typer.Option(
        "--site",
        help="Site in the text encoder, such as encoder.layers.8. Default: the SAE's site; in training, three quarters "
        "up the encoder.",
    ),
]
Sae = Annotated[
    Path | None, typer.Option("--sae", help="Folder of an SAE. Default: for the bundled model, the bundled SAE.")
]

# Concepts and pairs

ConceptName = Annotated[
    str, typer.Argument(help="A known concept (`excise concepts`), or any name with --mentions or --pairs.")
]
ConceptWords = Annotated[str, typer.Argument(help="A known concept (`excise concepts`), or any name with --mentions.")]
Mentions = Annotated[
    str | None, typer.Option("--mentions", help='The concept\'s words, separated by commas: "gun, pistol".')
]
PairsFile = Annotated[
    Path | None,
    typer.Option(
        "--pairs",
        help="File of pairs, .csv or .jsonl with columns concept, deconcept[, template]. Default: pairs from "
        "templates.",
    ),
]
Controls = Annotated[
    Path | None,
    typer.Option(
        "--controls",
        help="Prompts as the model's users write them, .txt, .csv or .jsonl. SNCE's threshold is calibrated on every "
        "second one, and the share of the others that the eraser changes is reported. Default with --model: those that "
        "the SAE's training held out, else everyday prompts in English.",
    ),
]
PairsArgument = Annotated[Path, typer.Argument(help="File of pairs, .csv or .jsonl.")]
Kind = Annotated[str, typer.Option("--kind", help="What the concept's words name: object, style or attribute.")]
Count = Annotated[int, typer.Option("--n", help="Number of pairs to make.", **bounds.PAIRS)]

# Erasers and neurons

Digests = Annotated[
    list[str] | None,
    typer.Option(
        "--digest",
        help="Digest that the eraser must have. Repeatable: one for each eraser in their order, or NAME=DIGEST by the "
        "name of its folder.",
    ),
]
EraserFolder = Annotated[Path, typer.Argument(help="Folder of one eraser or of several.", metavar="DIR")]
Top = Annotated[int, typer.Option("--top", help="Number of neurons to show.", **bounds.COUNT)]
PromptFiles = Annotated[
    Path,
    typer.Option("--prompts", help="File of prompts (.txt, .csv, .jsonl or .parquet), or a folder of such files."),
]
Column = Annotated[str, typer.Option("--column", help="Column that holds the prompts.")]

# Generating pictures

PicturesEach = Annotated[int, typer.Option("--n", help="Pictures per prompt; seeds count up.", **bounds.COUNT)]
FirstSeed = Annotated[int, typer.Option("--seed", help="First seed.", **bounds.SEED)]
Steps = Annotated[int, typer.Option("--steps", help="Denoising steps.", **bounds.STEPS)]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance", help="Guidance scale. Default: 4; with --model, the pipeline's default.", **bounds.GUIDANCE
    ),
]

# Training an SAE. Each command's help lists the defaults of its own configuration.

SaeOut = Annotated[Path, typer.Option("--out", help="Folder for the SAE.")]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", help="Vectors to train on, counting repeats.", **bounds.TRAINING_VECTORS),
]
Expansion = Annotated[int | None, typer.Option("--expansion", help="Neurons per input dimension.", **bounds.EXPANSION)]
K = Annotated[int | None, typer.Option("--k", help="Neurons kept per vector.", **bounds.K)]
Rate = Annotated[float | None, typer.Option("--lr", help="Adam's learning rate.", **bounds.RATE)]
Batch = Annotated[int | None, typer.Option("--batch", help="Vectors per training step.", **bounds.BATCH)]
TrainingSeed = Annotated[
    int, typer.Option("--seed", help="Seed of the initialisation and the data order.", **bounds.TRAINING_SEED)
]
Bos = Annotated[
    bool,
    typer.Option(
        "--bos", help="Also train on the first state (BOS), which all prompts share and which erasers leave alone."
    ),
]


def listed(text: str | None) -> list[str]:
    """Return the names in an option that takes several, separated by commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def snce_option(name: str) -> Any:
    """Return the option for an SNCE setting, with its help text and range."""
    field, option = described(SNCEConfig)[name], f"--{name.replace('_', '-')}"
    if field.bare not in (int, float):
        words = f"{field.help} One of {', '.join(field.choices)}." if field.choices else field.help
        return typer.Option(option, help=words)
    least, most = field.bounds
    return typer.Option(option, help=field.help, min=least, max=most)
