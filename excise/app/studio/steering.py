"""One neuron turned up or down in one prompt, as an eraser that is attached for that prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from excise.app.audit.inputs import benign_prompts
from excise.app.audit.reading import contexts_of
from excise.app.models.resolve import sae_site
from excise.app.studio.studio import Studio
from excise.concepts.everyday import everyday
from excise.erasers import Eraser, SAEEdit, made_for
from excise.erasers.hooks.context import unedited
from excise.errors import InvalidSetting
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry
from excise.sae import TopKSAE
from excise.sites import Site, capture
from excise.sites.site import tokenizer_of

PROMPTS, CONTEXTS = 200, 5
"""Without a database: prompts that neurons are read on, and how many are shown of one."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A neuron to turn in a prompt: the eraser, and the codes `[T]` that it subtracts at strength 1."""

    eraser: Eraser
    codes: Tensor


@torch.no_grad()
def prompt_codes(studio: Studio, site: Site, prompt: str, neuron: int) -> Tensor:
    """Return the neuron's TopK codes `[T]` at all T positions of the prompt."""
    with unedited():
        (features,) = capture(studio.pipe, [site], [prompt])
    values, indices = studio.sae.encode(features.states[site][0].to(studio.sae.W_enc))
    return (values * (indices == neuron)).sum(-1).cpu()


def turn_down(studio: Studio, prompt: str, neuron: int) -> Turn | None:
    """Return what subtracts all that the neuron writes in this prompt; None if it is silent there."""
    site = site_of(studio)
    codes = prompt_codes(studio, site, prompt, neuron)
    codes[0] = codes[0] * (not _begins_with_bos(studio, site))
    return Turn(_eraser(studio, site, neuron, codes), codes) if bool((codes > 0).any()) else None


def turn_up(studio: Studio, prompt: str, neuron: int) -> Turn:
    """Return what adds the neuron's usual peak to every state of the prompt, if attached at strength -1.

    Raises:
        InvalidSetting: The neuron's usual peak is unknown, because it is silent on all prompts at hand.
    """
    site = site_of(studio)
    codes = torch.full_like(prompt_codes(studio, site, prompt, neuron), usual_peak(studio, neuron))
    if _begins_with_bos(studio, site):
        codes[0] = 0.0  # the first state is the same in every prompt, and no eraser edits it
    return Turn(_eraser(studio, site, neuron, codes), codes)


def site_of(studio: Studio) -> Site:
    """Return the Site of the studio's SAE. Raises ExciseError if its card names none."""
    sae = studio.sae  # first, so that the message says that the SAE is missing
    assert isinstance(sae, TopKSAE) and studio.sae_folder is not None
    return sae_site(studio.pipe, studio.sae_folder)


def usual_peak(studio: Studio, neuron: int) -> float:
    """Return a neuron's largest code on a corpus.

    Raises:
        InvalidSetting: It is silent there.
        ExciseError: As `known`.
    """
    entry, corpus = known(studio, neuron)
    if not entry.peak:
        raise InvalidSetting(
            f"neuron {neuron} fires in none of {corpus}, so its usual level is unknown; choose another one"
        )
    return entry.peak


def known(studio: Studio, neuron: int) -> tuple[Entry, str]:
    """Return what is known about a neuron, and the corpus it was read on: the database's, or a few benign prompts.

    Raises:
        ExciseError: The database does not list it.
    """
    if studio.database is not None:
        with NeuronDatabase.open(studio.database) as database:
            return database.neuron(neuron), database.provenance.corpus
    with studio.lock:
        if studio.contexts is None:
            prompts, corpus = _benign(studio)
            edit = SAEEdit.from_sae(studio.sae, site_of(studio), [0])
            studio.contexts = contexts_of(studio.pipe, edit, studio.sae, prompts), corpus
    contexts, corpus = studio.contexts
    _, peaks = contexts.peaks(neuron)
    density, peak = float(contexts.density[neuron]), float(peaks.max()) if len(peaks) else 0.0
    return Entry(neuron, density, peak, contexts=tuple(contexts.top(neuron, CONTEXTS))), corpus


def _benign(studio: Studio) -> tuple[list[str], str]:
    if not studio.bundled and studio.benign is None:
        return everyday(PROMPTS), f"{PROMPTS} everyday prompts"
    found = benign_prompts((), studio.benign, bundled=studio.bundled, count=PROMPTS)
    return list(found.prompts), f"{len(found.prompts)} prompts ({found.source})"


def _eraser(studio: Studio, site: Site, neuron: int, codes: Tensor) -> Eraser:
    edit = SAEEdit.from_sae(studio.sae, site, [neuron], source="concept", concept_codes=codes[:, None].float())
    name = f"neuron {neuron}"
    return Eraser((edit,), name, name, (), made_for(studio.pipe), canary=("a picture",))


def _begins_with_bos(studio: Studio, site: Site) -> bool:
    return getattr(tokenizer_of(studio.pipe, site.component), "bos_token_id", None) is not None


def checked_neuron(studio: Studio, value: object) -> int:
    """Return a neuron's number. Raises InvalidSetting if the SAE has no such neuron."""
    m = studio.sae.config.m
    if not isinstance(value, (int, float)) or value not in range(m):
        raise InvalidSetting(f"the SAE has {m:,} neurons, numbered from 0 to {m - 1}; give one of these numbers")
    return int(value)
