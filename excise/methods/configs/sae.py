"""Settings of the methods that edit neurons of a sparse autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from excise.erasers.choices import REPLACEMENT, REPLACEMENTS, Align, BlockChange, BlockGate, Gate, Source, Steps, Uncond
from excise.errors import InvalidSetting, shown
from excise.settings import SEEDS, Settings, setting

Score = Literal["snce", "snce_per_pair", "mean_difference"]
Unit = Literal["code", "concept"]
Units = Literal["deviation", "raw", "concept"]


@dataclass(frozen=True)
class SNCEConfig(Settings):
    """How SNCE finds and edits neurons; saved in the eraser as given."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting(
        "", "Module path that the SAE was trained at, such as encoder.layers.8; empty: the one on the SAE's card."
    )
    component: str = setting("text_encoder", "The pipeline's text encoder that `site` is a path in.")
    k: int = setting(1, "How many of the top-ranked neurons to turn down.", unit="neurons", least=1, most=65_536)
    neurons: tuple[int, ...] = setting((), "Neurons to turn down instead of the top k.", most=2**31 - 1)
    lam: float = setting(
        1.25,
        "Strength λ, in `unit`s: 1 removes all that the concept's word changes, 1.25 a quarter more. Chosen on "
        "Canvas's tuning concepts. The paper has 0.6 to 1.2, in codes. 0 is the unerased model, for figures.",
        paper=0.8,
        tuned=True,
    )
    unit: Unit = setting(
        "concept",
        "What λ = 1 subtracts. concept: as much as the concept's word changes its own state or the sentence's, "
        "whichever the neuron carries less of, so that one λ suits every concept. code: the neuron's own code, which "
        "source=concept always means.",
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
        "How the prompt's own codes are read: against a calibrated threshold, for the whole prompt (whole) or state by "
        "state (threshold); without TopK (relu); or exactly, with the SAE loaded (topk). The concept's own codes are "
        "always the SAE's.",
        paper="topk",
    )
    uncond: Uncond = setting(
        "none", "The unconditional branch: left alone (none), edited equally (same) or with the opposite sign (flip)."
    )
    align: Align = setting(
        "position",
        "For source=concept: its codes position by position (position), or their mean over each mention (pooled).",
    )
    tolerance: float = setting(
        0.02,
        "Largest deconcept score of a neuron, as a share of its concept score. 0 is the paper's eq. 6, which rejects a "
        "concept's own neuron for one stray activation in a hundred prompts.",
        unit="share",
        most=1,
        paper=0.0,
        tuned=True,
    )
    score: Score = setting("snce", "Formula that ranks the neurons.", paper="snce")
    ortho: int = setting(
        0,
        "OrthoEraser's projection: number of neurons of the prompts to keep, those coupled most with the edited ones, "
        "that the edit leaves alone. It subtracts only what is orthogonal to all that they write. 0: no projection.",
        unit="neurons",
        most=65_536,
    )
    margin: float = setting(
        0.02,
        "Position of the threshold between the largest code without the concept (0) and the typical one with it (1).",
        most=1,
        tuned=True,
    )
    permutations: int = setting(
        1000, "Permutations for the validation's null distribution.", unit="permutations", least=1
    )
    examine: int = setting(10, "Top-ranked neurons to validate.", unit="neurons", least=1)
    batch_size: int = setting(64, "Prompts per text encoder batch.", unit="prompts", least=1)
    replace_with: str = setting(
        "",
        "Word that takes the concept's place, such as apple, or nothing: states move to what the same prompts have "
        "with that word, or without the concept, by `lam` times the way, whatever `unit` is. Empty: the neuron is "
        "turned down.",
    )

    def __post_init__(self) -> None:
        """Raise InvalidSetting for an invalid value, and for `replace_with` with another `source` or `ortho`."""
        super().__post_init__()
        if self.replace_with and not REPLACEMENT.fullmatch(self.replace_with):
            raise InvalidSetting(f"replace_with cannot be {shown(self.replace_with)}; it is {REPLACEMENTS}")
        if self.replace_with and self.source != "prompt":
            raise InvalidSetting(f"replace_with needs source=prompt, not {self.source}; leave one of them out")
        if self.replace_with and self.ortho:
            raise InvalidSetting("ortho projects the neuron's own direction, replace_with has another; leave one out")


