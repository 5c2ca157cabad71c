from __future__ import annotations

import pytest
import torch

from excise.errors import ExciseError
from excise.sae import SAEConfig, TopKSAE, evaluate
from excise.sae.metrics import Meter
from excise.sae.model import Codes
from tests.second_device import MPS, second_device


def vectors(n: int, d: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(3)) * torch.arange(1, d + 1)


def test_fvu_is_a_ratio_of_sums_however_the_batches_fall():
    sae, x = TopKSAE(SAEConfig(5, 20, 3)), vectors(101)
    error = (x - sae(x).reconstruction.detach()).double().square().sum()
    expected = float(error / (x.double() - x.double().mean(0)).square().sum())
    for size in (1, 7, 50, 101):
        assert evaluate(sae, x.split(size)).fvu == pytest.approx(expected, rel=1e-6)


def test_it_is_measured_on_a_mac():
    sae, x = TopKSAE(SAEConfig(5, 20, 3)), vectors(101)
    with torch.no_grad():
        made, codes = sae(x)
    meter = Meter(20)
    with second_device(MPS) as device:
        meter.update(x.to(device), made.to(device), Codes(*(part.to(device) for part in codes)))
        assert meter.result() == pytest.approx(evaluate(sae, [x]))


def test_fvu_is_not_the_mean_of_batch_ratios():
    # Two batches, each constant: their own variances are zero, the whole's is not.
    sae = TopKSAE(SAEConfig(5, 20, 3))
    x = torch.cat([torch.zeros(4, 5), torch.ones(4, 5)])
    measured = evaluate(sae, x.split(4)).fvu
    error = (x - sae(x).reconstruction.detach()).square().sum()
    assert measured == pytest.approx(float(error) / float((x - x.mean(0)).square().sum()), rel=1e-5)


def test_fvu_keeps_its_digits_far_from_the_origin():
    x = vectors(64).double() + 1e6
    codes = Codes(torch.ones(64, 1), torch.zeros(64, 1, dtype=torch.long))
    meter = Meter(1)
    meter.update(x, x.mean(0).expand_as(x), codes)
    assert meter.result().fvu == pytest.approx(1.0, rel=1e-9)


def test_l0_counts_positive_codes_and_dead_share_names_its_window():
    codes = Codes(torch.tensor([[2.0, 0.0], [1.0, 0.5]]), torch.tensor([[0, 3], [0, 1]]))
    meter = Meter(4)
    x = vectors(2)
    meter.update(x, x, codes)
    result = meter.result()
    assert result.l0 == 1.5
    assert result.dead_share == 0.5
    assert result.vectors == 2
    assert result.fvu == 0


def test_a_latent_alive_in_any_batch_is_not_dead():
    meter, x = Meter(2), vectors(2)
    for latent in (0, 1):
        meter.update(x, x, Codes(torch.ones(2, 1), torch.full((2, 1), latent)))
    assert meter.result().dead_share == 0


def test_a_threshold_decides_what_counts_as_firing():
    meter, x = Meter(2, threshold=0.1), vectors(1)
    meter.update(torch.cat([x, -x]), torch.cat([x, -x]), Codes(torch.tensor([[0.05], [1.0]]), torch.tensor([[0], [1]])))
    assert meter.result().dead_share == 0.5


def test_nothing_to_measure_is_said():
    sae = TopKSAE(SAEConfig(5, 20, 3))
    with pytest.raises(ExciseError, match="no vectors"):
        evaluate(sae, [])
    with pytest.raises(ExciseError, match="the same"):
        evaluate(sae, [torch.ones(3, 5)])
