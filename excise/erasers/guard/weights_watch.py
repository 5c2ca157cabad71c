"""WeightsWatch: notices before every prompt whether a pipeline's weights, code, adapters or vocabularies changed."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from excise.erasers.guard.code_watch import Contents, code_now
from excise.erasers.hooks.observers import hooks_now, observe, release
from excise.pipeline import Pipeline
from excise.sites.denoiser import denoiser_of
from excise.sites.site import text_encoders, tokenizer_of

if TYPE_CHECKING:
    from excise.erasers.hooks.host import Host

SAMPLES = 16
"""Number of values sampled from each weight."""
Weights = list[tuple[str, int, int]]
Adapters = list[tuple[str, str]]


class WeightsWatch:
    """Cached `weights_now` of a pipeline, and the settings of its LoRA layers.

    A walk through all modules is slower than an erasure may be. The cached answer is used while every module holds the
    same submodules, weights, hooks and attributes, no write to them was counted and the sampled values are equal.
    """

    def __init__(self, pipe: Pipeline, denoisers: Iterable[str] = (), host: Host | None = None) -> None:
        """With `host`, later hooks on the text encoders become its observers."""
        self._pipe, self._denoisers, self._host = pipe, tuple(denoisers), host
        self._proved = hooks_now(text_encoders(pipe).items())
        self._look()

    def now(self) -> tuple[Weights, Adapters]:
        """Return `weights_now`, and for every LoRA layer (PEFT) of the text encoders which adapters are active at which
        scale."""
        if not self._is_same():
            self._look()
        return self._weights, _settings(self._layers)

    def end(self) -> None:
        """Put the observers' hooks back."""
        if self._host is not None:
            release(self._host, text_encoders(self._pipe).items())

    def _look(self) -> None:
        encoders = text_encoders(self._pipe)
        self._contents = Contents(encoders.values())
        while self._host is not None and observe(self._host, encoders.items(), self._proved):
            self._contents = Contents(encoders.values())
        # Before `weights_now`, so that the next comparison shows a write that happens meanwhile.
        components = getattr(self._pipe, "components", None)
        known = components if isinstance(components, dict) else {}
        self._names = [name for name in known if name.startswith("text_encoder")]
        self._parts = self._watched_modules()
        modules = [module for part in self._parts.values() for module in part.modules()]
        denoisers = [module for name in self._denoisers for module in self._parts[name].modules()]
        self._held = [(module, _children(module), _weights_of(module)) for module in denoisers]
        buffers = [tensor for encoder in encoders.values() for tensor in encoder.buffers()]
        parameters = (tensor for module in modules for tensor in module._parameters.values())
        tensors = [tensor for tensor in parameters if tensor is not None] + buffers
        self._all_plain = all(_is_plain(tensor) for tensor in tensors)
        watched = tensors if self._all_plain else []
        self._watched = watched
        self._written = _written(watched)
        self._places = [_places(group) for group in _grouped(watched)]
        self._values = self._sampled()
        self._vocabularies = self._tokenizers()
        self.code = code_now(encoders, self._proved if self._host is not None else None)
        """`code_now` of the text encoders at the last look."""
        self._weights = weights_now(self._pipe, self._denoisers)
        self._layers = _adapted(self._pipe)

    def _is_same(self) -> bool:
        parts = self._watched_modules()
        return (
            self._all_plain
            and [*parts] == [*self._parts]
            and all(parts[name] is part for name, part in self._parts.items())
            and self._contents.is_same()
            and all(_children(module) == inner and _weights_of(module) == own for module, inner, own in self._held)
            and _written(self._watched) == self._written
            and self._tokenizers() == self._vocabularies
            and self._sampled() == self._values
        )

    @torch.no_grad()
    def _sampled(self) -> bytes:
        """Return the sampled values of the watched weights."""
        return _bytes([[*map(torch.as_strided, *places)] for places in self._places])

    def _watched_modules(self) -> dict[str, nn.Module]:
        """Return the watched modules by component. Avoid `pipe.components`, which inspects a signature at every
        call."""
        if not self._names:
            return _watched_modules(self._pipe, self._denoisers)
        found = {name: getattr(self._pipe, name, None) for name in (*self._names, *self._denoisers)}
        return {n: getattr(m, "_orig_mod", m) for n, m in found.items() if isinstance(m, nn.Module)}

    def _tokenizers(self) -> list[tuple[int, int]]:
        known = (tokenizer_of(self._pipe, name) for name in self._parts if name not in self._denoisers)
        return [(id(tokenizer), len(tokenizer)) for tokenizer in known]


