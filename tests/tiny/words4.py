"""Tokenizers for transformers 4, which take files or a `tokenizers.Tokenizer` instead of a vocabulary."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram


def clip() -> Any:
    """Return the slow tokenizer, which Stable Diffusion's pipelines declare."""
    from transformers import CLIPTokenizer

    from excise.reference import data

    merges = data.folder() / "bpe_simple_vocab_16e6.txt.gz"
    words = json.loads((data.MODEL / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    with tempfile.TemporaryDirectory() as folder:
        vocab_file, merges_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab_file.write_text(json.dumps(words))
        merges_file.write_bytes(gzip.decompress(merges.read_bytes()))
        return CLIPTokenizer(str(vocab_file), str(merges_file), model_max_length=77, pad_token="<|endoftext|>")


def t5(pieces: list[tuple[str, float]]) -> Any:
    from transformers import T5TokenizerFast

    words = Tokenizer(Unigram(pieces, unk_id=2, byte_fallback=False))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    words.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return T5TokenizerFast(tokenizer_object=words, extra_ids=0, model_max_length=512)


def qwen(vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> Any:
    from transformers import Qwen2TokenizerFast
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    words = Tokenizer(BPE(vocabulary, merges))
    words.normalizer = normalizers.NFC()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words.decoder = decoders.ByteLevel()
    return Qwen2TokenizerFast(tokenizer_object=words, **options)


def gemma(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from transformers import GemmaTokenizerFast

    words = Tokenizer(BPE(vocabulary, merges, fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    words.normalizer = normalizers.Replace(" ", "▁")
    words.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return GemmaTokenizerFast(tokenizer_object=words, add_bos_token=True)
