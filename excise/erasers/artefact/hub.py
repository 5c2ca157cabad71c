"""Erasers on the Hugging Face hub: pushing one, and its model card."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from excise import hub
from excise.erasers.artefact import files as saved_files
from excise.erasers.artefact import strength
from excise.erasers.artefact.files import CARD, SIGNATURE
from excise.erasers.artefact.record import Artefact
from excise.erasers.artefact.verdict import in_words
from excise.erasers.edits.block_replacement import ReplacementEdit
from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.edits.merged_sae import MergedSAEEdit
from excise.erasers.edits.text_sae import SAEEdit
from excise.files import read_file, sha256

if TYPE_CHECKING:
    from excise.erasers.edits.registry import Edit

SOMEWHERE = "owner/name"
"""Placeholder for a repository's name on a card that is written before there is one."""
_SAE = "sparse-autoencoder"
TAGS = ("concept-erasure", _SAE, "text-to-image")


def push(
    eraser: Artefact,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Push an eraser",
    also: Mapping[str, bytes] | None = None,
) -> str:
    """Push the eraser and its card to a repository on the hub, in one commit, and return the commit's address.

    The repository and the branch `revision` are created if missing. `also` are existing files of the eraser by name:
    its signature, the signed bytes, a hand-written card (README.md). An old signature in the repository is removed.
    Raises ExciseError if the hub refuses.
    """

    def files(name: str) -> Mapping[str, bytes]:
        return {CARD: card(eraser, name).encode(), **eraser.pack(), **(also or {})}

    return hub.push(
        repo_id,
        files,
        private=private,
        token=token,
        revision=revision,
        commit_message=commit_message,
        gone=(SIGNATURE,),
    )


def push_folder(folder: Path, repo_id: str, **options: Any) -> tuple[Artefact, str]:
    """Push a saved eraser as `push` does, with the card and signature in its folder, if any.

    Raises ExciseError if it is incomplete or altered, or the hub refuses.
    """
    eraser = Artefact.load(folder)
    extra = {name: read_file(folder / name) for name in (CARD, SIGNATURE) if (folder / name).is_file()}
    also = {**saved_files.read(folder), **extra}
    if CARD in also and is_generated(also[CARD], eraser):
        del also[CARD]  # the new one names the repository, and is in today's words
    return eraser, push(eraser, repo_id, also=also, **options)


_TEXT, _FOUND, _SAYS = "only on text, in the text encoder", "replacing patches that are found by", "description"


def _changes(eraser: Artefact) -> list[str]:
    """Describe the changes of the model, by kind of edit."""
    changes, where = list[str](), {SAEEdit: "its text encoder's states", BlockEdit: "a block of its denoiser"}
    for kind, how in ((SAEEdit, "turning down"), (BlockEdit, "turning down"), (BlockEdit, _FOUND)):
        plain = (e for e in eraser.edits if isinstance(e, kind) and not hasattr(e, _SAYS))
        own = [edit for edit in plain if isinstance(edit, ReplacementEdit) is (how == _FOUND)]
        if count := sum(len(edit.neurons) for edit in own):
            neurons = "one neuron" if count == 1 else f"{count} neurons"
            changes.append(f"by {how} {neurons} of a sparse autoencoder on {where[kind]}")
    others = Counter(getattr(edit, _SAYS) for edit in eraser.edits if hasattr(edit, _SAYS))
    return [*changes, *(f"by {description.format(count=count)}" for description, count in others.items())]


