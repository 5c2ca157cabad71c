"""Configuration classes by method."""

from __future__ import annotations

from excise.methods.configs.baselines import NoneConfig, SafetyFilterConfig
from excise.methods.configs.closed_form import RECEConfig, SPEEDConfig, UCEConfig
from excise.methods.configs.sae import ItDConfig, SAEmnesiaConfig, SAEmnesiaTextConfig, SAEuronConfig, SNCEConfig
from excise.methods.configs.steering import (
    AdaVDConfig,
    CASteerConfig,
    CASteerGatedConfig,
    CGCEConfig,
    ConceptSteerersConfig,
    LEACEConfig,
    SAFREEConfig,
    SLDConfig,
    STGConfig,
)
from excise.methods.configs.trained import (
    AdvUnlearnConfig,
    CAConfig,
    DuMoConfig,
    ESDConfig,
    HiRMConfig,
    MACEConfig,
    RecelerConfig,
    SAConfig,
    SPMConfig,
)
from excise.settings import Settings, document

CONFIGS: dict[str, type[Settings]] = {
    "adavd": AdaVDConfig,
    "advunlearn": AdvUnlearnConfig,
    "ca": CAConfig,
    "casteer": CASteerConfig,
    "casteer-gated": CASteerGatedConfig,
    "cgce": CGCEConfig,
    "concept-steerers": ConceptSteerersConfig,
    "dumo": DuMoConfig,
    "esd-u": ESDConfig,
    "esd-x": ESDConfig,
    "hirm": HiRMConfig,
    "itd": ItDConfig,
    "leace": LEACEConfig,
    "mace": MACEConfig,
    "none": NoneConfig,
    "rece": RECEConfig,
    "receler": RecelerConfig,
    "sa": SAConfig,
    "saemnesia": SAEmnesiaConfig,
    "saemnesia-text": SAEmnesiaTextConfig,
    "saeuron": SAEuronConfig,
    "safety-filter": SafetyFilterConfig,
    "safree": SAFREEConfig,
    "sld": SLDConfig,
    "snce": SNCEConfig,
    "speed": SPEEDConfig,
    "spm": SPMConfig,
    "stg": STGConfig,
    "uce": UCEConfig,
}
"""Each method's configuration class, by the method's name."""

for _config in CONFIGS.values():
    document(_config)
