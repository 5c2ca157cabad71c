"""A page for browsing a neuron database: one self-contained HTML file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from excise.app.pages.rendering import Made, render, source_digest, style
from excise.erasers import Eraser
from excise.errors import ExciseError
from excise.files import read_text, write_folder
from excise.neurons.contexts import Context
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Provenance, pattern_text


def write_browser(
    database: NeuronDatabase, folder: Path, erasers: Sequence[Path] = (), command: Sequence[str] = ()
) -> Path:
    """Write `folder`/index.html, which works without a server, and return its path.

    Its address can be shared: `#q=blade` searches, `#n=1191` shows a neuron.

    Args:
        database: The database.
        folder: Folder of the page.
        erasers: Folders of erasers to show with the neurons that they edit.
        command: The command line as typed, for the footer.

    Raises:
        ExciseError: An eraser edits no neuron of this SAE, or the folder holds other files.
    """
    write_folder(folder, {"index.html": page(database, erasers, command)})
    return folder / "index.html"


def page(database: NeuronDatabase, erasers: Sequence[Path] = (), command: Sequence[str] = ()) -> str:
    """Return the page as HTML.

    Its Content-Security-Policy names the script and the style by digest, so that text from tokens or explanations
    cannot run. `command` is the command line as typed.
    """
    about = database.provenance
    words = _Vocabulary()
    data = {
        "about": _about(about),
        "neurons": [_neuron(entry, words) for entry in database.entries()],
        "erasers": [_eraser(path, about) for path in erasers],
        "words": words.listed,
    }
    # Escape "<", which could end the script element. In JSON it only occurs inside strings.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = "".join(read_text(Path(__file__).with_name(name)) for name in ("search.js", "page.js"))
    policy = (
        f"default-src 'none'; style-src {source_digest(style())}; script-src {source_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return render(
        "neurons.html",
        Made.now(shlex.join(command)),
        policy=Markup(policy),
        title=f"Neurons at {about.site}",
        count=len(data["neurons"]),
        data=Markup(text),
        script=Markup(script),
    )


class _Vocabulary:
    """Numbers for tokens: the data repeats the same few thousand."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __getitem__(self, word: str) -> int:
        return self._numbers.setdefault(word, len(self._numbers))

    @property
    def listed(self) -> list[str]:
        return list(self._numbers)


def _about(about: Provenance) -> dict[str, Any]:
    return {
        "site": about.site,
        "sae": about.sae[:12],
        "m": about.m,
        "corpus": about.corpus,
        "prompts": about.prompts,
        "date": about.date[:10],
        "lens": about.settings.get("nearest_by") == "logit lens",
        "versions": dict(about.versions),
    }


def _neuron(entry: Entry, words: _Vocabulary) -> dict[str, Any]:
    """Return a neuron's data without empty fields."""
    explanation = entry.explanation
    full = {
        "density": entry.density,
        "peak": _short(entry.peak),
        "histogram": entry.histogram,
        "tags": [[t.concept, _short(t.score), _short(t.auroc)] for t in entry.tags],
        "explanation": explanation and [explanation.text, explanation.by, explanation.at[:10]],
        "scores": [[name, _short(s.value), s.detail] for name, s in entry.scores.items()],
        "patterns": [_pattern(pattern) for pattern in entry.patterns],
        "tokens": [words[token] for token in entry.top_tokens(6)],
        "contexts": [_context(c, words) for c in entry.contexts],
        "spread": [_context(c, words) for c in entry.spread],
        "nearest": [[words[token], _short(how)] for token, how in entry.nearest],
        "near": entry.near,
    }
    return {"i": entry.index, **{name: value for name, value in full.items() if value not in (None, [], ())}}


def _pattern(pattern: Any) -> list[Any]:
    """Return a pattern's text and its figures by name."""
    figures = pattern if isinstance(pattern, Mapping) else {}
    return [pattern_text(pattern), {name: value for name, value in figures.items() if name != "text"}]


def _context(context: Context, words: _Vocabulary) -> list[list[float]]:
    """Return a context's tokens by number, and position and code in turn where the neuron fires."""
    fires = [(at, code) for at, code in enumerate(context.codes) if code > 0]
    return [[words[t] for t in context.tokens], [part for at, code in fires for part in (at, _short(code) or 0.0)]]


def _short(value: float | None) -> float | None:
    """Round to four significant digits."""
    return None if value is None else float(f"{value:.4g}")


def _eraser(folder: Path, about: Provenance) -> dict[str, Any]:
    """Return which neurons an eraser edits, and its strength."""
    eraser = Eraser.load(folder)
    edits = [edit for edit in eraser.edits if _of_this_sae(edit, about)]
    neurons = _sorted(int(i) for edit in edits for i in getattr(edit, "indices"))  # noqa: B009
    if not neurons:
        raise ExciseError(f"{folder} edits no neuron of the SAE at {about.site}; give erasers that were made with it")
    letter, amount = edits[0].coefficient
    return {
        "name": eraser.name,
        "concept": eraser.concept,
        "method": eraser.method,
        "digest": eraser.digest[:12],
        "neurons": neurons,
        "by": [letter, _short(amount)],
    }


def _sorted(numbers: Iterable[int]) -> list[int]:
    return sorted(set(numbers))


def _of_this_sae(edit: Any, about: Provenance) -> bool:
    digest = getattr(edit, "sae_digest", None)
    return hasattr(edit, "indices") and (digest == about.sae if digest else edit.site.key == about.site)
