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
from excise.errors import EraserDidNotFire, InvalidSetting, WrongModel

from .injection import KEY, Applied, Injection, add_to, check_strength
from .layouts import PADDED, layout_of, module_at, name_of, parts_of
from .weights import differences

log = logging.getLogger("excise")


def applied(clip: Any, eraser: Artefact, strength: float = 1.0, strict: bool = True, shared: Any = ()) -> Any:
    """Return a copy of `clip` with an eraser, next to those it has.

    Args:
        clip: ComfyUI's CLIP. It is not changed.
        eraser: An eraser with edits of text encoders.
        strength: From 0 to 2; 1 is the strength of the fit.
        strict: Refuse other weights than those of the fit, LoRAs on the text encoder, a clip skip to before the edit,
            prompts of T5 of another length, and an eraser whose canary prompts change too little.
        shared: Known vectors that must know what is encoded too.

    Raises:
        ExciseError: The eraser does not fit, or one of the above.
    """
    check_strength(strength)
    refuse_unfit(clip.patcher.model, eraser)
    if different := differences(clip.patcher, eraser):
        message = f"eraser {eraser.name!r} was made for another model: {'; '.join(different)}"
        if strict:
            raise WrongModel(f"{message}; use an eraser of this model, or switch strict off to try it")
        log.warning("%s", message)
    each = Applied(eraser, strength, strict)
    if strength:
        erased, plain = (_with(clip, (replace(each, strength=amount),)) for amount in (1.0, 0.0))
        prove(erased, plain, each)
    before = clip.patcher.get_attachment(KEY)
    others = before.items if before is not None else ()
    if any(other.eraser.digest == eraser.digest for other in others):
        raise InvalidSetting(f"eraser {eraser.name!r} is applied twice; set its strength in one node")
    return _with(clip, (*others, each), (*(before.shared if before is not None else ()), *shared))


def refuse_unfit(model: Any, eraser: Artefact) -> None:
    """Raise ExciseError if the eraser cannot act in this text encoder, or leaves a part of it open."""
    if not eraser.text_edits:
        raise InvalidSetting(f"eraser {eraser.name!r} edits no text encoder; use Apply Eraser to Model")
    if eraser.denoisers:
        raise InvalidSetting(f"eraser {eraser.name!r} edits text encoder and denoiser at once; ComfyUI cannot apply it")
    layout = layout_of(model)
    edited = {edit.site.component for edit in eraser.text_edits}
    if missing := sorted(edited - set(layout)):
        raise WrongModel(f"this CLIP has no {', '.join(missing)}, which eraser {eraser.name!r} edits; use its model")
    if left := sorted(set(parts_of(model)) - edited):
        raise WrongModel(
            f"this CLIP also reads {', '.join(left)}, which eraser {eraser.name!r} does not edit; the concept would "
            "pass through there: fit an eraser for every text encoder"
        )
    for edit in eraser.text_edits:
        if edit.needs_sae:
            raise InvalidSetting(f"eraser {eraser.name!r} needs its whole SAE; fit one with gate=whole for ComfyUI")
        if (part := layout[edit.site.component]) is not None:
            module_at(part, edit.site.path)


def _with(clip: Any, items: tuple[Applied, ...], shared: Any = ()) -> Any:
    """Return a copy of `clip` with exactly these erasers."""
    made = clip.clone()
    patcher, injection = made.patcher, Injection(items, shared=tuple(dict.fromkeys(shared)))
    before = patcher.get_attachment(KEY)
    injection.own_patches.update(_change_weights(patcher, items, before))
    for key in [key for key in patcher.injections if key == KEY or key.startswith(f"{KEY}.")]:
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
    """Add the erasers' changes of weights that `before` does not have. Return the number of changes by weight."""
    counted: dict[str, int] = {}
    there = {(other.eraser.digest, other.strength) for other in (before.items if before is not None else ())}
    for each in items:
        for edit in each.eraser.text_edits:
            if not isinstance(edit, WeightEdit) or (part := layout_of(patcher.model)[edit.site.component]) is None:
                continue
            name, _ = module_at(part, edit.site.path)
            key = f"{name_of(patcher.model, part)}.{name}.weight"
            weight = patcher.model.state_dict()[key]
            counted[key] = counted.get(key, 0) + 1
            if (each.eraser.digest, each.strength) not in there:
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
