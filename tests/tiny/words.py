"""Tokenizers of real classes and real special tokens, over vocabularies made here: nothing is downloaded."""

from __future__ import annotations

import copy
import json
from functools import cache
from importlib.metadata import version
from typing import Any

from tests.tiny import words4

FOUR = version("transformers").startswith("4.")
# One token a word for these words, letters for all others. The second and third are what Qwen-Image and Kandinsky 5 put
# around the prompt: they drop the first 34 and 40 states by number, so that here as there each word must be one token
# for the user's words to be just what is left. The last is FLUX.2's.
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
    """CLIP's own. Loading it takes seconds."""
    if FOUR:
        return words4.clip()
    from excise.reference import data
    from excise.reference.training import text_encoder

    return text_encoder.tokenizer(data.folder() / text_encoder.MERGES)


def clip() -> Any:
    """A copy of CLIP's own, for textual inversion adds tokens in place. Copies do not decode well (transformers 5)."""
    return copy.deepcopy(shared_clip(), unchanging())


def unchanging() -> dict[int, Any]:
    """For `copy.deepcopy`: CLIP's list of merges, which nothing changes in place, is not copied."""
    merges = getattr(shared_clip(), "_merges", None)
    return {id(merges): merges}


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
    """Of Qwen2, Qwen2.5-VL and Qwen3 alike."""
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
    """A Qwen2VLProcessor without its picture and video processors: the latter cannot be made without torchvision.

    It insists on both when it is made, but does not look at them while it is given text alone. Such a processor cannot
    be saved.
    """
    from transformers import Qwen2VLProcessor

    class TextProcessor(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    return TextProcessor(tokenizer=qwen())


def mistral_processor() -> Any:
    """FLUX.2's Mistral tokenizer in a LlavaProcessor.

    The real PixtralProcessor cannot even be imported without torchvision; LlavaProcessor is of the same shape (an image
    processor and a tokenizer) and inherits the one method that FLUX.2 calls, ProcessorMixin.apply_chat_template.
    Padding is on the left, as chat models have it, so that one family exercises that side.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    try:
        from transformers import CLIPImageProcessorPil as Pictures
    except ImportError:  # transformers < 5.2 or so has one that needs no torchvision under the plain name
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
    """A vocabulary that begins with `first`, and merges; `spaces` says how text comes apart: "bytes" or by "▁"."""
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
