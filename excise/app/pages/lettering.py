"""Text on pictures, in any script: each word in the first font that has its characters.

Pillow's default font comes first, then those of the extra `fonts` (Noto, with emoji and CJK), matplotlib's, and the
system's. A character that no font has is written without accents, or as its code such as "U+732B", with a warning.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PACKAGES = (("manimgx_fonts", ""), ("manimgx_fonts_cjk", ""), ("matplotlib", "mpl-data/fonts/ttf"))
"""Python packages with fonts, and the folder within them."""
FOLDERS = {
    "darwin": ("~/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts"),
    "win32": (r"%LOCALAPPDATA%\Microsoft\Windows\Fonts", r"%WINDIR%\Fonts"),
}.get(sys.platform, ("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts"))
"""Folders of the system's fonts."""
WANTED = (
    "notosans", "dejavusans", "freesans", "arialuni", "segoeui", "seguisym", "applesdgothic", "pingfang", "hiragino",
    "sourcehansans", "msyh", "yugoth", "malgun", "droidsansfallback", "wqy", "ipag", "nanumgothic", "unifont",
    "notoemoji", "symbola", "seguiemj", "notocoloremoji", "applecoloremoji",
)  # fmt: skip
"""Fonts to try, in this order, by the beginning of their file names."""
STYLES = re.compile("bold|italic|oblique|light|thin|black|medium|condensed|mono|serif|display")
"""Styles that are skipped, by file name."""
STRIKES = (109, 160, 136, 128, 96, 64)
"""Sizes of bitmap fonts: Noto Color Emoji's and Apple Color Emoji's."""
UNKNOWN = "\U0010ffff"
"""A character that no font has. It shows how a font renders missing characters."""
Ink = tuple[int, int, int]


@dataclass(frozen=True)
class Face:
    """A font at one size. If `scale` is not 1, it is a bitmap font that comes in another size."""

    font: Any
    scale: float = 1.0

    def width(self, text: str) -> float:
        """Return the text's width in pixels."""
        return float(self.font.getlength(text)) * self.scale

    def write(self, sheet: Image.Image, at: tuple[float, float], text: str, ink: Ink) -> None:
        """Write text whose baseline begins at `at`."""
        if self.scale == 1:
            ImageDraw.Draw(sheet).text(at, text, fill=ink, font=self.font, anchor="ls")
            return
        left, top, right, bottom = map(int, self.font.getbbox(text, anchor="ls"))
        glyphs = Image.new("RGBA", (max(1, right - left), max(1, bottom - top)))
        ImageDraw.Draw(glyphs).text((-left, -top), text, font=self.font, anchor="ls", embedded_color=True)
        width, height = (max(1, round(side * self.scale)) for side in glyphs.size)
        small = glyphs.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(small, (round(at[0] + left * self.scale), round(at[1] + top * self.scale)), small)


@dataclass
class Lettering:
    """Text of one size. `missing` collects the characters that no font has."""

    size: float
    missing: dict[str, None] = field(default_factory=dict)

    @property
    def line(self) -> int:
        """Height of a line in pixels."""
        return round(1.45 * self.size)

    def runs(self, text: str) -> list[tuple[Face, str]]:
        """Split the text into pieces of one font each. Characters that no font has become codes."""
        pieces: list[tuple[Face, str]] = []

        def add(face: Face, shown: str) -> None:
            if pieces and pieces[-1][0] is face:
                pieces[-1] = (face, pieces[-1][1] + shown)
            else:
                pieces.append((face, shown))

        for word in re.findall(r"\s+|\S+", _plain(text)):
            # Use one font for a word if possible. A space takes the font of the text before it, so that right-to-left
            # words stay in order.
            face = face_for(word, self.size)
            if word.isspace() and pieces and pieces[-1][1][-1].isalpha():
                face = pieces[-1][0]
            if face is not None:
                add(face, word)
                continue
            before = ""  # the letter below a combining mark
            for character in word:
                mark = unicodedata.category(character)[0] == "M"
                found = pieces[-1][0] if mark and before else None if mark else face_for(character, self.size)
                before = character if found else ""
                if found is None:
                    self.missing[character] = None
                add(found or default(self.size), character if found else _instead(character))
        return pieces

    def width(self, text: str) -> float:
        """Return the text's width in pixels."""
        return sum(face.width(piece) for face, piece in self.runs(text))

    def wrapped(self, text: str, width: float, most: int | None = None) -> list[str]:
        """Wrap the text into lines of at most `width` pixels, at spaces, or within a word that is too long.

        With more than `most` lines, keep `most` and end the last one in "…".
        """
        lines = [""]
        for word in re.findall(r"\S+", text):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if self.width(longer) <= width:
                lines[-1] = longer
                continue
            if self.width(word) <= width:
                lines.append(word)
                continue
            lines += [] if not lines[-1] else [""]
            for character in word:
                if lines[-1] and self.width(lines[-1] + character) > width:
                    lines.append("")
                lines[-1] += character
        lines = [line for line in lines if line]
        if most is None or len(lines) <= most:
            return lines
        last = lines[most - 1]
        while last and self.width(last + "…") > width:
            last = last[:-1]
        return [*lines[: most - 1], last.rstrip() + "…"]

    def write(self, sheet: Image.Image, at: tuple[float, float], text: str, ink: Ink) -> None:
        """Write one line with its top left corner at `at`. Letters of different fonts share a baseline."""
        x, y = at
        for face, piece in self.runs(text):
            face.write(sheet, (x, y + 1.05 * self.size), piece, ink)
            x += face.width(piece)

    def warn(self) -> None:
        """Warn about characters that no font has, if any."""
        if self.missing:
            named = ", ".join(f"{character} (U+{ord(character):04X})" for character in list(self.missing)[:5])
            more = f" and {len(self.missing) - 5} more characters" if len(self.missing) > 5 else ""
            warnings.warn(
                f"no installed font has {named}{more}, so the picture shows codes or plain letters instead; install "
                "fonts with: pip install 'excise[fonts]'",
                stacklevel=3,
            )


