"""Processes of one training on a Ray cluster: Ray Train starts them, connects them, and starts them again.

A task on the cluster runs Ray Train, and an actor carries what the ranks say to the process that asked for them. So it
works alike on a node of the cluster and through `ray://`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from excise.engine.cluster import LOOK, check_room, connect, enter, imported, resources
from excise.engine.engines import chosen
from excise.engine.stage import Answer, Needs
from excise.engine.working import failed
from excise.errors import ExciseError, ItemsFailed, one_line
from excise.interruption import interruptible
from excise.launched import PATIENCE

RESTARTS = 3
"""How often lost processes are started again."""
_GRACE = 10.0
"""Seconds that the other ranks have to end after one has, and that Ray Train has to end them."""
Work = Callable[[Callable[[Any], None]], None]
"""What each rank does: it is given `say`. It is pickled."""


def run_ranks(
    engine: str,
    work: Work,
    number: int,
    *,
    needs: Needs,
    received: Callable[[Any], None],
    restarts: int = RESTARTS,
) -> None:
    """Call `work(say)` in a number of processes that know each other by torch.distributed.

    If one of them is lost or raises, all are started again: `work` continues what it has kept. After an ExciseError
    they are not. After Ctrl-C here `say` raises KeyboardInterrupt in the ranks, so that `work` can keep what it has; a
    second Ctrl-C ends them at once.

    Args:
        engine: `ray` or `ray://HOST:PORT`.
        work: What each rank does.
        number: Number of ranks.
        needs: What each rank needs.
        received: Called with everything that a rank says.
        restarts: How often they are started again.

    Raises:
        MissingExtra: Ray Train is not installed.
        ExciseError: The cluster cannot be reached or is too small, or a rank raised one.
        ItemsFailed: The processes failed for another reason, and again after `restarts` new starts.
    """
    ray = imported()
    imported("ray.train.torch")
    started = connect(chosen(engine).address)
    desk = training = None
    try:
        check_room(needs, number)
        desk = ray.remote(_Desk).options(num_cpus=0).remote()
        task = ray.remote(_train).options(num_cpus=0, max_retries=0)
        training = task.remote(work, number, needs, restarts, os.getcwd(), desk)
        _follow(ray, desk, training, received)
    finally:
        with suppress(Exception):  # the cluster may be lost
            if training is not None:
                ray.cancel(training)  # Ray Train takes it as Ctrl-C, and ends the ranks
                ray.wait([training], timeout=_GRACE)
            if desk is not None:
                ray.kill(desk)
        if started:
            ray.shutdown()


def _follow(ray: Any, desk: Any, training: Any, received: Callable[[Any], None]) -> None:
    """Pass on what the ranks say until they have ended. Raises what `run_ranks` does."""
    begun = stopping = done = False
    until = float("inf")
    with interruptible() as interrupted:
        while not done and time.monotonic() < until:
            if interrupted() and not stopping:
                if not begun:
                    raise KeyboardInterrupt
                desk.stop.remote()
                stopping = True
            try:
                done = bool(ray.wait([training], timeout=LOOK)[0])
                messages, answer, failure = ray.get(desk.received.remote())
                lost = ray.get(training) if done else None
            except (ray.exceptions.RayError, ConnectionError) as error:
                why = one_line(str(error).strip())[:300]
                raise ItemsFailed(f"the training was lost ({why}); repeat the command to resume it") from error
            for message in messages:
                begun = True
                received(message)
            if answer is not None:
                until = min(until, time.monotonic() + _GRACE)
    if answer is not None and answer.expected:
        raise ExciseError(answer.why)
    if answer is not None:
        raise KeyboardInterrupt
    if lost is not None:
        why = (failure or lost).why
        raise ItemsFailed(f"the training {why}, also when started again; repeat the command to resume it")


class _Desk:
    """Actor that keeps what the ranks say until it is received."""

    def __init__(self) -> None:
        self._said: list[Any] = []
        self._stopping = False
        self._answer: Answer | None = None
        self._failure: Answer | None = None

    def say(self, message: Any) -> bool:
        """Keep a rank's message. Return whether the ranks are to stop."""
        self._said.append(message)
        return self._stopping

    def end(self, answer: Answer) -> None:
        """Keep the error with which a rank ended."""
        if answer.expected or answer.error == KeyboardInterrupt.__name__:
            self._answer = self._answer or answer
        else:
            self._failure = answer

    def received(self) -> tuple[list[Any], Answer | None, Answer | None]:
        """Return the messages since the last call, the error after which no rank goes on, and the last other one.

        The first is an ExciseError, or KeyboardInterrupt if the ranks were asked to stop.
        """
        said, self._said = self._said, []
        return said, self._answer, self._failure

    def stop(self) -> None:
        """Ask the ranks to stop."""
        self._stopping = True


def _train(work: Work, number: int, needs: Needs, restarts: int, folder: str, desk: Any) -> Answer | None:
    """Let Ray Train run the ranks to their end. Return why they failed after all new starts, or None."""
    train, torch = imported("ray.train"), imported("ray.train.torch")

    def rank() -> None:
        _rank(work, folder, desk)

    # Ray Train keeps nothing in its storage: the ranks have their own checkpoint.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as storage:
        trainer = torch.TorchTrainer(
            rank,
            torch_config=torch.TorchConfig(
                backend="cpu:gloo,cuda:nccl" if needs.gpus else "gloo", timeout_s=int(PATIENCE.total_seconds())
            ),
            scaling_config=train.ScalingConfig(
                num_workers=number, use_gpu=bool(needs.gpus), resources_per_worker=resources(needs)
            ),
            run_config=train.RunConfig(storage_path=storage, failure_config=train.FailureConfig(max_failures=restarts)),
        )
        try:
            trainer.fit()
        except train.TrainingFailedError as error:
            return failed(error, "lost")
    return None


def _rank(work: Work, folder: str, desk: Any) -> None:
    """Be one rank. What Ray Train should not try again becomes an answer."""
    ray = imported()

    def say(message: Any) -> None:
        if ray.get(desk.say.remote(message)):
            raise KeyboardInterrupt

    try:
        enter(folder)
        work(say)
    except (ExciseError, KeyboardInterrupt) as error:
        ray.get(desk.end.remote(failed(error, "raised")))
    except Exception as error:
        ray.get(desk.end.remote(failed(error, "raised")))
        raise
