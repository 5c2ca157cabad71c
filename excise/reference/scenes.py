"""Scenes of up to two objects at random positions and sizes, in one style on one background, 64x64 pixels."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache, lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from excise.files import read_file, read_json
from excise.reference import data
from excise.reference.captions import caption
from excise.reference.world import BACKGROUNDS, HELD_OUT_PAIRS, HELD_OUT_STYLES, OBJECTS, STYLES

SIZE = 64
GRID = 8
"""Positions are multiples of 8 pixels, the autoencoder's stride, so that a shifted object has shifted latents."""
ALONE_SIZES = (32, 40)
PAIRED_SIZE = 32
"""Side of each of two objects, in pixels. At 24 pixels the autoencoder damaged one drawing in ten."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Scene:
    """The content of a picture. `boxes` holds (left, top, size) in pixels for each object."""

    objects: tuple[str, ...]
    style: str
    background: str
    boxes: tuple[tuple[int, int, int], ...]


@cache
def sprite(name: str, style: str, size: int) -> Pixels:
    """Return the object's drawing, RGBA `[size, size, 4]`."""
    layout = _layout()
    cell, n = layout["cell"], layout["objects"].index(name)
    left, top = n % layout["columns"] * cell, n // layout["columns"] * cell
    drawing = _sheet(style).crop((left, top, left + cell, top + cell))
    return np.asarray(drawing.resize((size, size), Image.Resampling.LANCZOS))


@lru_cache(maxsize=1)
def _layout() -> dict[str, Any]:
    return dict(read_json(data.folder() / "artwork" / "artwork.json"))


@cache
def _sheet(style: str) -> Image.Image:
    with Image.open(BytesIO(read_file(data.folder() / "artwork" / f"{style}.png"))) as sheet:
        return sheet.convert("RGBA")


@cache
def backdrop(background: str, style: str) -> Pixels:
    """Return the background in a style, RGB `[64, 64, 3]`, so that an empty scene shows the style too."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    down = (y / (SIZE - 1))[..., None]
    colour = {name: np.array(rgb, np.float32) for name, rgb in _COLOURS.items()}
    if background in ("white", "pink"):
        image = np.broadcast_to(colour[background], (SIZE, SIZE, 3)).copy()
    elif background == "sky":
        image = colour["sky"] * (1 - down) + colour["haze"] * down
    elif background in ("grass", "sand"):
        image = np.where(y[..., None] < 40, colour["haze" if background == "grass" else "sea"], colour[background])
    elif background == "sunset":
        image = colour["dusk"] * (1 - down) + colour["glow"] * down
    elif background == "squared":
        lines = ((x % 8 == 0) | (y % 8 == 0))[..., None]
        image = np.where(lines, colour["line"], colour["white"])
    elif background == "wood":
        image = np.where((y % 16 < 1)[..., None], colour["groove"], colour["wood"])
    else:
        raise ValueError(f"no background {background!r}; choose from {', '.join(BACKGROUNDS)}")
    return np.asarray(np.clip(_paint(image, style, x, y), 0, 255).round().astype(np.uint8))


_COLOURS = {
    "white": (250, 250, 250), "pink": (248, 178, 208), "sky": (110, 180, 240), "haze": (205, 232, 250),
    "grass": (120, 195, 90), "sand": (236, 208, 140), "sea": (130, 205, 225), "dusk": (250, 170, 110),
    "glow": (245, 110, 90), "line": (170, 200, 235), "wood": (190, 140, 95), "groove": (150, 105, 65),
}  # fmt: skip


def _paint(image: np.ndarray[Any, Any], style: str, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    """Apply a style to a background: tint, shade and frame."""
    edge = np.minimum(np.minimum(x, SIZE - 1 - x), np.minimum(y, SIZE - 1 - y))[..., None]
    grey = image.mean(-1, keepdims=True)
    if style == "flat":
        return image
    if style == "glossy":
        across = (x + y)[..., None]
        return image + 60 * np.clip(1 - across / 48, 0, 1) - 45 * np.clip(across / 63 - 1, 0, 1)
    if style == "outlined":
        return np.where(edge < 2, 20.0, image)
    if style == "pastel":
        return 0.45 * image + 0.55 * np.array([240, 225, 250], np.float32)
    if style == "cartoon":
        return np.where(edge < 3, 255.0, grey + 1.35 * (image - grey))
    if style == "vintage":
        sepia = grey / 255 * np.array([235, 205, 160], np.float32)
        return (0.35 * image + 0.65 * sepia) * (0.75 + 0.25 * np.clip(edge / 10, 0, 1))
    if style == "bold":
        return np.where(edge < 3, np.array([225, 60, 50], np.float32), image)
    if style == "ink":
        return np.clip(0.4 * grey + 130, 0, 255) + np.zeros(3, np.float32)
    raise ValueError(f"no style {style!r}; choose from {', '.join(STYLES)}")


def place_objects(rng: random.Random, count: int) -> tuple[tuple[int, int, int], ...]:
    """Sample boxes for `count` (0 to 2) objects on the grid. The first of two is on the left."""
    if count == 0:
        return ()
    if count == 1:
        size = rng.choice(ALONE_SIZES)
        free = (SIZE - size) // GRID
        spot = [GRID * rng.randint(1, free - 1) for _ in range(2)]
        return ((spot[0], spot[1], size),)
    return tuple((left, rng.choice((8, 16, 24)), PAIRED_SIZE) for left in (0, 32))


def render(scene: Scene) -> Pixels:
    """Render the scene as RGB `[64, 64, 3]` uint8."""
    image = backdrop(scene.background, scene.style).astype(np.float32)
    for name, (left, top, size) in zip(scene.objects, scene.boxes, strict=True):
        drawing = sprite(name, scene.style, size).astype(np.float32)
        alpha = drawing[..., 3:] / 255
        view = image[top : top + size, left : left + size]
        view += alpha * (drawing[..., :3] - view)
    return image.round().astype(np.uint8)


def sample_scene(rng: random.Random, held_out: bool = False, any_style: bool = False) -> Scene:
    """Sample a scene: 47 % have one object, 47 % two, 6 % none.

    With `held_out`, the scene has an object in its held-out style or a held-out pair; otherwise it has neither. With
    `any_style`, only pairs are held out: a judge must be trained on every drawing.
    """
    while True:
        count = rng.choices((0, 1, 2), (0.06, 0.47, 0.47))[0]
        objects = tuple(rng.sample(OBJECTS, count))
        style = rng.choice(STYLES)
        unseen = frozenset(objects) in HELD_OUT_PAIRS
        if not any_style:
            unseen = unseen or any(HELD_OUT_STYLES.get(o) == style for o in objects)
        if unseen == held_out:
            return Scene(objects, style, rng.choice(BACKGROUNDS), place_objects(rng, count))


def sample_caption(rng: random.Random, scene: Scene) -> str:
    """Sample a training caption of the scene. Three in four name the style, two in three the background."""
    style = scene.style if rng.random() < 0.75 else None
    place = scene.background if rng.random() < 0.67 else None
    return caption(rng, scene.objects, style, place)