@lru_cache(maxsize=4096)
def face_for(text: str, size: float) -> Face | None:
    """Return the first font with every character of the text, or None."""
    # Combining marks are ignored: they are rendered with their letters.
    letters = [c for c in text if unicodedata.category(c)[0] != "M"]
    if not letters:
        return None
    if all(_has(default(size), letter) for letter in letters):
        return default(size)
    faces = (_face(file, size) for file in _files())
    return next((face for face in faces if face is not None and all(_has(face, c) for c in letters)), None)


@lru_cache
def default(size: float) -> Face:
    """Return Pillow's default font."""
    return Face(ImageFont.load_default(size))


@lru_cache(maxsize=256)
def _face(file: Path, size: float) -> Face | None:
    for strike in (size, *STRIKES):
        try:
            font = ImageFont.truetype(str(file), strike)
        except OSError:  # not a font, or a bitmap font of another size
            continue
        with suppress(OSError, NotImplementedError):  # variable fonts may start at a thin weight; others raise
            axes = font.get_variation_axes()
            font.set_variation_by_axes([400 if a["name"] == b"Weight" else float(a["default"] or 0) for a in axes])
        return Face(font, 1.0 if strike == size else 1.15 * size / strike)
    return None


def _has(face: Face, character: str) -> bool:
    """Return whether the font has the character: whether it renders it differently from a missing one."""
    if character.isspace():
        return True
    try:
        glyph, missing = (face.font.getmask(text, mode="L") for text in (character, UNKNOWN))
    except OSError:
        return False
    return max(glyph.size) > 0 and (glyph.size != missing.size or bytes(glyph) != bytes(missing))


@cache
def _files() -> tuple[Path, ...]:
    """Return the fonts other than Pillow's default, those of packages first."""
    packages = [folder for name, inside in PACKAGES for folder in _package(name, inside)]
    system = [Path(os.path.expandvars(os.path.expanduser(folder))) for folder in FOLDERS]
    return tuple(file for folder in (*packages, *system) for file in sorted(_fonts(folder), key=_place))


def _package(name: str, inside: str) -> list[Path]:
    # Not imported, because importing matplotlib takes a second.
    spec = find_spec(name)
    return [] if spec is None else [Path(home, inside) for home in spec.submodule_search_locations or ()]


def _fonts(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for file in (Path(root, name) for name in names if name.lower().endswith((".ttf", ".otf", ".ttc"))):
            if _place(file)[0] < len(WANTED) and not STYLES.search(_name(file)):
                yield file


def _place(file: Path) -> tuple[int, str]:
    """Return a font's rank in `WANTED`, or one after all if it is not among them, and its name."""
    name = _name(file)
    places = (n for n, wanted in enumerate(WANTED) if name.startswith(wanted))
    return next(places, len(WANTED)), name


def _instead(character: str) -> str:
    """Return the replacement for a character that no font has: its letter without accents, or its code."""
    letter = unicodedata.normalize("NFD", character)[0]
    return letter if letter.isascii() else f"U+{ord(character):04X} "


def _name(file: Path) -> str:
    return re.sub(r"[^a-z0-9]", "", file.stem.lower())


def _plain(text: str) -> str:
    """Return the text in NFC without joiners and variation selectors, which are invisible by themselves."""
    kept = (c for c in text if unicodedata.category(c) not in ("Cf", "Cc") and not 0xFE00 <= ord(c) <= 0xFE0F)
    return unicodedata.normalize("NFC", "".join(kept))
