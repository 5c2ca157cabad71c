from __future__ import annotations

import dataclasses
import json
import signal
import threading
from pathlib import Path

import pytest
import torch

from excise.errors import ExciseError
from excise.sae import Progress, SAEConfig, Shards, TopKSAE, TrainConfig, card, load, stream, train
from excise.sae.trainer import encoder_length, learning_rate

D = 12
CONFIG = TrainConfig(
    expansion=4, k=3, lr=3e-3, batch=64, tokens=64 * 60, log_every=7, checkpoint_every=10, dead_after=300, seed=4
)


def features(n: int = 500, seed: int = 1) -> torch.Tensor:
    """Sparse sums of 20 directions, off the origin: what an SAE is for."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(20, D, generator=torch.Generator().manual_seed(0)), dim=1)
    on = torch.rand(n, 20, generator=generator) < 0.1
    return (on * (1 + torch.rand(n, 20, generator=generator))) @ directions + 5


def same(a: TopKSAE, b: TopKSAE) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def stop_at(step: int):
    def progress(line: Progress) -> None:
        if line.step >= step:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TopKSAE, Path]:
    out = tmp_path_factory.mktemp("finished") / "sae"
    return train(features(), CONFIG, out, card={"corpus": "toy", "site": None}, held_out=features(200, seed=8)), out


def test_it_learns_and_saves_what_it_returns(tmp_path):
    out = tmp_path / "sae"
    config = dataclasses.replace(CONFIG, tokens=64 * 250, decay=0.3, lr=1e-2)
    sae = train(features(2000), config, out, held_out=features(500, seed=8))
    assert card(out)["metrics"]["held_out"]["fvu"] < 0.25
    assert same(sae, load(out))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(4 * D))
    assert not any(p.grad is not None for p in sae.parameters())


def test_the_card_tells_recipe_tokens_and_metrics(finished):
    described = card(finished[1])
    assert described["corpus"] == "toy"
    assert described["tokens"] == 64 * 60
    assert described["recipe"] == {**CONFIG.to_json(), "vectors": 500}
    assert set(described["metrics"]) == {"train", "held_out", "dead_share", "dead_window", "dead_threshold"}
    assert described["metrics"]["dead_window"] == 300
    assert described["metrics"]["train"]["vectors"] == 500


def test_the_log_has_a_line_for_each_interval_and_the_end(finished):
    lines = [json.loads(line) for line in (finished[1] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(7, 60, 7), 60]
    assert lines[-1]["tokens"] == 64 * 60
    assert lines[-1]["fvu"] < lines[0]["fvu"]
    assert set(lines[0]) == set(Progress._fields)


def test_nothing_but_the_sae_is_left(finished):
    assert sorted(p.name for p in finished[1].iterdir()) == ["cfg.json", "log.jsonl", "sae.safetensors"]
    assert [p.name for p in finished[1].parent.iterdir()] == ["sae"]


@pytest.mark.parametrize("step", [7, 35, 56])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, finished, step):
    out = tmp_path / "sae"
    with pytest.raises(KeyboardInterrupt):
        train(features(), CONFIG, out, progress=stop_at(step))
    assert not out.exists()
    seen: list[Progress] = []
    resumed = train(features(), CONFIG, out, card={"corpus": "toy"}, progress=seen.append)
    assert seen[0].step == step + 7 if step < 56 else 60
    assert same(resumed, finished[0])

    def timeless(path: Path) -> list[dict[str, object]]:
        return [{**json.loads(line), "seconds": 0} for line in (path / "log.jsonl").read_text().splitlines()]

    assert timeless(out) == timeless(finished[1])


def test_a_run_killed_between_checkpoints_goes_on_to_the_same_bits(tmp_path, finished):
    out = tmp_path / "sae"

    def die(line: Progress) -> None:
        if line.step == 35:  # the checkpoint is at 30, in the middle of the log's interval
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(features(), CONFIG, out, progress=die)
    log = tmp_path / "sae.training" / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 42, "tok')
    assert same(train(features(), CONFIG, out), finished[0])
    lines = (out / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(7, 60, 7), 60]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ExciseError("the disk is full")])
def test_nothing_is_lost_where_measuring_or_saving_fails(tmp_path, finished, error):
    def fails(sae: TopKSAE) -> dict[str, float]:
        raise error

    out = tmp_path / "sae"
    with pytest.raises(type(error)):
        train(features(), CONFIG, out, measure=fails)
    seen: list[Progress] = []
    again = train(features(), CONFIG, out, progress=seen.append, measure=lambda sae: {"more": 1.0})
    assert seen == []
    assert same(again, finished[0])
    assert card(out)["metrics"]["more"] == 1.0
    assert len((out / "log.jsonl").read_text().splitlines()) == 9


def test_ctrl_c_in_the_last_step_is_not_swallowed(tmp_path, finished):
    def press(line: Progress) -> None:
        if line.step == 60:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(features(), CONFIG, tmp_path / "sae", progress=press)
    assert same(train(features(), CONFIG, tmp_path / "sae"), finished[0])


def test_shards_resume_to_the_same_bits_too(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "BUFFER", 100)
    shards = Shards.of(features().split([200, 30, 70, 60, 140]))
    whole = train(shards, CONFIG, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(shards, CONFIG, tmp_path / "b", progress=stop_at(21))
    assert same(train(shards, CONFIG, tmp_path / "b"), whole)


def test_training_neither_reads_nor_moves_global_state(tmp_path, finished):
    torch.manual_seed(123)
    before, precision = torch.get_rng_state(), torch.get_float32_matmul_precision()
    handler = signal.getsignal(signal.SIGINT)
    sae = train(features(), CONFIG, tmp_path / "sae")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_float32_matmul_precision() == precision
    assert signal.getsignal(signal.SIGINT) is handler
    assert same(sae, finished[0])


def test_it_trains_outside_the_main_thread(tmp_path, finished):
    result: list[TopKSAE] = []
    thread = threading.Thread(target=lambda: result.append(train(features(), CONFIG, tmp_path / "sae")))
    thread.start()
    thread.join()
    assert same(result[0], finished[0])


def test_the_scale_of_the_features_does_not_matter(tmp_path, finished):
    # A power of two, so that even the rounding is the same.
    scaled = train(features() * 4, CONFIG, tmp_path / "sae")
    assert torch.equal(scaled.W_enc, finished[0].W_enc)
    assert torch.equal(scaled.W_dec, finished[0].W_dec)
    assert torch.equal(scaled.b_pre, 4 * finished[0].b_pre)
    assert torch.equal(scaled.b_enc, 4 * finished[0].b_enc)


def test_raw_units_train_on_the_vectors_as_they_are(tmp_path, finished):
    raw = train(features() * 4, dataclasses.replace(CONFIG, units="raw"), tmp_path / "sae")
    assert not torch.equal(raw.W_enc, finished[0].W_enc)
    assert card(tmp_path / "sae")["metrics"]["dead_threshold"] == CONFIG.dead_threshold


def test_dead_latents_are_counted_and_the_aux_loss_speaks_up(tmp_path):
    seen: list[Progress] = []
    train(features(), dataclasses.replace(CONFIG, dead_after=64, k=1), tmp_path / "sae", progress=seen.append)
    assert any(line.dead > 0 and line.aux > 0 for line in seen)
    quiet: list[Progress] = []
    train(features(), dataclasses.replace(CONFIG, tokens=256, log_every=1), tmp_path / "short", progress=quiet.append)
    assert all(line.dead == 0 and line.aux == 0 for line in quiet)


def test_fewer_vectors_than_a_batch(tmp_path):
    config = dataclasses.replace(CONFIG, batch=4096, tokens=100)
    train(features(30), config, tmp_path / "sae")
    assert card(tmp_path / "sae")["tokens"] == 120


def test_another_config_or_other_features_do_not_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(features(), CONFIG, tmp_path / "sae", progress=stop_at(7))
    with pytest.raises(ExciseError, match=r"lr=0\.003, not 0\.1.*sae\.training"):
        train(features(), dataclasses.replace(CONFIG, lr=0.1), tmp_path / "sae")
    with pytest.raises(ExciseError, match="other features"):
        train(features(seed=2), CONFIG, tmp_path / "sae")
    assert (tmp_path / "sae.training" / "checkpoint").exists()


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_said_to_be_damaged(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        train(features(), CONFIG, tmp_path / "sae", progress=stop_at(7))
    path = tmp_path / "sae.training" / "checkpoint" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ExciseError, match=r"damaged.*start again"):
        train(features(), CONFIG, tmp_path / "sae")


def test_a_finished_sae_is_not_overwritten(finished):
    with pytest.raises(ExciseError, match="there already"):
        train(features(), CONFIG, finished[1])


def test_divergence_is_said(tmp_path):
    # In float32 the squared error of such vectors is infinite, unless they are brought to unit variance.
    with pytest.raises(ExciseError, match="diverged"):
        train(features() * 1e30, dataclasses.replace(CONFIG, units="raw"), tmp_path / "sae")
    train(features() * 1e30, dataclasses.replace(CONFIG, tokens=64), tmp_path / "sae2")


def test_the_learning_rate_is_constant_then_falls_to_zero():
    constant = TrainConfig(lr=1.0)
    assert {learning_rate(constant, step, 100) for step in range(100)} == {1.0}
    falling = [learning_rate(TrainConfig(lr=1.0, decay=0.2), step, 100) for step in range(100)]
    assert falling[:81] == [1.0] * 81
    assert falling[-1] == pytest.approx(1 / 20)
    assert falling == sorted(falling, reverse=True)


def test_a_real_ctrl_c_finishes_the_step_and_leaves_a_checkpoint(tmp_path, finished):
    seen: list[int] = []

    def press(line: Progress) -> None:
        seen.append(line.step)
        if line.step == 7:
            signal.raise_signal(signal.SIGINT)
            seen.append(-1)  # reached, as the first one waits for the step's end

    with pytest.raises(KeyboardInterrupt):
        train(features(), CONFIG, tmp_path / "sae", progress=press)
    assert seen == [7, -1]
    state = json.loads((tmp_path / "sae.training" / "checkpoint" / "state.json").read_text())
    assert state["step"] == 7
    assert same(train(features(), CONFIG, tmp_path / "sae"), finished[0])


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    def press(line: Progress) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second was swallowed")

    with pytest.raises(KeyboardInterrupt):
        train(features(), CONFIG, tmp_path / "sae", progress=press)


def test_batchtopk_trains_an_sae_that_keeps_k_of_each_vector(tmp_path):
    sae = train(features(), dataclasses.replace(CONFIG, activation="batchtopk"), tmp_path / "sae")
    assert card(tmp_path / "sae")["recipe"]["activation"] == "batchtopk"
    assert sae.encode(features()).values.shape[1] == CONFIG.k
    assert card(tmp_path / "sae")["metrics"]["train"]["fvu"] < 0.5


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_bfloat16_trains_nearly_as_well_and_leaves_no_trace(tmp_path, activation):
    fvu = {}
    for precision in ("float32", "bfloat16"):
        config = dataclasses.replace(CONFIG, precision=precision, activation=activation)
        sae = train(features(), config, tmp_path / precision)
        assert not sae.rough
        assert sae.W_enc.dtype == load(tmp_path / precision).W_dec.dtype == torch.float32
        fvu[precision] = card(tmp_path / precision)["metrics"]["train"]["fvu"]
    assert fvu["bfloat16"] == pytest.approx(fvu["float32"], rel=0.2)
    assert fvu["bfloat16"] != fvu["float32"]


def test_a_shortlist_trains_the_same_sae_and_leaves_no_trace(tmp_path, finished):
    plain, _ = finished
    config = dataclasses.replace(CONFIG, shortlist=20)
    sae = train(features(), config, tmp_path / "sae")
    assert sae.shortlist == load(tmp_path / "sae").shortlist == 0
    found, known = (own.encode(features()).indices.sort(-1).values for own in (sae, plain))
    assert (found == known).double().mean() > 0.9
    with pytest.raises(ExciseError, match="activation 'topk'"):
        dataclasses.replace(config, activation="batchtopk")


def test_the_encoder_starts_as_long_as_reconstructs_best():
    torch.manual_seed(2)
    sae, x = TopKSAE(SAEConfig(d=16, m=64, k=8)), torch.randn(300, 16) + 1
    with torch.no_grad():
        sae.b_pre.fill_(1)
    found = encoder_length(sae, x)
    directions = sae.W_enc.detach().clone()

    def error(length: float) -> float:
        with torch.no_grad():
            sae.W_enc.copy_(length * directions)
            return float((sae(x).reconstruction - x).square().sum())

    lengths = torch.linspace(0.05, 2, 400).tolist()
    assert found == pytest.approx(min(lengths, key=error), abs=lengths[1] - lengths[0])
    assert found < 0.9, "directions that overlap overshoot"
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)
    assert encoder_length(sae, x) == 1


def test_a_training_starts_with_the_encoder_at_that_length(tmp_path):
    config = dataclasses.replace(CONFIG, lr=0.0, tokens=CONFIG.batch, units="raw")
    sae, x = train(features(), config, tmp_path / "sae"), features()
    fresh = TopKSAE(sae.config, seed=config.seed)
    with torch.no_grad():
        fresh.b_pre.copy_(sae.b_pre)
    length = sae.W_enc.detach().norm(dim=1)
    assert float(length[0]) == pytest.approx(encoder_length(fresh, x), rel=0.02)
    torch.testing.assert_close(length, length[:1].expand_as(length))
    assert abs(float(length[0]) - 1) > 0.05, "else rows of length 1 would go unnoticed"
