"""Settings of the methods that train weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from excise.errors import InvalidSetting
from excise.settings import Settings, setting

CAWeights = Literal["cross-attention", "all"]
SAWeights = Literal["cross-attention", "rest", "all"]
Variant = Literal["model", "noise"]


@dataclass(frozen=True)
class TuningConfig(Settings):
    """How long a method trains, and where it may go on; saved with the eraser."""

    iterations: int = setting(200, "Training steps of Adam.", unit="steps", least=1)
    lr: float = setting(5e-5, "Adam's learning rate.", above=0, most=1)
    batch: int = setting(
        1, "Noised pictures in a training step; lower it where memory does not suffice.", unit="pictures", least=1
    )
    seed: int = setting(0, "Seed of all that is random.", most=2**32 - 1)
    checkpoint: str = setting(
        "",
        "Folder that keeps the training, so that the same call goes on where it was interrupted; empty: none is kept.",
    )
    checkpoint_every: int = setting(50, "Training steps between two checkpoints.", unit="steps", least=1)

    @property
    def settings(self) -> dict[str, Any]:
        """What the result depends on, as json."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("checkpoint")}


@dataclass(frozen=True)
class ReplayConfig(TuningConfig):
    """TuningConfig, and how the pictures are drawn that are trained on."""

    pictures: int = setting(
        32, "Pictures to train on, drawn once with something else in the concept's place.", unit="pictures", least=1
    )
    steps: int = setting(50, "Denoising steps of these pictures.", unit="steps", least=1, most=1000)
    guidance: float = setting(7.5, "Guidance scale of these pictures.", most=100)


@dataclass(frozen=True)
class ESDConfig(TuningConfig):
    """TuningConfig, and what is aimed at."""

    iterations: int = setting(200, paper=200)
    lr: float = setting(5e-5, paper=5e-5)
    eta: float = setting(2.0, "η: how far beyond the unconditional prediction the aim lies.", paper=2.0)
    guidance: float = setting(3.0, "Guidance scale of the pictures that are trained on.", most=100, paper=3.0)
    steps: int = setting(
        50, "Denoising steps that a picture would be drawn in.", unit="steps", least=1, most=1000, paper=50
    )


@dataclass(frozen=True)
class CAConfig(ReplayConfig):
    """ReplayConfig, what is drawn instead, and what is aimed at."""

    iterations: int = setting(100, paper=100)
    lr: float = setting(
        1.6e-5, "Adam's learning rate: the authors' 2e-6 for each picture of a training step.", paper=1.6e-5
    )
    batch: int = setting(8, paper=8)
    pictures: int = setting(
        32,
        "Pictures of the anchor to train on, drawn once. The authors draw 200 to 1000.",
        paper=200,
    )
    steps: int = setting(50, paper=50)
    guidance: float = setting(7.5, paper=7.5)
    anchor: str = setting(
        "",
        "What is drawn instead of the concept; empty: what stands in its place in its deconcept prompts.",
    )
    variant: Variant = setting(
        "model",
        "What is aimed at: the untouched model's prediction for the anchor (model), or the noise itself (noise).",
        paper="model",
    )
    keep: float = setting(
        0.0,
        "λ, the weight of the model's own loss for the anchor's prompts; 1 in the paper for memorised pictures.",
        paper=0.0,
    )
    weights: CAWeights = setting(
        "cross-attention",
        "What is trained: the cross-attention's keys and values, or all linear and convolutional layers.",
        paper="cross-attention",
    )


@dataclass(frozen=True)
class SAConfig(ReplayConfig):
    """ReplayConfig, what is drawn instead, and what holds the rest fast."""

    lr: float = setting(1e-5, paper=1e-5)
    batch: int = setting(
        4, "Noised pictures in a training step, as many of each kind; lower it where memory does not suffice.", paper=4
    )
    pictures: int = setting(
        32, "Pictures of something else to train on, drawn once. The authors draw 1000.", paper=1000
    )
    steps: int = setting(50, paper=50)
    guidance: float = setting(7.5, paper=7.5)
    surrogate: str = setting(
        "",
        "What is drawn instead of the concept; empty: what stands in its place in its deconcept prompts.",
    )
    lam: float = setting(50.0, "λ, the weight of what the Fisher information holds fast.", paper=50.0)
    keep: float = setting(1.0, "γ, the weight of the other prompts' pictures that are replayed.", paper=1.0)
    fisher: int = setting(
        32,
        "Pictures of other prompts, which are replayed and from which the Fisher information is estimated.",
        unit="pictures",
        least=1,
        paper=1000,
    )
    timesteps: int = setting(
        10,
        "Random timesteps of each of them for that estimate; the authors sum over all 1000.",
        unit="timesteps",
        least=1,
        most=1000,
        paper=1000,
    )
    weights: SAWeights = setting(
        "cross-attention",
        "What is trained: the cross-attention, all linear and convolutional layers but that (rest, the authors' for "
        "nudity), or all of them (the authors' for people).",
        paper="all",
    )


