"""Erasers on the Hugging Face hub: pushing one, and its card, which tells people what it is."""

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
from excise.erasers.edits.base import Tensors
from excise.erasers.edits.block_sae import BlockEdit
from excise.erasers.edits.text_sae import SAEEdit

if TYPE_CHECKING:
    from excise.erasers.edits.registry import Edit

SOMEWHERE = "owner/name"
"""A repository's name on a card that was written before it has one."""
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
    """Put the eraser and its card into a repository on the hub, in one commit, and return the commit's address.

    The repository, and the branch `revision`, are made where there are none. `also` are files of it that exist already,
    by name: its signature, the very bytes that were signed, a card (README.md) somebody wrote. A signature of what was
    there before is taken away. Raises ExciseError where the hub refuses.
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
    """Push a saved eraser as `push` does, with the card and the signature that lie beside it, if any.

    Raises ExciseError where it is incomplete or altered, or where the hub refuses.
    """
    eraser = Artefact.load(folder)
    beside = {name: (folder / name).read_bytes() for name in (CARD, SIGNATURE) if (folder / name).is_file()}
    also = {**saved_files.read(folder), **beside}
    if also.get(CARD) == card(eraser).encode():
        del also[CARD]  # nobody's words but ours: the new one names the repository
    return eraser, push(eraser, repo_id, also=also, **options)


_TEXT = "on text, where the text encoder is read, and on nothing else"


def _done(eraser: Artefact) -> list[str]:
    """What is done to the model, by kind of edit."""
    said = []
    for where, kind in (("what its text encoder says of a prompt", SAEEdit), ("a block of its denoiser", BlockEdit)):
        if count := sum(len(edit.neurons) for edit in eraser.edits if isinstance(edit, kind)):
            neurons = "one neuron" if count == 1 else f"{count} neurons"
            said.append(f"by turning down {neurons} of a sparse autoencoder on {where}")
    deeds = Counter(edit.description for edit in eraser.edits if isinstance(edit, Tensors))
    said += [f"by {description.format(count=count)}" for description, count in deeds.items()]
    return said


def card(eraser: Artefact, repo_id: str = SOMEWHERE) -> str:
    """The README.md of an eraser: what it takes out and how, what was measured, and what it does not stop."""
    from huggingface_hub import ModelCardData

    model = eraser.made_for.get("model")
    pipeline = _plain(eraser.made_for.get("pipeline", "the pipeline it was made for"))
    base = {"base_model": model, "base_model_relation": "adapter"} if _is_name(model) else {}
    whole, neurons = any(edit.needs_sae for edit in eraser.edits), any(edit.neurons for edit in eraser.edits)
    tags = ["excise", *(tag for tag in TAGS if neurons or tag != _SAE)]
    front = ModelCardData(library_name="excise", tags=tags, **base)  # type: ignore[arg-type]
    return _CARD.format(
        front=front.to_yaml().strip(),
        name=_plain(eraser.name),
        concept=_plain(eraser.concept),
        model=f"{pipeline} (`{model}`)" if base else pipeline,
        by=" and ".join(_done(eraser)),
        acts=_TEXT if not eraser.denoisers else "where it edits, and on nothing else",
        load=f"excise.load_eraser(pipe, {json.dumps(repo_id)}{', sae=sae' * whole})"
        + "  # the SAE it comes from" * whole,
        mentions=", ".join(map(_plain, eraser.mentions)) or "none were named",
        edits=_table(
            ("Site", "neurons", "strength", "settings"),
            [
                (
                    _plain(edit.site.key),
                    ", ".join(map(str, edit.neurons)) or "none",
                    _strength(eraser, edit),
                    ", ".join(f"{k} {v}" for k, v in edit.options.items() if k not in ("lam", "gamma")),
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


def _verdict(eraser: Artefact) -> str:
    """What was found when it was tried, and whether that is enough."""
    if not eraser.verdict:
        return "It was not tried."
    weak = "; ".join(map(_plain, eraser.weak))
    said = f"**Weak, and accepted as such**: {weak}." if weak else "It met every limit."
    return f"{said}\n\n{_listed((_plain(what), _plain(found)) for what, found in in_words(eraser.verdict))}"


def _strength(eraser: Artefact, edit: Edit) -> str:
    """An edit's strength: SNCE's in words, another's by its name."""
    if isinstance(edit, SAEEdit) and edit.coefficient[0] == "lambda":
        return strength.in_words(edit.lam, edit.site.key, eraser.created, eraser.measured).removeprefix("strength ")
    return "{} = {:.4g}".format(*edit.coefficient)