def card(eraser: Artefact, repo_id: str = SOMEWHERE) -> str:
    """Return an eraser's README.md: what it erases and how, what was measured, and what it does not stop."""
    from huggingface_hub import ModelCardData

    model = eraser.made_for.get("model")
    pipeline = _plain(eraser.made_for.get("pipeline", "the pipeline it was made for"))
    base = {"base_model": model, "base_model_relation": "adapter"} if _is_name(model) else {}
    whole, neurons = any(edit.needs_sae for edit in eraser.edits), any(edit.neurons for edit in eraser.edits)
    tags = ["excise", *(tag for tag in TAGS if neurons or tag != _SAE)]
    front = ModelCardData(library_name="excise", tags=tags, **base)  # type: ignore[arg-type]
    text = _CARD.format(
        front=front.to_yaml().strip(),
        name=_plain(eraser.name),
        concept=_plain(eraser.concept),
        model=f"{pipeline} (`{model}`)" if base else pipeline,
        by=" and ".join(_changes(eraser)),
        acts=_TEXT if not eraser.denoisers else "only on the modules that it edits",
        load=f"excise.load_eraser(pipe, {json.dumps(repo_id)}{', sae=sae' * whole})"
        + "  # the SAE it was made from" * whole,
        mentions=", ".join(map(_plain, eraser.mentions)) or "none",
        edits=_table(
            ("Site", "neurons", "strength", "settings"),
            [
                (
                    _plain(edit.site.key),
                    ", ".join(map(str, edit.neurons)) or "none",
                    _strength(eraser, edit),
                    ", ".join(f"{k} {v}" for k, v in edit.options.items() if k not in ("lam", "gamma", "replace_with")),
                )
                for edit in eraser.edits
            ],
        ),
        method=_plain(eraser.method),
        settings=_listed(_rows({k: v for k, v in eraser.created.items() if k != "method"}), "Not recorded."),
        measured=_listed(
            [*_rows(eraser.measured), ("change of what the denoiser reads on the canary", _value(eraser.canary_shift))]
        ),
        verdict=_verdict(eraser),
        digest=eraser.digest,
    )
    return text + _mark(text.encode()).decode()


def is_generated(data: bytes, eraser: Artefact) -> bool:
    """Return whether a card is as Excise generated it, in this version or an earlier one, and unedited.

    Cards end with a digest of their text. Earlier ones did not, and are recognised only if their words are today's.
    """
    text = data.replace(b"\r\n", b"\n")
    above, _, mark = text.rpartition(_MARK.partition("{}")[0].encode())
    return mark.strip() == f"{sha256(above)} -->".encode() or text + _mark(text) == card(eraser).encode()


def _mark(text: bytes) -> bytes:
    return _MARK.format(sha256(text)).encode()


def _verdict(eraser: Artefact) -> str:
    """Return the results of its test, and whether they suffice."""
    if not eraser.verdict:
        return "It was not tested."
    weak = "; ".join(map(_plain, eraser.weak))
    summary = f"**Weak, and accepted as such**: {weak}." if weak else "It met every limit."
    return f"{summary}\n\n{_listed((_plain(what), _plain(found)) for what, found in in_words(eraser.verdict))}"


def _strength(eraser: Artefact, edit: Edit) -> str:
    """Return an edit's strength: SNCE's in words, another's by its name."""
    if isinstance(edit, MergedSAEEdit):
        return f"up to {edit.lam * float(edit.lams.max()):.3g}, by neuron"
    if isinstance(edit, SAEEdit) and edit.coefficient[0] == "lambda":
        return strength.in_words(edit.lam, edit.site.key, eraser.created, eraser.measured).removeprefix("strength ")
    return "{} = {:.4g}".format(*edit.coefficient)


