from __future__ import annotations

from typing import Any

import pytest
import torch

from excise.step_progress import by_steps


def draw(pipe: Any, pictures: int = 1, steps: int = 4) -> Any:
    made = [torch.Generator("cpu").manual_seed(n) for n in range(pictures)]
    return pipe(["a cat"] * pictures, num_inference_steps=steps, generator=made, output_type="np").images


def test_every_denoising_step_counts_its_share(tiny_pipe: Any) -> None:
    plain = draw(tiny_pipe)
    shares: list[float] = []
    with by_steps(tiny_pipe, shares.append, 2):
        counted = draw(tiny_pipe)
    assert shares == [0.5] * 4
    assert (counted == plain).all()
    assert "progress_bar" not in vars(tiny_pipe)


def test_several_draws_count_no_more_than_the_whole(tiny_pipe: Any) -> None:
    shares: list[float] = []
    with by_steps(tiny_pipe, shares.append, 2):
        draw(tiny_pipe)
        draw(tiny_pipe)
    assert sum(shares) == pytest.approx(2) and len(shares) == 4


def test_a_pipeline_without_a_bar_counts_at_the_end() -> None:
    class Plain: ...

    shares: list[float] = []
    with by_steps(Plain(), shares.append, 3):
        assert shares == []
    assert shares == [3]


def test_what_was_interrupted_is_not_counted_as_done(tiny_pipe: Any) -> None:
    shares: list[float] = []

    def stop(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), by_steps(tiny_pipe, shares.append, 4):
        tiny_pipe("a cat", num_inference_steps=4, callback_on_step_end=stop)
    assert sum(shares) < 4 and "progress_bar" not in vars(tiny_pipe)


def test_the_callers_own_bar_is_put_back(tiny_pipe: Any) -> None:
    mine = tiny_pipe.progress_bar = tiny_pipe.progress_bar
    with by_steps(tiny_pipe, lambda done: None, 1):
        assert tiny_pipe.progress_bar is not mine
    assert vars(tiny_pipe)["progress_bar"] is mine


def test_the_bundled_model_counts_the_steps_of_each_batch() -> None:
    from excise import reference

    shares: list[float] = []
    reference.generate(reference.load(), ["a cat"] * 3, [0, 1, 2], steps=2, batch_size=2, progress=shares.append)
    assert shares == [1] * reference.denoising_steps(3, 2, 2) == [1] * 4
