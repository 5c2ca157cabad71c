"""Edits of whole U-Net calls: they change the text states it reads, or its prediction.

The text states of each prompt are noted when it is encoded. For states that were not encoded under the eraser the
right edit is unknown, so nothing is rendered.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from excise.erasers.hooks.context import Call, is_muted
from excise.erasers.hooks.edit_hook import EditHook, Shared, did_not_run
from excise.erasers.hooks.prompt_texts import EncodedPrompt, PromptTexts
from excise.erasers.hooks.setting import Fixed, Setting, image
from excise.erasers.hooks.wrapping import Watch, renew
from excise.errors import InvalidSetting
from excise.sites.encoding import conditional, handed_on, tensors_of
from excise.sites.site import taps_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from excise.erasers.hooks.host import Host


@dataclass(frozen=True, eq=False)
class UNetCall:
    """One call of a U-Net: its arguments by name."""

    given: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> UNetCall:
        """Name the positional arguments of a call of `module`."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        return cls({**dict(zip(names, args, strict=False)), **kwargs})

    def __len__(self) -> int:
        """Return the batch size."""
        return len(self.given["sample"])

    @property
    def states(self) -> Tensor:
        """The text states `[B, T, d]`."""
        states: Tensor = self.given["encoder_hidden_states"]
        return states

    @cached_property
    def timestep(self) -> float:
        """The timestep of the first image."""
        return float(torch.as_tensor(self.given["timestep"]).flatten()[0])

    def with_states(self, states: Tensor) -> UNetCall:
        """Return the call with other text states."""
        return replace(self, given={**self.given, "encoder_hidden_states": states.to(self.states)})

    def only(self, rows: Sequence[int]) -> UNetCall:
        """Return the call for some images of the batch."""
        return replace(self, given={name: _rows(value, rows, len(self)) for name, value in self.given.items()})


def _rows(value: Any, rows: Sequence[int], batch: int) -> Any:
    """Return an argument's rows for these images. Values without a batch dimension stay as they are."""
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {name: _rows(part, rows, batch) for name, part in value.items()}
    return type(value)(_rows(part, rows, batch) for part in value) if isinstance(value, list | tuple) else value


Proceed = Callable[[UNetCall], Any]
"""Calls the U-Net, inside the remaining edits."""


def predicted(output: Any) -> Tensor:
    """Return the prediction `[B, C, h, w]` of a U-Net's output, a tuple or a model output."""
    made: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return made


def with_prediction(output: Any, made: Tensor) -> Any:
    """Return the output with another prediction."""
    return (made, *output[1:]) if isinstance(output, tuple) else type(output)(sample=made)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


class UNetCallHook(EditHook):
    """An edit of a U-Net's calls."""

    calls_alone: ClassVar[bool] = False
    """Whether it runs the U-Net with other states or rows, which edits of this kind by other erasers cannot follow."""
    at: tuple[nn.Module, Around]
    """The U-Net, and the module hook there."""

    def __init__(self, attachment: Host, edit: Any) -> None:
        super().__init__(attachment, edit)
        self._prompts = PromptTexts()

    def begin(self) -> None:
        renew(*self.at)
        self._here.steps, self._here.found = Steps(), None
        self._here.image = _reference(image())

    def step_of(self, call: UNetCall) -> int:
        """Return the denoising step of the call, from 0."""
        steps: Steps = self._here.steps
        return steps.at(call.timestep)

    def on_encoded(self, call: Call, made: Any) -> None:
        arguments = call.arguments
        prompts = list(tensors_of(conditional(call.pipe, made)))
        numbers = {id(tensor) for tensor in prompts}
        others = [tensor for tensor in tensors_of(made) if id(tensor) not in numbers]
        self._note(arguments.get("prompt"), prompts, True)
        if arguments.get("do_classifier_free_guidance"):
            texts = arguments.get("negative_prompt")
            self._note("" if texts is None else texts, others, False)

    def on_encoder_run(self, call: Call, component: str, output: Any) -> None:
        prompts = call.next_branch(self._prompts) == "conditional"
        texts = call.arguments.get("prompt" if prompts else "negative_prompt")
        states = tensors_of(handed_on(output, 0, taps_of(call.pipe, component) or None))
        for tensor in states:
            self._note("" if texts is None and not prompts else texts, [tensor], prompts)

    def _note(self, texts: Any, tensors: Sequence[Tensor], prompts: bool) -> None:
        """Remember the texts of the first `[B, T, d]` among `tensors`."""
        states = next((tensor for tensor in tensors if tensor.ndim == 3), None)
        if texts is not None and states is not None:
            self._prompts.add([texts] if isinstance(texts, str) else list(texts), states, prompts)

    def prompts_with(self, states: Tensor) -> list[list[EncodedPrompt]]:
        """Return for every image the known prompts with its states, the latest first. In later steps the states are
        compared with those of the step before, on their device."""
        before: tuple[Tensor, list[list[EncodedPrompt]]] | None = getattr(self._here, "found", None)
        if before is not None and _alike(before[0], states) and torch.equal(before[0], states):
            return before[1]
        copy = states.detach().clone()
        found = self._prompts.find(copy)
        if all(found):
            self._here.found = copy, found
        return found

    def prompts_of(self, call: UNetCall) -> list[EncodedPrompt | None]:
        """Return the prompt of every image, None for the unconditional branch.

        Raises EraserDidNotFire (see `bypass`) if a prompt is unknown, or more than half are unconditional.
        """
        return self.known_prompts(self.prompts_with(call.states))

    def known_prompts(self, found: Sequence[Sequence[EncodedPrompt]]) -> list[EncodedPrompt | None]:
        """Return what `prompts_of` returns, given the result of `prompts_with`."""
        prompts = [next((prompt for prompt in candidates if prompt.prompts), None) for candidates in found]
        if not all(found) or 2 * prompts.count(None) > len(found):
            self.unknown()
        return prompts

    def unknown(self) -> None:
        """Refuse states of an unknown prompt, or do what `on_bypass` says."""
        self.attachment.bypass(
            f"the denoiser was given text states that were not encoded under eraser {self.attachment.name!r}; pass "
            "the prompt as text, to the pipeline that it is attached to"
        )

    def call(self, call: UNetCall, proceed: Proceed) -> Any:
        """Call `around`. Call `begin` first if another image begins, whose prompt was encoded in another thread."""
        steps: Steps | None = getattr(self._here, "steps", None)
        if steps is None or self._here.image() is not (now := image()) or (now is None and call.timestep > steps.last):
            self.begin()
        return self.around(call, proceed)

    def around(self, call: UNetCall, proceed: Proceed) -> Any:
        """Return the U-Net's output with the edit. Called only if the edit is active."""
        raise NotImplementedError


