"""Word patterns at which a neuron fires, found by altering prompts, without a language model.

After Neuron to Graph (N2G; Foote et al. 2023) in the form of Gao et al. 2024: cut a prompt down to what the neuron
needs, find which of its words can be padding, and collect the rest in a trie. Differences: it works on whole words,
since prompts are text and a cut word would be tokenised differently; it cuts the end of a prompt too, as an encoder's
neuron fires at ⟨end⟩ whatever comes before; and words found irrelevant stay replaced while the next are tried, so that
a pattern's words are sufficient together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from excise.errors import ExciseError
from excise.explain.scores import Counts
from excise.neurons.contexts import Context, is_special

Activate = Callable[[Sequence[str]], Sequence[Context]]
"""Returns one neuron's contexts in the given prompts, in order."""
Word = str | None
"""A word of a pattern; None matches any one word."""


@dataclass(frozen=True)
class Pattern:
    """Sequence of words.

    Attributes:
        words: The words, None being any word.
        support: Number of contexts that it came from.
        peak: The neuron's largest code in them, cut down to the pattern's length.
    """

    words: tuple[Word, ...]
    support: int
    peak: float

    @property
    def text(self) -> str:
        """Readable form: gun * night."""
        return " ".join("*" if word is None else word for word in self.words)

    def covers(self, other: Pattern) -> bool:
        """Return whether this pattern occurs in everything in which the other one occurs."""
        lengths = range(len(other.words) - len(self.words) + 1)
        return any(
            all(own is None or own == word for own, word in zip(self.words, other.words[start:], strict=False))
            for start in lengths
        )


def words(tokens: Sequence[str]) -> list[str]:
    """Join tokens to words; a token without letters or digits is a word of its own, special tokens are left out."""
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
    """Return patterns from a neuron's strongest contexts, by falling support, then by falling peak.

    A prompt loses words from its end, then from its start, as long as the neuron's largest code in it stays at `keep`
    of what it was in the whole. Words that `filler` can replace, at `keep` of the cut prompt's code, become wildcards.
    Patterns that a more general one covers are counted with it.

    Args:
        contexts: The neuron's contexts.
        activate: Returns the neuron's contexts in new prompts.
        keep: Share of the code to keep.
        filler: Word that replaces others.

    Raises:
        ExciseError: if `keep` is not in (0, 1], or `activate` does not return a context for each prompt.
    """
    if not 0 < keep <= 1:
        raise ExciseError(f"keep is {keep:g}; it is a share of the peak, above 0 and at most 1")
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
    """Cut each row as far as every shorter version on the way keeps its least code."""
    versions = [shorter(row) for row, _ in rows]
    peaks = iter(_peaks(activate, [version for several in versions for version in several]))
    cut = []
    for (row, least), several in zip(rows, versions, strict=True):
        reached = [next(peaks) >= least for _ in several]
        steps = reached.index(False) if False in reached else len(reached)
        cut.append([row, *several][steps])
    return cut


def _wildcards(activate: Activate, rows: list[list[str]], least: list[float], filler: str) -> list[tuple[Word, ...]]:
    """Replace words that can be filler by None, from the first word on, in all rows at once."""
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
    """Merge patterns into the most general one that covers them: the shortest, then the one with most wildcards."""
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
    """Patterns indexed by their words from the last to the first, so that common endings are shared."""

    pattern: Pattern | None = None
    below: dict[Word, Trie] = field(default_factory=dict)

    def add(self, pattern: Pattern) -> None:
        """Add a pattern, merging it with one of the same words."""
        node = self
        for word in reversed(pattern.words):
            node = node.below.setdefault(word, Trie())
        if node.pattern is not None:
            support, peak = node.pattern.support + pattern.support, max(node.pattern.peak, pattern.peak)
            pattern = replace(pattern, support=support, peak=peak)
        node.pattern = pattern

    def __iter__(self) -> Iterator[Pattern]:
        """Yield all patterns."""
        if self.pattern is not None:
            yield self.pattern
        for node in self.below.values():
            yield from node

    def ending(self, prompt: Sequence[str]) -> Iterator[Pattern]:
        """Yield the patterns that match the last words of a prompt."""
        if self.pattern is not None:
            yield self.pattern
        if prompt:
            for word in dict.fromkeys((prompt[-1], None)):
                if (node := self.below.get(word)) is not None:
                    yield from node.ending(prompt[:-1])


def matches(patterns: Sequence[Pattern], tokens: Sequence[str]) -> list[Pattern]:
    """Return the patterns that occur anywhere in a prompt's tokens, in the given order."""
    trie = Trie()
    for pattern in patterns:
        trie.add(pattern)
    prompt = words(tokens)
    found = {pattern.words for end in range(len(prompt) + 1) for pattern in trie.ending(prompt[:end])}
    return [pattern for pattern in patterns if pattern.words in found]


def measure(patterns: Sequence[Pattern], contexts: Sequence[Context]) -> Counts:
    """Return how well patterns predict in which contexts the neuron fires: precision and recall (`tpr`), held out."""
    return Counts.of([context.peak > 0 for context in contexts], [bool(matches(patterns, c.tokens)) for c in contexts])
