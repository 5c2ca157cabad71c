"""Erasers on a pipeline by name, in the words of diffusers' adapters: load, set, enable, disable, list, delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from excise.erasers.artefact.files import FILES, SIGNATURE, eraser_folders
from excise.erasers.artefact.signing import Signer
from excise.erasers.attachment import Attachment, OnBypass
from excise.erasers.eraser import Eraser, StrPath
from excise.erasers.hooks import setting
from excise.erasers.loaded import as_names, chosen, loaded_on, named, warn_if_weak
from excise.erasers.several import Attachments, load_erasers
from excise.errors import ExciseError, InvalidSetting, NotFound
from excise.hub import fetch
from excise.pipeline import check_pipeline

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
    enabled: bool = True,
    signed_by: Signer | None = None,
    require_signature: bool = False,
    digest: str | None = None,
    concept: str | None = None,
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
        enabled: If False, load and prove the eraser, but leave it inactive until it is enabled.
        signed_by: The signer whose signature is required.
        require_signature: Refuse if `signed_by` is None.
        digest, concept: The digest or the concept that it must have: which of the signer's erasers it is. A folder of
            several erasers has no single digest or concept.

    Returns:
        The attachment, or the attachments of a folder of erasers: a context manager that unloads on leaving. Its
        `commit` is the commit that a branch or tag was resolved to.

    Raises:
        NotFound: if there is no such eraser.
        Tampered: if its files are incomplete, altered, or not signed or pinned as required.
        WrongModel: if it was made for another pipeline.
        InvalidSetting: if the name is taken, or a setting is impossible.
        EraserDidNotFire: if it changes nothing.

    Warns:
        WeakEraser: if it misses a limit, and was accepted as weak when it was made. `status()` gives the reasons.

    Example:
        >>> excise.load_eraser(pipe, "owner/gun-eraser", name="gun", revision="6ba7b81", strength=0.8)
    """
    check_pipeline(pipe)
    loaded = _read(
        source,
        revision=revision,
        subfolder=subfolder,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        signed_by=signed_by,
        require_signature=require_signature,
        digest=digest,
        concept=concept,
    )
    options: dict[str, Any] = {"strength": strength, "strict": strict, "sae": sae}
    options |= {"on_bypass": on_bypass, "allow_amplify": allow_amplify, "enabled": enabled}
    if len(loaded) > 1 and name is not None:
        raise InvalidSetting(f"{source} holds {len(loaded)} erasers, which keep their own names; leave `name` out")
    (eraser, *others) = loaded.values()
    made = Attachments.of(pipe, loaded, **options) if others else eraser.attach(pipe, name=name, **options)
    warn_if_weak(loaded.values())
    return made


_READING = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
_REQUIRED = ("signed_by", "require_signature", "digest", "concept")


def _read(source: StrPath, **options: Any) -> dict[str, Eraser]:
    """Return the erasers of a folder or repository by name. The options are those of `load_eraser`."""
    found = fetch(source, (*FILES, SIGNATURE), "eraser", **{k: options[k] for k in _READING if k in options})
    required = {key: options[key] for key in _REQUIRED if key in options}
    folders = eraser_folders(found.folder)
    if len(folders) > 1:
        if any(required.pop(key, None) is not None for key in ("digest", "concept")):
            raise InvalidSetting(f"{source} holds {len(folders)} erasers; pin one of them, named by its own folder")
        return load_erasers(folders, **required)
    eraser = Eraser.load(folders[0], **required)
    object.__setattr__(eraser, "commit", found.commit)
    return {eraser.name: eraser}


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
    for attachment in named(pipe, None if name is None else as_names(name)):
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
    for attachment in named(pipe, as_names(names)):
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
    wanted = chosen(pipe, names, strengths)
    with setting.LOCK:
        for attachment in loaded_on(pipe).values():
            attachment.enabled = attachment in wanted
        for attachment, value in wanted.items():
            attachment.strength = value


