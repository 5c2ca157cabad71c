"""Settings of the methods that edit neurons of a sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from excise.erasers.choices import Align, BlockGate, Gate, Source, Steps, Uncond
from excise.settings import Settings, setting

Score = Literal["snce", "snce_per_pair", "mean_difference"]
Unit = Literal["code", "concept"]
Units = Literal["deviation", "raw", "concept"]


@dataclass(frozen=True)
class SNCEConfig(Settings):
    """How SNCE finds and edits neurons; saved word for word in the eraser."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting(
        "", "Module path the SAE was trained at, such as encoder.layers.8; empty: what the SAE's card says."
    )
    component: str = setting("text_encoder", "The pipeline's text encoder that `site` is a path in.")
    k: int = setting(1, "How many of the top-ranked neurons to turn down.", unit="neurons", least=1, most=65_536)
    neurons: tuple[int, ...] = setting((), "These neurons instead of the top k.", most=2**31 - 1)
    lam: float = setting(
        1.25,
        "Strength λ, in `unit`s: 1 takes out all that the concept's word changes, 1.25 a quarter more. Chosen on "
        "Canvas's tuning concepts. The paper has 0.6 to 1.2, in codes.",
        paper=0.8,
    )
    unit: Unit = setting(
        "concept",
        "What λ = 1 subtracts: as much as the concept's word changes its own state and the sentence's, whichever the "
        "neuron carries less of (concept), so that one λ does for every concept; or the neuron's own code (code; "
        "source=concept always means that).",
        paper="code",
    )
    source: Source = setting(
        "prompt",
        "Whose codes are subtracted: the user's prompt's (prompt), so that unrelated prompts keep every bit, or the "
        "concept's (concept).",
        paper="concept",
    )
    gate: Gate = setting(
        "whole",
        "How the prompt's own codes are read: a calibrated threshold opens or spares a prompt as a whole (whole) or "
        "state by state (threshold); without TopK (relu); or exactly, with the SAE at hand (topk). The concept's own "
        "are always the SAE's.",
        paper="topk",
    )
    uncond: Uncond = setting(
        "none", "The unconditional branch: left alone (none), edited alike (same) or with the opposite sign (flip)."
    )
    align: Align = setting(
        "position",
        "For source=concept: its codes position by position (position), or their mean over each mention (pooled).",
    )
    tolerance: float = setting(
        0.02,
        "Share of its concept score that a neuron's deconcept score may reach. 0 is the paper's eq. 6, which drops a "
        "concept's own neuron for one stray activation in a hundred prompts.",
        unit="share",
        most=1,
        paper=0.0,
    )
    score: Score = setting("snce", "How neurons are ranked.", paper="snce")
    margin: float = setting(
        0.02,
        "Where the threshold lies between the largest code without the concept (0) and the typical one with it (1).",
        most=1,
    )
    permutations: int = setting(1000, "Permutations of the null hypothesis in the validation.", unit="permutations")
    examine: int = setting(10, "How many of the first neurons are validated.", unit="neurons", least=1)
    batch_size: int = setting(64, "Prompts in a pass of the text encoder.", unit="prompts", least=1)


@dataclass(frozen=True)
class SAEmnesiaTextConfig(SNCEConfig):
    """SNCE's settings; the neuron is the SAE's own for the concept."""

    PAPER: ClassVar[bool] = False


@dataclass(frozen=True)
class ItDConfig(Settings):
    """Which features, how far they are turned down, and in which prompts."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting("", "Module path the SAE was trained at; empty: what its card says.")
    features: int = setting(
        128,
        "How many of the loudest features of the concept's words, and of each prompt that stays, are looked at.",
        unit="features",
        least=1,
        paper=128,
    )
    factor: float = setting(-1.0, "What a feature's code is multiplied by.", least=-1000, below=1)
    share: float = setting(
        0.99,
        "A prompt is changed where the change is at least this share of the least change of a concept prompt.",
        unit="share",
        paper=0.99,
    )
    retain: int = setting(
        50,
        "Prompts that have to stay, from the concept's deconcept prompts; the paper's are captions of COCO.",
        unit="prompts",
        least=1,
        paper=50,
    )
    batch_size: int = setting(64, "Prompts in a pass of the text encoder.", unit="prompts", least=1)


@dataclass(frozen=True)
class BlockConfig(Settings):
    """How a block's neurons are measured and edited; saved word for word in the eraser."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting(
        "", "Module path in the denoiser, such as up_blocks.1.attentions.1; empty: what the SAE's card says."
    )
    steps: int = setting(
        20,
        "Denoising steps: levels are measured at each, and pictures have to be drawn with as many.",
        unit="steps",
        least=1,
        most=1000,
    )
    at_other_steps: Steps = setting(
        "exact", "At a timestep that was not measured: refuse (exact), or use the levels of the nearest one (nearest)."
    )
    gamma: float = setting(-1.0, "γ, the factor of a neuron that is louder than usual.", least=-1000, most=1000)
    units: Units = setting(
        "deviation",
        "What a level counts in: standard deviations of the block's features (deviation); as it comes (raw); or so "
        "much that γ = -1 writes the opposite of all that the concept changes in the features, whatever share of it "
        "the neuron carries (concept).",
    )
    codes: BlockGate = setting(
        "threshold",
        "How codes are read: against a calibrated threshold, patch by patch (threshold) or for a picture as a whole "
        "(whole); or exactly, with the SAE at hand (topk).",
    )
    margin: float = setting(
        0.3,
        "For codes=whole: where the threshold lies between the largest code without the concept (0) and the typical "
        "one with it (1).",
        least=-10,
        most=10,
    )
    compat: bool = setting(False, "The error term of the papers' published code, whose sign is wrong.")
    pictures: int = setting(
        24, "Pictures of the concept, and as many of other things, to measure levels on.", unit="pictures", least=1
    )
    guidance: float | None = setting(None, "Guidance scale of these pictures; none: the pipeline's own.", most=100)
    seed: int = setting(0, "Seed of the first of these pictures.", most=2**32 - 1)
    batch_size: int = setting(24, "Pictures drawn at a time.", unit="pictures", least=1)


@dataclass(frozen=True)
class SAEuronConfig(BlockConfig):
    """BlockConfig, and how many neurons are chosen."""

    gamma: float = setting(
        -1.0,
        "γ, the factor of a neuron that is louder than usual; the paper has -1 for styles, -1 to -30 for objects.",
        paper=-1.0,
    )
    units: Units = setting("deviation", paper="raw")
    codes: BlockGate = setting("threshold", paper="topk")
    percentile: float = setting(
        99.0,
        "At each step the neurons are edited whose score lies above this percentile of all: of the bundled SAE's 1280, "
        "thirteen. Chosen on Canvas's tuning concepts. The paper's 99.99 to 99.999 are of 20,480 neurons, and leave "
        "three to one.",
        unit="%",
        most=100,
        paper=99.999,
    )


@dataclass(frozen=True)
class SAEmnesiaConfig(BlockConfig):
    """BlockConfig; the neuron is the SAE's own for the concept."""

    codes: BlockGate = setting(
        "whole",
        "How codes are read: against a calibrated threshold, for a picture as a whole (whole), so that pictures "
        "without the concept keep every bit, or patch by patch (threshold); or exactly, with the SAE at hand (topk).",
        paper="topk",
    )
    units: Units = setting("concept", paper="raw")
    gamma: float = setting(
        -0.7, "γ, the factor of a neuron that is louder than usual. Chosen on Canvas's tuning concepts.", paper=-1.0
    )
