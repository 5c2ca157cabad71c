"""Question to a language model: what do the prompts in which a neuron fires have in common?"""

from __future__ import annotations

import re
from collections.abc import Sequence

from excise.chat import Question
from excise.explain.wording import END_NOTE, active, levels, marked, written
from excise.neurons.contexts import Context, is_special

LONGEST, LONGEST_LINE = 400, 200
"""Longest explanation in characters, with and without the word "Explanation:" before it; longer ones are discarded."""
SYSTEM = """You study one neuron of a text encoder that reads prompts for pictures. You are shown prompts in which it \
fires most. The tokens at which it fires stand between << and >>, and below each prompt is how strongly it fires \
there, from 0 to 10. Say what these places have in common: a thing, a style, a word or a form of words. Be as specific \
as the prompts allow, do not list them one by one, and do not mention the marks. Use at most 20 words. The last line \
of your answer begins with "Explanation:"."""
_MARKED = re.compile(r"^\W*explanation\W*:[\s*_]*(.*)$", re.IGNORECASE | re.MULTILINE)


def explanation_question(contexts: Sequence[Context], share: float = 0.3, max_tokens: int = 128) -> Question:
    """Return the question that shows contexts to a language model.

    Tokens with at least `share` of a context's largest code are marked (Delphi's 0.3, Paulo et al. 2024), and codes are
    given from 0 to 10 relative to the largest of all (Bills et al. 2023).
    """
    top = max((context.peak for context in contexts), default=0.0)
    shown = []
    for number, context in enumerate(contexts, 1):
        positions = active(context, share)
        strengths = zip(positions, levels([context.codes[t] for t in positions], top), strict=True)
        strongest = ", ".join(f"{written(context.tokens[t]).strip()} {level}" for t, level in strengths)
        shown.append(f"Prompt {number}: {marked(context, positions)}\nFires at: {strongest}")
    ends = any(is_special(token) for context in contexts for token in context.tokens if token)
    return Question(f"{SYSTEM} {END_NOTE}" if ends else SYSTEM, "\n\n".join(shown), max_tokens)


def parse_explanation(text: str) -> str | None:
    """Return the explanation in an answer: what follows the last "Explanation:", or all of a one-line answer.

    None if there is neither, or it is too long (`LONGEST`, `LONGEST_LINE`).
    """
    found = _MARKED.findall(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not found and len(lines) == 1 and len(lines[0]) <= LONGEST_LINE:
        found = lines
    explanation = " ".join(found[-1].split()).strip('*_"“” ') if found else ""
    return explanation if 0 < len(explanation) <= LONGEST else None
