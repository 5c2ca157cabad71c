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

    A folder of erasers, such as `excise erase gun,knife --out erasers` makes, is attached as a whole or not at all, and
    each eraser keeps its name.

    Args:
        pipe: The pipeline it was made for.
        source: A folder, or `OWNER/NAME` on the hub.
        name: A name for it on this pipeline, by default its own.
        revision: A branch, a tag, or (best) a commit of the repository on the hub.
        subfolder: Folder within the folder or repository that holds the eraser.
        token: The hub's access token, by default the one of `hf auth login`.
        cache_dir: The hub's cache folder, by default the standard one.
        local_files_only: Use only the hub's cache.
        strength: Factor on the fitted strength: 0 changes nothing.
        strict: If False, accept another model's weights with a warning, and allow bypasses unless `on_bypass` is given.
        sae: The SAE it was made from, needed for gate="topk" only.
        on_bypass: What to do with a prompt whose states bypass the eraser: "raise" (the default), "warn" or "allow".
        allow_amplify: Accept a negative strength, which amplifies the concept.
        signed_by: The signer whose signature is required.
        require_signature: Refuse if `signed_by` is None.

    Returns:
        The attachment, or the attachments of a folder of erasers: a context manager that unloads on leaving. Its
        `commit` is the commit that a branch or tag was resolved to.

    Raises:
        NotFound: if there is no such eraser.
        Tampered: if its files are incomplete, altered, or not signed as required.
        WrongModel: if it was made for another pipeline.
        InvalidSetting: if the name is taken, or a setting is impossible.
        EraserDidNotFire: if it changes nothing.

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
    options: dict[str, Any] = {"strength": strength, "strict": strict, "sae": sae}
    options |= {"on_bypass": on_bypass, "allow_amplify": allow_amplify}
    folders = eraser_folders(found.folder)
    if len(folders) > 1:
        if name is not None:
            raise InvalidSetting(f"{source} holds {len(folders)} erasers, which keep their own names; leave `name` out")
        loaded = load_erasers(folders, signed_by=signed_by, require_signature=require_signature)
        return Attachments.of(pipe, loaded, **options)
    eraser = Eraser.load(folders[0], signed_by=signed_by, require_signature=require_signature)
    object.__setattr__(eraser, "commit", found.commit)
    return eraser.attach(pipe, name=name, **options)


def encode(pipe: Pipeline, how: Callable[..., Any] | str, *args: Any, negative: bool = False, **kwargs: Any) -> Any:
    """Encode a prompt with another function than `pipe.encode_prompt`, such as a prompt weighting (compel), under the
    loaded erasers, so that their guards accept the result.

    Args:
        pipe: The pipeline.
        how: A function that runs the pipeline's own text encoders, or a prompt for `pipe.encode_prompt`.
        *args: Arguments of the function.
        **kwargs: Arguments of the function by name.
        negative: Treat the text as a negative prompt: by default nothing is erased from it, and its states are accepted
            only in a batch with a prompt.

    Returns:
        The function's result.

    Raises:
        EraserDidNotFire: if the edit of an active eraser did not run meanwhile.
    """
    with context.negative(pipe) if negative else nullcontext():
        if isinstance(how, str):
            return encode_prompt(pipe, how, *args, **kwargs)
        if isinstance(how, Guard):  # it knows the branch of every state
            return how(*args, **kwargs)
        return _encoded(pipe, lambda: how(*args, **kwargs))


def _encoded(pipe: Pipeline, how: Callable[[], Any]) -> Any:
    active = [attachment for attachment in _loaded(pipe).values() if attachment.active]
    before = [(a, a.epoch, [(hook, hook.runs) for hook in a.encoding.text_hooks]) for a in active]
    spared, erased = getattr(context.SPARED, "runs", 0), getattr(context.ERASED, "runs", 0)
    made = how()
    for attachment, _, runs in before:
        _refuse_unedited(attachment, runs, made)
    # States that one eraser spared count as spared for all, since they share one set of known vectors.
    uncond = {edit.uncond for attachment in active for edit in attachment.eraser.text_edits}
    spares = getattr(context.SPARED, "runs", 0) > spared or (context.is_negative() and bool(uncond - {"same"}))
    touched = getattr(context.ERASED, "runs", 0) > erased and not spares
    for attachment, epoch, _ in before:
        attachment.trust(tensors_of(made), epoch, spared=spares, erased=touched)
    return made


