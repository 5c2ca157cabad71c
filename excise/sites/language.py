"""A causal language model as a pipeline, so that SAEs and erasers work on its residual stream and on its MLPs' outputs.

What is drawn from a text encoder's padding is not drawn from a language model's: only the tokens of a text count, all
but the one that begins it. A prompt is not padded to the model's last position, which may be the millionth, but to the
longest prompt of its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from excise.errors import ExciseError, WrongModel

POSITIONS = 256
"""Tokens that are read of a text when features are captured; the rest of it is cut off."""
_SAMPLES = 16
"""Values of every weight in `fingerprint`."""


class LanguageModel:
    """A causal language model of transformers (Llama, Qwen2, Gemma2, ...) with its tokenizer.

    Every text begins with one special token: its own, or else the tokenizer's BOS, or its EOS where it has no BOS, as
    lm-evaluation-harness does. The first state of a text is unlike any other, whatever token it belongs to, so it must
    not be a word's.
    """

    def __init__(self, model: Any, tokenizer: Any, *, positions: int = POSITIONS, name: str | None = None) -> None:
        """`positions` is how many tokens of a text are captured; `name` the model's on the hub."""
        if not hasattr(model, "generate") or model.get_output_embeddings() is None:
            raise WrongModel(f"{type(model).__name__} predicts no next token; load it with AutoModelForCausalLM")
        self.text_encoder, self.tokenizer, self.positions, self.name_or_path = model, tokenizer, positions, name

    @property
    def components(self) -> dict[str, Any]:
        """As a pipeline's."""
        return {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        where: torch.device = self.text_encoder.device
        return where

    @property
    def limit(self) -> int:
        """How many tokens it can read at all."""
        return int(
            getattr(self.text_encoder.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise WrongModel("a language model draws no pictures; use its `generate`, or a text-to-image pipeline")

    def tokenise(self, texts: Sequence[str], most: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids and attention mask `[B, T]`, padded on the right to the longest text; each cut after `most` tokens.

        Raises ExciseError for a text without any token.
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
        """Ids of tokens that are no text."""
        return set(self.tokenizer.all_special_ids)

    def words(self, ids: Tensor, attention: Tensor) -> Tensor:
        """`[B, T]` bool: where there is a word or a part of one, neither a special token nor padding."""
        return attention.bool() & ~torch.isin(ids, torch.tensor(sorted(self.special), dtype=ids.dtype))

    @torch.no_grad()
    def run(self, ids: Tensor, attention: Tensor) -> Any:
        """What the model gives without its head for ids and attention mask `[B, T]`: its `last_hidden_state`
        `[B, T, d]` among it."""
        return stack_of(self.text_encoder)(
            input_ids=ids.to(self.device), attention_mask=attention.to(self.device), use_cache=False
        )

    @torch.no_grad()
    def encode_prompt(self, prompt: str | list[str]) -> Tensor:
        """What is read of a prompt: logits of the token behind each of its last `positions` tokens, `[B, T, V]`.

        Erasers guard this method and prove themselves by it. Raises ExciseError for a prompt that is too long.
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
        """What the model writes after `prompt`, always taking the likeliest token, up to its end-of-text token.

        Raises ExciseError for a prompt that leaves no room, and what an attached eraser raises.
        """
        from transformers import GenerationConfig

        ids, attention = self._whole([prompt], max_new_tokens)
        self.encode_prompt(prompt)  # whatever guards it refuses before a word is written
        ends = self.text_encoder.generation_config.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        filler = self.tokenizer.pad_token_id
        if filler is None:
            filler = ends[0] if isinstance(ends, list) else ends
        # Each is named, since what is left out is the model's own, which many give a temperature.
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
        """The prompt by which a chat model is asked `text`. Raises ExciseError where it has no chat template."""
        if not self.tokenizer.chat_template:
            raise ExciseError("this model has no chat template; give the prompt as text to go on from")
        messages = [{"role": "user", "content": text}]
        prompt: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return prompt

    def _whole(self, prompts: Sequence[str], room: int = 0) -> tuple[Tensor, Tensor]:
        ids, attention = self.tokenise(prompts)
        if ids.shape[1] + room > self.limit:
            raise ExciseError(f"a prompt has {ids.shape[1]} tokens, of {self.limit} with {room} to write; shorten it")
        return ids, attention


def stack_of(model: nn.Module) -> nn.Module:
    """A language model without its head: embeddings, layers and final norm."""
    stack: nn.Module = getattr(model, "base_model", model)
    return stack


def held(states: Tensor, attention: Tensor) -> Tensor:
    """`states` `[B, T, d]` with every padding position holding its text's last state again.

    So that nothing that is asked of all positions, such as a maximum, hears of padding. `attention` `[B, T]`.
    """
    last = attention.sum(1, keepdim=True) - 1
    at = torch.minimum(torch.arange(attention.shape[1], device=attention.device)[None], last).to(states.device)
    return states.gather(1, at[..., None].expand_as(states))


def fingerprint(model: nn.Module) -> str:
    """Tells one model from another, and one precision: names, shapes and a few values of all weights. Cheap; erasers
    are matched by full digests."""
    own = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        few = flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].double().cpu()
        own.update(f"{name}{tuple(weight.shape)}{weight.dtype}".encode() + few.numpy().tobytes())
    return own.hexdigest()