def replace_eraser(pipe: Pipeline, name: str, source: StrPath, **options: Any) -> Attachment:
    """Replace a loaded eraser by another one. At every moment one of the two is active.

    The new eraser is loaded and proved first. Then it takes over the name, the strength and whether it is enabled.
    Images that began before end under the old eraser. If the new one is refused, or the same, the old one stays.

    Args:
        pipe: The pipeline.
        name: Name of the loaded eraser.
        source: A folder, or `OWNER/NAME` on the hub, of the new one.
        options: As for `load_eraser`, except `name` and `enabled`. The old eraser's `strength`, `strict`, `on_bypass`
            and `allow_amplify` are the defaults; strength and `on_bypass` as they are when the new one takes over.

    Returns:
        The new attachment, under the old name; the old one if it is the same eraser.

    Raises:
        NotFound: if no eraser of that name is loaded, or none is at `source`.
        ExciseError: if the new eraser is refused, as by `load_eraser`.

    Example:
        >>> excise.replace_eraser(pipe, "gun", "erasers/gun-2")
    """
    (old,) = named(pipe, [name])
    reading = {key: options.pop(key) for key in (*_READING, *_REQUIRED) if key in options}
    (eraser, *others) = _read(source, **reading).values()
    if others:
        raise InvalidSetting(f"{source} holds several erasers; name the folder of one")
    keeps = {"strict": old.strict, "allow_amplify": old.allow_amplify, **options}
    is_same = eraser.digest == old.eraser.digest
    new = old if is_same else eraser.attach(pipe, name=f"{name} (new)", enabled=False, **keeps)
    with setting.LOCK:
        try:
            if old.detached:
                raise NotFound(f"eraser {name!r} was unloaded or replaced meanwhile")
            if is_same:
                _set(old, **options)
                return old
            if "on_bypass" not in options:
                new.on_bypass = old.on_bypass
            if new.encoded_by is None:  # else the pipeline that encodes has both
                new._strength = new.check_strength(options.get("strength", old.encoding._strength))
                new._enabled = old.encoding._enabled
        except ExciseError:
            if not is_same:
                new.detach()
            raise
        new.name = name
        old.detach()
        setting.changed()
    warn_if_weak([eraser])
    return new


def _set(
    old: Attachment,
    *,
    strength: float | None = None,
    strict: bool | None = None,
    sae: Any | None = None,
    on_bypass: OnBypass | None = None,
    allow_amplify: bool | None = None,
) -> None:
    """Set what `replace_eraser` is given for the eraser that is there already, all of it or nothing."""
    if strict not in (None, old.strict):
        raise InvalidSetting(f"{old.name!r} is this eraser already, with strict={old.strict}; unload it to change that")
    before = old.allow_amplify, old.on_bypass
    try:
        old.allow_amplify = before[0] if allow_amplify is None else allow_amplify
        old.on_bypass = on_bypass or before[1]
        old.strength = old.encoding._strength if strength is None else strength
    except ExciseError:
        old.allow_amplify, old.on_bypass = before
        raise


def enable_erasers(pipe: Pipeline) -> None:
    """Switch every loaded eraser on, at its current strength.

    Example:
        >>> excise.enable_erasers(pipe)
    """
    with setting.LOCK:
        for attachment in loaded_on(pipe).values():
            attachment.enabled = True


def disable_erasers(pipe: Pipeline) -> None:
    """Switch every loaded eraser off. They stay loaded.

    Example:
        >>> excise.disable_erasers(pipe)
    """
    with setting.LOCK:
        for attachment in loaded_on(pipe).values():
            attachment.enabled = False


def list_erasers(pipe: Pipeline) -> dict[str, dict[str, Any]]:
    """Return the status of every loaded eraser by name, in the order they were loaded (see `Attachment.status`).

    Example:
        >>> excise.list_erasers(pipe)["gun"]["strength"]
        1.0
    """
    return {name: attachment.status() for name, attachment in loaded_on(pipe).items()}


def get_active_erasers(pipe: Pipeline) -> list[str]:
    """Return the names of the active erasers.

    Example:
        >>> excise.get_active_erasers(pipe)
        ['gun']
    """
    return [name for name, attachment in loaded_on(pipe).items() if attachment.active]
