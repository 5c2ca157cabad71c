"""Features at text-encoder Sites from a stream of prompts, tokenised and padded exactly as the pipeline does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from excise.errors import ExciseError
from excise.pipeline import Pipeline
from excise.sites.activations.tokenising import tokenise
from excise.sites.encoding import Enough, call_defaults, encode_prompt
from excise.sites.language import LanguageModel, held
from excise.sites.site import Site, encoder_of, resolve, tokenizer_of
from excise.sites.truncation import warn_of_cuts


@dataclass(frozen=True)
class Features:
    """Features of one batch of prompts at all T positions (77 for CLIP), since the U-Net reads them all.

    For a language model, T is the length of the batch's longest prompt, and padding repeats a prompt's last state
    (`held`).
    """

    states: dict[Site, Tensor]
    """Hidden states `[B, T, d]` by Site, in the encoder's dtype and on its device."""
    ids: Tensor
    """Token ids `[B, T]`."""
    scored: Tensor
    """`[B, T]` bool: the positions that count when scoring neurons: words and EOS, not BOS, padding or a pipeline's
    own instruction."""
    kept: Tensor | None = None
    """`[B, T]` bool, on the CPU: the positions an SAE is trained on, or None for all. A denoiser reads padding too, but
    a sample of it suffices for training (`capture_by_length`). A language model reads none, and no denoiser an
    instruction that its pipeline puts before every prompt."""

    def vectors(self, site: Site) -> Tensor:
        """Return the vectors `[N, d]` that an SAE is trained on."""
        states = self.states[site].flatten(0, 1)
        if self.kept is None:
            return states
        # Indices are computed on the CPU, since on a GPU `nonzero` would synchronise.
        rows = self.kept.flatten().nonzero()[:, 0]
        return states.index_select(0, rows.to(states.device, non_blocking=True))

    def without_bos(self) -> Features:
        """Return the features with the first position kept only if it is a word.

        A causal encoder's first state (BOS) is the same in every prompt, is never edited, and is far from all others.
        An SAE trained on it would spend neurons and most of its loss on this one vector.
        """
        kept = torch.ones_like(self.scored, device="cpu") if self.kept is None else self.kept.clone()
        kept[:, 0] &= self.scored[:, 0].cpu()
        return replace(self, kept=kept)


def capture(pipe: Pipeline, sites: Iterable[Site], prompts: Iterable[str], batch_size: int = 64) -> Iterator[Features]:
    """Yield features of `prompts` at `sites` (all of one text encoder), batch by batch.

    Raises ExciseError if a Site is unknown, a width differs, or the Sites are in several encoders.
    """
    component, modules = located(pipe, sites)
    stream = iter(prompts)
    while batch := list(islice(stream, batch_size)):
        warn_of_cuts(pipe, batch)
        yield _read(pipe, component, modules, batch)


def located(pipe: Pipeline, sites: Iterable[Site]) -> tuple[str, dict[Site, nn.Module]]:
    """Return the name of the text encoder of `sites`, and their modules. Raise ExciseError as `capture` does."""
    wanted = list(dict.fromkeys(sites))
    components = sorted({site.component for site in wanted})
    if len(components) != 1:
        raise ExciseError(
            f"capture reads one text encoder at a time, not {components or 'none'}; call it once for each"
        )
    return components[0], {site: resolve(pipe, site) for site in wanted}


