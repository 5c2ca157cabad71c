"""The reference model that ships with Excise: a small Stable Diffusion that draws emoji, its judge and its SAE."""

from __future__ import annotations

from typing import Any

_HOMES = {
    "load": "bundle",
    "judge": "bundle",
    "judge_figures": "bundle",
    "generate": "bundle",
    "draw": "bundle",
    "denoising_steps": "bundle",
    "MODEL": "bundle",
    "sae_folder": "bundle",
    "STEPS": "bundle",
    "GUIDANCE": "bundle",
    "sae_corpus": "prompts",
    "labelled": "prompts",
    "has_wordnet": "text_corpus",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'excise.reference' has no attribute {name!r}")
    from importlib import import_module

    from excise.loading import quiet

    with quiet():  # what diffusers and transformers say of parts that are not used here
        home = import_module(f"excise.reference.{_HOMES[name]}")
    return getattr(home, name)
