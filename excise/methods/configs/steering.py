"""Settings of the methods that steer a model at inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from excise.erasers.choices import Uncond
from excise.errors import InvalidSetting
from excise.settings import SEEDS, Settings, setting

LEAST_CONTROLS = 40
"""Prompts without the concept that a threshold on pictures is calibrated on at least."""
Level = Literal["weak", "medium", "strong", "max"]


@dataclass(frozen=True)
class CASteerConfig(Settings):
    """What directions are measured on, and how far they are turned."""

    beta: float = setting(2.0, "β: 1 removes the direction, 2 reverses it.", above=0, paper=2.0)
    pairs: int = setting(16, "Prompt pairs of the concept to use; each costs two pictures.", unit="pairs", least=1)
    steps: int = setting(50, "Denoising steps of these pictures.", unit="steps", least=1, most=1000, paper=50)
    guidance: float = setting(7.5, "Guidance scale of these pictures.", most=100)
    batch: int = setting(8, "Pictures generated per batch; lower it if memory runs out.", unit="pictures", least=1)
    seed: int = setting(0, "Seed of the first pair's pictures; each further pair's is one higher.", most=SEEDS - 1)


@dataclass(frozen=True)
class CASteerGatedConfig(CASteerConfig):
    """CASteer's settings, and what its gate is calibrated on."""

    PAPER: ClassVar[bool] = False
    steps: int = setting(20, "Denoising steps of these pictures.", unit="steps", least=1, most=1000)
    controls: int = setting(
        160,
        "Prompts without the concept whose pictures must stay; each costs a picture.",
        unit="prompts",
        least=LEAST_CONTROLS,
    )
    false_openings: float = setting(
        0.005, "Share of pictures like those of the controls that may be changed.", unit="share", above=0, most=0.1
    )


@dataclass(frozen=True)
class SAFREEConfig(Settings):
    """What counts as the concept, and for how many steps it is projected out."""

    alpha: float = setting(
        0.01,
        "α: a word counts as the concept's if the prompt without it is farther from the concept by more than this "
        "share.",
        unit="share",
        paper=0.01,
    )
    most: int = setting(10, "Maximum number of steps with the projected states; 0: all steps.", unit="steps", paper=10)
    reattention: float = setting(
        1.0,
        "s: factor of the skip connections' low frequencies that the projection made stronger; 1: off. The paper "
        "switches on 0.2 to 0.9.",
        paper=1.0,
    )
    phrases: str = setting("", "More phrases that span the concept, separated by semicolons; its words always do.")
    style: bool = setting(False, "Use the authors' curve for styles: later and steeper.", paper=False)


@dataclass(frozen=True)
class AdaVDConfig(Settings):
    """How close to the concept a token's value must be, and how much of it is then removed."""

    scale: float = setting(2.0, "s: 1 removes the part along the concept, 2 reverses it.", above=0, paper=2.0)
    steepness: float = setting(100.0, "p, how suddenly the removal sets in.", above=0, paper=100.0)
    midpoint: float = setting(
        0.93, "ε, the cosine with the concept's value at which half of it sets in.", least=-1, most=1, paper=0.93
    )


@dataclass(frozen=True)
class CGCEConfig(Settings):
    """How the classifier is trained, and how far it leads."""

    PAPER: ClassVar[bool] = False
    threshold: float = setting(
        0.5, "Probability from which a prompt counts as the concept's.", unit="probability", above=0, below=1
    )
    depth: float = setting(
        8.0,
        "How far such a prompt's states are moved: down to this multiple of the mean logit of prompts without the "
        "concept.",
        above=0,
        most=100,
    )
    step: float = setting(0.02, "η, the length of a step as a share of the states'.", above=0, most=1)
    most: int = setting(100, "Most steps for a prompt.", unit="steps", least=1, most=1000)
    pairs: int = setting(100, "Prompt pairs of the concept to use.", unit="pairs", least=1)
    iterations: int = setting(200, "Training steps of Adam for the classifier.", unit="steps", least=1)
    lr: float = setting(1e-2, "Adam's learning rate.", above=0, most=1)
    batch: int = setting(16, "Prompts of either kind in a training step.", unit="prompts", least=1)
    noise: float = setting(1.0, "Noise added to the states in training, in units of their root mean square.", most=100)
    seed: int = setting(0, "Seed of everything random.", most=SEEDS - 1)


@dataclass(frozen=True)
class LEACEConfig(Settings):
    """Which states the projection is fitted on, and how often they show the concept."""

    site: str = setting("", "Module path in the text encoder; empty: its last one, whose states the U-Net reads.")
    share: float = setting(
        0.01,
        "Share of prompts that show the concept. At 0.5, other prompts' states move as far as the concept's.",
        unit="share",
        above=0,
        below=1,
    )
    pairs: int = setting(100, "Prompt pairs of the concept to use.", unit="pairs", least=1)


@dataclass(frozen=True)
class SLDConfig(Settings):
    """How strongly guidance leads away, and from what."""

    level: Level = setting("max", "The paper's level, which sets everything below.", paper="max")
    warmup: int = setting(
        -1, "First steps left alone; -1: the level's number, counted in 50 steps.", unit="steps", least=-1, most=1000
    )
    scale: float = setting(0.0, "s, how strongly guidance leads away; 0: the level's.")
    concept: str = setting("", "Text to lead away from; empty: the concept's words, joined by commas.")


@dataclass(frozen=True)
class STGConfig(Settings):
    """When a picture is looked at, how far its text states are moved, and what the detector is trained on."""

    threshold: float = setting(
        0.5, "Probability above which a step shows the concept.", unit="probability", above=0, below=1
    )
    rho: float = setting(0.05, "ρ, the length of a step as a share of the states'.", above=0, most=1)
    guidance: float = setting(7.5, "Guidance scale with which pictures are predicted.", above=1, most=100, paper=7.5)
    start: float = setting(
        900.0, "Timestep from which on pictures are looked at.", unit="of 1000", above=0, most=1000, paper=900.0
    )
    stop: float = setting(100.0, "Timestep down to which they are looked at.", unit="of 1000", below=1000, paper=100.0)
    pairs: int = setting(32, "Prompt pairs of the concept to train the detector on.", unit="pairs", least=2)
    steps: int = setting(20, "Denoising steps of their pictures.", unit="steps", least=1, most=1000)
    batch: int = setting(16, "Pictures of either kind at once; lower it if memory runs out.", unit="pictures", least=1)
    iterations: int = setting(300, "Training steps of Adam for the detector.", unit="steps", least=1)
    lr: float = setting(2e-3, "Adam's learning rate.", above=0, most=1)
    seed: int = setting(0, "Seed of everything random.", most=SEEDS - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop >= self.start:
            raise InvalidSetting(f"stop is {self.stop:g} and start {self.start:g}; stop must be below start")


@dataclass(frozen=True)
class ConceptSteerersConfig(Settings):
    """Which SAE, and how far it steers."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting("", "Module path that the SAE was trained at; empty: the one on the SAE's card.")
    lam: float = setting(
        0.5, "λ, how far prompts are steered away; the paper has 0.5 for nudity, 0.7 for violence.", paper=0.5
    )
    uncond: Uncond = setting(
        "flip",
        "The unconditional branch: with the opposite sign (flip), left alone (none), or like prompts (same).",
        paper="flip",
    )
    words: str = setting("", "Text to steer away from; empty: the concept's words, joined by commas.")
