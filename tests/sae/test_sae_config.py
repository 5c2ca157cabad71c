from __future__ import annotations

import json
import math

import pytest

from excise.errors import ExciseError
from excise.sae import SAEConfig, TrainConfig


def test_the_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.expansion, config.k, config.lr, config.batch, config.alpha) == (4, 32, 4e-4, 4096, 1 / 32)
    assert config.decay == 0
    assert config.sae(768) == SAEConfig(d=768, m=3072, k=32)


@pytest.mark.parametrize("config", [SAEConfig(8, 32, 4), TrainConfig(tokens=5, seed=3, units="raw", decay=0.2)])
def test_json_round_trip(config):
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_key_is_refused_and_the_known_ones_named():
    with pytest.raises(ExciseError, match=r"no setting 'learning_rate'.*\blr\b"):
        TrainConfig.from_json({"learning_rate": 1e-3})


def test_a_missing_key_is_refused():
    with pytest.raises(ExciseError, match="'m'"):
        SAEConfig.from_json({"d": 8})


@pytest.mark.parametrize("data", [[], "x", None, 3])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(ExciseError, match="json object"):
        SAEConfig.from_json(data)


@pytest.mark.parametrize(
    "values",
    [{"d": 0, "m": 4}, {"d": 4, "m": 8, "k": 9}, {"d": 4.0, "m": 8}, {"d": True, "m": 8}, {"d": "4", "m": 8}],
)
def test_impossible_shapes_are_refused(values):
    with pytest.raises(ExciseError, match="must be a whole number"):
        SAEConfig(**{"k": 1, **values})


@pytest.mark.parametrize(
    "values",
    [
        {"lr": -1},
        {"lr": math.nan},
        {"decay": 1.5},
        {"tokens": 0},
        {"units": "inches"},
        {"seed": -1},
        {"batch": 2.5},
        {"precision": "float8"},
        {"shortlist": 8, "precision": "bfloat16"},
        {"shortlist": 8, "activation": "batchtopk"},
    ],
)
def test_impossible_settings_are_refused(values):
    with pytest.raises(ExciseError, match=next(iter(values))):
        TrainConfig(**values)
