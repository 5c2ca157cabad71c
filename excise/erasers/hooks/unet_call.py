"""Edits of a denoiser's runs as a whole: what it is told of a prompt, or what is made of what it predicts.

Which text states are which prompt's is noted when they are encoded. Where a denoiser is told states that nobody
encoded under the eraser, nothing is rendered: what should happen to them cannot be known.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.hooks.context import Call, is_muted
from excise.erasers.hooks.edit_hook import EditHook, Shared, unrun
from excise.erasers.hooks.wrapping import Watch
from excise.sites.encoding import conditional, tensors_of

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

REMEMBERED = 512
"""Prompts whose states are known, the latest ones."""


@dataclass(frozen=True, eq=False)
class UNetCall:
    """One run of a U-Net: its arguments by name."""

    given: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> UNetCall:
        """Arguments as they came."""
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        return cls({**dict(zip(names, args, strict=False)), **kwargs})

    def __len__(self) -> int:
        """How many pictures it is of."""
        return len(self.given["sample"])

    @property
    def states(self) -> Tensor:
        """`[B, T, d]`."""
        states: Tensor = self.given["encoder_hidden_states"]
        return states

    @property
    def timestep(self) -> float:
        """Of its first picture."""
        return float(torch.as_tensor(self.given["timestep"]).flatten()[0])

    def with_states(self, states: Tensor) -> UNetCall:
        """The same with other text states."""
        return replace(self, given={**self.given, "encoder_hidden_states": states.to(self.states)})

    def only(self, rows: Sequence[int]) -> UNetCall:
        """Of some of its pictures."""
        return replace(self, given={name: _rows(value, rows, len(self)) for name, value in self.given.items()})


def _rows(value: Any, rows: Sequence[int], batch: int) -> Any:
    """What of an argument belongs to these pictures; what is not a picture's own stays."""
    if isinstance(value, Tensor):
        return value[list(rows)] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {name: _rows(part, rows, batch) for name, part in value.items()}
    return type(value)(_rows(part, rows, batch) for part in value) if isinstance(value, list | tuple) else value


Proceed = Callable[[UNetCall], Any]
"""The run itself, with what else is attached within it."""


def predicted(output: Any) -> Tensor:
    """`[B, C, h, w]` of what a U-Net gave: a tuple, or a model output."""
    made: Tensor = output[0] if isinstance(output, tuple) else output.sample
    return made


