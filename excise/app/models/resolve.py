"""Resolution of names (of a model, a Site, an SAE, a concept) to objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.app.models.devices import card_of, rank, visible_cards
from excise.app.models.pipelines import (
    DEFAULT,
    Unreachable,
    Weights,
    check_name,
    first_line,
    load_diffusion_pipeline,
    must_be_local,
)
from excise.concepts import Concept, Kind, builtin, from_templates, load_pairs
from excise.errors import ExciseError, InvalidSetting, NotFound
from excise.pipeline import Pipeline

if TYPE_CHECKING:
    from excise.sites import Site

KINDS: tuple[Kind, ...] = ("object", "style", "attribute")


TUNED: dict[str, dict[str, Any]] = {
    "uce": {"guide": "thing"},
    "rece": {"guide": "thing", "lam": 0.5, "rounds": 5},
    "sld": {"level": "strong", "warmup": 1, "scale": 5000.0},
    "saeuron": {"k": 26},
    "esd-x": {"steps": 20, "iterations": 60, "lr": 3e-4},
    "esd-u": {"steps": 20, "iterations": 200, "lr": 1e-5},
    "ca": {"steps": 20, "guidance": 4, "pictures": 16, "batch": 4, "iterations": 40, "lr": 1e-3},
    "sa": {
        "steps": 20,
        "guidance": 4,
        "pictures": 16,
        "fisher": 16,
        "timesteps": 4,
        "batch": 4,
        "iterations": 60,
        "lr": 1e-3,
        "lam": 0.05,
    },
    "spm": {"steps": 20, "iterations": 80, "lr": 3e-3, "anchoring": 1000},
    "dumo": {"steps": 10, "iterations": 120, "bins": 5, "alpha_iterations": 20, "pairs": 8, "lr": 2e-3, "keep": 0.3},
    "safety-filter": {"threshold": 0.45},
    "mace": {"guidance": 4},
    "safree": {"most": 0},
    "itd": {"factor": -3, "features": 32},
    "advunlearn": {"steps": 20, "iterations": 40, "attack_steps": 5, "retain": 3, "lr": 3e-4},
}
"""Settings for the bundled model that differ from the defaults: the best in docs/results/peers.md. Trainings are short,
because this model learns and unlearns a concept in a minute."""


def check_device(device: str) -> None:
    """Raise NotFound if this machine does not have the device."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise NotFound(f"no device {device!r} on this machine ({first_line(error)}); try --device cpu") from error


def load_pipeline(model: str | None, device: str = "cpu", weights: Weights = DEFAULT) -> Any:
    """Load a model: a diffusion pipeline, or a LanguageModel if the name is a language model's.

    Args:
        model: A folder or hub name, a .gguf file, "smollm2", or None for the bundled model. A folder on the disk takes
            precedence over the hub, and a name that can only be a path is not searched for on the hub.
        device: Device to load onto. With `cuda`, each process of a launcher gets its own GPU.
        weights: Which weights to load, and in which precision.

    Raises:
        ExciseError: There is no readable model.
    """
    device = card_of(device, visible_cards(), rank())
    check_name(model, weights)
    check_device(device)
    if model is None:
        from excise import reference

        dtype = weights.torch_dtype()
        return (reference.load() if dtype is None else reference.load(dtype=dtype)).to(device)
    from excise.app.models.language import find_language_model, load_language_model

    if (found := find_language_model(model)) is not None:
        if weights.revision is not None or weights.variant is not None:
            raise ExciseError(f"{model} is on this machine; --revision and --variant are for a model of the hub")
        return load_language_model(*found, device=device, dtype=weights.torch_dtype())
    try:
        return load_diffusion_pipeline(model, device, weights)
    except ExciseError as error:
        cached = isinstance(error, Unreachable)
        if not must_be_local(model) and _is_language_model(model, weights.revision, cached):
            if weights.variant is not None:
                raise ExciseError(f"{model} is a language model, which has no variants; leave out --variant") from error
            return load_language_model(model, device=device, dtype=weights.torch_dtype(), revision=weights.revision)
        raise


