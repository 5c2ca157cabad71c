"""What a pipeline's weights, adapters and vocabularies are at this moment, as it is asked before every prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from excise.pipeline import Pipeline
from excise.sites.denoiser import denoiser_of
from excise.sites.site import text_encoders, tokenizer_of

SAMPLES = 16
"""Values of every weight that are looked at."""
Weights = list[tuple[str, int, int]]
Adapters = list[tuple[str, str]]


class WeightsWatch:
    """Watches what `weights_now` says of a pipeline, and how its LoRA layers are set.

    To walk through all of its modules takes longer than an erasure may; as long as each holds the modules and weights
    that it held, nobody wrote to them and the sampled values are the same, the last answer stands.
    """

    def __init__(self, pipe: Pipeline, denoisers: Iterable[str] = ()) -> None:
        self._pipe, self._denoisers = pipe, tuple(denoisers)
        self._look()

    def now(self) -> tuple[Weights, Adapters]:
        """What `weights_now` would say; and of every LoRA layer of the text encoders (PEFT's) what is active, at what
        scale."""
        if not self._is_same():
            self._look()
        return self._weights, _settings(self._layers)

    def _look(self) -> None:
        # What to compare with comes first: what is written to in between then shows at the next look.
        components = getattr(self._pipe, "components", None)
        known = components if isinstance(components, dict) else {}
        self._names = [name for name in known if name.startswith("text_encoder")]
        self._parts = self._there()
        modules = [module for part in self._parts.values() for module in part.modules()]
        self._held = [(module, _children(module), _own(module)) for module in modules]
        tensors = [tensor for module in modules for tensor in module._parameters.values() if tensor is not None]
        self._all_plain = all(_is_plain(tensor) for tensor in tensors)
        watched = tensors if self._all_plain else []
        self._written = [(tensor, version_of(tensor), tensor.data_ptr()) for tensor in watched]
        self._samples = _alike([_sample(tensor) for tensor in watched])
        self._values = _bytes(self._samples)
        self._vocabularies = self._tokenizers()
        self._weights = weights_now(self._pipe, self._denoisers)
        self._layers = _adapted(self._pipe)

    def _is_same(self) -> bool:
        there = self._there()
        return (
            self._all_plain
            and [*there] == [*self._parts]
            and all(there[name] is part for name, part in self._parts.items())
            and all(_children(module) == inner and _own(module) == own for module, inner, own in self._held)
            and all(version_of(t) == version and t.data_ptr() == place for t, version, place in self._written)
            and self._tokenizers() == self._vocabularies
            and _bytes(self._samples) == self._values
        )

    def _there(self) -> dict[str, nn.Module]:
        """The modules looked at, by component; `components` itself inspects a signature at every call."""
        if not self._names:
            return _looked_at(self._pipe, self._denoisers)
        found = {name: getattr(self._pipe, name, None) for name in (*self._names, *self._denoisers)}
        return {n: getattr(m, "_orig_mod", m) for n, m in found.items() if isinstance(m, nn.Module)}

    def _tokenizers(self) -> list[tuple[int, int]]:
        known = (tokenizer_of(self._pipe, name) for name in self._parts if name not in self._denoisers)
        return [(id(tokenizer), len(tokenizer)) for tokenizer in known]


def weights_now(pipe: Pipeline, denoisers: Iterable[str] = ()) -> Weights:
    """Which weights the text encoders and the `denoisers` named have, how often each was written to and a few of its
    values, which tokenizers there are and how many words they know.

    Of those that an offloading keeps elsewhere (accelerate's), the tensors it brings them back from.
    """
    found: Weights = []
    encoders = text_encoders(pipe)
    for component, whole in _looked_at(pipe, denoisers).items():
        samples: list[Tensor] = []
        for path, module in whole.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                tensor: Any = kept_elsewhere(module, name) if parameter.is_meta else parameter
                version = -1 if tensor is None else version_of(tensor)
                found.append((f"{component}.{path}.{name}", id(tensor), version))
                if tensor is not None:
                    samples.append(_sample(tensor))
        # Written to behind the counter's back (`.data`, a fused LoRA): a few values of every weight show it.
        if samples:
            found.append((f"{component}'s values", 0, hash(_bytes(_alike(samples)))))
        if component in encoders:
            tokenizer = tokenizer_of(pipe, component)
            found.append((f"{component}'s tokenizer", id(tokenizer), len(tokenizer)))
    return found


def _adapted(pipe: Pipeline) -> list[tuple[str, Any]]:
    """The LoRA layers of the text encoders, by where they are."""
    return [
        (f"{component}.{path}", module)
        for component, encoder in text_encoders(pipe).items()
        for path, module in encoder.named_modules()
        if isinstance(getattr(module, "scaling", None), dict) and hasattr(module, "active_adapters")
    ]


def named_denoisers(pipe: Pipeline, names: Iterable[str]) -> dict[str, nn.Module]:
    return {name: denoiser_of(pipe, name)[1] for name in names}


def kept_elsewhere(module: nn.Module, name: str) -> Tensor | None:
    """The weight that accelerate's offloading keeps for a module and brings back when it runs; None without that."""
    kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    found: Tensor | None = kept[name] if kept is not None else None
    return found


def version_of(tensor: Any) -> int:
    """The tensor's write counter; tensors made in inference mode keep none."""
    return -1 if tensor.is_inference() else int(tensor._version)


def _looked_at(pipe: Pipeline, denoisers: Iterable[str]) -> dict[str, nn.Module]:
    return {**text_encoders(pipe), **named_denoisers(pipe, denoisers)}


def _settings(layers: list[tuple[str, Any]]) -> Adapters:
    return [(path, repr([sorted(m.scaling.items()), m.active_adapters, m.disable_adapters])) for path, m in layers]


def _children(module: nn.Module) -> list[int]:
    return [id(inner) for inner in module._modules.values()]


def _own(module: nn.Module) -> list[int]:
    return [id(tensor) for tensor in module._parameters.values()]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a sample of it is a view, which shows what is written later. Those that an offloading keeps elsewhere,
    that are quantised or lie out of order are looked at anew every time."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and tensor.is_contiguous()


def _sample(tensor: Tensor) -> Tensor:
    """Up to `SAMPLES` values, evenly spread."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLES)][:SAMPLES]


def _alike(samples: list[Tensor]) -> list[list[Tensor]]:
    """Those of one dtype and device together: what one `cat` reads."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for sample in samples:
        groups.setdefault((sample.dtype, sample.device), []).append(sample)
    return list(groups.values())


def _bytes(groups: list[list[Tensor]]) -> bytes:
    return b"".join(torch.cat(group).float().cpu().numpy().tobytes() for group in groups)
