"""What the ranks of a training do in the tests of Ray Train, where each is a process that imports this."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from excise.errors import ExciseError
from excise.sae import TrainConfig, trainer
from excise.sae.parallel import Mesh
from tests.sae.test_parallel import CONFIG, features

SLOW = replace(CONFIG, tokens=65 * 200, log_every=5, checkpoint_every=20)


@dataclass(frozen=True)
class Work:
    """Train the SAE of tests/sae/test_parallel.py, with a fault in rank 1."""

    out: str
    data: int = 2
    latents: int = 1
    config: TrainConfig = CONFIG
    killed_at: int = 0
    """Step after which rank 1 is killed, once."""
    fault: str = ""

    def __call__(self, say: Callable[[Any], None]) -> None:
        mesh = Mesh.join(self.data, self.latents)
        pids = [int(text) for text in mesh.texts(str(os.getpid()))]
        say(("began", mesh.rank, os.getcwd()))
        if self.fault == "refused" and mesh.rank:
            raise ExciseError("the vectors are too few; give more")
        if self.fault == "raised" and mesh.rank:
            raise RuntimeError("CUDA error:\nout of memory")
        first = not Path(self.out).with_name("killed").exists()

        def progress(line: Any) -> None:
            if first and line.step == self.killed_at:
                Path(self.out).with_name("killed").touch()
                os.kill(pids[1], signal.SIGKILL)
            say(line)

        whole = trainer._whole
        trainer._whole = lambda state: (say(("bits", mesh.rank, digest(state.sae))), whole(state))[1]  # type: ignore
        trainer.train(features(), self.config, self.out, mesh=mesh, progress=progress)


def digest(sae: Any) -> str:
    found = hashlib.sha256()
    for value in sae.state_dict().values():
        found.update(value.detach().numpy().tobytes())
    return found.hexdigest()
