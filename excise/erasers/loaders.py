"""Erasers on a pipeline by name, in the words of diffusers' adapters: load, set, enable, disable, list, unload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from excise.erasers.artefact.files import eraser_folders
from excise.erasers.artefact.signing import Signer
from excise.erasers.attachment import Attachment
from excise.erasers.eraser import Eraser
from excise.erasers.guard.encode_prompt import Guard
from excise.erasers.guard.near import attachments_near
from excise.erasers.hooks import context
from excise.erasers.hooks.context import ERASED, SPARED
from excise.erasers.hooks.edit_hook import EditHook
from excise.erasers.several import Attachments, load_erasers
from excise.errors import EraserDidNotFire, ExciseError
from excise.sites.encoding import encode_prompt, tensors_of


def load_eraser(
    pipe: Any,
    source: Path | str,
    name: str | None = None,
    *,
    signed_by: Signer | None = None,
    require_signature: bool = False,
    **options: Any,
) -> Attachment | Attachments:
    """Attach the eraser saved at `source`, a folder or a repository on the hub, and call it `name` (else its own name).

    `signed_by` is whose signature it must bear; `options` are those of `Eraser.attach`. What comes back is a context
    manager too: leaving it unloads the eraser. Of a folder of erasers, such as `excise erase gun,knife --out erasers`
    makes, all are attached or none, each by its own name.
    Raises ExciseError where the name is taken, the eraser cannot be read, or does not belong to the pipeline;
    EraserDidNotFire where it changes nothing.
    """
    folders = eraser_folders(Path(source))
    if folders != [Path(source)]:
        if name is not None and len(folders) > 1:
            raise ExciseError(f"{source} holds {len(folders)} erasers, which keep their own names; leave `name` out")
        if len(folders) > 1:
            loaded = load_erasers(folders, signed_by=signed_by, require_signature=require_signature)
            return Attachments.of(pipe, loaded, **options)
        source = folders[0]
    eraser = Eraser.from_pretrained(source, signed_by=signed_by, require_signature=require_signature)
    return eraser.attach(pipe, name=name, **options)


def encode(pipe: Any, how: Callable[..., Any] | str, *args: Any, negative: bool = False, **kwargs: Any) -> Any:
    """Encode a prompt elsewhere than in `pipe.encode_prompt` (a prompt weighting such as compel's) so that its states
    may be rendered: what `how(*args, **kwargs)` gives comes back, and counts as made under the loaded erasers.

    `how` must run the pipeline's own text encoders; a text instead of it is what `pipe.encode_prompt` is given. With
    `negative` it is a negative prompt, and treated as one given as text is: by default nothing is erased from it, and
    it may be drawn beside a prompt and nowhere else. Raises EraserDidNotFire where an active eraser's edit did not run
    meanwhile.
    """
    with context.negative(pipe) if negative else nullcontext():
        if isinstance(how, str):
            return encode_prompt(pipe, how, *args, **kwargs)
        if isinstance(how, Guard):  # it knows which of the states are the prompt's
            return how(*args, **kwargs)
        return _encoded(pipe, lambda: how(*args, **kwargs))


def _encoded(pipe: Any, how: Callable[[], Any]) -> Any:
    active = [attachment for attachment in _loaded(pipe).values() if attachment.active]
    before = [(a, a.epoch, [(hook, hook.runs) for hook in a.encoding.text_hooks]) for a in active]
    spared, erased = getattr(SPARED, "runs", 0), getattr(ERASED, "runs", 0)
    made = how()
    for attachment, _, runs in before:
        _refuse_unedited(attachment, runs, made)
    # What one eraser spared is a prompt's to none of them: their ledger is the same.
    uncond = {edit.uncond for attachment in active for edit in attachment.eraser.text_edits}
    spares = getattr(SPARED, "runs", 0) > spared or (context.is_negative() and bool(uncond - {"same"}))
    touched = getattr(ERASED, "runs", 0) > erased and not spares
    for attachment, epoch, _ in before:
        attachment.trust(tensors_of(made), epoch, spared=spares, erased=touched)
    return made


def _refuse_unedited(attachment: Attachment, runs: list[tuple[EditHook, int]], made: Any) -> None:
    """Raises EraserDidNotFire unless every edit of the attachment's text encoders ran again since it had run so often
    as `runs` says, and nothing in `made` can come from an encoder that it was attached without."""
    name, encoding = attachment.name, attachment.encoding
    if attachment.eraser.text_edits and not (runs and encoding.active):
        raise EraserDidNotFire(
            f"eraser {name!r} edits no text encoder of this pipeline or of the one that encodes for it; encode where "
            "it is attached and active"
        )
    for hook, n in runs:
        if hook.runs == n:
            raise EraserDidNotFire(
                f"eraser {name!r} saw no text-encoder run at {hook.edit.site.key}; encode with the pipeline's own text "
                "encoders, so that it can act"
            )
    if encoding.absent and not attachment.knows(tensors_of(made)):
        raise EraserDidNotFire(
            f"eraser {name!r} is attached without {', '.join(encoding.absent)}, so these states need not come from "
            "encoders that it edits; only what those give, without weights on words, may be rendered here"
        )


def unload_eraser(pipe: Any, name: str | None = None) -> None:
    """Take the eraser off again, or all of them: without one the pipeline draws bit for bit what it drew before.

    Raises ExciseError for an unknown name.
    """
    for attachment in _named(pipe, None if name is None else [name]):
        attachment.detach()


def set_erasers(pipe: Any, names: Sequence[str] | str, strengths: Sequence[float] | float = 1.0) -> None:
    """Make exactly these erasers active, at these strengths; the others stay loaded and edit nothing.

    Raises ExciseError for an unknown name, an impossible strength, or another number of strengths than names; then
    nothing is changed.
    """
    names = [names] if isinstance(names, str) else list(names)
    values = [float(strengths)] * len(names) if isinstance(strengths, int | float) else [float(s) for s in strengths]
    if len(values) != len(names):
        raise ExciseError(f"{len(names)} erasers but {len(values)} strengths; give one each, or one for all")
    chosen = _named(pipe, names)
    for attachment, value in zip(chosen, values, strict=True):
        attachment.check_strength(value)
    for attachment in _loaded(pipe).values():
        attachment.enabled = attachment in chosen
    for attachment, value in zip(chosen, values, strict=True):
        attachment.strength = value


def enable_erasers(pipe: Any) -> None:
    """Let every loaded eraser edit, at the strength it has."""
    for attachment in _loaded(pipe).values():
        attachment.enabled = True


def disable_erasers(pipe: Any) -> None:
    """Let no loaded eraser edit; they stay loaded."""
    for attachment in _loaded(pipe).values():
        attachment.enabled = False


def list_erasers(pipe: Any) -> dict[str, dict[str, Any]]:
    """Every loaded eraser's status by name, in the order they were loaded."""
    return {name: attachment.status() for name, attachment in _loaded(pipe).items()}


def get_active_erasers(pipe: Any) -> list[str]:
    """Names of the erasers that edit prompts now."""
    return [name for name, attachment in _loaded(pipe).items() if attachment.active]


def steer_guidance(pipe: Any) -> bool:
    """Whether an active eraser works within classifier-free guidance, so that its U-Net runs for a prompt and for
    none in one batch only."""
    active = [attachment for attachment in _loaded(pipe).values() if attachment.active]
    return any(edit.kind == "guidance" for attachment in active for edit in attachment.eraser.edits)


def _loaded(pipe: Any) -> dict[str, Attachment]:
    """The erasers that act on `pipe`, whether they were attached to it or to a pipeline of the same components."""
    return {
        attachment.name: attachment
        for attachment in attachments_near(pipe)
        if isinstance(attachment, Attachment) and attachment.acts_on(pipe)
    }


def _named(pipe: Any, names: Sequence[str] | None) -> list[Attachment]:
    loaded = _loaded(pipe)
    for name in names or ():
        if name not in loaded:
            raise ExciseError(f"no eraser called {name!r} is loaded; loaded are {', '.join(loaded) or 'none'}")
    return [loaded[name] for name in (loaded if names is None else names)]
