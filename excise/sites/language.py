"""A causal language model as a pipeline, so that SAEs and erasers work on its residual stream and its MLPs' outputs.

Unlike a text encoder's, its padding states are never used. Only the tokens of a text count, except the special one that
begins it. Prompts are padded to the longest one of the batch, not to the model's maximal length, which may be a
million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from excise.errors import ExciseError, WrongModel

POSITIONS = 256
"""Number of tokens to which a text is truncated when features are captured."""
_SAMPLES = 16
"""Number of values of each weight in `fingerprint`."""


class LanguageModel:
    """A causal language model of transformers (Llama, Qwen2, Gemma2, ...) with its tokenizer.

    Every text begins with one special token: its own, or else the tokenizer's BOS, or EOS if there is no BOS, as in
    lm-evaluation-harness. The first state of a text is unlike any other, whatever its token, so it must not be a
    word's.
    """

    def __init__(self, model: Any, tokenizer: Any, *, positions: int = POSITIONS, name: str | None = None) -> None:
        """Wrap a model and its tokenizer.

        Args:
            model: A causal language model of transformers.
            tokenizer: Its tokenizer.
            positions: Number of tokens to which a text is truncated when features are captured.
            name: The model's name on the hub.
        """
        if not hasattr(model, "generate") or model.get_output_embeddings() is None:
            raise WrongModel(f"{type(model).__name__} predicts no next token; load it with AutoModelForCausalLM")
        self.text_encoder, self.tokenizer, self.positions, self.name_or_path = model, tokenizer, positions, name

    @property
    def components(self) -> dict[str, Any]:
        """Components by name, like a pipeline's."""
        return {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        where: torch.device = self.text_encoder.device
        return where

    @property
    def limit(self) -> int:
        """Maximal number of tokens that it can read."""
        return int(
            getattr(self.text_encoder.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise WrongModel("a language model generates no images; use its `generate`, or a text-to-image pipeline")

    def tokenise(self, texts: Sequence[str], most: int | None = None) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask `[B, T]`, right-padded to the longest text. Truncate to `most` tokens.

        Raises ExciseError if a text has no token.
        """
        first = next((i for i in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if i is not None), None)
        special = self.special
        rows: list[list[int]] = []
        for row in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
            begun = first is None or (bool(row) and row[0] in special)
            rows.append((row if begun else [first, *row])[:most])
        if not all(rows):
            raise ExciseError("a text is empty; give the language model something to read")
        length, filler = max(map(len, rows)), self.tokenizer.pad_token_id
        filler = next((i for i in (filler, self.tokenizer.eos_token_id) if i is not None), 0)
        ids = torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
        return ids, (torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]).long()

    @property
    def special(self) -> set[int]:
        """Ids of the special tokens."""
        return set(self.tokenizer.all_special_ids)

    def words(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return `[B, T]` bool: the positions of text, neither special tokens nor padding."""
        return attention.bool() & ~torch.isin(ids, torch.tensor(sorted(self.special), dtype=ids.dtype))

    @torch.no_grad()
    def run(self, ids: Tensor, attention: Tensor) -> Any:
        """Return the model's output without its head, including `last_hidden_state` `[B, T, d]`, for token ids and
        attention mask `[B, T]`."""
        return stack_of(self.text_encoder)(
            input_ids=ids.to(self.device), attention_mask=attention.to(self.device), use_cache=False
        )

    @torch.no_grad()
    def encode_prompt(self, prompt: str | list[str]) -> Tensor:
        """Return next-token logits `[B, T, V]` for each of the prompt's last `positions` tokens.

        Erasers guard this method and are proved by it. Raises ExciseError if a prompt is too long.
        """
        ids, attention = self._whole([prompt] if isinstance(prompt, str) else prompt)
        output = self.text_encoder(
            input_ids=ids.to(self.device),
            attention_mask=attention.to(self.device),
            use_cache=False,
            logits_to_keep=min(self.positions, ids.shape[1]),
        )
        logits: Tensor = output.logits
        return logits

    @torch.no_grad()
    def generate(self, prompt: str, max_new_tokens: int = 64) -> str:
        """Continue `prompt` by greedy decoding, up to the end-of-text token or `max_new_tokens`.

        Raises ExciseError if the prompt leaves no room, and the errors of an attached eraser.
        """
        from transformers import GenerationConfig

        ids, attention = self._whole([prompt], max_new_tokens)
        self.encode_prompt(prompt)  # so that guards can refuse before a token is generated
        ends = self.text_encoder.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        filler = self.tokenizer.pad_token_id
        if filler is None:
            filler = ends[0] if isinstance(ends, list) else ends
        # All are set, since defaults come from the model's configuration, which often has a temperature.
        greedy = GenerationConfig(
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends,
            pad_token_id=filler,
        )
        made = self.text_encoder.generate(
            input_ids=ids.to(self.device), attention_mask=attention.to(self.device), generation_config=greedy
        )
        text: str = self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        return text

    def asked(self, text: str) -> str:
        """Return `text` as a user's message in the chat template. Raise ExciseError if the model has no template."""
        if not self.tokenizer.chat_template:
            raise ExciseError("this model has no chat template; give the prompt as text to continue")
        messages = [{"role": "user", "content": text}]
        prompt: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return prompt

    def _whole(self, prompts: Sequence[str], room: int = 0) -> tuple[Tensor, Tensor]:
        ids, attention = self.tokenise(prompts)
        if ids.shape[1] + room > self.limit:
            raise ExciseError(
                f"a prompt has {ids.shape[1]} tokens, but the model reads {self.limit}, {room} of them new ones; "
                "shorten it"
            )
        return ids, attention


def stack_of(model: nn.Module) -> nn.Module:
    """Return a language model without its head: embeddings, layers and final norm."""
    stack: nn.Module = getattr(model, "base_model", model)
    return stack


def held(states: Tensor, attention: Tensor) -> Tensor:
    """Return `states` `[B, T, d]` with each padding position replaced by its text's last state.

    So padding does not affect a maximum over positions. `attention` is `[B, T]`.
    """
    last = attention.sum(1, keepdim=True) - 1
    at = torch.minimum(torch.arange(attention.shape[1], device=attention.device)[None], last).to(states.device)
    return states.gather(1, at[..., None].expand_as(states))


def fingerprint(model: nn.Module) -> str:
    """Return a cheap hash of a model: names, shapes, dtypes and a few values of all weights. Erasers are matched by
    full digests instead."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        few = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].cpu().double()
        digest.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode() + few.numpy().tobytes())
    return digest.hexdigest()
