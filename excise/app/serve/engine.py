"""One pipeline in one worker thread: it loads, checks and generates there, and nowhere else.

A diffusers pipeline is no more thread-safe than its scheduler. With one thread, a policy changes between two requests
and never within one.
"""

from __future__ import annotations

import inspect
import json
import secrets
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import excise
from excise import loading
from excise.app.serve import erasers, policy, sizes
from excise.app.serve.asking import Asked, BadField
from excise.bench.pictures import png
from excise.drawn import Drawn
from excise.errors import EraserDidNotFire, ExciseError, WrongModel
from excise.settings import SEEDS
from excise.sites.encoding import encode_prompt
from excise.sites.truncation import cuts

T = TypeVar("T")


class NotReady(ExciseError):
    """The service must not generate: the erasers are not in force, or it is starting or stopping."""


class Refused(ExciseError):
    """The prompt fires an eraser whose rule refuses such prompts."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"this service generates nothing for a prompt about {', '.join(names)}")
        self.names = names


class OutOfMemory(ExciseError):
    """The machine has too little memory for the request."""


class Gone(Exception):
    """The client has gone, or was cut off."""


@dataclass(frozen=True)
class Made:
    """Pictures of one request."""

    pictures: list[bytes]
    """PNG files."""
    seeds: list[int]
    strengths: dict[str, float]
    """The strength of each eraser."""
    digests: dict[str, str]
    rows: dict[str, int]
    """Number of text states of the prompt that each eraser acts on, at the policy's strength."""
    flagged: list[str]
    """The erasers that act on the prompt and whose rule says flag."""
    lost: str
    """End of the prompt that the model does not read."""


