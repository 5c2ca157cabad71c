"""Progress of generation by denoising steps, for any diffusers pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from excise.pipeline import Pipeline, as_diffusers


@contextmanager
def by_steps(pipe: Pipeline, progress: Callable[[float], Any] | None, whole: float) -> Iterator[None]:
    """Call `progress` after each denoising step of `pipe` within this context, with the step's share of `whole`.

    The steps of one call of `pipe` add up to `whole`. On leaving, `progress` is called with the rest: a pipeline
    without diffusers' progress bar counts in one go, and several calls never count more than `whole`.
    """
    if progress is None:
        yield
        return
    # Pipelines without such a method are unaffected: they never call it.
    counter = _Counter(progress, whole)
    own = vars(pipe).get("progress_bar")
    as_diffusers(pipe).progress_bar = counter.bar
    try:
        yield
    finally:
        del as_diffusers(pipe).progress_bar
        if own is not None:
            as_diffusers(pipe).progress_bar = own
    counter.settle()


class _Counter:
    """Counter behind the replacement of a pipeline's progress bar."""

    def __init__(self, progress: Callable[[float], Any], whole: float) -> None:
        self._progress, self._whole, self._left = progress, whole, whole

    def bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> _Bar:
        steps = list(iterable) if iterable is not None else None
        return _Bar(self, steps, len(steps) if steps is not None else int(total or 1))

    def step(self, share: float) -> None:
        done = min(share * self._whole, self._left)
        # The last step takes the rest, so that rounding leaves nothing.
        done = self._left if self._left - done < 1e-9 * self._whole else done
        if done > 0:
            self._left -= done
            self._progress(done)

    def settle(self) -> None:
        self.step(1.0)


class _Bar:
    """The part of tqdm's interface that pipelines use."""

    def __init__(self, counter: _Counter, steps: list[Any] | None, total: int) -> None:
        self._counter, self._steps, self._total = counter, steps, max(1, total)

    def update(self, n: int = 1) -> None:
        self._counter.step(n / self._total)

    def __iter__(self) -> Iterator[Any]:
        for step in self._steps or ():
            yield step
            self.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *given, **named: None
