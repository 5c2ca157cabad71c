"""Corpora of token ids: prompts are tokenised once, into parquet files that trainings of any CLIP SAE read.

A manifest lists the files, their digests, and how many prompts and tokens each of their row groups has.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from excise.concepts.formats import parquet_file
from excise.errors import ExciseError
from excise.files import TENSORS, read_json, sha256
from excise.pipeline import Pipeline
from excise.sites.activations.capture import is_clip
from excise.sites.activations.tokenising import tokenise
from excise.sites.site import encoder_of

SCHEMA = "excise.corpus/1"
ABOUT, MANIFEST = "about.json", "corpus.json"


class Group(NamedTuple):
    """A row group of a corpus."""

    file: int
    """Index of its file."""
    number: int
    """Its number in the file."""
    prompts: int
    tokens: int
    """Tokens of its prompts, with BOS and EOS, without padding."""


@dataclass(frozen=True)
class Corpus:
    """A tokenised corpus on disk."""

    folder: Path
    component: str
    """Text encoder whose tokenizer was used."""
    positions: int
    """Positions that this encoder reads; longer prompts are cut."""
    vocabulary: int
    files: tuple[tuple[str, str], ...]
    """Names of the files and their digests."""
    groups: tuple[Group, ...]
    sample: tuple[str, ...]
    """Some prompts, evenly spread."""
    source: str
    """Name of the file or folder that the prompts came from."""
    probe: str
    """Digest of the sample's ids."""
    type: str
    """Type of the ids, uint16 or uint32."""
    checked: set[int] = field(default_factory=set, compare=False, repr=False)
    """Files whose digest was checked."""

    def __len__(self) -> int:
        return self.prompts

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return sum(group.prompts for group in self.groups)

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return sum(group.tokens for group in self.groups)

    @property
    def digest(self) -> str:
        """Digest of all files."""
        return sha256(json.dumps([digest for _, digest in self.files]).encode())

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a group's ids `[tokens]`, one prompt after another, and each prompt's length `[prompts]`.

        A file's digest is checked when it is read first. Raises ExciseError if it is missing or altered.
        """
        group = self.groups[number]
        name, digest = self.files[group.file]
        path = self.folder / name
        try:
            if group.file not in self.checked and sha256(path) != digest:
                raise ExciseError(f"{path} was altered or cut short; make the corpus again")
        except OSError as error:
            raise ExciseError(f"cannot read {path} ({error}); make the corpus again") from error
        self.checked.add(group.file)
        with parquet_file(path, "ids") as file:
            rows = file.read_row_group(group.number, columns=["ids"]).column(0).combine_chunks()
        ids = torch.from_numpy(rows.flatten().to_numpy(zero_copy_only=False).astype("int64"))
        lengths = torch.from_numpy(rows.value_lengths().to_numpy(zero_copy_only=False).astype("int64"))
        if (len(lengths), len(ids)) != (group.prompts, group.tokens):
            raise ExciseError(f"{path} does not have the prompts that {MANIFEST} lists; make the corpus again")
        return ids, lengths

    def check(self, pipe: Pipeline, component: str) -> None:
        """Raise ExciseError unless an encoder is CLIP's and would get these tokens for the sample of prompts."""
        if not is_clip(encoder_of(pipe, component)):
            raise ExciseError(
                f"{component} is not a CLIP text encoder: its states are worth storing; train it on --prompts"
            )
        if self.sample and probed(pipe, component, list(self.sample)) != self.probe:
            raise ExciseError(
                f"the corpus {self.folder} was tokenised for another tokenizer or length than {component}'s; "
                "make it again with this model"
            )


def load_corpus(folder: Path) -> Corpus:
    """Load a corpus that `build` wrote. Raises ExciseError if it is missing or unfinished."""
    try:
        found = read_json(folder / MANIFEST, TENSORS)
        if found["schema"] != SCHEMA:
            raise ValueError(f"its format is {found['schema']!r}")
        files: list[tuple[str, str]] = []
        groups: list[Group] = []
        for name, digest, counts in found["files"]:
            for number, (prompts, tokens) in enumerate(counts):
                groups.append(Group(len(files), number, int(prompts), int(tokens)))
            files.append((Path(str(name)).name, str(digest)))
        return Corpus(
            folder,
            str(found["component"]),
            int(found["positions"]),
            int(found["vocabulary"]),
            tuple(files),
            tuple(groups),
            tuple(map(str, found["sample"])),
            str(found["source"]),
            str(found["probe"]),
            str(found["type"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExciseError(
            f"{folder} holds no finished corpus ({error}); make one with `excise sae corpus --out {folder}`"
        ) from error


def probed(pipe: Pipeline, component: str, texts: list[str]) -> str:
    """Return a digest of the ids that some texts get."""
    ids, attention, _ = tokenise(pipe, component, texts)
    kept = [row[mask.bool()].tolist() for row, mask in zip(ids, attention, strict=True)]
    return sha256(json.dumps([ids.shape[1], kept]).encode())
