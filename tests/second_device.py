"""A simulated second device: its tensors hold real numbers, report the device `cuda:0` or `mps:0`, and, like those of a
GPU, raise when an operation mixes them with the CPU's. Those of `mps:0` cannot be of float64, as on a Mac.

In `second_device()`, a tensor that is created on the device or moved there is a `There`. The CPU computes everything.
This finds a mask or an index that was left on the other device. It cannot show what a kernel does on a real GPU
(rounding, speed, memory).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("cuda", 0)
MPS = torch.device("mps", 0)
_NOW = DEVICE
aten = torch.ops.aten
BETWEEN_DEVICES = {aten.copy_.default, aten._to_copy.default, aten.index_put.default}
"""The last computes the gradient of an assignment: torch's core fills it with zeros of the CPU."""
INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
"""Operations that may index a GPU's tensor with one of the CPU."""
LIKE_SELF = {aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default, aten.new_full.default}
"""Operations whose result is on the first argument's device, whatever device torch's core, which sees the CPU, adds."""
ATTRIBUTES = {
    torch.Tensor.device.__get__: lambda: _NOW,  # type: ignore[attr-defined]
    torch.Tensor.is_cuda.__get__: lambda: _NOW.type == "cuda",  # type: ignore[attr-defined]
    torch.Tensor.is_mps.__get__: lambda: _NOW.type == "mps",  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: lambda: False,  # type: ignore[attr-defined]
}


ANSWERS = {aten._local_scalar_dense.default, aten.equal.default}
"""Operations for whose result a program waits until the device has done everything before."""
_WAITS: list[list[str]] = []


@contextmanager
def waits_of(folder: str) -> Iterator[list[str]]:
    """Collect what makes the code of a folder of this repository wait for the second device, with file and line.

    A copy from the CPU counts too: it waits for the device's stream.
    """
    _FOLDERS.append(folder)
    _WAITS.append([])
    try:
        yield _WAITS[-1]
    finally:
        _WAITS.pop()
        _FOLDERS.pop()


_FOLDERS: list[str] = []


def _wait(what: str) -> None:
    if not _WAITS:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    if frame is not None and f"/{_FOLDERS[-1]}/" in frame.f_code.co_filename:
        place = frame.f_code.co_filename.rpartition("/")[2]
        _WAITS[-1].append(f"{what} at {place}:{frame.f_lineno}")


class There(torch.Tensor):
    """Tensor of the second device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        if _NOW.type == "mps" and held.dtype is torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made  # type: ignore[no-any-return]

    def __init__(self, held: Tensor) -> None: ...

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"There({self.held!r})"

    def __deepcopy__(self, memo: Any) -> There:
        made = There(self.held.detach().clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True  # type: ignore[attr-defined]
        return made  # type: ignore[return-value]

    def tolist(self) -> Any:
        _wait("tolist")
        return self.held.tolist()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for attribute, value in ATTRIBUTES.items():
            if func == attribute:
                return value()
        if func is torch.Tensor.numpy:
            raise TypeError(f"can't convert {_NOW} tensor to numpy; use Tensor.cpu() to copy it first")
        if func is torch.Tensor.cpu:
            return moved(args[0], "cpu")
        if func is torch.Tensor.to:
            return moved(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Mode(TorchDispatchMode):
    """Mode that sees calls without a tensor of the second device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Back(torch.autograd.Function):
    """Move from the second device to the CPU."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Tensor:
        made: Tensor = x.held.clone()
        return made

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> There:  # type: ignore[override]
        return There(slope)


class Away(torch.autograd.Function):
    """Move from the CPU to the second device."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> There:
        return There(x.clone())

    @staticmethod
    def backward(ctx: Any, slope: There) -> Tensor:  # type: ignore[override]
        return slope.held


def moved(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do what `Tensor.to` does if one of the two devices is the second one."""
    device, others = kwargs.pop("device", None), []
    for argument in args:
        if isinstance(argument, Tensor):
            device = argument.device
            others.append(argument.dtype)
        elif isinstance(argument, str | torch.device):
            device = argument
        elif argument is not None:
            others.append(argument)
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    if device is not None:
        goes = torch.device(device).type == _NOW.type
        if goes and (others or kwargs):  # cast before it is moved, as torch does
            x, others, kwargs = torch.Tensor.to(x, *others, **kwargs), [], {}
        if goes != isinstance(x, There):
            _wait("to the CPU" if not goes else "from the CPU")
            x = (Away if goes else Back).apply(x)  # type: ignore[no-untyped-call]
    if not others and not kwargs:
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return torch.Tensor.to(x, *others, **kwargs)


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return an operation's result on the device of its arguments. Raises RuntimeError if they are on two devices."""
    flat, _ = tree_flatten((args, kwargs))
    there = any(isinstance(value, There) for value in flat)
    device = None if there and func in LIKE_SELF else kwargs.get("device")
    goes = torch.device(device).type == _NOW.type if device is not None else there
    if there and func not in BETWEEN_DEVICES and _mixed(func, args, flat):
        raise RuntimeError(f"{func} was given tensors of {_NOW} and of the CPU")
    inner_args, inner_kwargs = tree_map_only(There, lambda x: x.held, (args, kwargs))
    if "device" in kwargs:
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    if there and func in ANSWERS:
        _wait(str(func))
    made = func(*inner_args, **inner_kwargs)
    if func is aten.copy_.default:
        return args[0]
    if not goes or func is aten._local_scalar_dense.default:
        return made
    made = tree_map_only(torch.Tensor, There, made)
    return return_and_correct_aliasing(func, args, kwargs, made) if there else made


def _mixed(func: Any, args: Any, flat: list[Any]) -> bool:
    """Return whether the arguments contain a forbidden CPU tensor: one with dimensions that is not an index."""
    here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, There) and x.dim()]
    if func in INDEXING and isinstance(args[0], There):
        return any(x is other for x in here for other in args[2:])
    return bool(here)


@contextmanager
def second_device(device: torch.device = DEVICE) -> Iterator[torch.device]:
    """Provide the second device inside the block. Load files before it, because loaders use torch's core."""
    global _NOW
    plain, lazy = torch.tensor, torch.cuda._lazy_init
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    torch.cuda._lazy_init = lambda: None  # type: ignore[method-assign]
    _NOW = device
    torch.tensor = partial(_tensor, plain)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Mode():
            yield device
    finally:
        torch.tensor, torch.cuda._lazy_init = plain, lazy  # type: ignore[method-assign]
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)


def _tensor(plain: Callable[..., Tensor], data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """Replace `torch.tensor`, which fills in its numbers below every hook."""
    made = plain(data, **options)
    return made if device is None else moved(made, device)
