"""Host: what hooks and guards ask of the attachment they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from excise.erasers.hooks.context import Call
from excise.pipeline import Pipeline

if TYPE_CHECKING:
    from typing_extensions import Self

    from excise.erasers.artefact.record import Artefact
    from excise.erasers.edits.registry import Edit


class Acting(Protocol):
    """One edit at work: `excise.erasers.hooks.edit_hook.EditHook`, seen by its host and the guards."""

    @property
    def edit(self) -> Any: ...
    @property
    def attachment(self) -> Host: ...
    @property
    def runs(self) -> int:
        """How often it ran in this thread."""
        ...

    def begin(self) -> None:
        """A prompt is about to be encoded in this thread."""
        ...

    def on_encoded(self, call: Call, made: Any) -> None:
        """What the pipeline's `encode_prompt` made of a prompt in this thread."""
        ...


class Host(Protocol):
    """One eraser on one live pipeline: `excise.erasers.attachment.Attachment`, seen by its hooks and guards."""

    @property
    def eraser(self) -> Artefact: ...
    @property
    def pipe(self) -> Any: ...
    @property
    def name(self) -> str: ...
    @property
    def number(self) -> int:
        """Grows with every attachment."""
        ...

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Those whose component the pipeline has."""
        ...

    @property
    def hooks(self) -> Sequence[Acting]:
        """The hooks that carry its edits."""
        ...

    @property
    def placed(self) -> Sequence[tuple[nn.Module, Acting]]:
        """The same hooks, each with the module that it is at."""
        ...

    @property
    def absent(self) -> Sequence[str]:
        """Text encoders that the eraser edits and the pipeline was built without."""
        ...

    @property
    def denoiser_guard(self) -> Any | None:
        """What stands at its denoisers, with the record of what edited encoders made."""
        ...

    @property
    def epoch(self) -> int:
        """Grows whenever an eraser of the pipeline is set otherwise."""
        ...

    @property
    def sae(self) -> Any | None:
        """The whole SAE, where an edit needs it."""
        ...

    @property
    def transcript(self) -> Any | None:
        """Of a language model: what follows its texts."""
        ...

    @property
    def attached(self) -> bool: ...
    @property
    def active(self) -> bool:
        """Whether prompts are edited now."""
        ...

    @property
    def strength(self) -> float: ...
    @property
    def shift(self) -> float:
        """By how much its canary moved when it was attached."""
        ...

    @property
    def encoded_by(self) -> Self | None:
        """For a pipeline that only draws: the attachment where its prompts are encoded."""
        ...

    def acts_on(self, pipe: Pipeline) -> bool:
        """Whether one of its edits is at a module of `pipe`."""
        ...

    def answering(self, pipe: Pipeline) -> Sequence[Host]:
        """Everything attached that answers for what `pipe` encodes."""
        ...

    def answers_for(self, pipe: Pipeline) -> bool:
        """Whether it is attached to `pipe`, or an encoder or denoiser that it edits has the same place in `pipe`."""
        ...

    def refuse_early(self, call: Call) -> None:
        """Refuse a call that makes its pipeline read a text encoder before one of the edits."""
        ...

    def before_prompt(self, call: Call) -> int:
        """Refuse an `encode_prompt` call whose states would pass its edits by. Returns the epoch."""
        ...

    def after_prompt(self, call: Call, made: Any, epoch: int) -> None:
        """Refuse what was encoded while an edited module did not run."""
        ...

    def forget(self) -> None:
        """Nothing that was encoded so far counts any more."""
        ...

    def refuse_changed(self) -> None:
        """Refuse other weights, adapters or vocabulary than at attach time."""
        ...

    def bypass(self, message: str) -> None:
        """Something goes round the eraser: refuse, warn or let it pass, as `on_bypass` says."""
        ...

    def count(self, prompts: int) -> None:
        """Count prompts that a text encoder has read."""
        ...

    def trust(self, states: Iterable[Tensor], epoch: int, *, spared: bool = False, erased: bool = False) -> None:
        """Accept states that were encoded under the current edits."""
        ...

    def draw_for(self, encoding: Any, guard: Any) -> None:
        """Draw what `encoding` edits from now on, and what `guard` has a record of."""
        ...
