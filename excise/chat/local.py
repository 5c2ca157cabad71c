"""Language model in this process, run by transformers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from excise.chat.backend import Question, Reply
from excise.errors import ExciseError
from excise.files import sha256
from excise.loading import load_whole


def _whole(source: str, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return load_whole(AutoModelForCausalLM, source, **options)


class TransformersBackend:
    """Causal language model with its tokenizer, decoded greedily, one question at a time.

    If the tokenizer has a chat template, it is used; a template without a system role gets both parts as the user's
    message. `name` is shown to users, with eight digits of a fingerprint of the weights.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str | None = None) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        known = name or Path(str(getattr(model.config, "name_or_path", ""))).name or type(model).__name__
        self._name = f"transformers:{known}#{_fingerprint(model)} (greedy)"
        self._lock = threading.Lock()

    @classmethod
    def load(cls, model: str, device: str = "cpu") -> TransformersBackend:
        """Load a model from a folder, a .gguf file or the hub. Raises ExciseError if it cannot be loaded."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file, source, options = Path(model), model, dict[str, Any](use_safetensors=True)
        if file.suffix == ".gguf":
            source, options = str(file.parent), {"gguf_file": file.name}
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                source, **{key: value for key, value in options.items() if key == "gguf_file"}
            )
            # The names in a .gguf file are not the model's parameter names.
            load = AutoModelForCausalLM.from_pretrained if file.suffix == ".gguf" else _whole
            loaded: Any = load(source, dtype="auto", **options)
            return cls(loaded.to(device), tokenizer, file.stem if file.suffix == ".gguf" else file.name)
        except Exception as error:  # transformers and the hub raise a dozen kinds here
            lines = str(error).splitlines() or [type(error).__name__]
            hint = "name a folder with a causal language model and its tokenizer, a .gguf file, or a model on the hub"
            raise ExciseError(f"cannot load {model} ({lines[0][:200]}); {hint}") from error

    @property
    def name(self) -> str:
        return self._name

    def ask(self, question: Question) -> Reply:
        import torch
        from transformers import GenerationConfig

        with self._lock, torch.no_grad():
            ids = self._encoded(question)
            room = getattr(self.model.config, "max_position_embeddings", None)
            if room is not None and ids.shape[1] + question.max_tokens > room:
                raise ExciseError(
                    f"a question of {ids.shape[1]} tokens plus {question.max_tokens} for the answer exceeds the "
                    f"{room} tokens of {self.name}; show fewer contexts at once"
                )
            ends = self.model.generation_config.eos_token_id
            ends = self.tokenizer.eos_token_id if ends is None else ends
            padding = self.tokenizer.pad_token_id
            if padding is None:
                padding = ends[0] if isinstance(ends, list) else ends
            greedy = GenerationConfig(
                do_sample=False, max_new_tokens=question.max_tokens, eos_token_id=ends, pad_token_id=padding
            )
            try:
                out = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            except RuntimeError as error:  # mostly out of memory
                lines = str(error).splitlines() or ["no reason given"]
                raise ExciseError(f"{self.name} failed ({lines[0][:200]}); show fewer contexts at once") from error
            new = out[0, ids.shape[1] :]
            text = self.tokenizer.decode(new, skip_special_tokens=True).strip()
        if not text:
            raise ExciseError(f"{self.name} gave an empty answer; use another model")
        return Reply(text, ids.shape[1], len(new))

    def _encoded(self, question: Question) -> Any:
        """Return token ids `[1, T]` on the model's device."""
        whole = f"{question.system}\n\n{question.user}".strip()
        if not self.tokenizer.chat_template:
            ids = self.tokenizer(f"{whole}\n", return_tensors="pt").input_ids
            return ids.to(self.model.device)
        from jinja2 import TemplateError

        user = [{"role": "user", "content": question.user}]
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        # Turns off reasoning in models that have it. Other templates ignore it.
        options["enable_thinking"] = False
        try:
            parts = [{"role": "system", "content": question.system}, *user] if question.system else user
            ids = self.tokenizer.apply_chat_template(parts, **options)["input_ids"]
        except TemplateError:
            parts = [{"role": "user", "content": whole}]
            ids = self.tokenizer.apply_chat_template(parts, **options)["input_ids"]
        return ids.to(self.model.device)


def _fingerprint(model: Any) -> str:
    """Return eight digits that distinguish models of the same name, from the first 64 values of each parameter."""
    heads = (value.detach().flatten()[:64].float().cpu().numpy().tobytes() for _, value in model.named_parameters())
    return sha256(b"".join(heads))[:8]
