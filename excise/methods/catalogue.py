"""The methods there are: what each does, what it edits, under which licence its authors' code is, and whom to cite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["baseline", "closed form", "fine-tune", "inference"]


@dataclass(frozen=True)
class About:
    """One method."""

    does: str
    """In one line."""
    kind: Kind
    """How it is fitted: not at all; by solving equations; by training the model's weights; or by steering a model whose
    weights stay as they are."""
    edits: str
    licence: str = ""
    """Of the code its authors published, none of which is here; empty where there is none."""
    cite: str = ""
    """BibTeX."""


def _bibtex(key: str, title: str, authors: str, venue: str, year: int, arxiv: str) -> str:
    where = f"booktitle = {{{venue}}}" if venue else f"journal = {{arXiv preprint arXiv:{arxiv}}}"
    fields = [f"title = {{{title}}}", f"author = {{{authors}}}", where, f"year = {{{year}}}", f"eprint = {{{arxiv}}}"]
    lines = ",\n".join(f"  {field}" for field in fields)
    return f"@{'inproceedings' if venue else 'article'}{{{key},\n{lines}\n}}"


_ESD = _bibtex(
    "gandikota2023erasing",
    "Erasing Concepts from Diffusion Models",
    "Gandikota, Rohit and Materzy\\'nska, Joanna and Fiotto-Kaufman, Jaden and Bau, David",
    "International Conference on Computer Vision (ICCV)",
    2023,
    "2303.07345",
)
_SAEMNESIA = _bibtex(
    "cassano2026saemnesia",
    "SAEmnesia: Erasing Concepts in Diffusion Models with Supervised Sparse Autoencoders",
    "Cassano, Enrico and Renzulli, Riccardo and Nurisso, Marco and Zaffaroni, Mirko and Perotti, Alan and "
    "Grangetto, Marco",
    "International Conference on Machine Learning (ICML)",
    2026,
    "2509.21379",
)
METHODS: dict[str, About] = {
    "esd-u": About(
        "trains the U-Net to predict the opposite of the concept, for what prompts need not name",
        "fine-tune",
        "all weights of the U-Net but its cross-attention's",
        "MIT",
        _ESD,
    ),
    "esd-x": About(
        "trains the U-Net to predict the opposite of the concept, for what prompts name",
        "fine-tune",
        "the U-Net's cross-attention",
        "MIT",
        _ESD,
    ),
    "none": About("the untouched model, the baseline of every comparison", "baseline", "nothing"),
    "rece": About(
        "UCE, and the embeddings that would bring the concept back through it",
        "closed form",
        "keys and values of the U-Net's cross-attention",
        "Apache-2.0",
        _bibtex(
            "gong2024reliable",
            "Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models",
            "Gong, Chao and Chen, Kai and Wei, Zhipeng and Chen, Jingjing and Jiang, Yu-Gang",
            "European Conference on Computer Vision (ECCV)",
            2024,
            "2407.12383",
        ),
    ),
    "saemnesia": About(
        "turns down the neuron that a supervised SAE on a block of the denoiser gave the concept",
        "inference",
        "a block of the denoiser, step by step",
        "MIT (said, without a licence file)",
        _SAEMNESIA,
    ),
    "saemnesia-text": About(
        "turns down the neuron that a supervised SAE on the text encoder gave the concept, as SNCE does",
        "inference",
        "a layer of the text encoder",
        "",
        _SAEMNESIA,
    ),
    "saeuron": About(
        "turns down neurons of an SAE on a block of the denoiser, other ones at each step",
        "inference",
        "a block of the denoiser, step by step",
        "Apache-2.0",
        _bibtex(
            "cywinski2025saeuron",
            "SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders",
            "Cywi\\'nski, Bartosz and Deja, Kamil",
            "International Conference on Machine Learning (ICML)",
            2025,
            "2501.18052",
        ),
    ),
    "snce": About(
        "turns down one neuron of a sparse autoencoder on the text encoder",
        "inference",
        "a layer of every text encoder",
        "",
        _bibtex(
            "he2025single",
            "A Single Neuron Works: Precise Concept Erasure in Text-to-Image Diffusion Models",
            "He, Qinqin and Weng, Jiaqi and Tao, Jialing and Xue, Hui",
            "",
            2025,
            "2509.21008",
        ),
    ),
    "uce": About(
        "gives the concept's words the keys and values of other words",
        "closed form",
        "keys and values of the U-Net's cross-attention",
        "MIT",
        _bibtex(
            "gandikota2024unified",
            "Unified Concept Editing in Diffusion Models",
            "Gandikota, Rohit and Orgad, Hadas and Belinkov, Yonatan and Materzy\\'nska, Joanna and Bau, David",
            "Winter Conference on Applications of Computer Vision (WACV)",
            2024,
            "2308.14761",
        ),
    ),
}
"""By name, which with underscores is the module of `excise.methods`. A new method is one file and one entry here."""
