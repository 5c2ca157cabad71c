"""Token ids as pieces of text to show a person, whatever marks the tokenizer writes words with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

END = "⟨end⟩"
"""How a token that is no text, such as CLIP's end of text, is shown."""
_CLOSES = re.compile(r"[.,;:!?)\]}%’'\"]")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, with the space before it if there is one: joined they read as the prompt does.

    Special tokens are "⟨end⟩" at the end of text and empty elsewhere. Bytes that are no whole character are shown as �.
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
    """What a token says, given the one before it ("" at the start)."""
    probe = tokenizer.convert_ids_to_tokens(tokenizer("a a", add_special_tokens=False).input_ids)
    if any(token.endswith("</w>") for token in probe):
        return _clip
    if any("▁" in token for token in probe):
        return _sentencepiece
    return _byte_level if any("Ġ" in token for token in probe) else _wordpiece


def _clip(token: str, before: str) -> str:
    """CLIP's: `</w>` ends a word. Where there were spaces is lost; closing marks are set without."""
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
    """The bytes behind GPT-2's letters: those that can be seen stand for themselves, the others come after them."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
