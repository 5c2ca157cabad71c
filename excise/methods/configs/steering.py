"""Settings of the methods that steer a model whose weights stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from excise.erasers.choices import Uncond
from excise.settings import Settings, setting

Level = Literal["weak", "medium", "strong", "max"]


@dataclass(frozen=True)
class CASteerConfig(Settings):
    """What directions are measured on, and how far they are turned."""

    beta: float = setting(2.0, "β: 1 takes the direction out, 2 turns it round.", above=0, paper=2.0)
    pairs: int = setting(
        16, "The first so many of the concept's prompt pairs; each costs two pictures.", unit="pairs", least=1
    )
    steps: int = setting(50, "Denoising steps of these pictures.", unit="steps", least=1, most=1000, paper=50)
    guidance: float = setting(7.5, "Guidance scale of these pictures.", most=100)
    batch: int = setting(
        8, "Pictures drawn together; lower it where memory does not suffice.", unit="pictures", least=1
    )
    seed: int = setting(0, "Seed of the first pair's pictures; each pair's is one more.", most=2**32 - 1)


@dataclass(frozen=True)
class SAFREEConfig(Settings):
    """What counts as the concept, and how long it is kept out."""

    alpha: float = setting(
        0.01,
        "α: by which share a prompt has to be farther from the concept without a word for that word to be the "
        "concept's.",
        unit="share",
        paper=0.01,
    )
    most: int = setting(10, "At most so many steps with the projected states; 0: all steps.", unit="steps", paper=10)
    reattention: float = setting(
        1.0,
        "s: factor of skip connections' low frequencies where the projection made them stronger; 1: off. The paper "
        "switches on 0.2 to 0.9.",
        paper=1.0,
    )
    phrases: str = setting("", "More phrases that span the concept, separated by semicolons; its words always do.")
    style: bool = setting(False, "The curve that the authors use for styles: later and steeper.", paper=False)


@dataclass(frozen=True)
class SLDConfig(Settings):
    """How hard guidance leads away, and from what."""

    level: Level = setting("max", "The paper's level, which sets all that follows.", paper="max")
    warmup: int = setting(
        -1, "Steps that are left alone; -1: the level's, which are of 50 steps.", unit="steps", least=-1, most=1000
    )
    scale: float = setting(0.0, "s, how strongly guidance leads away; 0: the level's.")
    concept: str = setting("", "What to lead away from; empty: the concept's words, joined by commas.")


@dataclass(frozen=True)
class ConceptSteerersConfig(Settings):
    """Which SAE, and how far it steers."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting("", "Module path the SAE was trained at; empty: what its card says.")
    lam: float = setting(
        0.5, "λ, how far prompts are steered away; the paper has 0.5 for nudity, 0.7 for violence.", paper=0.5
    )
    uncond: Uncond = setting(
        "flip",
        "The unconditional branch: with the opposite sign (flip), left alone (none), or as prompts (same).",
        paper="flip",
    )
    words: str = setting("", "What to steer away from; empty: the concept's words, joined by commas.")