@dataclass(frozen=True)
class SAEmnesiaTextConfig(SNCEConfig):
    """SNCE's settings; the neuron is the one that the SAE assigned to the concept."""

    PAPER: ClassVar[bool] = False


@dataclass(frozen=True)
class ItDConfig(Settings):
    """Which neurons, how far they are turned down, and in which prompts."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting("", "Module path that the SAE was trained at; empty: the one on the SAE's card.")
    features: int = setting(
        128,
        "Neurons to look at, those with the largest codes for the concept's words and for each prompt to keep.",
        unit="neurons",
        least=1,
        paper=128,
    )
    factor: float = setting(-1.0, "Factor of a neuron's code.", least=-1000, below=1)
    share: float = setting(
        0.99,
        "A prompt is edited if its change is at least this share of the smallest change of any concept prompt.",
        unit="share",
        paper=0.99,
    )
    retain: int = setting(
        50,
        "Prompts to keep, from the concept's deconcept prompts; the paper takes captions of COCO.",
        unit="prompts",
        least=1,
        paper=50,
    )
    batch_size: int = setting(64, "Prompts per text encoder batch.", unit="prompts", least=1)


@dataclass(frozen=True)
class BlockConfig(Settings):
    """How a block's neurons are measured and edited; saved in the eraser as given."""

    sae: str = setting("", "Folder of the SAE.")
    site: str = setting(
        "", "Module path in the denoiser, such as up_blocks.1.attentions.1; empty: the one on the SAE's card."
    )
    steps: int = setting(
        20,
        "Denoising steps: levels are measured at each, and later pictures must take the same number.",
        unit="steps",
        least=1,
        most=1000,
    )
    at_other_steps: Steps = setting(
        "exact", "At a timestep that was not measured: refuse (exact), or use the nearest one's levels (nearest)."
    )
    edit: BlockChange = setting(
        "scale",
        "What is done to a patch in which a neuron is louder than usual: its code is multiplied by γ times its level "
        "(scale), or the patch is replaced by another one of the picture, drawn among those in which none is (replace, "
        "which is PER; γ and `units` then have no effect).",
    )
    gamma: float = setting(-1.0, "γ, the factor of a neuron that is louder than usual.", least=-1000, most=1000)
    units: Units = setting(
        "deviation",
        "Unit of a level: standard deviations of the block's features (deviation); none (raw); or such that γ = -1 "
        "writes the opposite of all that the concept changes in the features, whatever share of it the neuron carries "
        "(concept).",
    )
    codes: BlockGate = setting(
        "threshold",
        "How codes are read: against a calibrated threshold, for each patch (threshold) or a whole picture (whole), or "
        "exactly, with the SAE loaded (topk).",
    )
    margin: float = setting(
        0.3,
        "For codes=whole: position of the threshold between the largest code without the concept (0) and the typical "
        "one with it (1).",
        least=-10,
        most=10,
        tuned=True,
    )
    compat: bool = setting(False, "Use the error term of the papers' published code, whose sign is wrong.")
    pictures: int = setting(
        24, "Pictures of the concept to measure levels on, and as many of other things.", unit="pictures", least=1
    )
    guidance: float | None = setting(None, "Guidance scale of these pictures; none: the pipeline's own.", most=100)
    seed: int = setting(0, "Seed of the first of these pictures, and of the draws of edit=replace.", most=SEEDS - 1)
    batch_size: int = setting(24, "Pictures generated per batch.", unit="pictures", least=1)


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
    k: int = setting(
        13,
        "Neurons edited at each step: those that score highest. Chosen on Canvas's tuning concepts, in the bundled "
        "SAE's 1280. The paper's percentiles 99.99 to 99.999 leave three to one of its 20,480.",
        unit="neurons",
        least=1,
        paper=1,
        tuned=True,
    )


@dataclass(frozen=True)
class SAEmnesiaConfig(BlockConfig):
    """BlockConfig; the neuron is the one that the SAE assigned to the concept."""

    codes: BlockGate = setting(
        "whole",
        "How codes are read: against a calibrated threshold, for a whole picture (whole), so that pictures without the "
        "concept keep every bit, or for each patch (threshold); or exactly, with the SAE loaded (topk).",
        paper="topk",
    )
    units: Units = setting("concept", paper="raw")
    gamma: float = setting(
        -0.7,
        "γ, the factor of a neuron that is louder than usual. Chosen on Canvas's tuning concepts.",
        paper=-1.0,
        tuned=True,
    )
