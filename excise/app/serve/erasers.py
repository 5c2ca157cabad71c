"""A policy's erasers on a pipeline: put on, checked, and exchanged all at once or not at all."""

from __future__ import annotations

from excise import health
from excise.app.serve.policy import Policy, signer
from excise.erasers import Eraser
from excise.erasers.artefact.record import Artefact
from excise.erasers.attachment import Attachment
from excise.erasers.edits.weights import WeightEdit
from excise.erasers.hooks import setting
from excise.errors import ExciseError, InvalidSetting
from excise.pipeline import Pipeline


class Served:
    """A policy and the attachments of its erasers, by name."""

    def __init__(self, policy: Policy, attachments: dict[str, Attachment]) -> None:
        self.policy, self.attachments = policy, attachments
        self.digests = {name: attachment.eraser.digest for name, attachment in attachments.items()}

    def reasons(self, pipe: Pipeline, *, canary: bool) -> list[str]:
        """Return why the pipeline must not generate under the policy, as `excise.health.ready`."""
        least = {name: rule.strength for name, rule in self.policy.erasers.items()}
        return health.ready(pipe, self.digests, min_strength=least, canary=canary)


def load(policy: Policy) -> dict[str, Eraser]:
    """Load the policy's erasers by name, and check digests and signatures.

    Raises:
        ExciseError: An eraser is missing, altered, another one, not signed as required, or named twice; or a rule does
            not suit it.
    """
    erasers: dict[str, Eraser] = {}
    for name, rule in policy.erasers.items():
        try:
            eraser = Eraser.load(
                rule.folder,
                digest=rule.digest,
                signed_by=signer(policy),
                require_signature=policy.signed_by is not None,
            )
        except ExciseError as error:
            raise type(error)(f"eraser {name!r}: {error}") from error
        if rule.when_fired != "erase" and not acts_on_text(eraser):
            raise InvalidSetting(
                f"eraser {name!r} changes no text states, so no prompt fires it; its when_fired can only be erase"
            )
        if eraser.weak and not rule.accept_weak:
            raise InvalidSetting(
                f"eraser {name!r} is weak ({'; '.join(eraser.weak)}); make a better one, or set accept_weak: true"
            )
        if twin := next((n for n, other in erasers.items() if other.digest == eraser.digest), None):
            raise InvalidSetting(f"erasers {twin!r} and {name!r} are the same; name it once")
        erasers[name] = eraser
    return erasers


def put(pipe: Pipeline, policy: Policy, before: Served | None = None) -> Served:
    """Put the policy's erasers on the pipeline, in place of those of `before`. Images must not begin meanwhile.

    New erasers are proved while the old ones still act. Then all names and strengths change at once. If one is refused,
    everything stays as it was.

    Raises:
        ExciseError: As `load`, or an eraser does not fit the pipeline.
    """
    erasers = load(policy)
    old = before.attachments if before is not None else {}
    by_digest = {attachment.eraser.digest: attachment for attachment in old.values()}
    new: dict[str, Attachment] = {}
    try:
        for name, eraser in erasers.items():
            if eraser.digest not in by_digest:
                new[name] = eraser.attach(pipe, name=f"{name} (new)", enabled=False)
    except BaseException:
        for attachment in new.values():
            attachment.detach()
        raise
    with setting.LOCK:
        now = {name: new.get(name) or by_digest[eraser.digest] for name, eraser in erasers.items()}
        for attachment in old.values():
            if attachment not in now.values():
                attachment.detach()
        for name, attachment in now.items():
            attachment.name = name
            attachment.strength, attachment.enabled = policy.erasers[name].strength, True
        setting.changed()
    return Served(policy, now)


def rows_edited(served: Served) -> dict[str, int]:
    """Return how many text states each eraser of text has changed so far, by name."""
    of_text = {name: a for name, a in served.attachments.items() if acts_on_text(a.eraser)}
    return {name: attachment.status()["rows_edited"] for name, attachment in of_text.items()}


def acts_on_text(eraser: Artefact) -> bool:
    """Return whether the eraser changes text states, so that a prompt can fire it."""
    return any(edit.site.part == "text" and not isinstance(edit, WeightEdit) for edit in eraser.edits)
