"""The bundled model's card, from its measurements."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from excise.files import read_json, read_text, write_atomic
from excise.reference.classifier import JUDGES
from excise.statistics import in_percent

FIGURES, README = "figures.json", "README.md"
FILES = (FIGURES, README)
ASKED = ("objects", "any_object", "style", "background")
"""What every picture is judged for, in the order of the tables' columns."""

Drawing = dict[str, dict[str, dict[str, Any]]]
"""By family of prompts and by entry of `ASKED`: `value`, `low` and `high` (Wilson's 95 % interval) and `n`."""


def write(folder: Path, drawing: Drawing) -> None:
    """Write `README.md` and `figures.json` into the model's folder.

    Measurements from training (`text_encoder.json`, the judges' figures) are read from the folder, and so is
    `training.txt`, notes on how trainings were stopped and resumed.
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
            story=read_text(story).strip() if story.exists() else "",
        ),
    )


def sae_paragraph(card: Mapping[str, Any]) -> str:
    """Return a section on an SAE's training and reconstruction from its card, or "" if it was not measured."""
    metrics = card.get("metrics") or {}
    if not (positions := metrics.get("positions")):
        return ""

    def share(value: float | None) -> str:
        return "n/a" if value is None else f"{100 * value:.2f}"

    cells = ("variance", "fvu", "median")
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {kind['vectors']} | {' | '.join(share(kind[cell]) for cell in cells)} |"
        for name, kind in positions.items()
    )
    with_bos = "It was trained on BOS too. " if card.get("bos", True) else ""
    return (
        f"## SAE\n{with_bos}BOS is the same vector in every prompt, far from all others and easy to reconstruct. So\n"
        "figures over all positions look too good: words are reconstructed less well. In per cent, on\n"
        f"{metrics.get('positions_on', 'prompts')}, by `excise sae measure sae`:\n\n"
        "| positions | vectors | share of the variance | unexplained (FVU) | unexplained, median vector |\n"
        f"|---|---|---|---|---|\n{rows}\n\n"
    )


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


_CARD = """---
license: other
license_name: mixed-art-licences
library_name: diffusers
pipeline_tag: text-to-image
---
# The reference model of Excise

A small text-to-image model with Stable Diffusion's architecture (CLIPTokenizer, CLIPTextModel, UNet2DConditionModel,
AutoencoderKL, DDIM), trained from scratch on 40 objects in 8 emoji styles on 8 backgrounds at 64x64 pixels. It exists
so that concept erasure can be tried and measured on any machine. It generates emoji only.

`excise.reference.load()` loads this folder, and so does `StableDiffusionPipeline.from_pretrained`.

## Accuracy of its pictures
Shares in per cent with Wilson's 95 % intervals, by the independent judge in this folder; 20 DDIM steps, guidance 4,
seeds 0 to n - 1.
Measured by `excise reference evaluate` on {date} ({machine}).

| prompts | all objects recognised | any of them | style | background | n |
|---|---|---|---|---|---|
{rows}

"Single" and "pair" are worded as in training. "Wording" uses forms that no caption has. "Held out pair" and "held out
style" ask for combinations that no scene showed, and "synonym" uses words that no caption contains.

## Text encoder
Distilled from all-MiniLM-L6-v2 (Apache-2.0) on WordNet's words, glosses and examples, names and keywords of emoji
(emojilib) and captions. The linear head `text_head.safetensors` maps its end-of-text state to the teacher's sentence
vector; the mean cosine on {texts} held-out texts is {cosine}. For a share of {right} of {pairs} synonyms (the teacher:
{teacher}), the nearest of the 40 objects is the right one. WordNet is a dictionary, so the encoder was trained on these
words and their glosses, as CLIP was on the web. They are held out from every caption and from the SAE's corpus.
Missed: {missed}.

## Judges
Trained on real scenes only, with thresholds calibrated there before any concept was erased. The first is a
convolutional network and decides; the second is a transformer over patches, and the benchmark reports its agreement.
Accuracy on new real scenes, as shares:

| | first judge | second judge |
|---|---|---|
{judges}

## Data and licences
Eight emoji sets, with their authors and licences in `artwork/ATTRIBUTION.md` next to this folder (Apache-2.0, MIT, CC
BY 4.0, CC BY-SA 4.0). WordNet 3 (Princeton's licence), emojilib (MIT), all-MiniLM-L6-v2 (Apache-2.0), CLIP's merges
file (MIT). The weights are trained on that art and are licensed separately from Excise's code: use them under the terms
of those sets. Whatever in them is an adaptation of the CC BY-SA sets (OpenMoji, EmojiOne 1.5) is under CC BY-SA 4.0.

{sae}## Training
`excise reference train --work build/reference --out reference-model` (every part resumes where it stopped), then the
SAE in `sae/`: `excise sae train --recipe reference --bos --out sae`. Further SAEs are in `saes/` next to the model.
`block/` is for `up_blocks.1.attentions.0` and has a neuron for every object and style: `excise sae train-block --recipe
reference --label object --label style --out block`. `block_unsupervised/` is the same with `--unsupervised`. `text/` is
`sae/` fine-tuned with labels: `excise sae train-text --recipe reference --label object --label style --start sae --bos
--negatives assigned --beta 0.1 --lr 0.0005 --tokens 1000000 --out text`.
{story}

## Limits
It knows 40 nouns. Other words give a similar object or nothing. It shows no people, no nudity and no gore. Figures
measured on it are not claims about Stable Diffusion.
"""