def _is_name(model: Any) -> bool:
    """Whether it is a repository's name on the hub. A local path means nothing to others, and may reveal too much."""
    return isinstance(model, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and model[0] not in "./"


def _rows(data: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the label and value of every figure in nested `data`. Empty values are left out."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _rows(value, (*where, str(key)))
    elif isinstance(data, list | tuple) and any(isinstance(item, Mapping) for item in data):
        for n, item in enumerate(data):
            rest = {key: value for key, value in item.items() if key != "index"} if isinstance(item, Mapping) else item
            number = item.get("index", n) if isinstance(item, Mapping) else n
            yield from _rows(rest, (*where[:-1], f"{where[-1].removesuffix('s')} {number}" if where else str(number)))
    elif data is not None and data != "" and data != []:
        yield _label(where), _value(data)


def _label(where: tuple[str, ...]) -> str:
    for n in (2, 1):
        if (label := _LABELS.get(" ".join(where[-n:]))) is not None:
            return ": ".join([*map(_plain, where[:-n]), label])
    return ": ".join(map(_plain, where)).replace("\\_", " ")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else _plain(value)


def _listed(rows: Any, otherwise: str = "Nothing.") -> str:
    rows = list(rows)
    return _table(("what", "value"), rows) if rows else otherwise


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (columns, tuple("---" for _ in columns), *rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: Any) -> str:
    """Return text from the artefact as one line, escaped for Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


_LABELS = {
    "score": "score",
    "deconcept_score": "score without the concept",
    "auroc": "AUROC on held-out wordings",
    "p_value": "p, permutation test",
    "control_share": "share of control prompts it fires on",
    "structural": "carries the prompts' structure rather than the concept",
    "threshold": "threshold, in pre-activations",
    "quiet": "loudest pre-activation without the concept",
    "typical": "loudest pre-activation of a typical concept prompt",
    "floor": "pre-activation that 95 % of the states TopK keeps exceed",
    "separable": "a threshold separates the sides",
    "agreement": "share of states on which threshold and TopK agree",
    "frequency": "activation frequency",
    "dominance": "ratio of the first neuron's score to the second's",
    "pairs": "prompt pairs",
    "carried": "share of the change by the concept's word that the neuron carries",
    "fires concept": "share of concept prompts edited",
    "fires deconcept": "share of the same prompts without the concept edited",
    "fires controls": "share of control prompts edited",
}

_MARK = "\n<!-- Written by Excise. SHA-256 of all above: {} -->\n"
"""Last line of a card, with the digest of the text before it: who edits the card need not remove it."""

_CARD = """---
{front}
---
# {name}

Erases **{concept}** from the images of {model}, {by}. The model's own weights
stay as they are: this eraser is JSON and safetensors, and can be attached to a pipeline, scaled, and detached. It was
made with Excise.

## Use
```python
import excise

# pipe: the pipeline named above; any other is refused
{load}
image = pipe("a prompt", num_inference_steps=20).images[0]
excise.unload_eraser(pipe)
```
Attaching raises an error unless what the denoiser reads or predicts changes on a canary prompt.
`excise.Eraser.from_pretrained` takes `revision="<commit>"`, so that a later push cannot change what you load. Only the
eraser's own files are downloaded.

## What it edits
Concept: {concept}. Words it was made for: {mentions}.

{edits}

A strength scales all edits: 1 is the fitted strength, 0 leaves every bit alone.

## How it was made
Method: {method}.

{settings}

## Verdict
{verdict}

## What was measured when it was made
On the pipeline it was made for, from prompts only; no image was judged. Measure on your own prompts.

{measured}

## What it does not stop
Erasure is a mitigation, not a guarantee. This acts {acts}:
- images given as input (image-to-image, inpainting, ControlNet, IP-Adapter) can bring the concept back;
- so can fine-tuning, a LoRA or textual inversion, on this model or on a similar one;
- attacks without text, on latents or on the denoiser's conditioning, do not pass through an edit of the text encoder;
  Excise refuses text states that no edited encoder made where it can see them, but whoever holds the weights can remove
  the eraser;
- an adversarial prompt can express the concept in words that the eraser does not know.

## Dual use
The same edit with the opposite sign amplifies the concept, and this file says what to edit. Excise refuses a negative
strength unless `allow_amplify=True` is given; that prevents accidents, not intent.

## Identity
Digest `{digest}` (SHA-256 of `manifest.json`, which holds those of the other files; this page is not part of it). A
digest reveals damage and careless edits; only a signature proves who made it.
"""
