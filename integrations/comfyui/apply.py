"""Erasers on ComfyUI's CLIP: checked, injected, and proved with their canary prompts."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from excise.erasers.artefact.canary import SHIFT_SHARE, shift
from excise.erasers.artefact.record import Artefact
from excise.erasers.edits.weights import WeightEdit
from excise.erasers.hooks.known_vectors import KnownVectors
from excise.errors import EraserDidNotFire, InvalidSetting, WrongModel

from .injection import KEY, Applied, Injection, add_to, check_strength, is_own
from .layouts import PADDED, layout_of, module_at, name_of, parts_of
from .weights import differences

log = logging.getLogger("excise")
SHARE = 0.25
"""A CLIP's share of the memory for known vectors."""
LEDGERS = 16
"""Maximal number of combinations of erasers whose known vectors outlive their CLIP."""
_ledgers: dict[tuple[tuple[str, float], ...], KnownVectors] = {}


def applied(clip: Any, eraser: Artefact, strength: float = 1.0, strict: bool = True, shared: Any = ()) -> Any:
    """Return a copy of `clip` with an eraser, next to those it has.

    Args:
        clip: ComfyUI's CLIP. It is not changed.
        eraser: An eraser with edits of text encoders.
        strength: From 0 to 2; 1 is the strength of the fit.
        strict: Refuse other weights than those of the fit, LoRAs on the text encoder, a clip skip to before the edit,
            prompts of T5 of another length, and an eraser whose canary prompts change too little.
        shared: Known vectors of a service that enforces the eraser, which must know what is encoded too.

    Raises:
        ExciseError: The eraser does not fit, or one of the above.
    """
    check_strength(strength)
    before = clip.patcher.get_attachment(KEY)
    others = before.items if before is not None else ()
    if same := [other for other in others if other.eraser.digest == eraser.digest]:
        if not same[0].enforced:
            raise InvalidSetting(f"eraser {eraser.name!r} is applied twice; set its strength in one node")
        if strength > same[0].strength:
            most = f"{same[0].strength:g}"
            raise InvalidSetting(
                f"eraser {eraser.name!r} is enforced at strength {most}; set at most {most} in the node"
            )
        return clip
    refuse_unfit(clip.patcher.model, eraser)
    if different := differences(clip.patcher, eraser):
        message = f"eraser {eraser.name!r} was made for another model: {'; '.join(different)}"
        if strict:
            raise WrongModel(f"{message}; use an eraser of this model, or switch strict off to try it")
        log.warning("%s", message)
    each = Applied(eraser, strength, strict, enforced=bool(shared))
    if strength:
        erased, plain = (_with(clip, (replace(each, strength=amount),)) for amount in (1.0, 0.0))
        prove(erased, plain, each)
    items = (*others, each)
    return _with(clip, items, (*(before.shared if before is not None else ()), *shared), ledger(items))


def components(eraser: Artefact) -> set[str]:
    """Return the text encoders that an eraser edits, by their names in diffusers."""
    return {edit.site.component for edit in eraser.text_edits}


def refuse_kind(eraser: Artefact) -> None:
    """Raise InvalidSetting if ComfyUI can apply the eraser to no CLIP."""
    if not eraser.text_edits:
        raise InvalidSetting(f"eraser {eraser.name!r} edits no text encoder; use Apply Eraser to Model")
    if eraser.denoisers:
        raise InvalidSetting(f"eraser {eraser.name!r} edits text encoder and denoiser at once; ComfyUI cannot apply it")
    for edit in eraser.text_edits:
        if edit.needs_sae:
            raise InvalidSetting(f"eraser {eraser.name!r} needs its whole SAE; fit one with gate=whole for ComfyUI")
        if edit.uncond == "flip":
            raise InvalidSetting(
                f"eraser {eraser.name!r} edits negative prompts with the opposite sign (uncond=flip), and a CLIP does "
                "not know which prompt is negative; fit one with uncond=none for ComfyUI"
            )


def refuse_unfit(model: Any, eraser: Artefact) -> None:
    """Raise ExciseError if the eraser cannot act in this text encoder, or leaves a part of it open."""
    refuse_kind(eraser)
    layout = layout_of(model)
    edited = components(eraser)
    if missing := sorted(edited - set(layout)):
        raise WrongModel(f"this CLIP has no {', '.join(missing)}, which eraser {eraser.name!r} edits; use its model")
    if left := sorted(set(parts_of(model)) - edited):
        raise WrongModel(
            f"this CLIP also reads {', '.join(left)}, which eraser {eraser.name!r} does not edit; the concept would "
            "pass through there: fit an eraser for every text encoder"
        )
    for edit in eraser.text_edits:
        if (part := layout[edit.site.component]) is not None:
            module_at(part, edit.site.path)


