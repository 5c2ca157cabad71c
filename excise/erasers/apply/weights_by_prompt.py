"""Weight changes of a U-Net, scaled by how close each prompt comes to the concept (SPM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.apply.weights import WeightHook, put_hook
from excise.erasers.edits.weights import PromptScaledEdit, permeability
from excise.erasers.hooks.context import Call, unedited
from excise.erasers.hooks.prompt_texts import EncodedPrompt
from excise.erasers.hooks.unet_call import Around, Proceed, UNetCall, UNetCallHook
from excise.erasers.hooks.wrapping import found_on
from excise.errors import ExciseError
from excise.sites import encode_prompt
from excise.sites.denoiser import denoiser_of
from excise.sites.encoding import tensors_of
from excise.sites.site import tokenizer_of

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host


class PromptScaledWeights(UNetCallHook):
    """A hook on a U-Net's calls that computes the scale of an eraser's weight changes for each prompt."""

    def __init__(self, attachment: Host, edit: PromptScaledEdit) -> None:
        super().__init__(attachment, edit)
        if not attachment.eraser.mentions:
            raise ExciseError(f"eraser {attachment.eraser.name!r} lists no words to compare prompts with; fit it again")
        self._words: list[tuple[Tensor, frozenset[int]]] = []

    def prepare(self) -> None:
        """Encode the words that prompts are compared with."""
        with unedited(), torch.no_grad():
            self._words = [(self._states(word), frozenset(self._ids(word))) for word in self.attachment.eraser.mentions]

    def _states(self, text: str) -> Tensor:
        made: Tensor = next(iter(tensors_of(encode_prompt(self.attachment.pipe, text))))[0].detach()
        return made

    def _ids(self, text: str) -> list[int]:
        tokenizer: Any = tokenizer_of(self.attachment.pipe, "text_encoder")
        special = set(tokenizer.all_special_ids)
        return [token for token in tokenizer(text, truncation=True).input_ids if token not in special]

    @property
    def share(self) -> float | Tensor:
        """Scale in this thread's U-Net call: of the whole batch, or `[B]` if it differs. It is 1 outside a call."""
        share: float | Tensor = getattr(self._here, "share", 1.0)
        return share

    def begin(self) -> None:
        super().begin()
        self._here.shares = dict[str, float]()

    def around(self, call: UNetCall, proceed: Proceed) -> Any:
        shares = self._shares(self.prompts_of(call))
        self._here.share = shares[0] if len(set(shares)) == 1 else self._by_row(shares, call.states.device)
        try:
            return proceed(call)
        finally:
            self._here.share = 1.0

    def _by_row(self, shares: Sequence[float], device: torch.device) -> Tensor:
        """Return the shares `[B]` on the device, where they stay for the next steps."""
        known: tuple[Sequence[float], Tensor] | None = getattr(self._here, "by_row", None)
        if known is None or known[0] != shares or known[1].device != device:
            self._here.by_row = known = shares, torch.tensor(shares).to(device)
        return known[1]

    def _shares(self, prompts: Sequence[EncodedPrompt | None]) -> list[float]:
        """Return the scale of every image. An unconditional one has that of the prompt in the other half of the
        batch."""
        known = [None if prompt is None else self._share(prompt) for prompt in prompts]
        half, most = len(known) // 2, max((share for share in known if share is not None), default=1.0)
        pairs = zip(known, [*known[half:], *known[:half]], strict=True)
        return [share if share is not None else most if other is None else other for share, other in pairs]

    def _share(self, prompt: EncodedPrompt) -> float:
        shares: dict[str, float] = self._here.shares
        if prompt.text not in shares:
            words = [(states.to(prompt.states.device), tokens) for states, tokens in self._words]
            shares[prompt.text] = round(permeability(prompt.states, self._ids(prompt.text), words), 6)
        return shares[prompt.text]


class PromptScaledHook(WeightHook):
    """A change of one layer's weights, scaled by `scaled_weights`. An eraser's first hook reports prompts to it."""

    def __init__(
        self, attachment: Host, edit: PromptScaledEdit, scaled_weights: PromptScaledWeights, first: bool
    ) -> None:
        super().__init__(attachment, edit)
        self.scaled_weights, self._first = scaled_weights, first

    def prepare(self) -> None:
        if self._first:
            self.scaled_weights.prepare()

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


def put(attachment: Host, edit: PromptScaledEdit, layer: nn.Module) -> tuple[PromptScaledHook, Callable[[], None]]:
    """Install the edit at its layer. Return its hook, and a function that removes it."""
    unet = denoiser_of(attachment.pipe, edit.site.component)[1]
    around = found_on(unet, Around)
    hooks = around.hooks if around is not None else ()
    scaled_weights = next(
        (hook for hook in hooks if isinstance(hook, PromptScaledWeights) and hook.attachment is attachment), None
    )
    first = scaled_weights is None
    if scaled_weights is None:
        scaled_weights = PromptScaledWeights(attachment, edit)
        around = Around.join(unet, scaled_weights)
    scaled = PromptScaledHook(attachment, edit, scaled_weights, first)
    _, off = put_hook(scaled, layer)

    def take_off() -> None:
        off()
        if first and around is not None:
            around.leave(unet, scaled_weights)

    return scaled, take_off
