"""The bundled model's card, written from what was measured."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from excise.bench.statistics import in_percent
from excise.files import write_atomic
from excise.reference.classifier import JUDGES

FIGURES, README = "figures.json", "README.md"
FILES = (FIGURES, README)
ASKED = ("objects", "any_object", "style", "background")
"""What is asked of every picture, in the order of the tables' columns."""

Drawing = dict[str, dict[str, dict[str, Any]]]
"""For each family of prompts and each thing asked: `value`, `low` and `high` (Wilson's interval, 95 %) and `n`."""


def write(folder: Path, drawing: Drawing) -> None:
    """Write `README.md` and `figures.json` into the model's folder.

    What the trainings left beside the weights (`text_encoder.json`, the judges' figures) is read from the folder, and
    so is `training.txt`, where someone who stopped and restarted them wrote down how.
    """
    text = _read(folder / "text_encoder.json")
    judges = {name: _read(folder / f"{name}.json") for name in JUDGES}
    story = folder / "training.txt"
    here = f"{platform.system()} {platform.machine()}, torch {torch.__version__}"
    facts = {"date": datetime.date.today().isoformat(), "machine": here, "drawing": drawing}
    write_atomic(folder / FIGURES, json.dumps({**facts, "text_encoder": text, "judges": judges}, indent=1) + "\n")
    rows = "\n".join(
        f"| {family.replace('_', ' ')} | {' | '.join(in_percent(f[name]) for name in ASKED)} | {f['objects']['n']} |"
        for family, f in drawing.items()
    )
    missed = ", ".join(text.get("synonyms_missed_student", [])) or "none"
    write_atomic(
        folder / README,
        _CARD.format(
            rows=rows,
            date=facts["date"],
            machine=here,
            cosine=text.get("held_out_cosine", "not measured"),
            texts=text.get("held_out_texts", 0),
            right=text.get("synonyms_student", "not measured"),
            teacher=text.get("synonyms_teacher", "not measured"),
            pairs=text.get("synonym_pairs", 0),
            missed=missed,
            judges="\n".join(
                f"| {asked.replace('_', ' ')} | {' | '.join(str(judges[name].get(asked, '')) for name in JUDGES)} |"
                for asked in judges["classifier"]
            ),
            sae=sae_paragraph(_read(folder / "sae" / "cfg.json").get("card", {})),
            story=story.read_text().strip() if story.exists() else "",
        ),
    )


def sae_paragraph(card: Mapping[str, Any]) -> str:
    """What an SAE's card says of its training and of what it leaves unexplained; empty where it was not measured."""
    metrics = card.get("metrics") or {}
    if not (positions := metrics.get("positions")):
        return ""

    def share(value: float | None) -> str:
        return "n/a" if value is None else f"{100 * value:.2f}"

    cells = ("variance", "fvu", "median")
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {own['vectors']} | {' | '.join(share(own[cell]) for cell in cells)} |"
        for name, own in positions.items()
    )
    with_bos = "It was trained on BOS too. " if card.get("bos", True) else ""
    return (
        f"## SAE\n{with_bos}BOS is one and the same vector in every prompt, far from all others and easy to\n"
        "reconstruct, so that a figure over all positions flatters: words are reconstructed worse. In per cent, on\n"
        f"{metrics.get('positions_on', 'prompts')}, by `excise sae measure sae`:\n\n"
        "| positions | vectors | of the variance | unexplained (FVU) | unexplained, median vector |\n"
        f"|---|---|---|---|---|\n{rows}\n\n"
    )


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


_CARD = """---
license: other
license_name: mixed-art-licences
library_name: diffusers
pipeline_tag: text-to-image
---
# The reference model of Excise

A small text-to-image model with Stable Diffusion's anatomy (CLIPTokenizer, CLIPTextModel, UNet2DConditionModel,
AutoencoderKL, DDIM), trained from scratch to draw 40 objects in 8 emoji styles on 8 backgrounds at 64x64 pixels. It
exists so that concept erasure can be tried and measured on any machine. It draws emoji and nothing else.

`StableDiffusionPipeline.from_pretrained` loads this folder; `excise.reference.load()` does it for you.

## How well it draws
Shares in per cent with Wilson's 95 % intervals, as the independent judge in this folder sees them; 20 DDIM steps,
guidance 4, seeds 0 to n - 1.
Measured by `excise reference evaluate` on {date} ({machine}).

| prompts | all objects recognised | any of them | style | background | n |
|---|---|---|---|---|---|
{rows}

"Single" and "pair" are worded as in training; "wording" uses forms no caption has; "held out pair" and "held out style"
ask for combinations no scene showed; "synonym" for words no caption contains.

## Text encoder
Distilled from all-MiniLM-L6-v2 (Apache-2.0) on WordNet's words, glosses and examples, emoji's names and keywords
(emojilib) and captions. Mean cosine of its end-of-text state, through the linear head `text_head.safetensors`, to the
teacher's sentence vector on {texts} held-out texts: {cosine}. The right one of the 40 objects is nearest for a share of
{right} of {pairs} synonyms (the teacher: {teacher}). WordNet is a dictionary, so the encoder has read these words and
their glosses, as CLIP has read them on the web; they are held out from every caption and from the SAE's corpus. Missed:
{missed}.

## Judges
Trained on real scenes only, thresholds calibrated there before anything was erased. The first is a convolutional
network, and its word counts; the second is a transformer over patches, whose agreement the benchmark reports. On fresh
real scenes, as shares:

| | first judge | second judge |
|---|---|---|
{judges}

## Data and licences
Eight emoji sets, named with their authors and licences in `artwork/ATTRIBUTION.md` beside this folder
(Apache-2.0, MIT, CC BY 4.0, CC BY-SA 4.0). WordNet 3 (Princeton's licence), emojilib (MIT), all-MiniLM-L6-v2
(Apache-2.0), CLIP's merges file (MIT). The weights are trained on that art and are licensed apart from Excise's code:
use them under the terms of those sets; what of them is an adaptation of the CC BY-SA sets (OpenMoji, EmojiOne 1.5) is
under CC BY-SA 4.0.

{sae}## Training
`excise reference train --work build/reference --out reference-model` (every part resumes where it stopped), then the
SAE in `sae/`: `excise sae train --recipe reference --bos --out sae`. Others lie beside the model, in `saes/`.
`block/` is one of `up_blocks.1.attentions.0` in which every object and style has a neuron of its own: `excise sae
train-block --recipe reference --label object --label style --out block`. `block_unsupervised/` is the same with
`--unsupervised`. `text/` is `sae/` fine-tuned with labels: `excise sae train-text --recipe reference --label object
--label style --start sae --bos --negatives assigned --beta 0.1 --lr 0.0005 --tokens 1000000 --out text`.
{story}

## Limits
It knows 40 nouns. Text it was not trained to draw gives something near, or nothing. It shows no people, no nudity and
no gore, and no figure measured on it is a claim about Stable Diffusion.
"""