def _refuse_unedited(attachment: Attachment, runs: list[tuple[EditHook, int]], made: Any) -> None:
    """Raise EraserDidNotFire unless all text edits ran since `runs`, and nothing in `made` is of an absent encoder."""
    name, encoding = attachment.name, attachment.encoding
    if attachment.eraser.text_edits and not (runs and encoding.active):
        raise EraserDidNotFire(
            f"eraser {name!r} edits no text encoder of this pipeline or of the one that encodes for it; encode on a "
            "pipeline where it is attached and active"
        )
    for hook, n in runs:
        if hook.runs == n:
            raise EraserDidNotFire(
                f"eraser {name!r} saw no text-encoder run at {hook.edit.site.key}; encode with the pipeline's own text "
                "encoders, so that it can act"
            )
    if encoding.absent and not attachment.knows(tensors_of(made)):
        raise EraserDidNotFire(
            f"eraser {name!r} is attached without {', '.join(encoding.absent)}, so these states may come from encoders "
            "that it does not edit; encode the prompt without weights on words"
        )


def unload_eraser(pipe: Pipeline, name: str | None = None) -> None:
    """Remove an eraser, or all of them, from a pipeline. Afterwards its images are bit-identical to before.

    Args:
        pipe: The pipeline.
        name: The eraser's name on it; None for all.

    Raises:
        NotFound: if no eraser of that name is loaded.

    Example:
        >>> excise.unload_eraser(pipe, "gun")
    """
    for attachment in _named(pipe, None if name is None else _names(name)):
        attachment.detach()


def delete_erasers(pipe: Pipeline, names: Sequence[str] | str) -> None:
    """Remove these erasers from a pipeline. The others stay as they are.

    Args:
        pipe: The pipeline.
        names: Names of loaded erasers, or one name.

    Raises:
        NotFound: if no eraser of one of the names is loaded. Then none is removed.

    Example:
        >>> excise.delete_erasers(pipe, ["gun", "knife"])
    """
    for attachment in _named(pipe, _names(names)):
        attachment.detach()


def set_erasers(pipe: Pipeline, names: Sequence[str] | str, strengths: Sequence[float] | float = 1.0) -> None:
    """Activate exactly these erasers, at these strengths. The others stay loaded but inactive.

    Args:
        pipe: The pipeline.
        names: Names of loaded erasers, or one name. `[]` deactivates all.
        strengths: A factor on each eraser's fitted strength, or one for all.

    Raises:
        NotFound: if no eraser of one of the names is loaded. Then nothing is changed.
        InvalidSetting: if a strength is impossible, or there is not one for each name. Then nothing is changed.

    Example:
        >>> excise.set_erasers(pipe, ["gun", "knife"], [1.0, 0.5])
    """
    wanted = _names(names)
    given: Any = [strengths] * len(wanted) if isinstance(strengths, Real) else strengths
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidSetting(f"strengths cannot be {strengths!r}; give numbers")
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
    """Switch every loaded eraser on, at its current strength.

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
    """Return the status of every loaded eraser by name, in the order they were loaded (see `Attachment.status`).

    Example:
        >>> excise.list_erasers(pipe)["gun"]["strength"]
        1.0
    """
    return {name: attachment.status() for name, attachment in _loaded(pipe).items()}


def get_active_erasers(pipe: Pipeline) -> list[str]:
    """Return the names of the active erasers.

    Example:
        >>> excise.get_active_erasers(pipe)
        ['gun']
    """
    return [name for name, attachment in _loaded(pipe).items() if attachment.active]


def steer_guidance(pipe: Pipeline) -> bool:
    """Whether an active eraser changes classifier-free guidance, and needs both branches in one U-Net batch."""
    active = [attachment for attachment in _loaded(pipe).values() if attachment.active]
    return any(edit.kind == "guidance" for attachment in active for edit in attachment.eraser.edits)


def _loaded(pipe: Pipeline) -> dict[str, Attachment]:
    """Return the erasers that act on `pipe`, including those attached to a pipeline of the same components."""
    near = (attachment for attachment in attachments_near(pipe) if isinstance(attachment, Attachment))
    return {attachment.name: attachment for attachment in near if attachment.acts_on(pipe)}


def _names(names: Sequence[str] | str) -> list[str]:
    """Return names as a list. Raise InvalidSetting if one is not a text."""
    given = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else [names]
    for name in given:
        if not isinstance(name, str):
            raise InvalidSetting(f"an eraser's name cannot be {name!r}; give a text")
    return given


def _named(pipe: Pipeline, names: Sequence[str] | None) -> list[Attachment]:
    loaded = _loaded(pipe)
    for name in names or ():
        if name not in loaded:
            raise NotFound(f"no eraser called {name!r} is loaded; loaded are {', '.join(loaded) or 'none'}")
    return [loaded[name] for name in (loaded if names is None else names)]