class Engine:
    """A pipeline under a policy.

    Args:
        load: Loads the pipeline.
        path: The policy's file.
        steps: Denoising steps of a request that names none.
        guidance: Guidance scale of a request that names none; None uses the pipeline's default.
        require_signature: Whether to refuse a policy that names no signer.

    Raises:
        ExciseError: The policy is refused.
    """

    def __init__(
        self,
        load: Callable[[], Any],
        path: Path,
        steps: int,
        guidance: float | None,
        require_signature: bool = False,
    ) -> None:
        self.path, self.steps, self.guidance, self.require_signature = path, steps, guidance, require_signature
        self._load = load
        self._thread = ThreadPoolExecutor(1, "excise-worker")
        self.policy = policy.read(path, require_signature)
        self.pipe: Any = None
        self.served: erasers.Served | None = None
        self.fault = ""
        """Why it will not generate again before a restart."""
        self.stopping = False
        self.waiting = 0
        """Requests that the worker has to do."""
        self.own: tuple[int, int] | None = None
        """Width and height of a picture whose size is left to the model, once they are known."""
        self._unfinished: set[Future[Any]] = set()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in the worker thread after what was submitted before."""
        future = self._thread.submit(work)
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)
        return future

    @property
    def idle(self) -> bool:
        """Whether the worker has done all that was submitted."""
        return not self._unfinished

    def start(self) -> None:
        """Load the pipeline and put the erasers on it. Call it in the worker thread. Raises ExciseError."""
        erasers.load(self.policy)  # seconds sooner than the model
        self.pipe = self._load()
        self.own = sizes.own(self.pipe)
        sizes.refuse_below(self.own, self.policy.limits.pixels)
        self.served = erasers.put(self.pipe, self.policy)

    def reload(self) -> None:
        """Put the policy's file in force. Call it in the worker thread.

        Raises ExciseError if the file or one of its erasers is refused; then the old policy stays.
        """
        read = policy.read(self.path, self.require_signature)
        sizes.refuse_below(self.own, read.limits.pixels)
        self.served = erasers.put(self.pipe, read, self.served)
        self.policy = read

    def reasons(self) -> list[str]:
        """Return why it must take no request now; empty if it may."""
        return ["the service is stopping"] if self.stopping else self._unsafe()

    def prove(self) -> list[str]:
        """Encode the canaries, and return why the erasers are not in force; empty if they are.

        If one is not, nothing is generated before a restart. Call it in the worker thread.
        """
        try:
            reasons = self._unsafe(canary=True)
        except Exception as error:  # such as too little memory, which says nothing of the erasers
            return [f"the canary prompts could not be encoded ({type(error).__name__})"]
        if reasons and not self.fault:
            self.fault = f"{'; '.join(reasons)}; restart the service"
        return reasons

    def _unsafe(self, canary: bool = False) -> list[str]:
        """Return why nothing may be generated, also for requests that came before the service began to stop."""
        if self.fault:
            return [self.fault]
        if self.served is None:
            return ["the service is starting"]
        return self.served.reasons(self.pipe, canary=canary)

    @property
    def multiple(self) -> int:
        """What a picture's width and height must be a multiple of."""
        return sizes.multiple(self.pipe)

    def generate(self, asked: Asked, gone: Callable[[], bool] = lambda: False) -> Made:
        """Generate a request's pictures, all of them or none. Call it in the worker thread.

        Args:
            asked: The request, as the policy allows it.
            gone: Whether the client has gone or was cut off; asked between two steps.

        Raises:
            Gone: The client has gone, or was cut off.
            NotReady: The erasers are not in force.
            Refused: A rule refuses the prompt.
            OutOfMemory: There is too little memory.
            BadField: The model makes another size.
            ExciseError: A picture is broken.
        """
        import torch

        if reasons := self._unsafe():
            raise NotReady("; ".join(reasons))
        try:
            with loading.quiet(always=True):  # diffusers logs the end of a prompt that it does not read
                return self._generate(asked, gone)
        except (EraserDidNotFire, WrongModel) as error:
            # Requests hold text alone, so a bypass means that the process itself was altered.
            self.fault = f"an eraser was bypassed ({error}); restart the service"
            raise NotReady(self.fault) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise OutOfMemory("too little memory for this request; ask for fewer or smaller pictures") from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):  # of PyTorch on the CPU
                raise OutOfMemory("too little memory for this request; ask for fewer or smaller pictures") from error
            raise

    def _generate(self, asked: Asked, gone: Callable[[], bool]) -> Made:
        import torch

        served = self.served
        assert served is not None
        # Again, since the policy may have changed while the request waited.
        now = policy.strengths(served.policy, asked.strengths)
        rules = served.policy.erasers
        usual = {name: rule.strength for name, rule in rules.items()}
        before = erasers.rows_edited(served)
        with torch.no_grad(), excise.using(self.pipe, usual):
            encode_prompt(self.pipe, asked.prompt)
        rows = {name: count - before[name] for name, count in erasers.rows_edited(served).items()}
        acted = {rule: [n for n in rows if rows[n] and rules[n].when_fired == rule] for rule in ("refuse", "flag")}
        if acted["refuse"]:
            raise Refused(acted["refuse"])
        if asked.size is None and self.own is not None:
            _check_size(self.own, asked, served.policy.limits.pixels)
        first = secrets.randbelow(SEEDS - asked.n + 1) if asked.seed is None else asked.seed
        seeds = list(range(first, first + asked.n))
        pictures = []

        def step(*_: object) -> dict[str, Any]:
            if gone():
                raise Gone
            return {}

        for seed in seeds:
            step()  # not every pipeline calls it
            with excise.using(self.pipe, now):
                drawn = Drawn.by(self.pipe(asked.prompt, **self._options(asked, seed, step)))
            (pixels,) = drawn.sound([seed])
            made = pixels.shape[1], pixels.shape[0]
            if asked.size is None:
                self.own = made
            _check_size(made, asked, served.policy.limits.pixels)
            pictures.append(png(pixels, self._metadata(asked, seed, served, now)))
        lost = "".join(cut.lost for cut in cuts(self.pipe, [asked.prompt]))
        return Made(pictures, seeds, now, served.digests, rows, acted["flag"], lost)

    def _options(self, asked: Asked, seed: int, step: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        import torch

        guidance = self.guidance if asked.guidance is None else asked.guidance
        options: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
        if asked.size is not None:
            options["width"], options["height"] = asked.size
        if "callback_on_step_end" in inspect.signature(self.pipe.__call__).parameters:
            options["callback_on_step_end"] = step
        generator = torch.Generator("cpu").manual_seed(seed)
        return {**options, "num_inference_steps": asked.steps, "generator": generator, "output_type": "np"}

    def _metadata(self, asked: Asked, seed: int, served: erasers.Served, strengths: dict[str, float]) -> dict[str, str]:
        """Return what a picture's file states of how it was made, as `excise generate` does; never the prompt."""
        made = {"seed": seed, "strengths": strengths, "erasers": served.digests, "steps": asked.steps}
        return {"Software": f"excise {version('excise')}", "excise": json.dumps(made, ensure_ascii=False)}

    def stop(self) -> None:
        """Finish what has begun, drop what waits, and end the worker thread."""
        self.stopping = True
        self._thread.shutdown(wait=True, cancel_futures=True)


def _check_size(made: tuple[int, int], asked: Asked, most: int) -> None:
    """Raise BadField if a picture has another size than was asked for, or more pixels than the limit."""
    width, height = made
    if asked.size not in (None, (width, height)):
        raise BadField("size", f"the model makes {width}x{height} of this size; ask for that")
    if width * height > most:
        raise BadField("size", f"the model's own size is {width}x{height}; ask for one of at most {most} pixels")