def weights_now(pipe: Pipeline, denoisers: Iterable[str] = ()) -> Weights:
    """Return the identity, write counter and sampled values of each weight, and each tokenizer's vocabulary size.

    The weights are those of the text encoders and the `denoisers` named. For weights that accelerate has offloaded,
    the tensors that it restores them from count.
    """
    found: Weights = []
    encoders = text_encoders(pipe)
    for component, whole in _watched_modules(pipe, denoisers).items():
        samples: list[Tensor] = []
        for path, module in whole.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                tensor: Any = kept_elsewhere(module, name) if parameter.is_meta else parameter
                version = -1 if tensor is None else version_of(tensor)
                found.append((f"{component}.{path}.{name}", id(tensor), version))
                if tensor is not None:
                    samples.append(_sample(tensor))
        # Writes that the counter misses (`.data`, a fused LoRA) show in the sampled values.
        if samples:
            found.append((f"{component}'s values", 0, hash(_bytes(_grouped(samples)))))
        if component in encoders:
            tokenizer = tokenizer_of(pipe, component)
            found.append((f"{component}'s tokenizer", id(tokenizer), len(tokenizer)))
    return found


def _adapted(pipe: Pipeline) -> list[tuple[str, Any]]:
    """Return the LoRA layers of the text encoders with their paths."""
    return [
        (f"{component}.{path}", module)
        for component, encoder in text_encoders(pipe).items()
        for path, module in encoder.named_modules()
        if isinstance(getattr(module, "scaling", None), dict) and hasattr(module, "active_adapters")
    ]


def named_denoisers(pipe: Pipeline, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the pipeline's denoisers of these names."""
    return {name: denoiser_of(pipe, name)[1] for name in names}


def kept_elsewhere(module: nn.Module, name: str) -> Tensor | None:
    """Return the weight that accelerate's offloading stores for a module and restores when it runs, if any."""
    kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    found: Tensor | None = kept[name] if kept is not None else None
    return found


def version_of(tensor: Any) -> int:
    """Return the tensor's write counter, or -1 for an inference tensor, which has none."""
    return -1 if tensor.is_inference() else int(tensor._version)


def _written(tensors: list[Tensor]) -> tuple[list[int], list[int]]:
    """Return where the tensors' values are, and the write counters of those that have one (`version_of`)."""
    counting = [
        tensor for tensor, has_none in zip(tensors, map(Tensor.is_inference, tensors), strict=True) if not has_none
    ]
    return [*map(Tensor.data_ptr, tensors)], [*map(attrgetter("_version"), counting)]


def _watched_modules(pipe: Pipeline, denoisers: Iterable[str]) -> dict[str, nn.Module]:
    return {**text_encoders(pipe), **named_denoisers(pipe, denoisers)}


def _settings(layers: list[tuple[str, Any]]) -> Adapters:
    return [(path, repr([sorted(m.scaling.items()), m.active_adapters, m.disable_adapters])) for path, m in layers]


def _children(module: nn.Module) -> list[int]:
    return [id(inner) for inner in module._modules.values()]


def _weights_of(module: nn.Module) -> list[int]:
    return [id(tensor) for tensor in module._parameters.values()]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a sample of it is a view, which shows later writes. Offloaded, quantised and non-contiguous weights have
    none, and are read again every time."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and _as_stored(tensor).is_contiguous()


def _as_stored(tensor: Tensor) -> Tensor:
    """Return a view with the axes in memory's order: torch's `channels_last` stores the second axis last."""
    return tensor if tensor.ndim < 4 or tensor.is_contiguous() else tensor.movedim(1, -1)


def _sample(tensor: Tensor) -> Tensor:
    """Return up to `SAMPLES` evenly spaced values."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]


def _places(tensors: list[Tensor]) -> tuple[list[Tensor], list[torch.Size], list[tuple[int, ...]]]:
    """Return the tensors with the sizes and strides of their samples.

    The samples themselves are views, which would keep the memory of weights that are moved to another device.
    """
    samples = [_sample(_as_stored(tensor)) for tensor in tensors]
    return tensors, [sample.size() for sample in samples], [sample.stride() for sample in samples]


def _grouped(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Group tensors by dtype and device, for one `cat` each."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _bytes(groups: list[list[Tensor]]) -> bytes:
    return b"".join(torch.cat(group).float().cpu().numpy().tobytes() for group in groups)
