"""Attachment: an eraser on a live pipeline. It is proved at attach time, and refuses in doubt."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from excise.erasers import telemetry
from excise.erasers.apply.language_model import Transcript, refuse_unfit
from excise.erasers.apply.registry import module_of, put
from excise.erasers.artefact.canary import SHIFT_SHARE
from excise.erasers.edits.sae_rows import sae_digest
from excise.erasers.guard.coverage import absent_from, refuse_unless_covered
from excise.erasers.guard.denoiser import DenoiserGuard
from excise.erasers.guard.encode_prompt import Guard
from excise.erasers.guard.near import attachments_near
from excise.erasers.guard.self_test import moved
from excise.erasers.guard.tally import Tally
from excise.erasers.hooks import setting
from excise.erasers.hooks.context import Call, is_proving
from excise.erasers.hooks.counters import Counters
from excise.erasers.hooks.edit_hook import EditHook, Edits
from excise.erasers.hooks.known_vectors import UNKNOWN
from excise.erasers.hooks.setting import Entrance
from excise.erasers.prompt_checks import PromptChecks
from excise.errors import EraserDidNotFire, ExciseError, InvalidSetting, WrongModel, one_line
from excise.notebook import line, quoted
from excise.pipeline import Pipeline, check_pipeline
from excise.sites.denoiser import denoisers
from excise.sites.language import LanguageModel
from excise.sites.locking import lock
from excise.sites.site import text_encoders, tokenizer_of

if TYPE_CHECKING:
    from excise.erasers.artefact.record import Artefact
    from excise.erasers.hooks.host import Host

log = logging.getLogger("excise")

_NUMBERS = itertools.count()


def _nothing() -> None:
    """Do nothing."""


OnBypass = Literal["raise", "warn", "allow"]
"""What to do with a prompt whose states bypass the eraser: render nothing, warn, or accept it."""


class Attachment:
    """An attached eraser, and a context manager that detaches it on leaving. Then the pipeline is bit-identical to
    before."""

    def __init__(
        self,
        eraser: Artefact,
        pipe: Pipeline,
        *,
        strength: float = 1.0,
        strict: bool = True,
        sae: Any | None = None,
        name: str | None = None,
        on_bypass: OnBypass | None = None,
        allow_amplify: bool = False,
        enabled: bool = True,
        trial: bool = False,
    ) -> None:
        """Attach as `Eraser.attach` does.

        On `trial` it can only be measured: it acts in no image, goes by no name, and may be attached already.
        """
        check_pipeline(pipe)
        if name is not None and not (isinstance(name, str) and name):
            raise InvalidSetting(f"an eraser's name cannot be {name!r}; give a non-empty text")
        self.eraser, self.strict, self.name = eraser, strict, name or eraser.name
        self._pipe: Callable[[], Pipeline | None] = lambda: pipe
        self._kind = type(pipe).__name__
        self.on_bypass = on_bypass or ("raise" if strict else "allow")
        self.allow_amplify, self.trial = allow_amplify, trial
        self.sae = self._checked_sae(sae)
        self.number = next(_NUMBERS)
        """Serial number of the attachment."""
        self.encoded_by: Attachment | None = None
        """The eraser's attachment to the pipeline that encodes the prompts, if this one has no text encoders."""
        self._strength, self._enabled, self.attached = self.check_strength(strength), enabled, False
        self._hooks: list[tuple[nn.Module, EditHook, Callable[[], None]]] = []
        self._removed: list[Counters] = []
        self._prompts = self._bypasses = 0
        self._reported = 0, 0, 0.0
        self._counting = threading.RLock()
        self._counted: list[nn.Module] = []
        self._unlock: list[Callable[[], None]] = []
        self._leave_entrances: Callable[[], None] = _nothing
        self._guard: Guard | None = None
        self.denoiser_guard: DenoiserGuard | None = None
        self.transcript: Transcript | None = None
        self.detached = False
        """Whether it was detached. Its hooks may remain for images that began before."""
        self.absent = absent_from(pipe, eraser)
        self.edits = tuple(edit for edit in eraser.edits if edit.site.component not in self.absent)
        refuse_unless_covered(pipe, eraser, self.edits)
        language = isinstance(pipe, LanguageModel)
        if language:
            refuse_unfit(eraser)
        modules = [module_of(pipe, edit) for edit in self.edits]
        self._checks = PromptChecks(self, strict)
        try:
            with setting.LOCK:
                self.encoded_by = self._encoded_by() if eraser.edits and not self.edits else None
                if not trial:
                    self._refuse_taken(modules, strength)
                self._leave_entrances = Entrance.add(self, [*text_encoders(pipe).values(), *denoisers(pipe)])
                self._guard = Guard.join(pipe, self)
                watched = bool(self.eraser.text_edits)
                if watched and isinstance(pipe, LanguageModel):
                    self.transcript = Transcript.join(pipe, self)
                elif watched:
                    self.denoiser_guard = DenoiserGuard.join(pipe, self, self.encoded_by)
                self._unlock = [lock(tokenizer_of(pipe, name)) for name in text_encoders(pipe)]
                self._counted = Tally.join(pipe, self) if not language else []
                for module, edit in zip(modules, self.edits, strict=True):
                    hook, take_off = put(self, edit, module)
                    self._hooks.append((module, hook, take_off))
            self._checks.begin()
            for hook in self.hooks:
                hook.prepare()
            self.shift = self.prove()
            if trial:
                return
            with setting.LOCK:
                self.attached = True
                setting.join(self)
        except BaseException:
            self.detach()
            raise
        self._audit("attached")

    def __repr__(self) -> str:
        state = "detached" if not self.attached else "active" if self.active else "off"
        return line(self, quoted(self.name), state, f"strength={self.encoding._strength:g}", f"on {self._kind}")

    def _refuse_taken(self, modules: list[nn.Module], strength: float) -> None:
        """Raise InvalidSetting if the eraser or its name is attached already, or its strength is set elsewhere."""
        if self.encoded_by is not None and strength not in (1, self.encoded_by.strength):
            raise InvalidSetting(
                f"{type(self.pipe).__name__} generates from embeddings that another pipeline encodes at strength "
                f"{self.encoded_by.strength}; set the strength there"
            )
        others = [hook.attachment for module in modules for hook in Edits.listed_on(module)]
        if any(other.eraser.digest == self.eraser.digest for other in others):
            raise InvalidSetting(f"eraser {self.eraser.name!r} is attached to this pipeline already; unload it first")
        if self.name in (*Guard.names(self.pipe), *Tally.names(self.pipe)):
            raise InvalidSetting(f"an eraser called {self.name!r} is attached already; give this one another name")

    @property
    def listed(self) -> bool:
        """Whether it acts in images that begin from now on, or will when it is proved, so that its name is taken."""
        return not (self.detached or self.trial)

    @property
    def pipe(self) -> Pipeline:
        """The pipeline that it is attached to. Once detached, the attachment does not keep it in memory."""
        if (found := self._pipe()) is None:
            raise ExciseError(f"eraser {self.name!r} was detached, and its pipeline is no longer in memory")
        return found

    @property
    def commit(self) -> str | None:
        """The commit of the hub repository that the eraser was loaded from, or None for a local folder."""
        return self.eraser.commit

    @property
    def strength(self) -> float:
        """Factor on the fitted strength λ: 0 leaves every bit as it is, and a negative one amplifies the concept.

        Within `excise.using` it is the request's strength. Setting it affects the images that begin afterwards.
        """
        if is_proving(self):
            return 1.0
        return setting.current(self) or self.encoding._strength

    @strength.setter
    def strength(self, value: float) -> None:
        checked = self.check_strength(value)
        setting.forget_ended()
        with setting.LOCK:
            self.encoding._strength = checked
        self._audit("strength", f"strength {value}")

    @property
    def own_strength(self) -> float:
        """The strength set for all threads; 0 if the eraser is disabled."""
        return self.encoding._strength if self.encoding._enabled and self.eraser.edits else 0.0

    def check_strength(self, value: float) -> float:
        """Return the strength as a number. Raise InvalidSetting if it is not finite, or negative without
        `allow_amplify`."""
        given: Any = value
        if not isinstance(given, Real) or not math.isfinite(given):
            raise InvalidSetting(f"strength is {value!r}; it must be a finite number")
        if value < 0 and not self.encoding.allow_amplify:
            raise InvalidSetting(
                f"strength is {value}, which would amplify {self.eraser.concept!r}; attach with allow_amplify=True if "
                "that is what you want"
            )
        return float(value)

    @property
    def on_bypass(self) -> OnBypass:
        """What to do with a prompt whose states bypass the eraser: "raise", "warn" or "allow"."""
        return self._on_bypass

    @on_bypass.setter
    def on_bypass(self, value: OnBypass) -> None:
        if value not in ("raise", "warn", "allow"):
            raise InvalidSetting(f"on_bypass cannot be {value!r}; it is raise, warn or allow")
        self._on_bypass: OnBypass = value

    @property
    def enabled(self) -> bool:
        """Whether the eraser is switched on."""
        return self.encoding._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        setting.forget_ended()
        with setting.LOCK:
            self.encoding._enabled = bool(value)
        self._audit("strength", "enabled" if value else "disabled")

    @property
    def active(self) -> bool:
        """Whether prompts are edited now: in this image, in this request (`excise.using`), or by default."""
        if is_proving(self):
            return True
        found = setting.current(self)
        return self.attached and self.own_strength != 0 if found is None else found != 0

    def status(self) -> dict[str, Any]:
        """Return state and counters for a health check. They never include prompt text."""
        setting.forget_ended()
        return {
            "name": self.name,
            "concept": self.eraser.concept,
            "weak": list(self.eraser.weak),
            "digest": self.eraser.digest,
            "commit": self.eraser.commit,
            "attached": self.attached,
            "enabled": self.enabled,
            "active": self.active,
            "strict": self.strict,
            "on_bypass": self.on_bypass,
            "bypasses": self._bypasses,
            "strength": self.encoding._strength,
            "allow_amplify": self.allow_amplify,
            "saved_with_the_model": False,
            "sites": [edit.site.key for edit in self.edits],
            "absent": self.absent,
            "neurons": [edit.neurons for edit in self.edits],
            "canary_shift": self.shift,
            "prompts_encoded": self._prompts,
            "rows_edited": self._totals()[0],
        }

    def detach(self) -> None:
        """Remove every hook, so that the pipeline is as it was before. Calling it twice is harmless.

        An image that began under the eraser ends under it. The hooks are removed when the last such image is done.
        """
        with setting.LOCK:
            was, again, self.attached, self.detached = self.attached, self.detached, False, True
            if was:
                self._audit("detached")
                setting.leave(self, self._take_off)
            elif not again:
                self._take_off()

    def _take_off(self) -> None:
        with setting.LOCK:
            for _, _, take_off in self._hooks:
                take_off()
            if self._guard is not None:
                self._guard.leave(self.pipe, self)
            if self.denoiser_guard is not None:
                self.denoiser_guard.leave(self)
            Tally.leave(self._counted, self)
            for unlock in self._unlock:
                unlock()
            if self.transcript is not None:
                self.transcript.leave(self)
            self._leave_entrances()
            self._checks.end()
            self._removed += [hook.counters for hook in self.hooks]
            self._hooks.clear()
            setting.LOCK.after(self._emit_rest)
            self._leave_entrances, self._unlock, self._counted = _nothing, [], []
            # A second stage holds the attachment whose embeddings it draws, and must not hold its text encoders.
            self._guard = None
            with suppress(TypeError):  # there are no weak references to a SimpleNamespace
                self._pipe = weakref.ref(self.pipe)

    def __enter__(self) -> Attachment:
        if self.detached:
            raise ExciseError(f"eraser {self.name!r} was detached; attach it again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def draw_for(self, encoding: Attachment, guard: DenoiserGuard) -> None:
        """Generate from states that the attachment `encoding` edits and `guard` knows, from now on."""
        self.encoded_by, self.denoiser_guard = encoding, guard

    def _encoded_by(self) -> Attachment:
        """Return this eraser's attachment to the pipeline that encodes prompts for this one, which has no text encoder.

        Raises WrongModel if there is none.
        """
        found = DenoiserGuard.encoding(self.eraser.digest)
        if found is None:
            raise WrongModel(
                f"{type(self.pipe).__name__} has no text encoder that eraser {self.name!r} edits; first attach the "
                "eraser to the pipeline that encodes the prompts, and then to this one, which will generate from its "
                "embeddings only"
            )
        assert isinstance(found, Attachment)
        return found

    def answering(self, pipe: Pipeline) -> list[Host]:
        """Return all attachments that have to check what `pipe` encodes."""
        return [attachment for attachment in attachments_near(pipe) if attachment.answers_for(pipe)]

    def acts_on(self, pipe: Pipeline) -> bool:
        """Whether one of its edits is on a module of `pipe`, or its guard on a denoiser of `pipe`."""
        if pipe is self.pipe:
            return True
        if self.encoded_by is not None:
            return any(denoiser is other for denoiser in denoisers(self.pipe) for other in denoisers(pipe))
        parts = [*text_encoders(pipe).values(), *denoisers(pipe)]
        modules = {id(module) for part in parts for module in part.modules()}
        return any(id(module) in modules for module, _, _ in self._hooks)

    def before_prompt(self, call: Call) -> None:
        """Refuse an `encode_prompt` call whose states would bypass the edit. Raises ExciseError, EraserDidNotFire."""
        self._checks.before(call)

    def after_prompt(self, call: Call, made: Any) -> None:
        """Raise EraserDidNotFire if an edited module did not run although the prompt was encoded."""
        self._checks.after(call, made)

    def refuse_early(self, call: Call) -> None:
        """Refuse a call that reads a text encoder before one of the edits, or pads prompts to another length."""
        self._checks.refuse_early(call)

    def refuse_changed(self) -> None:
        """Refuse weights, adapters or vocabularies that differ from those at attach time."""
        self._checks.refuse_changed()

    def changes(self) -> list[str]:
        """Return what differs in its pipeline from attach time, one message each, without counting a bypass."""
        with setting.LOCK:  # else another thread may detach it meanwhile
            if self._guard is None:
                return []
            found = self._checks.moved_parts()
            if Guard.of(self.pipe) is not self._guard:
                found.append(f"encode_prompt was replaced after eraser {self.name!r} was attached; attach it again")
            return found or list(self._checks.changes())

    def answers_for(self, pipe: Pipeline) -> bool:
        """Whether it is attached to `pipe`, or `pipe` has one of its edited components in the same place."""
        return self._checks.answers_for(pipe)

    @property
    def placed(self) -> list[tuple[nn.Module, EditHook]]:
        """The hooks of its edits, each with its module."""
        return [(module, hook) for module, hook, _ in self._hooks]

    @property
    def hooks(self) -> list[EditHook]:
        """The hooks of its edits."""
        return [hook for _, hook, _ in self._hooks]

    @property
    def text_hooks(self) -> list[EditHook]:
        """The hooks on text encoders, which have to run when a prompt is encoded."""
        return [hook for hook in self.hooks if hook.edit.site.part == "text"]

    @property
    def encoding(self) -> Attachment:
        """The attachment that edits its prompts, whose strength and switch apply: `encoded_by`, or itself."""
        return self.encoded_by or self

    def forget(self) -> None:
        """Stop accepting the states encoded so far, under any setting."""
        for keeper in (self.denoiser_guard, self.transcript):
            if keeper is not None:
                keeper.forget()

    def bypass(self, message: str) -> None:
        """Count a bypass of the eraser, and refuse, warn of or allow it, as `on_bypass` says."""
        with self._counting:
            self._bypasses += 1
        self._emit("bypass")
        if self.on_bypass == "raise":
            raise EraserDidNotFire(f"{message}, or attach with on_bypass='warn' or 'allow'")
        if self.on_bypass == "warn":
            warnings.warn(message, stacklevel=5)
        log.warning("%s", one_line(message))

    def count(self, prompts: int) -> None:
        """Count prompts that a text encoder has encoded, and emit an event."""
        with self._counting:
            self._prompts += prompts
        self._emit("encoded")

    def trust(self, states: Iterable[Tensor], *, spared: bool = False, erased: bool = False) -> None:
        """Accept states encoded under the current setting.

        Spared ones (unedited unconditional states) are accepted only in a batch with prompts.
        """
        if self.denoiser_guard is not None:
            given = list(states)
            self.denoiser_guard.add(given, spared=spared, erased=erased)
            self.denoiser_guard.known_vectors.hold(given)

    def knows(self, states: Iterable[Tensor]) -> bool:
        """Whether edited encoders made every vector of these states, for a prompt or for the unconditional branch."""
        if self.denoiser_guard is None:
            return False
        vectors = self.denoiser_guard.known_vectors
        return all(bool((vectors.marks(t) != UNKNOWN).all()) for t in states if t.is_floating_point() and t.ndim > 1)

    def _checked_sae(self, sae: Any | None) -> Any | None:
        needing = [edit for edit in self.eraser.edits if edit.needs_sae]
        if not needing:
            return None
        if sae is None:
            raise InvalidSetting('gate="topk" needs the whole SAE; give it as attach(pipe, sae=...)')
        if any(edit.sae_digest != sae_digest(sae) for edit in needing):
            raise WrongModel("the eraser was made from another SAE; give that one")
        # A copy, so that further training of the caller's SAE cannot change the attached edit.
        return copy.deepcopy(sae).eval().requires_grad_(False)

    def prove(self) -> float:
        """Return the smallest relative change, at strength 1, of any part of the canary prompts' states or predictions.

        Raises EraserDidNotFire if it is too small.
        """
        if not self.eraser.edits:
            return 0.0
        if self.encoded_by is not None:  # proved on the encoding pipeline, whose embeddings stay valid
            return self.encoded_by.shift
        found = moved(self)
        least = min(found.values(), default=0.0)
        wanted = SHIFT_SHARE * self.eraser.canary_shift if self.strict else 0.0
        if not least > 0 or least < wanted:
            part = min(found, key=found.__getitem__, default="the states")
            what = "what the denoiser reads" if self.transcript is None else "the next-token prediction"
            raise EraserDidNotFire(
                f"eraser {self.eraser.name!r} did not change {what} on its canary prompt ({part}: "
                f"shift {least:.2g}, {self.eraser.canary_shift:.2g} when it was fitted), so "
                "nothing is safe to render: check Site, λ and model"
            )
        return least

    def _audit(self, kind: telemetry.Kind, event: str = "") -> None:
        def audit() -> None:
            log.info("eraser %s (%s): %s", one_line(self.name), self.eraser.digest[:12], event or kind)
            self._emit(kind)

        setting.LOCK.after(audit)

    def _totals(self) -> tuple[int, float]:
        """Return the rows edited and the sum of their norms, by hooks that were removed too. This waits for devices."""
        totals = [counters.total() for counters in (*self._removed, *(hook.counters for hook in self.hooks))]
        return sum(rows for rows, _ in totals), sum(norm for _, norm in totals)

    def _emit_rest(self) -> None:
        """Emit an event for rows edited since `detached`, in images that began before."""
        if telemetry.listening() and self._totals()[0] > self._reported[1]:
            self._emit("encoded")

    def _emit(self, kind: telemetry.Kind) -> None:
        """Emit an event with the counts since the event before."""
        if not telemetry.listening():
            return
        with self._counting:
            now = self._prompts, *self._totals()
            calls, rows, norm = (max(0, new - old) for new, old in zip(now, self._reported, strict=True))
            self._reported = now
        strength = self.encoding._strength if self.enabled else 0.0
        event = telemetry.Event(
            kind, self.eraser.digest[:12], self.name, int(calls), int(rows), norm / max(rows, 1), strength
        )
        telemetry.emit(event)
