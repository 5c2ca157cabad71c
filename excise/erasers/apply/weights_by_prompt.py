"""Changes of a U-Net's weights that let a prompt pass the less, the more of the concept is in it (SPM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.apply.weights import WeightHook, put_hook
from excise.erasers.edits.weights import PermeableEdit, permeability
from excise.erasers.hooks.context import Call, unedited
from excise.erasers.hooks.unet_call import Around, EncodedPrompt, Proceed, UNetCall, UNetCallHook
from excise.erasers.hooks.wrapping import found_on
from excise.errors import ExciseError
from excise.sites import encode_prompt
from excise.sites.denoiser import denoiser_of
from excise.sites.encoding import tensors_of
from excise.sites.site import tokenizer_of

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host


class PromptScaledWeights(UNetCallHook):
    """Around a U-Net's runs: says to an eraser's changes how much of them counts, prompt by prompt."""

    def __init__(self, attachment: Host, edit: PermeableEdit) -> None:
        super().__init__(attachment, edit)
        with unedited(), torch.no_grad():
            self._words = [(self._states(word), frozenset(self._ids(word))) for word in attachment.eraser.mentions]
        if not self._words:
            raise ExciseError(f"eraser {attachment.eraser.name!r} names no words to tell prompts by; fit it again")

    def _states(self, text: str) -> Tensor:
        made: Tensor = next(iter(tensors_of(encode_prompt(self.attachment.pipe, text))))[0].detach()
        return made

    def _ids(self, text: str) -> list[int]:
        tokenizer: Any = tokenizer_of(self.attachment.pipe, "text_encoder")
        special = set(tokenizer.all_special_ids)
        return [token for token in tokenizer(text, truncation=True).input_ids if token not in special]

    @property
    def share(self) -> float | Tensor:
        """Of the run that is under way in this thread: of all its pictures, or `[B]` where they differ; 1 outside of
        one."""
        share: float | Tensor = getattr(self._here, "share", 1.0)
        return share

    def begin(self) -> None:
        super().begin()
        self._here.shares = dict[str, float]()

    def around(self, call: UNetCall, proceed: Proceed) -> Any:
        shares = self._shares(self.prompts_of(call))
        self._here.share = shares[0] if len(set(shares)) == 1 else torch.tensor(shares).to(call.states.device)
        try:
            return proceed(call)
        finally:
            self._here.share = 1.0

    def _shares(self, prompts: Sequence[EncodedPrompt | None]) -> list[float]:
        """Of every picture; the unconditional half has those of the prompts it belongs to."""
        own = [None if prompt is None else self._share(prompt) for prompt in prompts]
        half, most = len(own) // 2, max((share for share in own if share is not None), default=1.0)
        beside = [*own[half:], *own[:half]]
        pairs = zip(own, beside, strict=True)
        return [share if share is not None else most if other is None else other for share, other in pairs]

    def _share(self, prompt: EncodedPrompt) -> float:
        shares: dict[str, float] = self._here.shares
        if prompt.text not in shares:
            words = [(states.to(prompt.states.device), tokens) for states, tokens in self._words]
            shares[prompt.text] = round(permeability(prompt.states, self._ids(prompt.text), words), 6)
        return shares[prompt.text]


class PermeableHook(WeightHook):
    """A change of one layer's weights, scaled by `scaled_weights`. An eraser's first hook notes its prompts."""

    def __init__(self, attachment: Host, edit: PermeableEdit, scaled_weights: PromptScaledWeights, first: bool) -> None:
        super().__init__(attachment, edit)
        self.scaled_weights, self._first = scaled_weights, first

    def begin(self) -> None:
        if self._first:
            self.scaled_weights.begin()

    def on_encoded(self, call: Call, made: Any) -> None:
        if self._first:
            self.scaled_weights.on_encoded(call, made)

    def amount(self) -> float:
        whole, share = super().amount(), self.scaled_weights.share
        return 0.0 if isinstance(share, Tensor) else whole * share

    def by_row(self) -> Tensor | None:
        share = self.scaled_weights.share
        return self.attachment.strength * share if isinstance(share, Tensor) and self.acts else None


def put(attachment: Host, edit: PermeableEdit, layer: nn.Module) -> tuple[PermeableHook, Callable[[], None]]:
    """Put the edit on its layer. Returns its hook, and a function that takes it off again."""
    unet = denoiser_of(attachment.pipe, edit.site.component)[1]
    there = found_on(unet, Around)
    hooks = there.hooks if there is not None else ()
    scaled_weights = next(
        (own for own in hooks if isinstance(own, PromptScaledWeights) and own.attachment is attachment), None
    )
    first = scaled_weights is None
    if scaled_weights is None:
        scaled_weights = PromptScaledWeights(attachment, edit)
        there = Around.join(unet, scaled_weights)
    hook = PermeableHook(attachment, edit, scaled_weights, first)
    _, off = put_hook(hook, layer)

    def take_off() -> None:
        off()
        if first and there is not None:
            there.leave(unet, scaled_weights)

    return hook, take_off
