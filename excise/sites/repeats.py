"""Linear layers that are not computed again for the vectors that they have just read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from excise.pipeline import Pipeline
from excise.sites.site import text_encoders

KEPT = 1 << 29
"""Most bytes of vectors that are kept."""
Made = tuple[Tensor, Tensor | None, Tensor]
"""What a layer read, its bias, and what it gave."""


class Repeats(TorchFunctionMode):
    """Within it, a linear layer that reads the vectors of an earlier run again gives what it gave then.

    No bit differs. Two runs of a text encoder on the same prompts, one of them edited at a Site, so share the layers
    below it, and both runs pass through every module and hook. It acts on a CPU, and where no gradients are made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: Any = WeakIdKeyDictionary()
        """What each weight made. A weight that an offloading drops takes it along."""
        self._bytes = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.linear or kwargs or len(args) != 3 or not _is_plain(*args):
            return func(*args, **(kwargs or {}))
        given, weight, bias = args
        before: list[tuple[Made, list[int]]] = self._made.setdefault(weight, [])
        for found, versions in before:
            same = found[1] is bias and versions == _versions(found, weight)
            if same and (found[0] is given or torch.equal(found[0], given)):
                return found[2]
        made: Tensor = func(*args)
        if self._bytes < KEPT:
            before.append(((given, bias, made), _versions((given, bias, made), weight)))
            self._bytes += given.nbytes + made.nbytes
        return made


def _is_plain(given: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a layer's vectors are on a CPU, count writes, and depend on nothing else."""
    tensors = [given, weight] if bias is None else [given, weight, bias]
    return (
        all(type(one) in (Tensor, nn.Parameter) and one.device.type == "cpu" for one in tensors)
        and not any(map(Tensor.is_inference, tensors))
        and not (torch.is_grad_enabled() or torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"))
    )


def _versions(tensors: Made, weight: Tensor) -> list[int]:
    return [one._version for one in (*tensors, weight) if one is not None]


@contextmanager
def repeats(pipe: Pipeline) -> Iterator[None]:
    """Have `Repeats` within it, unless a text encoder of the pipeline is compiled, which would be compiled again."""
    modules = [module for encoder in text_encoders(pipe).values() for module in encoder.modules()]
    if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in modules):
        yield
        return
    with Repeats():
        yield