def _is_language_model(name: str, revision: str | None, cached: bool) -> bool:
    """Return whether this is a causal language model on the hub, or with `cached` in its cache."""
    from transformers import AutoConfig

    if Path(name).exists():
        return False
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main", local_files_only=cached)
    except Exception:  # of a dozen kinds; the caller raises the error from diffusers
        return False
    return any(str(kind).endswith("ForCausalLM") for kind in config.architectures or [])


def parse_site(pipe: Pipeline, text: str) -> Site:
    """Return the Site `encoder.layers.8` or `text_encoder_2/encoder.layers.8`. Raises ExciseError if it is unknown."""
    from excise.sites import site_at

    component, slash, path = text.partition("/")
    return site_at(pipe, path, component) if slash else site_at(pipe, text)


def sae_site(pipe: Pipeline, folder: Path) -> Site:
    """Return the Site in an SAE's card. Raises ExciseError if the card has none or the model does not have it."""
    from excise import sae
    from excise.sites import Site, resolve

    stored = sae.card(folder).get("site")
    if not isinstance(stored, dict) or set(stored) != {"component", "path", "width"}:
        raise ExciseError(f"the card of {folder} does not name the SAE's Site; name it with --site")
    site = Site(str(stored["component"]), str(stored["path"]), int(stored["width"]))
    resolve(pipe, site)
    return site


def sae_folder(model: str | None, folder: Path | None) -> Path:
    """Return the given SAE's folder, or the bundled one. Raises ExciseError for another model without an SAE."""
    if folder is not None:
        return folder
    if model is not None:
        raise ExciseError("--model needs --sae: an SAE of that model's text encoder (make one with `excise sae train`)")
    from excise import reference

    return Path(reference.sae_folder())


def bundled_settings(preset: str | None = None) -> dict[str, dict[str, Any]]:
    """Return methods' settings for the bundled model: SAE folders, steps and guidance, and tuned values.

    Tuned values are left out with a preset, which sets them instead.
    """
    from excise import reference

    sampling = {"steps": reference.STEPS, "guidance": reference.GUIDANCE}
    on_text = {"sae": str(sae_folder(None, None))}
    needed: dict[str, dict[str, Any]] = {
        "snce": on_text,
        "concept-steerers": on_text,
        "itd": on_text,
        "saemnesia": {"sae": str(reference.sae_folder("saemnesia")), **sampling},
        "saemnesia-text": {"sae": str(reference.sae_folder("saemnesia-text"))},
        "saeuron": {"sae": str(reference.sae_folder("saeuron")), **sampling},
        "casteer": sampling,
        "casteer-gated": sampling,
    }
    tuned = TUNED if preset is None else {}
    return {name: needed.get(name, {}) | tuned.get(name, {}) for name in {**needed, **tuned}}


def concept_named(
    name: str, mentions: str | None = None, pairs: Path | None = None, kind: str = "object", n: int = 100
) -> Concept:
    """Return a built-in concept, or one from mentions ("gun, pistol") by templates, or with the pairs of a file.

    Raises:
        ExciseError: The name or kind is unknown, the mentions are empty, or the file cannot be read.
    """
    sort = kind_of(kind)
    words = tuple(m.strip() for m in mentions.split(",")) if mentions is not None else None
    if pairs is not None:
        # The file has pairs only; controls come from templates, as for every concept.
        plain = from_templates(name, words or (name,), n, kind=sort)
        return Concept(name, plain.mentions, load_pairs(pairs), plain.controls, plain.kind)
    if words is not None:
        return from_templates(name, words, n, kind=sort)
    return builtin(name, n)


def kind_of(text: str) -> Kind:
    """Return a kind of concept by its name. Raises InvalidSetting for an unknown kind."""
    for known in KINDS:
        if text == known:
            return known
    raise InvalidSetting(f"unknown kind {text!r}; choose from {', '.join(KINDS)}")
