"""TopK sparse autoencoders over vectors: nothing here knows of prompts or images."""

from excise.sae.config import SAEConfig, TrainConfig
from excise.sae.data import Samples
from excise.sae.formats import card, load, saes_in, save, shape, update_card
from excise.sae.metrics import Metrics, evaluate
from excise.sae.model import Codes, TopKSAE
from excise.sae.supervised import Supervision
from excise.sae.trainer import Progress, train

__all__ = [
    "Codes",
    "Metrics",
    "Progress",
    "SAEConfig",
    "Samples",
    "Supervision",
    "TopKSAE",
    "TrainConfig",
    "card",
    "evaluate",
    "load",
    "saes_in",
    "save",
    "shape",
    "train",
    "update_card",
]