def ledger(items: tuple[Applied, ...]) -> KnownVectors:
    """Return known vectors for a CLIP with these erasers. If all are strict, those of an earlier CLIP with the same.

    ComfyUI may forget a CLIP and keep a conditioning that it made: the CLIP that comes next must know it. A strict
    eraser lets only the weights of its fit encode, so the erasers and their strengths decide the states.
    """
    if not all(each.strict for each in items):
        return KnownVectors(SHARE)
    key = tuple(sorted((each.eraser.digest, each.strength) for each in items))
    known = _ledgers.pop(key, None) or KnownVectors(SHARE)
    _ledgers[key] = known
    while len(_ledgers) > LEDGERS:
        del _ledgers[next(iter(_ledgers))]
    return known


def _with(clip: Any, items: tuple[Applied, ...], shared: Any = (), known: KnownVectors | None = None) -> Any:
    """Return a copy of `clip` with exactly these erasers."""
    made = clip.clone()
    patcher = made.patcher
    injection = Injection(items, known or KnownVectors(SHARE), tuple(dict.fromkeys(shared)))
    before = patcher.get_attachment(KEY)
    injection.own_patches.update(_change_weights(patcher, items, before))
    for key in [*filter(is_own, patcher.injections)]:
        patcher.remove_injections(key)
    patcher.set_attachments(KEY, injection)
    add_to(patcher, injection)
    for component, length in _lengths(made.patcher.model, items).items():
        made.set_tokenizer_option(f"{component}_min_length", length)
    return made


def _lengths(model: Any, items: tuple[Applied, ...]) -> dict[str, int]:
    """Return the lengths to pad prompts to, by the part's name in ComfyUI."""
    found: dict[str, int] = {}
    for component, part in parts_of(model).items():
        for each in items:
            length = each.eraser.made_for.get("lengths", {}).get(component)
            if (name := name_of(model, part)) not in PADDED or length is None:
                continue
            if found.setdefault(name, length) != length:
                raise InvalidSetting(
                    f"two erasers were fitted at {found[name]} and {length} tokens; fit both at one length"
                )
    return found


def _change_weights(patcher: Any, items: tuple[Applied, ...], before: Injection | None) -> dict[str, int]:
    """Add the erasers' changes of weights that `before` does not have.

    Returns:
        The number of changes by weight, with those of `before`, which the patcher keeps, and without strength 0.
    """
    counted: dict[str, int] = {}
    old = before.items if before is not None else ()
    there = {(other.eraser.digest, other.strength) for other in old}
    new = [each for each in items if (each.eraser.digest, each.strength) not in there]
    for each in (*old, *new):
        for edit in each.eraser.text_edits:
            if not isinstance(edit, WeightEdit) or (part := layout_of(patcher.model)[edit.site.component]) is None:
                continue
            name, _ = module_at(part, edit.site.path)
            key = f"{name_of(patcher.model, part)}.{name}.weight"
            weight = patcher.model.state_dict()[key]
            counted[key] = counted.get(key, 0) + bool(each.strength)
            if each in new:
                patcher.add_patches({key: ("diff", (edit.of(weight),))}, each.strength)
    return counted


@torch.no_grad()
def prove(erased: Any, plain: Any, each: Applied) -> None:
    """Raise EraserDidNotFire unless the eraser at strength 1 moves what its canary prompts encode to."""
    least = SHIFT_SHARE * each.eraser.canary_shift if each.strict else 0.0
    for prompt in each.eraser.canary:
        edited, before = _encoded(erased, prompt), _encoded(plain, prompt)
        by = shift(edited[0], before[0])
        if by <= 0 or by < least or not all(map(shift, edited, before)):
            raise EraserDidNotFire(
                f"eraser {each.eraser.name!r} changes the states of its canary prompt by {by:.3g}, which should be "
                f"{each.eraser.canary_shift:.3g}; it does not work with this text encoder as it is wired"
            )


def _encoded(clip: Any, prompt: str) -> list[Tensor]:
    """Return the states and, if there is one, the pooled state that a model reads for a prompt."""
    made = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)
    return [made[name] for name in ("cond", "pooled_output") if made[name] is not None]