def _is_name(model: Any) -> bool:
    """Whether it is a repository's name on the hub; a folder's path says nothing to others, and may say too much."""
    return isinstance(model, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None and model[0] not in "./"


def _rows(data: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every figure in `data`, however deep it lies, with what it is called; what has no value is left out."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _rows(value, (*where, str(key)))
    elif isinstance(data, list | tuple) and any(isinstance(item, Mapping) for item in data):
        for n, item in enumerate(data):
            own = {key: value for key, value in item.items() if key != "index"} if isinstance(item, Mapping) else item
            number = item.get("index", n) if isinstance(item, Mapping) else n
            yield from _rows(own, (*where[:-1], f"{where[-1].removesuffix('s')} {number}" if where else str(number)))
    elif data is not None and data != "" and data != []:
        yield _called(where), _value(data)


def _called(where: tuple[str, ...]) -> str:
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
    """Text from the artefact as one line that Markdown takes for text, whatever it holds."""
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
    "typical": "loudest pre-activation of a usual concept prompt",
    "floor": "pre-activation that 95 % of the states TopK keeps exceed",
    "separable": "a threshold tells the sides apart",
    "agreement": "share of states on which threshold and TopK agree",
    "frequency": "activation frequency",
    "dominance": "first neuron's score to the second's",
    "pairs": "prompt pairs",
    "carried": "share of what the concept's word changes that the neuron carries",
    "fires concept": "share of concept prompts edited",
    "fires deconcept": "share of the same prompts without the concept edited",
    "fires controls": "share of control prompts edited",
}

_CARD = """---
{front}
---
# {name}

Takes **{concept}** out of what {model} draws, {by}. The model's own weights
stay as they are: this is JSON and safetensors that are attached to a pipeline, scaled, and taken off again. Made with
Excise.

## Use
```python
import excise

# pipe: the pipeline named above; any other is refused
{load}
image = pipe("a prompt", num_inference_steps=20).images[0]
excise.unload_eraser(pipe)
```
Attaching raises unless what the denoiser reads, or predicts, changes on a canary prompt.
`excise.Eraser.from_pretrained` takes `revision="<commit>"`, so that a later push cannot change what you load. Only the
eraser's own files are downloaded.

## What it edits
Concept: {concept}. Words it was made for: {mentions}.

{edits}

A strength scales all of it: 1 is as it was made, 0 leaves every bit alone.

## How it was made
Method: {method}.

{settings}

## Verdict
{verdict}

## What was measured when it was made
On the pipeline it was made for, from prompts alone; no picture was judged. Measure on your own prompts.

{measured}

## What it does not stop
Erasure is a mitigation, not a guarantee. This acts {acts}:
- images given as input (image-to-image, inpainting, ControlNet, IP-Adapter) can bring the concept back;
- so can fine-tuning, a LoRA or textual inversion, on this model or on another of its kind;
- attacks without text, on latents or on the denoiser's conditioning, do not pass through an edit of the text encoder;
  Excise refuses text states that no edited encoder made where it can see them, but whoever holds the weights can take
  the eraser off;
- prompts can be searched that say the concept in words it does not know.

## Dual use
The same edit turned round draws more of the concept, and this file says what to turn. Excise refuses a negative
strength unless `allow_amplify=True` asks for it; that keeps accidents out, not intent.

## Identity
Digest `{digest}` (SHA-256 of `manifest.json`, which holds those of the other files; this page is not part of it). A
digest finds damage and careless edits; only a signature says who made it.
"""
