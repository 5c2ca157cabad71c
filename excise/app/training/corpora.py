"""English texts in Debian packages, for training SAEs of language models.

They are read where they are installed and not copied into this project.

| name | package | content | words in Debian 12 |
|---|---|---|---|
| essays | anarchism | a political FAQ of book length, with much quoted prose | 1.8 million |
| glosses | wordnet-base | WordNet's definitions and example sentences | 1.7 million |
| hackers | cfi-en | a book on the history of computing's culture | 0.07 million |
| help | gnome-user-docs | a desktop's user guide | 0.06 million |
| dictionary | dict-gcide | definitions from a dictionary of 1913, with later additions | 3.7 million |
"""

from __future__ import annotations

import gzip
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import accumulate
from pathlib import Path
from typing import Any

from excise.concepts.minors import names_minors
from excise.errors import ExciseError
from excise.files import open_regular, read_file, read_text

SHARE = Path("/usr/share")
"""Folder of data files from Debian packages."""
WORDS = 150
"""Words in each part of a text, about; parts end with a sentence. Longer parts would be truncated by the model."""
LEAST = 5
"""Least words of a text. Shorter ones, such as headings and captions, are left out."""


@dataclass(frozen=True)
class Corpus:
    """Text in a Debian package."""

    package: str
    licence: str
    files: str
    """Pattern of the files below `SHARE`."""
    read: Callable[[Path], Iterator[str]]
    """Function that yields the paragraphs of a file."""


def texts(name: str, share: Path = SHARE) -> Iterator[str]:
    """Yield a corpus in parts of about `WORDS` and at least `LEAST` words, without parts that mention a minor.

    Raises:
        ExciseError: The name is unknown, or the package is not installed.
    """
    if name not in CORPORA:
        raise ExciseError(f"there is no text corpus {name!r}; choose from {', '.join(CORPORA)}")
    corpus = CORPORA[name]
    files = sorted(share.glob(corpus.files))
    if not files:
        raise ExciseError(f"the corpus {name!r} is not installed: apt-get install {corpus.package}")
    for file in files:
        for paragraph in corpus.read(file):
            for part in parts(paragraph):
                if len(part.split()) >= LEAST and not names_minors(part):
                    yield part


def mixed(names: Sequence[str], seed: int = 0, share: Path = SHARE) -> list[str]:
    """Return the distinct texts of several corpora, shuffled."""
    found = list(dict.fromkeys(text for name in names for text in texts(name, share)))
    random.Random(seed).shuffle(found)
    return found


def described(names: Sequence[str], share: Path = SHARE) -> list[dict[str, Any]]:
    """Return each corpus with its package, its licence, and its number of texts and words. Raises as `texts`."""
    rows = []
    for name in names:
        found = list(texts(name, share))
        counts = {"texts": len(found), "words": sum(len(text.split()) for text in found)}
        rows.append({"name": name, "package": CORPORA[name].package, "licence": CORPORA[name].licence, **counts})
    return rows


def parts(paragraph: str, words: int = WORDS) -> list[str]:
    """Split a paragraph into parts of whole sentences; a new part starts every `words` words."""
    sentences = re.split(r"(?<=[.!?;])\s+", " ".join(paragraph.split()))
    begins = [0, *accumulate(len(sentence.split()) for sentence in sentences)]
    out: dict[int, list[str]] = {}
    for sentence, begin in zip(sentences, begins, strict=False):
        out.setdefault(begin // words, []).append(sentence)
    return [" ".join(part) for part in out.values()]


class _Paragraphs(HTMLParser):
    """Parser that collects the text of paragraphs and list items."""

    BEGIN, END = ("p", "li", "dd"), ("p", "li", "dd", "ul", "ol", "dl", "div", "blockquote", "table", "pre")
    SKIP = ("script", "style", "pre", "title")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] | None = None
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.BEGIN or tag in self.END:
            self._close()
        if tag in self.SKIP:
            self._skipped += 1
        elif tag in self.BEGIN and not self._skipped:
            self._open = []

    def handle_endtag(self, tag: str) -> None:
        if tag in self.END:
            self._close()
        if tag in self.SKIP:
            self._skipped = max(0, self._skipped - 1)

    def handle_data(self, data: str) -> None:
        if self._open is not None and not self._skipped:
            self._open.append(data)

    def close(self) -> None:
        super().close()
        self._close()

    def _close(self) -> None:
        if self._open is not None and (text := " ".join("".join(self._open).split())):
            self.found.append(text)
        self._open = None


def _html(file: Path) -> Iterator[str]:
    page = _Paragraphs()
    page.feed(read_file(file).decode("utf-8", errors="replace"))
    page.close()
    yield from page.found


def _mallard(file: Path) -> Iterator[str]:
    """Yield the paragraphs of a page of GNOME's help."""
    for element in ET.fromstring(read_file(file)).iter():
        if element.tag.rpartition("}")[2] == "p":
            yield " ".join("".join(element.itertext()).split())


def _wordnet(file: Path) -> Iterator[str]:
    """Yield "dwarf: a plant or animal that is atypically small" for every line of a data file (wndb(5WN)).

    A line holds offset, file, type, number of words in hexadecimal, each word with its sense number, pointers, and
    after a bar the gloss.
    """
    for line in read_text(file).splitlines():
        head, bar, gloss = line.partition(" | ")
        if not bar or line.startswith("  "):  # the licence
            continue
        fields = head.split()
        words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        yield f"{', '.join(words)}: {gloss.strip()}"


_ENTRY = re.compile(r"^(?P<word>\w[^\\\n]*?) \\.*?\\(?P<rest>.*?)(?=^\w[^\\\n]* \\|\Z)", re.MULTILINE | re.DOTALL)
_CLASS = re.compile(r"^[,;\s]*(?:(?:n|a|v|t|i|adv|prep|conj|interj|pl|p|imp|pr|vb|sing|E)\.[,;&\s]*)*")


def _gcide(file: Path) -> Iterator[str]:
    """Yield "Penrack: A rack for pens not in use." for every entry, without sources and etymology."""
    with open_regular(file) as opened, gzip.open(opened) as packed:  # dictzip is gzip with an index
        whole = packed.read().decode("utf-8", errors="replace")
    for entry in _ENTRY.finditer(whole):
        senses = " ".join(re.sub(r"\[[^\]]*\]|\([A-Z][^)]{0,20}\.\)|--[A-Z][^\n]*|[{}]", " ", entry["rest"]).split())
        senses = re.sub(r"\s(?=[.;,])|(?:^|(?<=[.;]) )\d+\.(?= )", "", _CLASS.sub("", senses)).strip()
        if senses:
            yield f"{entry['word']}: {senses}"


CORPORA: dict[str, Corpus] = {
    "essays": Corpus("anarchism", "GPL-2", "doc/anarchism/html/*.html", _html),
    "glosses": Corpus("wordnet-base", "WordNet 3.0 licence", "wordnet/data.*", _wordnet),
    "hackers": Corpus("cfi-en", "public domain", "doc/cfi-en/html/*.htm", _html),
    "help": Corpus("gnome-user-docs", "CC-BY-SA-3.0", "help/C/gnome-help/*.page", _mallard),
    "dictionary": Corpus("dict-gcide", "GPL-2+", "dictd/gcide.dict.dz", _gcide),
}
