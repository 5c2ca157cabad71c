"""Erasers on a pipeline by name, in the words of diffusers' adapters: load, set, enable, disable, list, delete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from numbers import Real
from typing import TYPE_CHECKING, Any

from excise.erasers.artefact.files import FILES, SIGNATURE, eraser_folders
from excise.erasers.artefact.signing import Signer
from excise.erasers.attachment import Attachment, OnBypass
from excise.erasers.eraser import Eraser, StrPath
from excise.erasers.guard.encode_prompt import Guard
from excise.erasers.guard.near import attachments_near
from excise.erasers.hooks import context
from excise.erasers.hooks.context import ERASED, SPARED
from excise.erasers.hooks.edit_hook import EditHook
from excise.erasers.several import Attachments, load_erasers
from excise.errors import EraserDidNotFire, InvalidSetting, NotFound
from excise.hub import fetch
from excise.pipeline import check_pipeline
from excise.sites.encoding import encode_prompt, tensors_of

if TYPE_CHECKING:
    from excise.pipeline import Pipeline
    from excise.sae import TopKSAE


def load_eraser(
    pipe: Pipeline,
    source: StrPath,
    name: str | None = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    cache_dir: StrPath | None = None,
    local_files_only: bool = False,
    strength: float = 1.0,
    strict: bool = True,
    sae: TopKSAE | None = None,
    on_bypass: OnBypass | None = None,
    allow_amplify: bool = False,
    signed_by: Signer | None = None,
    require_signature: bool = False,
) -> Attachment | Attachments:
    """Load an eraser and attach it to a pipeline.

    Of a folder of erasers, such as `excise erase gun,knife --out erasers` makes, all are attached or none, each by its
    own name.

    Args:
        pipe: The pipeline it was made for.
        source: A folder, or `OWNER/NAME` on the hub.
        name: A name for it on this pipeline, by default its own.
        revision: A branch, a tag, or best a commit of the repository on the hub.
        subfolder: Folder within the folder or repository that holds the eraser.
        token: The hub's access token, by default the one of `hf auth login`.
        cache_dir: The hub's cache, by default its own.
        local_files_only: Use the hub's cache alone.
        strength: Factor on the eraser's own strength: 1 is as it was made, 0 changes nothing.
        strict, sae, on_bypass, allow_amplify: As for `Eraser.attach`.
        signed_by: Whose signature it must bear.
        require_signature: Refuse where `signed_by` is None.

    Returns:
        The attachment (of a folder of erasers, the attachments): a context manager that unloads on leaving. Its
        `commit` is the commit that a branch or tag was resolved to.

    Raises:
        NotFound: where there is no such eraser.
        Tampered: where its files are incomplete, altered, or not signed as required.
        WrongModel: where it was made for another pipeline.
        InvalidSetting: where the name is taken, or a setting is impossible.
        EraserDidNotFire: where it changes nothing.

    Example:
        >>> excise.load_eraser(pipe, "owner/gun-eraser", name="gun", revision="6ba7b81", strength=0.8)
    """
    check_pipeline(pipe)
    found = fetch(
        source,
        (*FILES, SIGNATURE),
        "eraser",
        revision=revision,
        subfolder=subfolder,
        token=token,
        local_files_only=local_files_only,
        cache_dir=cache_dir,
    )
    folders = eraser_folders(found.folder)
    if len(folders) > 1:
        if name is not None:
            raise InvalidSetting(f"{source} holds {len(folders)} erasers, which keep their own names; leave `name` out")
        loaded = load_erasers(folders, signed_by=signed_by, require_signature=require_signature)
    else:
        eraser = Eraser.load(folders[0], signed_by=signed_by, require_signature=require_signature)
        object.__setattr__(eraser, "commit", found.commit)
        return eraser.attach(
            pipe, strength, strict, sae=sae, name=name, on_bypass=on_bypass, allow_amplify=allow_amplify
        )
    return Attachments.of(
        pipe, loaded, strength=strength, strict=strict, sae=sae, on_bypass=on_bypass, allow_amplify=allow_amplify
    )


def encode(pipe: Pipeline, how: Callable[..., Any] | str, *args: Any, negative: bool = False, **kwargs: Any) -> Any:
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


def _encoded(pipe: Pipeline, how: Callable[[], Any]) -> Any:
    active = [attachment for attachment in _loaded(pipe).values() if attachment.active]
    before = [(a, a.epoch, [(hook, hook.runs) for hook in a.encoding.text_hooks]) for a in active]
    spared, erased = getattr(SPARED, "runs", 0), getattr(ERASED, "runs", 0)
    made = how()
    for attachment, _, runs in before:
        _refuse_unedited(attachment, runs, made)
    # What one eraser spared is a prompt's to none of them: all of them share one set of known vectors.
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


def unload_eraser(pipe: Pipeline, name: str | None = None) -> None:
    """Take an eraser off a pipeline, or all of them. Without one it draws bit for bit what it drew before.

    Args:
        pipe: The pipeline.
        name: The eraser's name on it; None for all.

    Raises:
        NotFound: where no eraser of that name is loaded.

    Example:
        >>> excise.unload_eraser(pipe, "gun")
    """
    for attachment in _named(pipe, None if name is None else _names(name)):
        attachment.detach()


def delete_erasers(pipe: Pipeline, names: Sequence[str] | str) -> None:
    """Take these erasers off a pipeline; the others stay as they are.

    Args:
        pipe: The pipeline.
        names: Names of loaded erasers, or one name.

    Raises:
        NotFound: where no eraser of one of the names is loaded; then none is taken off.

    Example:
        >>> excise.delete_erasers(pipe, ["gun", "knife"])
    """
    for attachment in _named(pipe, _names(names)):
        attachment.detach()


def set_erasers(pipe: Pipeline, names: Sequence[str] | str, strengths: Sequence[float] | float = 1.0) -> None:
    """Make exactly these erasers active, at these strengths. The others stay loaded and change nothing.

    Args:
        pipe: The pipeline.
        names: Names of loaded erasers, or one name; none of them for `[]`.
        strengths: A factor on each eraser's own strength, or one for all.

    Raises:
        NotFound: where no eraser of one of the names is loaded.
        InvalidSetting: for an impossible strength, or another number of strengths than names. Either way nothing is
            changed.

    Example:
        >>> excise.set_erasers(pipe, ["gun", "knife"], [1.0, 0.5])
    """
    wanted = _names(names)
    given: Any = [strengths] * len(wanted) if isinstance(strengths, Real) else strengths
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidSetting(f"strengths are numbers, not {strengths!r}")
    values = list(given)
    if len(values) != len(wanted):
        raise InvalidSetting(f"{len(wanted)} erasers but {len(values)} strengths; give one each, or one for all")
    chosen = _named(pipe, wanted)
    checked = [attachment.check_strength(value) for attachment, value in zip(chosen, values, strict=True)]
    for attachment in _loaded(pipe).values():
        attachment.enabled = attachment in chosen
    for attachment, value in zip(chosen, checked, strict=True):
        attachment.strength = value


def enable_erasers(pipe: Pipeline) -> None:
    """Switch every loaded eraser on, at the strength that it has.

    Example:
        >>> excise.enable_erasers(pipe)
    """
    for attachment in _loaded(pipe).values():
        attachment.enabled = True


def disable_erasers(pipe: Pipeline) -> None:
    """Switch every loaded eraser off. They stay loaded.

    Example:
        >>> excise.disable_erasers(pipe)
    """
    for attachment in _loaded(pipe).values():
        attachment.enabled = False


def list_erasers(pipe: Pipeline) -> dict[str, dict[str, Any]]:
    """Status of every loaded eraser by name, in the order they were loaded (see `Attachment.status`).

    Example:
        >>> excise.list_erasers(pipe)["gun"]["strength"]
        1.0
    """
    return {name: attachment.status() for name, attachment in _loaded(pipe).items()}


def get_active_erasers(pipe: Pipeline) -> list[str]:
    """Names of the erasers that edit prompts now.

    Example:
        >>> excise.get_active_erasers(pipe)
        ['gun']
    """
    return [name for name, attachment in _loaded(pipe).items() if attachment.active]


def steer_guidance(pipe: Pipeline) -> bool:
    """Whether an active eraser works within classifier-free guidance, so that its U-Net runs for a prompt and for
    none in one batch only."""
    active = [attachment for attachment in _loaded(pipe).values() if attachment.active]
    return any(edit.kind == "guidance" for attachment in active for edit in attachment.eraser.edits)


def _loaded(pipe: Pipeline) -> dict[str, Attachment]:
    """The erasers that act on `pipe`, whether they were attached to it or to a pipeline of the same components."""
    return {
        attachment.name: attachment
        for attachment in attachments_near(pipe)
        if isinstance(attachment, Attachment) and attachment.acts_on(pipe)
    }


def _names(names: Sequence[str] | str) -> list[str]:
    """Names as a list. Raises InvalidSetting for what is not a name."""
    given = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else [names]
    for name in given:
        if not isinstance(name, str):
            raise InvalidSetting(f"erasers are named by texts, not by {name!r}")
    return given


def _named(pipe: Pipeline, names: Sequence[str] | None) -> list[Attachment]:
    loaded = _loaded(pipe)
    for name in names or ():
        if name not in loaded:
            raise NotFound(f"no eraser called {name!r} is loaded; loaded are {', '.join(loaded) or 'none'}")
    return [loaded[name] for name in (loaded if names is None else names)]
