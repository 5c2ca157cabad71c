"""Settings of the methods that solve for new weights."""

from __future__ import annotations

from dataclasses import dataclass

from excise.settings import Settings, setting


@dataclass(frozen=True)
class UCEConfig(Settings):
    """What the concept's words become, and how hard everything is held to that."""

    guide: str = setting(
        "", "The words' keys and values become those of this text; empty: the empty prompt's.", paper=""
    )
    preserve: str = setting(
        "",
        "Words that keep theirs, separated by semicolons; empty: those that stand for the concept in its pairs.",
    )
    erase: float = setting(1.0, "a, the weight of the concept's words.", above=0, paper=1.0)
    keep: float = setting(1.0, "b, the weight of every word that is kept.", paper=1.0)
    lam: float = setting(0.5, "λ, the weight of the layer's own weights.", above=0, paper=0.5)


@dataclass(frozen=True)
class RECEConfig(UCEConfig):
    """UCE's settings with RECE's weights, and the rounds."""

    keep: float = setting(0.1, paper=0.1)
    lam: float = setting(0.1, "λ, the weight of the layers' weights as they are in a round.", paper=0.1)
    rounds: int = setting(
        3, "How often embeddings that bring the concept back are sought and erased.", unit="rounds", least=1, paper=3
    )
    rho: float = setting(
        0.1, "ρ, the weight of such an embedding's own length; the paper has 0.001 for styles.", above=0, paper=0.1
    )