def with_prediction(output: Any, made: Tensor) -> Any:
    """The output with another prediction."""
    return (made, *output[1:]) if isinstance(output, tuple) else type(output)(sample=made)


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt, and the states `[T, d]` that it became."""

    text: str
    states: Tensor
    prompts: bool
    """Whether it was what a picture is to be of; else what guidance leads away from."""


class UNetCallHook(EditHook):
    """An edit of a U-Net's runs."""

    def begin(self) -> None:
        self._here.steps = Steps()

    def step_of(self, call: UNetCall) -> int:
        """The number of the step of its drawing that the run is of, from 0 on."""
        steps: Steps = self._here.steps
        return steps.at(call.timestep)

    def on_encoded(self, call: Call, made: Any) -> None:
        given = call.arguments
        own = list(tensors_of(conditional(call.pipe, made)))
        numbers = {id(tensor) for tensor in own}
        others = [tensor for tensor in tensors_of(made) if id(tensor) not in numbers]
        self._note(given.get("prompt"), own, True)
        if given.get("do_classifier_free_guidance"):
            texts = given.get("negative_prompt")
            self._note("" if texts is None else texts, others, False)

    def _note(self, texts: Any, tensors: Sequence[Tensor], prompts: bool) -> None:
        """Remember whose states the first `[B, T, d]` among `tensors` are; of one text for several, each is its."""
        states = next((tensor for tensor in tensors if tensor.ndim == 3), None)
        if texts is None or states is None:
            return
        each = [texts] if isinstance(texts, str) else list(texts)
        times = max(1, len(states) // len(each))
        for n, row in enumerate(states.detach()):
            self._known.append(EncodedPrompt(each[min(n // times, len(each) - 1)], row.clone(), prompts))

    @property
    def _known(self) -> deque[EncodedPrompt]:
        if not hasattr(self._here, "known"):
            self._here.known = deque(maxlen=REMEMBERED)
        known: deque[EncodedPrompt] = self._here.known
        return known

    def prompts_with(self, states: Tensor) -> list[list[EncodedPrompt]]:
        """Of every picture what was said that became its states, the latest first; empty where nobody knows."""
        known = list(reversed(self._known))
        if not known:
            return [[] for _ in states]
        # Asked in every step: whole prompts are compared only where their last states, which sum them up, are alike.
        ends, found = torch.stack([one.states[-1] for one in known]).to(states), list[list[EncodedPrompt]]()
        for row in states:
            near = (ends == row[-1]).all(1).nonzero().flatten().tolist()
            found.append([known[n] for n in near if torch.equal(known[n].states.to(row), row)])
        return found

    def prompts_of(self, call: UNetCall) -> list[EncodedPrompt | None]:
        """Of every picture its prompt; None of what guidance leads away from.

        Where nobody knows, or more than half are of the latter kind, nothing is rendered.
        """
        return self.known_prompts(self.prompts_with(call.states))

    def known_prompts(self, found: Sequence[Sequence[EncodedPrompt]]) -> list[EncodedPrompt | None]:
        """As `prompts_of`, of what `said` gives."""
        prompts = [next((one for one in own if one.prompts), None) for own in found]
        if not all(found) or 2 * prompts.count(None) > len(found):
            self.unknown()
        return prompts

    def unknown(self) -> None:
        """Nobody knows of what prompt the denoiser was told: refuse, or what `on_bypass` says."""
        self.attachment.bypass(
            f"the denoiser was given text states that were not encoded under eraser {self.attachment.name!r}; pass "
            "the prompt as text, to the pipeline that it is attached to"
        )

    def call(self, call: UNetCall, proceed: Proceed) -> Any:
        """`around`, in a thread in which perhaps nothing was encoded."""
        if not hasattr(self._here, "steps"):
            self.begin()
        return self.around(call, proceed)

    def around(self, call: UNetCall, proceed: Proceed) -> Any:
        """What is made of the run, edited; called where the edit acts."""
        raise NotImplementedError


class Steps:
    """Counts the steps of a drawing by their timesteps: from 0 on, the same for all runs of a step."""

    def __init__(self) -> None:
        self.done, self._last = -1, float("nan")

    def at(self, timestep: float) -> int:
        """The number of the step that this timestep is of."""
        if timestep != self._last:
            self.done, self._last = self.done + 1, timestep
        return self.done


class Around(Shared, Watch):
    """The edits of one U-Net's runs, each around the next."""

    hooks: tuple[UNetCallHook, ...]

    def passed_by(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for hook in self.hooks:
            if hook.attachment.active and not is_muted(hook.attachment, "denoiser"):
                raise unrun(hook)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """In the place of the U-Net's own."""
        forward: Any = self.fn_ref.original_forward
        proceed: Proceed = lambda call: forward(**call.given)  # noqa: E731
        for hook in reversed(self.hooks):
            proceed = _within(hook, proceed)
        return proceed(UNetCall.of(module, args, kwargs))


def _within(hook: UNetCallHook, proceed: Proceed) -> Proceed:
    return lambda call: hook.call(call, proceed) if hook.acts else proceed(call)


def put(kind: type[UNetCallHook]) -> Callable[[Host, Any, nn.Module], tuple[UNetCallHook, Callable[[], None]]]:
    """Puts edits of that kind around their U-Net's runs; what comes back with its hook takes it off again."""

    def at(attachment: Host, edit: Any, unet: nn.Module) -> tuple[UNetCallHook, Callable[[], None]]:
        hook = kind(attachment, edit)
        around = Around.join(unet, hook)
        return hook, lambda: around.leave(unet, hook)

    return at
