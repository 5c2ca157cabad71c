"""Tokenizers of real classes with real special tokens, over vocabularies made here: nothing is downloaded."""

from __future__ import annotations

import copy
import json
from functools import cache
from importlib.metadata import version
from typing import Any

from excise.sites.locking import own_copy
from tests.tiny import words4

FOUR = version("transformers").startswith("4.")
# These words have one token each; all others are split into letters. The second and third lines are the templates of
# Qwen-Image and Kandinsky 5, which drop the first 34 and 40 states by number. So each word must be one token here, as
# in the real model, to leave exactly the user's words. The last is FLUX.2's template.
LINES = (
    "a an the gun knife cat dog rose bus house tree frog star crown picture photo of on in with and grass sand sky",
    "system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships"
    " of the objects and background:\nuser\n\nassistant\n",
    "system\nYou are a prompt engineer. Describe the image",
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object"
    " relationships, object\nattribution and actions without speculation.",
)
QWEN_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_SPECIAL = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
MISTRAL_CHAT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content[0].text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ m.content[0].text }}[/INST]{% endif %}{% endfor %}"
)


@cache
def shared_clip() -> Any:
    """Return CLIP's real tokenizer. Loading it takes seconds."""
    if FOUR:
        return words4.clip()
    from excise.reference import data
    from excise.reference.training import text_encoder

    return text_encoder.tokenizer(data.folder() / text_encoder.MERGES)


def clip() -> Any:
    """Return a copy of CLIP's tokenizer, since textual inversion adds tokens in place."""
    return copied(shared_clip())


def copied(tokenizer: Any) -> Any:
    """Return a copy that shares only what nothing changes in place: the model, the vocabulary and the merges."""
    made = own_copy(tokenizer)
    for name, value in vars(made).items():
        if isinstance(value, dict | list | set) and len(value) < 1000:
            setattr(made, name, copy.deepcopy(value))
    return made


def t5() -> Any:
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = sorted({"▁" + word for line in LINES for word in line.replace(",", "").split()})
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces += [(piece, -10.0) for piece in ("▁", *letters)] + [(word, -5.0) for word in words]
    if FOUR:
        return words4.t5(pieces)
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def byt5() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(extra_ids=0)


def qwen() -> Any:
    """Return the tokenizer of Qwen2, Qwen2.5-VL and Qwen3."""
    vocabulary, merges = _bpe("bytes", ("<|endoftext|>", *QWEN_SPECIAL))
    options: dict[str, Any] = {
        "eos_token": "<|im_end|>",
        "additional_special_tokens": list(QWEN_SPECIAL),
        "chat_template": QWEN_CHAT,
        "model_max_length": 131072,
    }
    if FOUR:
        return words4.qwen(vocabulary, merges, **options)
    from transformers import Qwen2Tokenizer

    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, **options)


def gemma() -> Any:
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)))
    vocabulary, merges = _bpe("▁", special)
    if FOUR:
        return words4.gemma(vocabulary, merges)
    from transformers import GemmaTokenizer

    return GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def qwen_processor() -> Any:
    """Return a Qwen2VLProcessor without its picture and video processors, since the latter needs torchvision.

    The class requires both when it is built, but does not use them for text. Such a processor cannot be saved.
    """
    from transformers import Qwen2VLProcessor

    class TextProcessor(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    return TextProcessor(tokenizer=qwen())


def mistral_processor() -> Any:
    """Return FLUX.2's Mistral tokenizer in a LlavaProcessor.

    The real PixtralProcessor cannot be imported without torchvision. LlavaProcessor has the same parts (an image
    processor and a tokenizer) and inherits the only method that FLUX.2 calls, ProcessorMixin.apply_chat_template.
    Padding is on the left, as in chat models, so that one family tests that side.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    try:
        from transformers import CLIPImageProcessorPil as Pictures
    except ImportError:  # until about transformers 5.2, the plain name needs no torchvision
        from transformers import CLIPImageProcessor as Pictures

    vocabulary, merges = _bpe("bytes", ("<unk>", "<s>", "</s>", "<pad>", *MISTRAL_SPECIAL))
    words = Tokenizer(BPE(vocabulary, merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(MISTRAL_SPECIAL),
        padding_side="left",
    )
    return LlavaProcessor(Pictures(), tokenizer, chat_template=MISTRAL_CHAT, image_token="[IMG]")


@cache
def _bpe(spaces: str, first: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary that starts with `first`, and merges. `spaces` is how text is split: "bytes" or by "▁"."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    words = Tokenizer(BPE())
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    if spaces == "bytes":
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        letters = pre_tokenizers.ByteLevel.alphabet()
    else:
        words.normalizer = normalizers.Replace(" ", spaces)
        words.pre_tokenizer = pre_tokenizers.Split(spaces, behavior="merged_with_next")
    trainer = BpeTrainer(
        vocab_size=10_000, special_tokens=list(first), initial_alphabet=letters, show_progress=False, min_frequency=1
    )
    words.train_from_iterator(LINES, trainer)
    model = json.loads(words.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]
