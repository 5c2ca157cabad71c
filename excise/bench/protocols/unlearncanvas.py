"""UnlearnCanvas (Zhang et al. 2024) as SAeUron and SAEmnesia run it: 20 objects in 51 styles, two classifiers.

Needs the benchmark's Stable Diffusion 1.5 (`style50`) as the run's model, and its two classifier checkpoints. Sampler,
steps, guidance and seed are as published: DDIM, 100, 9 and 188.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any

from excise.bench.pictures import Pixels
from excise.bench.protocols.batches import BATCH, check_batch, draw_batch
from excise.bench.protocols.vit import ViT, classify, load_vit
from excise.bench.suite import Case, Family, Picture, in_batches
from excise.concepts import Concept, from_templates
from excise.drawn import Drawn
from excise.errors import ExciseError
from excise.pipeline import Pipeline, as_diffusers
from excise.statistics import Estimate, share, share_over

# In the classifiers' order.
STYLES = (
    "Abstractionism", "Artist_Sketch", "Blossom_Season", "Bricks", "Byzantine", "Cartoon", "Cold_Warm",
    "Color_Fantasy", "Comic_Etch", "Crayon", "Cubism", "Dadaism", "Dapple", "Defoliation", "Early_Autumn",
    "Expressionism", "Fauvism", "French", "Glowing_Sunset", "Gorgeous_Love", "Greenfield", "Impressionism", "Ink_Art",
    "Joy", "Liquid_Dreams", "Magic_Cube", "Meta_Physics", "Meteor_Shower", "Monet", "Mosaic", "Neon_Lines", "On_Fire",
    "Pastel", "Pencil_Drawing", "Picasso", "Pop_Art", "Red_Blue_Ink", "Rust", "Seed_Images", "Sketch",
    "Sponge_Dabbed", "Structuralism", "Superstring", "Surrealism", "Ukiyoe", "Van_Gogh", "Vibrant_Flow", "Warm_Love",
    "Warm_Smear", "Watercolor", "Winter",
)  # fmt: skip
OBJECTS = (
    "Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs", "Horses",
    "Human", "Jellyfish", "Rabbits", "Sandwiches", "Sea", "Statues", "Towers", "Trees", "Waterfalls",
)  # fmt: skip
PHOTO = "Seed_Images"
"""Class of pictures without a style. Their prompts name no style."""
SEED, STEPS, GUIDANCE = 188, 100, 9.0
SURE = 0.5
"""Least probability for a classifier's class to count as recognised, once the target is gone."""
SIZES = {"quick": 2, "standard": 10, "full": len(STYLES)}
"""Number of styles per object, spread over all of them, by size."""