@torch.no_grad()
def run(pipe: Pipeline, component: str, batch: list[str]) -> tuple[Tensor, Tensor, Any]:
    """Run one text encoder on prompts as the pipeline does.

    Returns:
        Token ids and scored mask, each `[B, T]`, and the encoder's output, or None if a hook raised `Enough`.

    Raises:
        ExciseError: if the pipeline does not run the encoder, or passes it no token ids.
    """
    encoder = encoder_of(pipe, component)
    if isinstance(pipe, LanguageModel):
        ids, attention = pipe.tokenise(batch, pipe.positions)
        return ids, pipe.words(ids, attention), pipe.run(ids, attention)
    if is_clip(encoder):
        ids, attention, scored = tokenise(pipe, component, batch)
        return ids, scored, run_clip(encoder, ids, attention)
    # The pipeline takes care of templates, padding and masks.
    given: dict[str, Any] = {}

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given.update(zip(("input_ids", "attention_mask"), args, strict=False))
        given.update(kwargs)

    def behind(module: nn.Module, args: Any, output: Any) -> None:
        given.update(output=output)
        raise Enough

    handles = [encoder.register_forward_pre_hook(before, with_kwargs=True), encoder.register_forward_hook(behind)]
    try:
        with suppress(Enough):
            encode_prompt(pipe, batch)
    finally:
        for handle in handles:
            handle.remove()
    mask = given.get("attention_mask")
    if not isinstance(given.get("input_ids"), Tensor):
        raise ExciseError(f"{type(pipe).__name__} is not supported: it passes no token ids to {component}")
    ids = given["input_ids"].cpu()
    scored = mask.cpu().bool() if isinstance(mask, Tensor) else torch.ones_like(ids).bool()
    first = tokenizer_of(pipe, component).bos_token_id
    scored = scored & _read_by_the_denoiser(pipe, component, ids)
    return ids, scored if first is None else scored & (ids != first), given.get("output")


def _read_by_the_denoiser(pipe: Pipeline, component: str, ids: Tensor) -> Tensor:
    """Return `[B, T]` bool: all positions but those of the instruction that Sana's pipeline puts before each prompt.

    Of these the pipeline hands on the first one and the last one, which it takes to begin the prompt.
    """
    own = {} if is_clip(encoder_of(pipe, component)) else call_defaults(pipe)
    lines = own.get("complex_human_instruction")
    length = len(tokenizer_of(pipe, component).encode("\n".join(lines))) if lines else 0
    read = torch.ones_like(ids).bool()
    read[:, 1 : max(1, length - 1)] = False
    return read


@torch.no_grad()
def run_clip(encoder: nn.Module, ids: Tensor, attention: Tensor) -> Any:
    """Run a CLIP text encoder on token ids and attention mask `[B, T]`. Return None if a hook raised `Enough`."""
    device = next(encoder.parameters()).device
    use_mask = bool(getattr(getattr(encoder, "config", None), "use_attention_mask", False))
    with suppress(Enough):
        return encoder(
            ids.to(device, non_blocking=True),
            attention_mask=attention.to(device, non_blocking=True) if use_mask else None,
        )
    return None


@contextmanager
def listening(modules: dict[Site, nn.Module]) -> Iterator[dict[Site, Tensor]]:
    """Collect states `[B, T, d]` at Sites while an encoder runs, and stop it after the last Site.

    Raises ExciseError if a Site has another width, or did not run.

    Yields:
        The states by Site, filled by the run.
    """
    states: dict[Site, Tensor] = {}

    def keep(site: Site) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            state = output[0] if isinstance(output, tuple) else output
            if state.shape[-1] != site.width:
                raise ExciseError(
                    f"{site.key} has width {state.shape[-1]} here, not {site.width}; use a Site of this model"
                )
            states[site] = state.detach()
            if len(states) == len(modules):
                raise Enough

        return hook

    with ExitStack() as stack:
        for site, module in modules.items():
            stack.callback(module.register_forward_hook(keep(site)).remove)
        yield states
    missing = [site.key for site in modules if site not in states]
    if missing:
        raise ExciseError(f"the text encoder ran without {missing[0]}; choose another Site")


def _read(pipe: Pipeline, component: str, modules: dict[Site, nn.Module], batch: list[str]) -> Features:
    """Return the features of one batch. The encoder stops after the last Site."""
    with listening(modules) as states:
        if not isinstance(pipe, LanguageModel):
            ids, scored, _ = run(pipe, component, batch)
            read = _read_by_the_denoiser(pipe, component, ids.cpu())
            return Features(states, ids, scored, None if read.all() else read)
        ids, attention = pipe.tokenise(batch, pipe.positions)
        with suppress(Enough):
            pipe.run(ids, attention)
    scored = pipe.words(ids, attention)
    return Features({site: held(state, attention) for site, state in states.items()}, ids, scored, scored)


def is_clip(encoder: nn.Module) -> bool:
    """Whether it is a CLIP text encoder, which every pipeline pads alike and without a template."""
    return type(encoder).__name__.startswith("CLIPText")
