"""Reading of a corpus for a neuron database: codes on whole prompts, and each token's mean state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from excise.erasers.hooks.context import unedited
from excise.methods.prompt_codes import prompt_codes
from excise.neurons import PromptCodes
from excise.neurons.contexts import Context
from excise.neurons.database.database import NeuronDatabase
from excise.pipeline import Pipeline
from excise.sae import SAEConfig, TopKSAE
from excise.sites import Site, capture_by_length
from excise.sites.site import tokenizer_of
from excise.sites.tokens import pieces

CHUNK = 512
"""Prompts between two checkpoints of the reading."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Codes and mean states on a corpus of P prompts."""

    codes: PromptCodes
    tokens: list[list[str]]
    """`[P][T]`: the prompts' tokens as text, up to the last scored one."""
    seen: Tensor
    """`[U]`: the distinct ids of scored tokens."""
    means: Tensor
    """`[U, d]` float32: the mean state at each of these ids."""


def read_corpus(
    pipe: Pipeline,
    sae: TopKSAE,
    site: Site,
    prompts: Sequence[str],
    database: NeuronDatabase,
    batch_size: int = 64,
    progress: Callable[[int], Any] | None = None,
) -> Corpus:
    """Read the prompts with the unedited model, even if erasers are attached.

    Each chunk is stored in the database, and stored chunks are not read again. `progress` is called with the prompts
    done since its last call. Codes are computed at scored positions only and are 0 elsewhere.
    """
    kept = [safetensors.torch.load(data) for data in database.kept()]
    for start in range(0, len(prompts), CHUNK):
        if start // CHUNK >= len(kept):
            chunk = read_chunk(pipe, sae, site, prompts[start : start + CHUNK], batch_size)
            database.keep(start // CHUNK, safetensors.torch.save(chunk))
            kept.append(chunk)
        if progress is not None:
            progress(len(kept[start // CHUNK]["ids"]))
    return combined(pipe, sae.config, site, kept)


def combined(pipe: Pipeline, config: SAEConfig, site: Site, kept: Sequence[Mapping[str, Tensor]]) -> Corpus:
    """Return the corpus of all chunks."""
    longest = max(chunk["ids"].shape[1] for chunk in kept)
    ids, scored, values, indices = (
        torch.cat([_padded(chunk[name], longest) for chunk in kept]) for name in ("ids", "scored", "values", "indices")
    )
    seen, place = torch.unique(torch.cat([chunk["seen"] for chunk in kept]), return_inverse=True)
    sums = torch.zeros(len(seen), config.d, dtype=torch.float64)
    sums.index_add_(0, place, torch.cat([chunk["sums"] for chunk in kept]).double())
    counts = torch.zeros(len(seen), dtype=torch.float64)
    counts.index_add_(0, place, torch.cat([chunk["counts"] for chunk in kept]).double())
    tokenizer = tokenizer_of(pipe, site.component)
    ends = (scored * torch.arange(1, longest + 1)).amax(1).tolist()
    tokens = [pieces(tokenizer, row[:end]) for row, end in zip(ids.tolist(), ends, strict=True)]
    codes = PromptCodes(values, indices, scored, config.m)
    return Corpus(codes, tokens, seen.long(), (sums / counts[:, None]).float())


def contexts_of_neuron(pipe: Pipeline, sae: TopKSAE, site: Site, neuron: int, prompts: Sequence[str]) -> list[Context]:
    """Return one neuron's codes on prompts, as contexts."""
    codes, ids = prompt_codes(pipe, sae, site, prompts)
    tokenizer = tokenizer_of(pipe, site.component)
    of_neuron = (codes.values * (codes.indices == neuron)).sum(-1)
    found = []
    for row, scored, values in zip(ids.tolist(), codes.scored, of_neuron, strict=True):
        kept = scored.nonzero()[:, 0].tolist()
        text = pieces(tokenizer, row)
        found.append(Context(tuple(text[t] for t in kept), tuple(float(values[t]) for t in kept)))
    return found


@torch.no_grad()
def read_chunk(pipe: Pipeline, sae: TopKSAE, site: Site, prompts: Sequence[str], batch_size: int) -> dict[str, Tensor]:
    """Read one chunk: ids and scored `[P, T]`, values and indices `[P, T, k]`, and sums of states by token."""
    parts: list[dict[str, Tensor]] = []
    order: list[int] = []
    flat, states = [], []
    with unedited():
        for numbers, batch in capture_by_length(pipe, [site], prompts, batch_size):
            ids, scored, h = batch.ids.cpu(), batch.scored.cpu(), batch.states[site]
            kept = h[scored.to(h.device)].to(sae.W_enc)
            codes = sae.encode(kept)
            values = torch.zeros(*ids.shape, sae.config.k)
            indices = torch.zeros(*ids.shape, sae.config.k, dtype=torch.int32)
            values[scored], indices[scored] = codes.values.cpu().float(), codes.indices.cpu().int()
            parts.append({"ids": ids.int(), "scored": scored, "values": values, "indices": indices})
            order += numbers
            flat.append(ids[scored])
            states.append(kept.float().cpu())
    longest = max(part["ids"].shape[1] for part in parts)
    back = torch.tensor(order).argsort()
    whole = {name: torch.cat([_padded(part[name], longest) for part in parts])[back] for name in parts[0]}
    seen, place, counts = torch.unique(torch.cat(flat), return_inverse=True, return_counts=True)
    sums = torch.zeros(len(seen), sae.config.d).index_add_(0, place, torch.cat(states))
    return {**whole, "seen": seen.int(), "counts": counts.int(), "sums": sums}


def _padded(batch: Tensor, longest: int) -> Tensor:
    """Pad `[P, T, ...]` with zeros to T = `longest`."""
    missing = longest - batch.shape[1]
    return F.pad(batch, (0, 0, 0, missing) if batch.dim() == 3 else (0, missing))
