"""Patterns of words at which a neuron fires, found by altering prompts and without a language model.

After Neuron to Graph (N2G; Foote et al. 2023) in the form of Gao et al. 2024: cut a prompt down to what the neuron
needs, see which words of it can be padding, and gather what is left in a trie. Ours works on whole words, since prompts
go in as text and a cut word would be read as other tokens; it cuts the end of a prompt too, as an encoder's neuron
fires at ⟨end⟩, whatever stands between; and words found idle stay replaced while the next are tried, so that the words
of a pattern suffice together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from excise.errors import ExciseError
from excise.explain.scores import Counts
from excise.neurons.contexts import Context, is_special

Activate = Callable[[Sequence[str]], Sequence[Context]]
"""One neuron's contexts in prompts, one for each, in order."""
Word = str | None
"""A word of a pattern; None is any one word."""


@dataclass(frozen=True)
class Pattern:
    """Words in a row. support: how many contexts it came from; peak: the neuron's largest code in them, cut down to
    the pattern's length."""

    words: tuple[Word, ...]
    support: int
    peak: float

    @property
    def text(self) -> str:
        """As people read it: gun * night."""
        return " ".join("*" if word is None else word for word in self.words)

    def covers(self, other: Pattern) -> bool:
        """Whether everything in which the other is found has this one in it."""
        lengths = range(len(other.words) - len(self.words) + 1)
        return any(
            all(own is None or own == word for own, word in zip(self.words, other.words[start:], strict=False))
            for start in lengths
        )


def words(tokens: Sequence[str]) -> list[str]:
    """Tokens joined to words; a token without letters or digits is a word of its own, one that is no text is none."""
    found: list[str] = []
    apart = True
    for token in tokens:
        text = token.strip()
        if is_special(token) or not text:
            apart = True
            continue
        mark = not any(letter.isalnum() for letter in text)
        if apart or mark or token[:1].isspace():
            found.append(text)
        else:
            found[-1] += text
        apart = mark or token[-1:].isspace()
    return found


def find_patterns(
    contexts: Sequence[Context], activate: Activate, *, keep: float = 0.5, filler: str = "_"
) -> tuple[Pattern, ...]:
    """Patterns from a neuron's strongest contexts, those with the largest support first, then with the largest peak.

    A prompt loses words from its end, then from its start, as long as the neuron's largest code in it stays at `keep`
    of what it was in the whole; words for which `filler` can stand, at `keep` of what the cut prompt gives, become any
    word. Patterns that a more general one covers are counted with it. Raises ExciseError where `keep` is no share, or
    `activate` does not return a context for each prompt.
    """
    if not 0 < keep <= 1:
        raise ExciseError(f"a share of the peak to keep is more than 0 and at most 1, not {keep:g}")
    rows = [words(context.tokens) for context in contexts if context.peak > 0]
    rows = [row for row in rows if row]
    whole = _peaks(activate, rows)
    kept = [(row, keep * peak) for row, peak in zip(rows, whole, strict=True) if peak > 0]
    for shorter in (_without_last, _without_first):
        rows = _cut(activate, kept, shorter)
        kept = [(row, least) for row, (_, least) in zip(rows, kept, strict=True)]
    peaks = _peaks(activate, rows)
    patterns = _wildcards(activate, rows, [keep * peak for peak in peaks], filler)
    trie = Trie()
    for pattern, peak in zip(patterns, peaks, strict=True):
        trie.add(Pattern(pattern, 1, peak))
    return _merged(trie)


def _without_last(row: list[str]) -> list[list[str]]:
    return [row[:n] for n in range(len(row) - 1, 0, -1)]


def _without_first(row: list[str]) -> list[list[str]]:
    return [row[n:] for n in range(1, len(row))]


def _cut(
    activate: Activate, rows: list[tuple[list[str], float]], shorter: Callable[[list[str]], list[list[str]]]
) -> list[list[str]]:
    """Each row cut as far as every length on the way keeps its least."""
    versions = [shorter(row) for row, _ in rows]
    peaks = iter(_peaks(activate, [version for several in versions for version in several]))
    cut = []
    for (row, least), several in zip(rows, versions, strict=True):
        reached = [next(peaks) >= least for _ in several]
        steps = reached.index(False) if False in reached else len(reached)
        cut.append([row, *several][steps])
    return cut


