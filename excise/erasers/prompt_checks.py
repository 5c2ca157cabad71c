"""Checks that an attachment runs before and after every prompt, so that no states bypass its edits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from excise.erasers.apply.registry import is_in_place
from excise.erasers.guard.code_watch import same_code
from excise.erasers.guard.coverage import (
    has_ip_adapter,
    ip_adapter_message,
    refuse_early_tap,
    refuse_open_encoders,
)
from excise.erasers.guard.model_digest import mismatches
from excise.erasers.guard.recorder import is_compiled
from excise.erasers.guard.weights_watch import WeightsWatch
from excise.erasers.hooks.context import Call, encodes_unconditional, is_proving
from excise.erasers.hooks.host import Acting, Host
from excise.errors import EraserDidNotFire, WrongModel
from excise.pipeline import Pipeline
from excise.sites.denoiser import denoisers
from excise.sites.encoding import conditional, tensors_of
from excise.sites.families import family_of
from excise.sites.site import part_of


class PromptChecks:
    """The checks of one attachment, and the pipeline's state at attach time to compare with.

    Raises WrongModel on construction if the eraser was made for another pipeline. Without `strict` it warns instead.
    """

    def __init__(self, host: Host, strict: bool) -> None:
        self.host = host
        self.edited = {edit.site.component: part_of(host.pipe, edit.site.component) for edit in host.edits}
        """The edited components."""
        self._warned = False
        self._differences = self.mismatches() if host.eraser.edits else []
        if self._differences:
            text = f"eraser {host.eraser.name!r} was made for another pipeline ({'; '.join(self._differences)})"
            if strict:
                inversion = any("tokenizer differs" in clause for clause in self._differences)
                undo = "unload a textual inversion (pipe.unload_textual_inversion()), " * inversion
                raise WrongModel(f"{text}; {undo}fit it for this one, or attach with strict=False if you know why")
            warnings.warn(text, stacklevel=4)

    def begin(self) -> None:
        """Remember the pipeline's current denoisers, weights and adapters."""
        self._denoisers = denoisers(self.host.pipe)
        self._watch = WeightsWatch(self.host.pipe, self.host.eraser.denoisers, self.host)
        self._weights, self._adapters = self._watch.now()
        self._code = self._watch.code

    def end(self) -> None:
        """Undo what the watch has put on the pipeline, and let its parts go."""
        if hasattr(self, "_watch"):
            self._watch.end()
            del self._watch, self._denoisers
        self.edited = {}

    def before(self, call: Call) -> None:
        """Refuse an `encode_prompt` call whose states would bypass the edit. Raises ExciseError, EraserDidNotFire."""
        name, pipe = self.host.eraser.name, call.pipe
        for module, hook in self._hooks_of(pipe):
            if not is_in_place(pipe, hook.edit, module):
                raise WrongModel(self._changed(pipe, hook.edit.site.component, "was replaced"))
        if self._has_family_of(pipe):
            for component in self.host.absent:
                if getattr(pipe, component, None) is not None:
                    raise WrongModel(self._changed(pipe, component, "was added"))
            refuse_open_encoders(pipe, self.host.eraser)
        self.refuse_early(call)
        self.refuse_changed()
        for key, given in call.arguments.items():
            if self.host.denoiser_guard is None or "embeds" not in key or "mask" in key:
                continue
            if key.startswith("negative"):
                self._warn_of_edited(key, given)
            elif not all(
                self.host.denoiser_guard.known_vectors.knows(t) for t in tensors_of(given) if t.is_floating_point()
            ):
                self.host.bypass(
                    f"{key} were not encoded under eraser {name!r}, so it cannot act on them; pass the prompt as text, "
                    "or encode it with excise.encode"
                )
        if call.arguments.get("lora_scale") not in (None, 1) and self._adapters:
            self.host.bypass(
                f"a LoRA of the text encoder was scaled for this prompt only, and eraser {name!r} was not proved with "
                "that scale; generate without it, or set it with pipe.set_adapters and attach the eraser again"
            )
        if pipe is self.host.pipe and denoisers(pipe) != self._denoisers:
            self.host.bypass(f"the denoiser was replaced after eraser {name!r} was attached; attach it again")
        for hook in self.host.hooks:
            hook.begin()
        shared = [denoiser for denoiser in denoisers(pipe) if denoiser in self._denoisers]
        for denoiser in shared if self.host.eraser.text_edits else ():
            if has_ip_adapter(denoiser):
                self.host.bypass(ip_adapter_message(self.host))

    def refuse_early(self, call: Call) -> None:
        """Refuse a call that reads a text encoder before one of the edits, or pads prompts to another length."""
        for edit in self.host.eraser.text_edits:
            component = edit.site.component
            if component in self.edited and part_of(call.pipe, component) is self.edited[component]:
                refuse_early_tap(call.pipe, edit, call.arguments.get("clip_skip"), self.host.eraser.name)
        self._refuse_length(call)

    def _refuse_length(self, call: Call) -> None:
        """Refuse a call that pads the prompt to another length than the one at which the eraser was fitted."""
        length, family = call.arguments.get("max_sequence_length"), family_of(call.pipe)
        if length is None or "conditional" not in call.branches:
            return
        lengths = self.host.eraser.made_for.get("lengths", {})
        for component, fitted in lengths.items() if isinstance(lengths, dict) else ():
            encoder = family.encoder(component) if family is not None else None
            part = self.edited.get(component)
            if length == fitted or (encoder and encoder.masked) or part is None:
                continue
            if part_of(call.pipe, component) is part:
                self.host.bypass(
                    f"max_sequence_length is {length}, but eraser {self.host.eraser.name!r} was fitted at {fitted}, "
                    f"and every state of {component} depends on it; pass max_sequence_length={fitted}"
                )

    def refuse_changed(self) -> None:
        """Refuse weights, code, adapters or vocabularies that differ from those at attach time.

        Weights that were only cast, or moved by an offloading, keep their digest and are accepted from then on.
        """
        for change in self.changes():
            self.host.bypass(change)

    def moved_parts(self) -> list[str]:
        """Return a message for each component of the attachment's own pipeline whose edited module was replaced."""
        pipe = self.host.pipe
        gone = (
            hook.edit.site.component for module, hook in self.host.placed if not is_in_place(pipe, hook.edit, module)
        )
        return [self._changed(pipe, component, "was replaced") for component in dict.fromkeys(gone)]

    def changes(self) -> Iterator[str]:
        """Yield what differs from the pipeline at attach time, one message each. It counts no bypass."""
        now, adapters = self._watch.now()
        other_code = not same_code(self._watch.code, self._code)
        if now != self._weights:
            if self._differences or self.mismatches():
                other_code = False  # one message is enough
                what = "denoiser" if self._only_denoiser_differs(now) else "text encoder"
                yield (
                    f"the {what} changed after eraser {self.host.name!r} was attached (weights, tokenizer, a LoRA or a "
                    "textual inversion); undo that (pipe.unload_lora_weights(), pipe.unload_textual_inversion()), or "
                    "fit an eraser for the changed pipeline"
                )
            else:
                self._weights = now
        if other_code:
            yield (
                f"the text encoder's code changed after eraser {self.host.name!r} was attached (a replaced forward, a "
                "hook removed or on every module, a class, a buffer or a setting such as eps); undo that, or attach "
                "the eraser again, which proves it again"
            )
        if adapters != self._adapters:
            yield (
                f"a LoRA of the text encoder was switched or scaled after eraser {self.host.name!r} was attached; "
                "set it as it was, or attach the eraser again, which proves it again"
            )

    def answers_for(self, pipe: Pipeline) -> bool:
        """Whether it is attached to `pipe`, or `pipe` has one of its edited components in the same place."""
        if pipe is self.host.pipe:
            return True
        if self.host.encoded_by is not None:
            return self.host.acts_on(pipe)
        return any(part_of(pipe, component) is part for component, part in self.edited.items())

    def after(self, call: Call, made: Any) -> None:
        """Raise EraserDidNotFire if an edited module did not run although the prompt was encoded."""
        encoded = "conditional" in call.branches
        for _, hook in self._hooks_of(call.pipe):
            if hook.edit.site.part == "text" and encoded and not call.runs.get(id(hook)):
                self.host.forget()
                raise EraserDidNotFire(
                    f"eraser {self.host.eraser.name!r} saw no text-encoder run at {hook.edit.site.key}; something "
                    "unhooked or bypassed it, so nothing is rendered"
                )
        for edited in self.host.hooks:
            edited.on_encoded(call, made)
        if is_proving(self.host):
            return
        prompt = call.arguments.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list | tuple) else 1
        self.host.count(prompts if encoded and not call.negative else 0)
        if self.host.denoiser_guard is None:
            return
        # Edited encoders have recorded their output. The result must be added only if the pipeline changed it (with
        # clip_skip, by a norm of its own) or the encoder is compiled. Embeddings that the caller passed never count,
        # nor do layers that another option selects, since they may lie before the edit.
        named = (key for key, value in call.arguments.items() if "embeds" in key and value is not None)
        given = {key.startswith("negative") for key in named}
        pipe = call.pipe
        if given and not (family_of(pipe) and encodes_unconditional(pipe)):
            given = {False, True}  # only for known families it is known which results belong to which branch
        if "clip_skip" in call.layers or (is_compiled(pipe) and not call.layers):
            states = conditional(pipe, made)
            known = {id(tensor) for tensor in states}
            others = [tensor for tensor in tensors_of(made) if id(tensor) not in known]
            # States that one eraser spared count as spared for all, since they share one set of known vectors.
            spares = any(edit.uncond != "same" for other in call.looked for edit in other.eraser.text_edits)
            if False not in given:
                self.host.trust(states, spared=spares and call.negative)
            if True not in given:
                self.host.trust(others, spared=spares and (call.negative or "unconditional" in call.branches))
        self.host.denoiser_guard.known_vectors.hold(tensors_of(made))

    def _hooks_of(self, pipe: Pipeline) -> list[tuple[nn.Module, Acting]]:
        """Return the hooks whose edits have to act in `pipe`, with their modules. A pipeline that shares encoders with
        the eraser's need not have all of them, and may have another denoiser."""
        hooks = list(self.host.placed)
        if pipe is self.host.pipe:
            return hooks
        parts = {component: part_of(pipe, component) for component in self.edited}
        return [
            (module, hook)
            for module, hook in hooks
            if (part := parts[(site := hook.edit.site).component]) is not None
            and (site.part == "text" or part is self.edited[site.component])
        ]

    def _has_family_of(self, pipe: Pipeline) -> bool:
        """Whether the eraser's pipeline could generate from what `pipe` encodes."""
        one, other = family_of(pipe), family_of(self.host.pipe)
        return pipe is self.host.pipe or (one and one.encoders) == (other and other.encoders)

    def _changed(self, pipe: Pipeline, component: str, done: str) -> str:
        """Return the message for a component that differs from the one at attach time."""
        name = self.host.eraser.name
        if pipe is self.host.pipe:
            without = " without it" if component in self.host.absent else ""
            return f"{component} {done} after eraser {name!r} was attached{without}; attach it again"
        return (
            f"this {type(pipe).__name__} shares an encoder with the pipeline that eraser {name!r} is attached to, but "
            f"has another {component}, which the eraser does not edit; use the pipeline that it is attached to"
        )

    def _warn_of_edited(self, key: str, given: Any) -> None:
        """Warn once that negative embeddings were encoded as a prompt, so that the concept was erased from them."""
        if self._warned or self.host.denoiser_guard is None:
            return
        if any(
            self.host.denoiser_guard.erased.knows(t) for t in tensors_of(given) if t.is_floating_point() and t.any()
        ):
            self._warned = True
            warnings.warn(
                f"{key} name what eraser {self.host.name!r} erases and were encoded as a prompt, so it was erased from "
                "them too; encode a negative prompt with excise.encode(..., negative=True) to keep it as it is",
                stacklevel=5,
            )

    def _only_denoiser_differs(self, now: list[tuple[str, int, int]]) -> bool:
        changed = {name.partition(".")[0].partition("'")[0] for name, _, _ in set(now) ^ set(self._weights)}
        return changed <= set(self.host.eraser.denoisers)

    def mismatches(self) -> list[str]:
        """Return the differences between the pipeline and the one the eraser was made for."""
        return mismatches(self.host.pipe, dict(self.host.eraser.made_for), self.host.absent)
