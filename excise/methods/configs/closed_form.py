"""Settings of the closed-form methods."""

from __future__ import annotations

from dataclasses import dataclass

from excise.settings import SEEDS, Settings, setting


@dataclass(frozen=True)
class UCEConfig(Settings):
    """What the concept's words become, and the weights of what is kept."""

    guide: str = setting(
        "", "Text whose keys and values the concept's words get; empty: those of the empty prompt.", paper=""
    )
    preserve: str = setting(
        "",
        "Words to keep, separated by semicolons; empty: those that replace the concept in its deconcept prompts.",
    )
    erase: float = setting(1.0, "a, the weight of the concept's words.", above=0, paper=1.0)
    keep: float = setting(1.0, "b, the weight of each word to keep.", paper=1.0)
    lam: float = setting(0.5, "λ, the weight of the layer's original weights.", above=0, paper=0.5)


@dataclass(frozen=True)
class RECEConfig(UCEConfig):
    """UCE's settings with RECE's weights, and the rounds."""

    keep: float = setting(0.1, paper=0.1)
    lam: float = setting(0.1, "λ, the weight of the layer's weights at the start of each round.", paper=0.1)
    rounds: int = setting(
        3, "Rounds of finding and erasing embeddings that bring the concept back.", unit="rounds", least=1, paper=3
    )
    rho: float = setting(
        0.1, "ρ, the weight of the length of such an embedding; the paper has 0.001 for styles.", above=0, paper=0.1
    )


@dataclass(frozen=True)
class SPEEDConfig(Settings):
    """What the concept's words become, what is kept, and how strictly."""

    guide: str = setting(
        "", "The anchor, whose values the concept's words get; empty: those of the empty prompt.", paper=""
    )
    preserve: str = setting(
        "",
        "Words to keep, separated by semicolons; empty: those that replace the concept in its deconcept prompts.",
    )
    scale: float = setting(
        1.0, "s, the weight of the change; the paper has 0.7 for nudity, 0.05 for many people.", above=0, paper=1.0
    )
    lam: float = setting(
        0.0, "λ: 0 leaves the empty prompt's values as they are; the paper has 0.5 for nudity.", paper=0.0
    )
    limit: float = setting(
        0.1, "Singular values of the kept words below this count as none; higher changes more.", above=0, paper=0.1
    )
    filtered: bool = setting(
        True, "Whether to keep only those words that a plain edit moves most; the paper: not for people.", paper=True
    )
    added: int = setting(10, "States near each kept word to keep too.", unit="states", most=100, paper=10)
    seed: int = setting(0, "Seed of these states.", most=SEEDS - 1)
