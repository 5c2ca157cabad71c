"""Settings of the methods that train weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from excise.errors import InvalidSetting
from excise.settings import SEEDS, Settings, setting

CAWeights = Literal["cross-attention", "all"]
SAWeights = Literal["cross-attention", "rest", "all"]
Variant = Literal["model", "noise"]


@dataclass(frozen=True)
class TuningConfig(Settings):
    """How long a method trains, and where it keeps checkpoints; saved with the eraser."""

    iterations: int = setting(200, "Training steps of Adam.", unit="steps", least=1)
    lr: float = setting(5e-5, "Adam's learning rate.", above=0, most=1)
    batch: int = setting(1, "Noised pictures per training step; lower it if memory runs out.", unit="pictures", least=1)
    seed: int = setting(0, "Seed of everything random.", most=SEEDS - 1)
    checkpoint: str = setting(
        "",
        "Folder for checkpoints, so that the same call resumes after an interruption; empty: none are kept.",
    )
    checkpoint_every: int = setting(50, "Training steps between two checkpoints.", unit="steps", least=1)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that the result depends on, as json."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("checkpoint")}


@dataclass(frozen=True)
class ReplayConfig(TuningConfig):
    """TuningConfig, and how the training pictures are generated."""

    pictures: int = setting(
        32, "Training pictures, generated once with something else in the concept's place.", unit="pictures", least=1
    )
    steps: int = setting(50, "Denoising steps of these pictures.", unit="steps", least=1, most=1000)
    guidance: float = setting(7.5, "Guidance scale of these pictures.", most=100)


@dataclass(frozen=True)
class ESDConfig(TuningConfig):
    """TuningConfig, and the training target."""

    iterations: int = setting(200, paper=200)
    lr: float = setting(5e-5, paper=5e-5)
    eta: float = setting(
        1.0,
        "η: how far the target lies beyond the unconditional prediction. The authors' code writes 2 for the same "
        "target, since it counts from the concept's prediction.",
        paper=1.0,
    )
    guidance: float = setting(3.0, "Guidance scale of the training pictures.", most=100, paper=3.0)
    steps: int = setting(50, "Denoising steps of a full picture.", unit="steps", least=1, most=1000, paper=50)


@dataclass(frozen=True)
class CAConfig(ReplayConfig):
    """ReplayConfig, the anchor and the training target."""

    iterations: int = setting(100, paper=100)
    lr: float = setting(
        1.6e-5, "Adam's learning rate: the authors' 2e-6 for each picture of a training step.", paper=1.6e-5
    )
    batch: int = setting(8, paper=8)
    pictures: int = setting(
        32,
        "Training pictures of the anchor, generated once. The authors use 200 to 1000.",
        paper=200,
    )
    steps: int = setting(50, paper=50)
    guidance: float = setting(7.5, paper=7.5)
    anchor: str = setting(
        "",
        "What to generate instead of the concept; empty: what replaces it in its deconcept prompts.",
    )
    variant: Variant = setting(
        "model",
        "Training target: the untouched model's prediction for the anchor (model), or the noise itself (noise).",
        paper="model",
    )
    keep: float = setting(
        0.0,
        "λ, the weight of the model's own loss for the anchor's prompts; 1 in the paper for memorised pictures.",
        paper=0.0,
    )
    weights: CAWeights = setting(
        "cross-attention",
        "Which weights are trained: the cross-attention's keys and values, or all linear and convolutional layers.",
        paper="cross-attention",
    )


@dataclass(frozen=True)
class SAConfig(ReplayConfig):
    """ReplayConfig, the surrogate, and the weights of what is kept."""

    lr: float = setting(1e-5, paper=1e-5)
    batch: int = setting(
        4, "Noised pictures per training step, as many of each kind; lower it if memory runs out.", paper=4
    )
    pictures: int = setting(
        32, "Training pictures of something else, generated once. The authors use 1000.", paper=1000
    )
    steps: int = setting(50, paper=50)
    guidance: float = setting(7.5, paper=7.5)
    surrogate: str = setting(
        "",
        "What to generate instead of the concept; empty: what replaces it in its deconcept prompts.",
    )
    lam: float = setting(50.0, "λ, the weight of the Fisher information's penalty.", paper=50.0)
    keep: float = setting(1.0, "γ, the weight of the replayed pictures of other prompts.", paper=1.0)
    fisher: int = setting(
        32,
        "Pictures of other prompts to replay; the Fisher information is estimated from them.",
        unit="pictures",
        least=1,
        paper=1000,
    )
    timesteps: int = setting(
        10,
        "Random timesteps of each of them for this estimate; the authors sum over all 1000.",
        unit="timesteps",
        least=1,
        most=1000,
        paper=1000,
    )
    weights: SAWeights = setting(
        "cross-attention",
        "Which weights are trained: the cross-attention, all linear and convolutional layers but that (rest, the "
        "authors' for nudity), or all of them (the authors' for people).",
        paper="all",
    )


@dataclass(frozen=True)
class SPMConfig(TuningConfig):
    """TuningConfig, the training target and the anchors."""

    iterations: int = setting(3000, paper=3000)
    lr: float = setting(1e-4, paper=1e-4)
    rank: int = setting(1, "Rank of every adapter.", least=1, paper=1)
    eta: float = setting(1.0, "η: how far the target lies beyond the unconditional prediction.", paper=1.0)
    anchoring: float = setting(1000.0, "λ, the weight of the anchors.", paper=1000.0)
    anchors: int = setting(4, "Anchors per training step.", unit="anchors", least=1, paper=4)
    guidance: float = setting(3.0, "Guidance scale of the training pictures.", most=100, paper=3.0)
    steps: int = setting(50, "Denoising steps of a full picture.", unit="steps", least=1, most=1000)


@dataclass(frozen=True)
class DuMoConfig(TuningConfig):
    """TuningConfig for the copy of the encoder, the training target, what is kept, and how α is trained."""

    iterations: int = setting(1000, "Training steps of Adam for the copy.")
    lr: float = setting(1e-4)
    rank: int = setting(4, "Rank of each layer's change in the copy.", least=1)
    eta: float = setting(1.0, "η: how far the target lies beyond the unconditional prediction.")
    keep: float = setting(1.0, "λ, the weight of other prompts.")
    pairs: int = setting(32, "Maximum number of prompt pairs, and of controls, to train on.", unit="pairs", least=1)
    guidance: float = setting(3.0, "Guidance scale of the training pictures.", most=100)
    steps: int = setting(50, "Denoising steps of a full picture.", unit="steps", least=1, most=1000)
    bins: int = setting(20, "Bins of timesteps; α is constant within each.", unit="bins", least=1, paper=20)
    alpha_iterations: int = setting(
        200, "Training steps of Adam for α, after the copy's; 0 leaves every α at 1.", unit="steps"
    )
    alpha_lr: float = setting(0.05, "Adam's learning rate for a in α = σ(a).", above=0, most=1)
    alpha_first: float = setting(0.9, "Initial α.", above=0, below=1)

    def stage(self, name: str, **settings: Any) -> DuMoConfig:
        """Return the configuration of one stage, with other settings and its own checkpoint folder."""
        folder = str(Path(self.checkpoint) / name) if self.checkpoint else ""
        return replace(self, checkpoint=folder, **settings)


@dataclass(frozen=True)
class MACEConfig(TuningConfig):
    """TuningConfig, what replaces the concept, what is kept, and the training pictures."""

    iterations: int = setting(
        50, "Training steps of Adam; the authors have 50 for people and styles, 120 for nudity.", paper=50
    )
    lr: float = setting(
        1e-4, "Adam's learning rate; the authors have 1e-4 for people and styles, 1e-5 for objects.", paper=1e-4
    )
    anchor: str = setting(
        "",
        "Text in the concept's place in its own prompts; empty: the deconcept prompts of its pairs.",
    )
    preserve: str = setting(
        "",
        "Words to keep, separated by semicolons; empty: those that replace the concept in its deconcept prompts. "
        "The concept's controls are kept in any case.",
    )
    keep: float = setting(
        10.0,
        "λ₁ and λ₂, the weight of every kept token, over some hundred texts. The authors have 1e-4 over COCO's "
        "captions, and none for objects.",
    )
    lam: float = setting(
        10.0,
        "λ, the weight of the layer's original weights; the authors have 10 for objects, else 0.",
        above=0,
        paper=10.0,
    )
    rank: int = setting(1, "Rank of ΔW.", least=1, paper=1)
    pictures: int = setting(8, "Training pictures of the concept.", unit="pictures", least=1, paper=8)
    steps: int = setting(20, "Denoising steps of these pictures.", unit="steps", least=1, most=1000)
    guidance: float = setting(7.5, "Guidance scale of these pictures.", most=100)
    threshold: float = setting(
        0.4,
        "A pixel belongs to the object from this share of the strongest attention on; 0: the whole picture.",
        unit="share",
        below=1,
    )
    pooled: bool = setting(
        True,
        "Whether the end token and the padding after it, which summarise the prompt, count as the concept's too.",
        paper=True,
    )
    t1: float = setting(200.0, "t₁: lower end of the sampled timesteps.", unit="of 1000", below=1000, paper=200.0)
    t2: float = setting(
        400.0, "t₂: upper end of the sampled timesteps.", unit="of 1000", above=0, most=1000, paper=400.0
    )
    gamma: float = setting(0.05, "γ: how sharp both ends are.", above=0, most=1000, paper=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t1 >= self.t2:
            raise InvalidSetting(f"t1 is {self.t1} and t2 {self.t2}; t1 must be below t2")


@dataclass(frozen=True)
class AdvUnlearnConfig(TuningConfig):
    """TuningConfig, the training target, the attack within every step, and what is kept."""

    iterations: int = setting(1000, paper=1000)
    lr: float = setting(1e-5, paper=1e-5)
    eta: float = setting(1.0, "η: how far the target lies beyond the unconditional prediction.", paper=1.0)
    attack_steps: int = setting(30, "Steps of the search for c*; 0: use the word as it is.", unit="steps", paper=30)
    attack_lr: float = setting(1e-3, "Adam's learning rate in that search.", above=0, most=1, paper=1e-3)
    keep: float = setting(1.0, "γ, the weight of the prompts to keep.")
    retain: int = setting(5, "Deconcept prompts of the concept to keep in each step.", unit="prompts", least=1, paper=5)
    layers: int = setting(0, "Number of first encoder layers to train; 0: all of them.", unit="layers")
    guidance: float = setting(3.0, "Guidance scale of the training pictures.", most=100, paper=3.0)
    steps: int = setting(50, "Denoising steps of a full picture.", unit="steps", least=1, most=1000)


@dataclass(frozen=True)
class HiRMConfig(TuningConfig):
    """TuningConfig, and where the concept's representation is led."""

    iterations: int = setting(50, paper=50)
    lr: float = setting(1e-4, paper=1e-4)
    batch: int = setting(1, "Mentions of the concept per training step.", unit="mentions", least=1, paper=1)
    alpha: float = setting(5000.0, "α, the length of the vector that it is led to.", above=0, paper=5000.0)
    category: str = setting(
        "",
        "A super-category, whose representation gives that vector's direction (HiRM-S); empty: a random direction "
        "(HiRM-R).",
        paper="",
    )


@dataclass(frozen=True)
class RecelerConfig(TuningConfig):
    """TuningConfig, the adapters, the training target, the attack within every step, and what is kept."""

    iterations: int = setting(500, paper=500)
    lr: float = setting(3e-4, paper=3e-4)
    rank: int = setting(128, "Width of every adapter.", least=1, paper=128)
    eta: float = setting(1.0, "η: how far the target lies beyond the unconditional prediction.", paper=1.0)
    attack_steps: int = setting(50, "Steps that learn c'; 0: use the word as it is.", unit="steps", paper=50)
    attack_lr: float = setting(0.1, "Learning rate of these steps of Adam.", above=0, most=1, paper=0.1)
    attack_tokens: int = setting(16, "Learnt states of c'.", unit="states", least=1, paper=16)
    keep: float = setting(0.1, "λ, the weight of what adapters add outside of the concept.", paper=0.1)
    threshold: float = setting(
        0.1, "A pixel is the concept's from this share of the strongest attention on.", unit="share", below=1, paper=0.1
    )
    guidance: float = setting(3.0, "Guidance scale of the training pictures.", most=100, paper=3.0)
    steps: int = setting(50, "Denoising steps of a full picture.", unit="steps", least=1, most=1000, paper=50)