def _reference(setting: Setting | None) -> Callable[[], Setting | None]:
    """Return a weak reference to an image's setting."""
    return weakref.ref(setting) if setting is not None else lambda: None


class Steps:
    """Counter of denoising steps by timestep, from 0. All U-Net calls of a step get the same number."""

    def __init__(self) -> None:
        self.done, self.last = -1, float("nan")

    def at(self, timestep: float) -> int:
        """Return the number of the step at this timestep."""
        if timestep != self.last:
            self.done, self.last = self.done + 1, timestep
        return self.done


class Around(Shared, Watch):
    """The edits of one U-Net's calls, nested in each other."""

    hooks: tuple[UNetCallHook, ...]

    @classmethod
    def join(cls, module: nn.Module, hook: UNetCallHook) -> Self:  # type: ignore[override]
        around = super().join(module, hook)
        hook.at = module, around
        return around

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not torch.compiler.is_compiling():
            self._here.replaced = False
        return super().pre_forward(module, *args, **kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        # diffusers drops `new_forward` when it removes the hook below, such as an offloading.
        if not torch.compiler.is_compiling() and not getattr(self._here, "replaced", False):
            self.passed_by(module, (), {}, output)
        return output

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for hook in self.hooks:
            if hook.attachment.active and not is_muted(hook.attachment, "denoiser"):
                raise did_not_run(hook)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replace the U-Net's `forward`."""
        self._here.replaced = True
        forward: Any = self.fn_ref.original_forward
        proceed: Proceed = lambda call: forward(**call.given)  # noqa: E731
        for hook in reversed(self.hooks):
            proceed = _within(hook, proceed)
        with Fixed():  # a compiled U-Net has no hook of its own that keeps the setting
            return proceed(UNetCall.of(module, args, kwargs))


def _within(hook: UNetCallHook, proceed: Proceed) -> Proceed:
    return lambda call: hook.call(call, proceed) if hook.acts else proceed(call)


def put(kind: type[UNetCallHook]) -> Callable[[Host, Any, nn.Module], tuple[UNetCallHook, Callable[[], None]]]:
    """Return a function that installs hooks of this kind on a U-Net. It returns a hook, and a function that removes
    it."""

    def at(attachment: Host, edit: Any, unet: nn.Module) -> tuple[UNetCallHook, Callable[[], None]]:
        hook = kind(attachment, edit)
        others = Around.listed_on(unet) if attachment.listed else []
        if others and any(one.calls_alone for one in (hook, *others)):
            raise InvalidSetting(
                f"erasers {attachment.eraser.name!r} and {others[0].attachment.eraser.name!r} cannot be attached "
                "together: one of them runs the U-Net with text states that the other does not know; detach one"
            )
        around = Around.join(unet, hook)
        return hook, lambda: around.leave(unet, hook)

    return at