def _wildcards(activate: Activate, rows: list[list[str]], least: list[float], filler: str) -> list[tuple[Word, ...]]:
    """Rows with None for words that can be filler, tried from the first on, in all rows at once."""
    found: list[list[Word]] = [list(row) for row in rows]
    for position in range(max(map(len, rows), default=0)):
        tried = [n for n, row in enumerate(rows) if position < len(row)]
        versions = [[*found[n][:position], None, *found[n][position + 1 :]] for n in tried]
        peaks = _peaks(activate, [[filler if word is None else word for word in version] for version in versions])
        for n, version, peak in zip(tried, versions, peaks, strict=True):
            if peak >= least[n]:
                found[n] = version
    return [tuple(row) for row in found]


def _peaks(activate: Activate, rows: Sequence[Sequence[str]]) -> list[float]:
    if not rows:
        return []
    contexts = activate([" ".join(row) for row in rows])
    if len(contexts) != len(rows):
        raise ExciseError(f"{len(rows)} prompts were to be read, but {len(contexts)} contexts came back")
    return [context.peak for context in contexts]


def _merged(trie: Trie) -> tuple[Pattern, ...]:
    """Without those that another covers, which is given their support: the shortest, and of these the freest."""
    general: list[Pattern] = []
    for pattern in sorted(trie, key=lambda p: (len(p.words), -p.words.count(None), p.text)):
        for n, other in enumerate(general):
            if other.covers(pattern):
                support, peak = other.support + pattern.support, max(other.peak, pattern.peak)
                general[n] = replace(other, support=support, peak=peak)
                break
        else:
            general.append(pattern)
    return tuple(sorted(general, key=lambda p: (-p.support, -p.peak, p.text)))


@dataclass
class Trie:
    """Patterns by their words from the last to the first, so that those with one ending share it."""

    pattern: Pattern | None = None
    below: dict[Word, Trie] = field(default_factory=dict)

    def add(self, pattern: Pattern) -> None:
        """Put a pattern in; one of the same words is joined with it."""
        node = self
        for word in reversed(pattern.words):
            node = node.below.setdefault(word, Trie())
        if node.pattern is not None:
            support, peak = node.pattern.support + pattern.support, max(node.pattern.peak, pattern.peak)
            pattern = replace(pattern, support=support, peak=peak)
        node.pattern = pattern

    def __iter__(self) -> Iterator[Pattern]:
        """All patterns."""
        if self.pattern is not None:
            yield self.pattern
        for node in self.below.values():
            yield from node

    def ending(self, prompt: Sequence[str]) -> Iterator[Pattern]:
        """Patterns that the last words of a prompt are."""
        if self.pattern is not None:
            yield self.pattern
        if prompt:
            for word in dict.fromkeys((prompt[-1], None)):
                if (node := self.below.get(word)) is not None:
                    yield from node.ending(prompt[:-1])


def matches(patterns: Sequence[Pattern], tokens: Sequence[str]) -> list[Pattern]:
    """The patterns that are found anywhere in a prompt's tokens, in their own order."""
    trie = Trie()
    for pattern in patterns:
        trie.add(pattern)
    prompt = words(tokens)
    found = {pattern.words for end in range(len(prompt) + 1) for pattern in trie.ending(prompt[:end])}
    return [pattern for pattern in patterns if pattern.words in found]


def foretell(patterns: Sequence[Pattern], tokens: Sequence[str]) -> float:
    """The largest code that patterns promise in a prompt: the largest peak of those found in it, 0 without any."""
    return max((pattern.peak for pattern in matches(patterns, tokens)), default=0.0)


def measure(patterns: Sequence[Pattern], contexts: Sequence[Context]) -> Counts:
    """How well patterns tell in which contexts the neuron fires: precision and recall (`tpr`), on held-out contexts."""
    return Counts.of([context.peak > 0 for context in contexts], [bool(matches(patterns, c.tokens)) for c in contexts])