@dataclass(frozen=True)
class UnlearnCanvas:
    """UnlearnCanvas as a suite. `style_classifier` and `object_classifier` are files of the published checkpoints."""

    style_classifier: str
    object_classifier: str
    steps: int = STEPS
    guidance: float = GUIDANCE
    seed: int = SEED
    shape: Mapping[str, int] | None = None
    """Shape of the classifiers if not ViT-L/16: `width`, `depth`, `heads`, `side`, `patch`."""
    batch: int = BATCH
    """Pictures generated at once. Each has a generator of its own, so its noise is that of the seed in any batch."""

    name = "unlearncanvas"
    sampler = "DDIMScheduler"
    families = (
        Family("target", "target", "the concept"),
        Family("retain", "keep", "every other object in every other style"),
    )

    def __post_init__(self) -> None:
        check_batch(self.batch)

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def disclosed(self) -> dict[str, str]:
        return {
            "style classifier": self.style_classifier,
            "object classifier": self.object_classifier,
            "what is left": f"a class counts as recognised at a probability of {SURE:g} or more",
            "sampling": f"{self.steps} steps, guidance {self.guidance:g}, seed {self.seed}",
        }

    def concepts(self, size: str) -> tuple[str, ...]:
        return ("Dogs", "Van_Gogh") if size == "quick" else (*OBJECTS, *(s for s in STYLES if s != PHOTO))

    def cases(self, concept: str, size: str) -> list[Case]:
        """Return cases of every object in the size's styles, and in the concept if that is a style.

        An object's pictures stand together, so that an eraser of it touches few batches, and a style that the size does
        not have stands last, so that the other batches are those of every concept.

        Raises ExciseError for an unknown concept or size.
        """
        if concept not in (*OBJECTS, *STYLES):
            raise ExciseError(f"UnlearnCanvas has no {concept!r}; choose one of its 20 objects and 51 styles")
        if size not in SIZES:
            raise ExciseError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
        spread = {STYLES[round(i * (len(STYLES) - 1) / (SIZES[size] - 1))] for i in range(SIZES[size])}
        own = [concept] if concept in STYLES and concept not in spread else []
        rows = []
        for styles in ([style for style in STYLES if style in spread], own):
            for thing, style in product(OBJECTS, styles):
                family = "target" if concept in (thing, style) else "retain"
                suffix = "" if style == PHOTO else f" in {style.replace('_', ' ')} style"
                name, text = f"{concept}.{thing}.{style}", f"An image of {thing}{suffix}."
                rows.append(Case(name, concept, family, text, self.seed, (thing,), style))
        return rows

    def search(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        return []

    def attack(self, pipe: Pipeline, concept: str, size: str) -> list[Case]:
        return []

    def baseline(self, concept: str, size: str) -> list[Case]:
        return []

    def concept(self, name: str) -> Concept:
        word = name.replace("_", " ").lower()
        return from_templates(name, (word,), kind="object" if name in OBJECTS else "style")

    def calls(self, cases: list[Case]) -> list[list[Case]]:
        return in_batches(cases, self.batch)

    def draw(self, pipe: Pipeline, cases: list[Case]) -> Drawn:
        from diffusers import DDIMScheduler

        before = as_diffusers(pipe).scheduler
        as_diffusers(pipe).scheduler = DDIMScheduler.from_config(before.config)
        try:
            options = {"num_inference_steps": self.steps, "guidance_scale": self.guidance}
            pictures = [draw_batch(pipe, batch, **options) for batch in self.calls(cases)]
        finally:
            as_diffusers(pipe).scheduler = before
        return Drawn.joined(pictures)

    @cached_property
    def _judges(self) -> tuple[ViT, ViT]:
        shape = dict(self.shape or {})
        return (
            load_vit(self.style_classifier, len(STYLES), **shape),
            load_vit(self.object_classifier, len(OBJECTS), **shape),
        )

    def judge(self, cases: list[Case], pictures: Pixels) -> list[dict[str, Any]]:
        """Return, for each picture, the `style` and `object` recognised, `target` and `sure`.

        `target` is whether one of them is the concept; `sure` holds the probabilities of both.
        """
        rows = []
        for case, (style, of_style), (thing, of_thing) in zip(
            cases, *(classify(model, list(pictures)) for model in self._judges), strict=True
        ):
            seen = {"style": STYLES[style], "object": OBJECTS[thing]}
            sure = {"style": round(of_style, 4), "object": round(of_thing, 4)}
            rows.append({**seen, "target": case.concept in seen.values(), "sure": sure})
        return rows

    def of_concept(self, pictures: Sequence[Picture]) -> dict[str, Estimate | None]:
        """Compute UA, IRA, CRA, and what pictures show instead of the target.

        UA: share of prompts with the concept whose picture is not classified as it. IRA and CRA: share of the other
        prompts whose object or style in the concept's domain (IRA) or in the other domain (CRA) is recognised.

        Of the pictures that count for UA: `left_class`, the classifier names another class with a probability of at
        least `SURE`; `left_unsure`, it does not. Of all prompts with the concept: whether what else they ask for, the
        `style` of an object or the `objects` of a style, is still recognised if it was in the unerased picture.
        """
        return {name: share(outcomes) for name, outcomes in _outcomes(pictures).items()}

    def over_concepts(self, by_concept: Mapping[str, Sequence[Picture]]) -> dict[str, Estimate]:
        """Compute means over concepts, and separately for objects and styles, as in the published tables."""
        figures = _means(by_concept.values())
        for domain, names in (("object", OBJECTS), ("style", STYLES)):
            group = [pictures for concept, pictures in by_concept.items() if concept in names]
            figures |= {f"{domain}.{name}": figure for name, figure in _means(group).items()}
        return figures


COUNTED = ("ua", "left_class", "left_unsure", "style", "objects", "ira", "cra", "identical")


def _means(groups: Iterable[Sequence[Picture]]) -> dict[str, Estimate]:
    outcomes = [_outcomes(group) for group in groups]
    return {name: share_over([one[name] for one in outcomes]) for name in COUNTED}


def _outcomes(pictures: Sequence[Picture]) -> dict[str, list[bool]]:
    with_it = [p for p in pictures if p.case.family == "target"]
    others = [p for p in pictures if p.case.family == "retain"]
    style = [p.seen["style"] == p.case.style for p in others]
    thing = [p.seen["object"] == p.case.keeps[0] for p in others]
    is_object = bool(pictures) and pictures[0].case.concept in OBJECTS
    in_domain, cross_domain = (thing, style) if is_object else (style, thing)
    gone = [p for p in with_it if not p.seen["target"] and "sure" in p.seen]
    sure = [p.seen["sure"]["object" if is_object else "style"] >= SURE for p in gone]
    styles = [p.seen["style"] == p.case.style for p in with_it if p.unerased["style"] == p.case.style]
    things = [p.seen["object"] == p.case.keeps[0] for p in with_it if p.unerased["object"] == p.case.keeps[0]]
    return {
        "ua": [not p.seen["target"] for p in with_it],
        "left_class": sure,
        "left_unsure": [not one for one in sure],
        "style": styles if is_object else [],
        "objects": [] if is_object else things,
        "ira": in_domain,
        "cra": cross_domain,
        "identical": [p.identical for p in others],
    }