@dataclass(frozen=True)
class SPMConfig(TuningConfig):
    """TuningConfig, and what is aimed at and held fast."""

    iterations: int = setting(3000, paper=3000)
    lr: float = setting(1e-4, paper=1e-4)
    rank: int = setting(1, "Rank of every adapter.", least=1, paper=1)
    eta: float = setting(1.0, "η: how far beyond the unconditional prediction the aim lies.", paper=1.0)
    anchoring: float = setting(1000.0, "λ, the weight of the anchors.", paper=1000.0)
    anchors: int = setting(4, "Anchors in a training step.", unit="anchors", least=1, paper=4)
    guidance: float = setting(3.0, "Guidance scale of the pictures that are trained on.", most=100, paper=3.0)
    steps: int = setting(50, "Denoising steps that a picture would be drawn in.", unit="steps", least=1, most=1000)


@dataclass(frozen=True)
class DuMoConfig(TuningConfig):
    """TuningConfig for the copy of the encoder, what is aimed at and held fast, and how α is trained."""

    iterations: int = setting(1000, "Training steps of Adam on the copy.")
    lr: float = setting(1e-4)
    rank: int = setting(4, "Rank of the change of every layer of the copy.", least=1)
    eta: float = setting(1.0, "η: how far beyond the unconditional prediction the aim lies.")
    keep: float = setting(1.0, "λ, the weight of other prompts.")
    pairs: int = setting(
        32, "Of the concept's prompt pairs and of its controls, at most so many are trained on.", unit="pairs", least=1
    )
    guidance: float = setting(3.0, "Guidance scale of the pictures that are trained on.", most=100)
    steps: int = setting(50, "Denoising steps that a picture would be drawn in.", unit="steps", least=1, most=1000)
    bins: int = setting(20, "Bins of timesteps; α is the same within each.", unit="bins", least=1, paper=20)
    alpha_iterations: int = setting(
        200, "Training steps of Adam on α, after the copy's; 0 leaves every α at 1.", unit="steps"
    )
    alpha_lr: float = setting(0.05, "Adam's learning rate in them, of a in α = σ(a).", above=0, most=1)
    alpha_first: float = setting(0.9, "α before them.", above=0, below=1)

    def stage(self, name: str, **settings: Any) -> DuMoConfig:
        """One training's own: the same with other settings, and a folder of its own for its checkpoint."""
        folder = str(Path(self.checkpoint) / name) if self.checkpoint else ""
        return replace(self, checkpoint=folder, **settings)


@dataclass(frozen=True)
class MACEConfig(TuningConfig):
    """TuningConfig, what stands in for the concept and what is kept, and the pictures that are trained on."""

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
        "Words that keep their keys and values, separated by semicolons; empty: those that stand for the concept in "
        "its pairs. The concept's controls are kept in any case.",
    )
    keep: float = setting(
        10.0,
        "λ₁ and λ₂, the weight of every token that is kept, over some hundred texts. The authors have 1e-4 over "
        "COCO's captions, and none for objects.",
    )
    lam: float = setting(
        10.0, "λ, the weight of the layer's own weights; the authors have 10 for objects, else 0.", above=0, paper=10.0
    )
    rank: int = setting(1, "Rank of ΔW.", least=1, paper=1)
    pictures: int = setting(8, "Pictures of the concept to train on.", unit="pictures", least=1, paper=8)
    steps: int = setting(20, "Denoising steps of these pictures.", unit="steps", least=1, most=1000)
    guidance: float = setting(7.5, "Guidance scale of these pictures.", most=100)
    threshold: float = setting(
        0.4,
        "From which share of the strongest attention on a pixel is the object's; 0: the whole picture.",
        unit="share",
        below=1,
    )
    pooled: bool = setting(
        True,
        "Whether the end token and the padding behind it, which sum the prompt up, count as the concept's too.",
        paper=True,
    )
    t1: float = setting(200.0, "t₁: where timesteps begin to be drawn.", unit="of 1000", most=1000, paper=200.0)
    t2: float = setting(400.0, "t₂: where they cease to be.", unit="of 1000", most=1000, paper=400.0)
    gamma: float = setting(0.05, "γ: how sharply.", above=0, most=1000, paper=0.05)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t1 >= self.t2:
            raise InvalidSetting(f"t1 is {self.t1} and t2 {self.t2}; t1 must be below t2")


@dataclass(frozen=True)
class AdvUnlearnConfig(TuningConfig):
    """TuningConfig, what is aimed at, the attack within every step, and what is kept."""

    iterations: int = setting(1000, paper=1000)
    lr: float = setting(1e-5, paper=1e-5)
    eta: float = setting(1.0, "η: how far beyond the unconditional prediction the aim lies.", paper=1.0)
    attack_steps: int = setting(30, "Steps in which c* is sought; 0: the word as it is.", unit="steps", paper=30)
    attack_lr: float = setting(1e-3, "Adam's learning rate in them.", above=0, most=1, paper=1e-3)
    keep: float = setting(1.0, "γ, the weight of the prompts that have to stay.")
    retain: int = setting(
        5, "Of the concept's deconcept prompts, so many have to stay in a step.", unit="prompts", least=1, paper=5
    )
    layers: int = setting(0, "Train the first so many layers of the encoder; 0: all of them.", unit="layers")
    guidance: float = setting(3.0, "Guidance scale of the pictures that are trained on.", most=100, paper=3.0)
    steps: int = setting(50, "Denoising steps that a picture would be drawn in.", unit="steps", least=1, most=1000)
