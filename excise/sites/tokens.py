"""Token ids as readable pieces of text, however the tokenizer marks words."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

END = "⟨end⟩"
"""Text shown for the end-of-text token."""
_CLOSES = re.compile(r"[.,;:!?)\]}%’'\"]")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, including a space before it. Joined, they read like the prompt.

    End-of-text tokens are shown as "⟨end⟩", other special tokens as an empty text, and incomplete characters as �.
    """
    tokens, special = tokenizer.convert_ids_to_tokens(list(ids)), set(tokenizer.all_special_ids)
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    split = _splitter(tokenizer)
    shown, before = [], ""
    for token, number in zip(tokens, ids, strict=True):
        if number in special:
            shown.append(END if number in ends else "")
        else:
            shown.append(split(token, before))
            before = token
    return shown


def _splitter(tokenizer: Any) -> Callable[[str, str], str]:
    """Return a function that gives a token's text, given the token and the one before it ("" at the start)."""
    probe = tokenizer.convert_ids_to_tokens(tokenizer("a a", add_special_tokens=False).input_ids)
    if any(token.endswith("</w>") for token in probe):
        return _clip
    if any("▁" in token for token in probe):
        return _sentencepiece
    return _byte_level if any("Ġ" in token for token in probe) else _wordpiece


def _clip(token: str, before: str) -> str:
    """Return the text of a CLIP token. `</w>` ends a word. Spaces are lost, so closing marks get none before them."""
    text = _bytes(token.removesuffix("</w>"))
    return f" {text}" if before.endswith("</w>") and not _CLOSES.match(text) else text


def _sentencepiece(token: str, before: str) -> str:
    byte = _BYTE.fullmatch(token)
    text = bytes([int(byte[1], 16)]).decode(errors="replace") if byte else token.replace("▁", " ")
    return text if before else text.removeprefix(" ")


def _byte_level(token: str, before: str) -> str:
    return _bytes(token)


def _wordpiece(token: str, before: str) -> str:
    if token.startswith("##"):
        return token[2:]
    return f" {token}" if before and not _CLOSES.match(token) else token


def _bytes(token: str) -> str:
    known = _alphabet()
    if not all(letter in known for letter in token):
        return token
    return bytes(known[letter] for letter in token).decode(errors="replace")


@cache
def _alphabet() -> dict[str, int]:
    """Return the byte for each of GPT-2's letters: printable bytes stand for themselves, the others follow from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
