"""Fail on words that make our English hard to read, in comments, docstrings, messages, help texts and docs.

`python scripts/check_words.py [PATH ...]` checks these files and folders, or by default the whole repository. If a
line of Python must keep such a word (a quotation, a prompt), end it with the comment `words: ok`.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    r"\b(?:is|are|was|were) told\b|\btells? (?:the|its|a) (?:u-net|denoiser|model)\b": "is given, reads, receives",
    r"\btold\b": "given, passed; from another: distinguished from",
    r"\bsaid\b": "stated, given, named, described",
    r"\bheard?\b": "read, attended to",
    r"\bbeside\b": "with, next to, besides, in addition to",
    r"\banew\b": "again",
    r"\bby lot\b": "at random",
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|more|less|fewer|later|better|worse|larger)": "is not a",
    r"\bwhere there (?:is|are|was|were) none\b": "if there is none, or None if missing",
    r"\bnobody\b": "nothing, no caller, not",
    r"\bof which\b": "whose, from which",
    r"\bwherefrom\b|\bwhereof\b|\btherein\b|\bthereof\b|\bthereby\b|\bhereby\b|\bforetells?\b": "use today's word",
    r"\bways? round\b": "a way around, a bypass",
    r"\bin the place of\b": "in place of, instead of",
}
"""Patterns of words to avoid, each with what to write instead."""
RULES = [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in WORDS.items()]
OTHERS = {".md", ".html", ".js", ".toml", ".yml", ".ipynb"}
ATTRIBUTION = "reference/src/excise_reference/artwork/ATTRIBUTION.md"
"""It quotes a licence."""
LEFT_OUT = ("docs/results/", "docs/decisions/0", "CHANGELOG.md", "scripts/check_words.py", "docs/papers", ATTRIBUTION)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines of prose: comments and strings of a Python file, all lines of another file."""
    lines = path.read_text().splitlines()
    if path.suffix not in {".py", ".pyi"}:
        yield from enumerate(lines, 1)
        return
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline):
        if token.type in {tokenize.COMMENT, tokenize.STRING} or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            for number, line in enumerate(token.string.splitlines(), token.start[0]):
                if "words: ok" not in lines[number - 1]:
                    yield number, line


def found(path: Path) -> Iterator[str]:
    """Yield a line of report for each match."""
    for number, line in prose(path):
        # Ignore code within prose, such as `told`, and targets of links.
        plain = re.sub(r"`[^`]*`|\]\([^)]*\)|https?://\S+", "", line)
        for rule, instead in RULES:
            if (hit := rule.search(plain)) is not None:
                yield f"{path.relative_to(ROOT)}:{number}: {hit.group(0)!r}: {instead}\n    {line.strip()[:150]}"
                break


def main(given: list[str]) -> int:
    listed = subprocess.check_output(["git", "ls-files", *given], text=True, cwd=ROOT).splitlines()
    files = [ROOT / name for name in listed if not name.startswith(LEFT_OUT)]
    readable = [file for file in files if file.suffix in {".py", ".pyi"} | OTHERS]
    reports = [report for file in readable for report in found(file)]
    print("\n".join(reports) if reports else f"{len(readable)} files read well")
    return 1 if reports else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
