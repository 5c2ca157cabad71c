"""Protocols between hooks and guards and the attachment they belong to."""

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
    """One edit in action: the view of `excise.erasers.hooks.edit_hook.EditHook` that its host and the guards have."""

    @property
    def edit(self) -> Any: ...
    @property
    def attachment(self) -> Host: ...
    @property
    def runs(self) -> int:
        """Number of runs in this thread."""
        ...

    def begin(self) -> None:
        """Prepare for another image: a prompt is about to be encoded in this thread."""
        ...

    def on_encoded(self, call: Call, made: Any) -> None:
        """Take note of `made`, the result of the pipeline's `encode_prompt` in this thread."""
        ...

    def on_encoder_run(self, call: Call, component: str, output: Any) -> None:
        """Read a text encoder's output for an `encode_prompt` call without a guard."""
        ...


class Host(Protocol):
    """One eraser on one pipeline: the view of `excise.erasers.attachment.Attachment` that its hooks and guards have."""

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
        """The eraser's edits whose component the pipeline has."""
        ...

    @property
    def hooks(self) -> Sequence[Acting]:
        """The hooks of its edits."""
        ...

    @property
    def placed(self) -> Sequence[tuple[nn.Module, Acting]]:
        """The same hooks, each with its module."""
        ...

    @property
    def absent(self) -> Sequence[str]:
        """Text encoders that the eraser edits and the pipeline was built without."""
        ...

    @property
    def denoiser_guard(self) -> Any | None:
        """The guard at its denoisers, with the vectors that edited encoders made."""
        ...

    @property
    def own_strength(self) -> float:
        """The strength set for all threads; 0 if the eraser is disabled."""
        ...

    @property
    def sae(self) -> Any | None:
        """The whole SAE, if an edit needs it."""
        ...

    @property
    def transcript(self) -> Any | None:
        """A language model's hook that follows its texts."""
        ...

    @property
    def attached(self) -> bool: ...
    @property
    def listed(self) -> bool:
        """Whether it acts in images that begin from now on, or will when it is proved."""
        ...

    @property
    def active(self) -> bool:
        """Whether prompts are edited now."""
        ...

    @property
    def strength(self) -> float: ...
    @property
    def shift(self) -> float:
        """How far its canary moved when it was attached."""
        ...

    @property
    def encoded_by(self) -> Self | None:
        """The attachment to the pipeline that encodes the prompts, if this pipeline has no text encoders."""
        ...

    def acts_on(self, pipe: Pipeline) -> bool:
        """Whether one of its edits is at a module of `pipe`."""
        ...

    def answering(self, pipe: Pipeline) -> Sequence[Host]:
        """Return all attachments that have to check what `pipe` encodes."""
        ...

    def answers_for(self, pipe: Pipeline) -> bool:
        """Whether it is attached to `pipe`, or `pipe` has one of its edited components in the same place."""
        ...

    def refuse_early(self, call: Call) -> None:
        """Refuse a call that reads a text encoder before one of the edits, or pads prompts to another length."""
        ...

    def before_prompt(self, call: Call) -> None:
        """Refuse an `encode_prompt` call whose states would bypass its edits."""
        ...

    def after_prompt(self, call: Call, made: Any) -> None:
        """Refuse the result if an edited module did not run."""
        ...

    def forget(self) -> None:
        """Stop accepting the states encoded so far."""
        ...

    def refuse_changed(self) -> None:
        """Refuse weights, adapters or vocabularies that differ from those at attach time."""
        ...

    def bypass(self, message: str) -> None:
        """Refuse, warn of or allow a bypass of the eraser, as `on_bypass` says."""
        ...

    def count(self, prompts: int) -> None:
        """Count prompts that a text encoder has encoded."""
        ...

    def trust(self, states: Iterable[Tensor], *, spared: bool = False, erased: bool = False) -> None:
        """Accept states that were encoded under the current edits."""
        ...

    def draw_for(self, encoding: Any, guard: Any) -> None:
        """Generate from states that the attachment `encoding` edits and `guard` knows, from now on."""
        ...
