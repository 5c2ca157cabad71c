"""Catalogue of methods: what each one does and edits, how it is fitted, its authors' licence, and what to cite."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Kind = Literal["baseline", "closed form", "fine-tune", "inference"]


@dataclass(frozen=True)
class About:
    """Description of a method."""

    does: str
    """What it does, in one line."""
    kind: Kind
    """How it is fitted: not at all, by solving equations, by training the model's weights, or by steering the model at
    inference with its weights unchanged."""
    edits: str
    licence: str = ""
    """Licence of the authors' code, which is not included here; "none" if it has none, empty if there is no code."""
    cite: str = ""
    """BibTeX."""

    @property
    def paper(self) -> str:
        """Authors, title, venue and year in one line; empty if there is nothing to cite."""
        if not self.cite:
            return ""
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", self.cite, re.MULTILINE))
        names = [author.partition(",")[0] for author in fields["author"].split(" and ")]
        authors = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        where = re.search(r"\((\w+)\)", fields.get("booktitle", ""))
        venue = f"{where[1]} {fields['year']}" if where else f"arXiv:{fields['eprint']}, {fields['year']}"
        return _letters(f"{authors}, {fields['title']}, {venue}")


ACCENTS = {"'": "\N{COMBINING ACUTE ACCENT}", '"': "\N{COMBINING DIAERESIS}", "`": "\N{COMBINING GRAVE ACCENT}"}


def _letters(text: str) -> str:
    """Replace BibTeX's accents (`\\'n`) by letters (ń)."""
    return unicodedata.normalize("NFC", re.sub(r"\\(['\"`])(\w)", lambda m: m[2] + ACCENTS[m[1]], text))


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
_CASTEER = _bibtex(
    "gaintseva2026casteer",
    "CASteer: Cross-Attention Steering for Controllable Concept Erasure",
    "Gaintseva, Tatiana and Oncescu, Andreea-Maria and Ma, Chengcheng and Liu, Ziquan and Benning, Martin and "
    "Slabaugh, Gregory and Deng, Jiankang and Elezi, Ismail",
    "International Conference on Learning Representations (ICLR)",
    2026,
    "2503.09630",
)
METHODS: dict[str, About] = {
    "adavd": About(
        "projects the concept out of the values of the U-Net's cross-attention, in tokens close to it",
        "inference",
        "values of the U-Net's cross-attention",
        "Apache-2.0",
        _bibtex(
            "wang2025precise",
            "Precise, Fast, and Low-cost Concept Erasure in Value Space: Orthogonal Complement Matters",
            "Wang, Yuan and Li, Ouxiang and Mu, Tingting and Hao, Yanbin and Liu, Kuien and Wang, Xiang and "
            "He, Xiangnan",
            "Conference on Computer Vision and Pattern Recognition (CVPR)",
            2025,
            "2412.06143",
        ),
    ),
    "advunlearn": About(
        "trains the text encoder to lead away from the concept, whatever token precedes it",
        "fine-tune",
        "the text encoder",
        "MIT",
        _bibtex(
            "zhang2024defensive",
            "Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models",
            "Zhang, Yimeng and Chen, Xin and Jia, Jinghan and Zhang, Yihua and Fan, Chongyu and Liu, Jiancheng and "
            "Hong, Mingyi and Ding, Ke and Liu, Sijia",
            "Advances in Neural Information Processing Systems (NeurIPS)",
            2024,
            "2405.15234",
        ),
    ),
    "ca": About(
        "trains the U-Net to predict for the concept what it predicts for another one, the anchor",
        "fine-tune",
        "keys and values of the U-Net's cross-attention, or all of its weights",
        "MIT",
        _bibtex(
            "kumari2023ablating",
            "Ablating Concepts in Text-to-Image Diffusion Models",
            "Kumari, Nupur and Zhang, Bingliang and Wang, Sheng-Yu and Shechtman, Eli and Zhang, Richard and "
            "Zhu, Jun-Yan",
            "International Conference on Computer Vision (ICCV)",
            2023,
            "2303.13516",
        ),
    ),
    "casteer": About(
        "reverses the direction that the concept adds to the U-Net's cross-attention",
        "inference",
        "outputs of the U-Net's cross-attention, step by step",
        "none",
        _CASTEER,
    ),
    "casteer-gated": About(
        "reverses CASteer's direction only in pictures that show the concept",
        "inference",
        "outputs of the U-Net's cross-attention, step by step",
        "",
        _CASTEER,
    ),
    "cgce": About(
        "leads text states away from the concept by a classifier's gradient, in prompts that the classifier finds",
        "inference",
        "the text states that the U-Net reads",
        "",
        _bibtex(
            "nguyen2025cgce",
            "CGCE: Classifier-Guided Concept Erasure in Generative Models",
            "Nguyen, Viet and Patel, Vishal M.",
            "",
            2025,
            "2511.05865",
        ),
    ),
    "concept-steerers": About(
        "subtracts a sparse autoencoder's code of the concept's words from every prompt",
        "inference",
        "a layer of the text encoder, in every prompt",
        "none",
        _bibtex(
            "kim2025concept",
            "Concept Steerers: Leveraging K-Sparse Autoencoders for Test-Time Controllable Generations",
            "Kim, Dahye and Ghadiyaram, Deepti",
            "",
            2025,
            "2501.19066",
        ),
    ),
    "dumo": About(
        "trains a copy of the U-Net's encoder to erase the concept through the skip connections alone",
        "fine-tune",
        "the U-Net's skip connections, step by step",
        "none",
        _bibtex(
            "han2025dumo",
            "DuMo: Dual Encoder Modulation Network for Precise Concept Erasure",
            "Han, Feng and Chen, Kai and Gong, Chao and Wei, Zhipeng and Chen, Jingjing and Jiang, Yu-Gang",
            "AAAI Conference on Artificial Intelligence",
            2025,
            "2501.01125",
        ),
    ),
    "esd-u": About(
        "trains the U-Net to predict the opposite of the concept, for concepts that prompts need not name",
        "fine-tune",
        "all weights of the U-Net but its cross-attention's",
        "MIT",
        _ESD,
    ),
    "esd-x": About(
        "trains the U-Net to predict the opposite of the concept, for concepts that prompts name",
        "fine-tune",
        "the U-Net's cross-attention",
        "MIT",
        _ESD,
    ),
    "hirm": About(
        "trains the text encoder's first layer to lead its last layer's representation of the concept astray",
        "fine-tune",
        "the first layer of the text encoder",
        "unknown",
        _bibtex(
            "lee2026localized",
            "Localized Concept Erasure in Text-to-Image Diffusion Models via High-Level Representation Misdirection",
            "Lee, Uichan and Kim, Jeonghyeon and Hwang, Sangheum",
            "International Conference on Learning Representations (ICLR)",
            2026,
            "2602.19631",
        ),
    ),
    "itd": About(
        "turns down a sparse autoencoder's neurons of the concept, in prompts that a gate assigns to the concept",
        "inference",
        "a layer of the text encoder",
        "none",
        _bibtex(
            "tian2025sparse",
            "Sparse Autoencoder as a Zero-Shot Classifier for Concept Erasing in Text-to-Image Diffusion Models",
            "Tian, Zhihua and Nan, Sirun and Xu, Ming and Zhai, Shengfang and Qu, Wenjie and Liu, Jian and "
            "Jia, Ruoxi and Zhang, Jiaheng",
            "",
            2025,
            "2503.09446",
        ),
    ),
    "leace": About(
        "projects one direction out of text states, so that no linear probe finds the concept in them",
        "inference",
        "the last states of the text encoder, in every prompt",
        "MIT",
        _bibtex(
            "belrose2023leace",
            "LEACE: Perfect Linear Concept Erasure in Closed Form",
            "Belrose, Nora and Schneider-Joseph, David and Ravfogel, Shauli and Cotterell, Ryan and Raff, Edward and "
            "Biderman, Stella",
            "Advances in Neural Information Processing Systems (NeurIPS)",
            2023,
            "2306.03819",
        ),
    ),
    "mace": About(
        "removes the concept from the other words of its prompts, and trains the U-Net not to attend to it",
        "fine-tune",
        "keys and values of the U-Net's cross-attention",
        "NTU S-Lab-like dual licence, not free",
        _bibtex(
            "lu2024mace",
            "MACE: Mass Concept Erasure in Diffusion Models",
            "Lu, Shilin and Wang, Zilan and Li, Leyang and Liu, Yanzhu and Kong, Adams Wai-Kin",
            "Conference on Computer Vision and Pattern Recognition (CVPR)",
            2024,
            "2403.06135",
        ),
    ),
    "none": About("the untouched model, the baseline of every comparison", "baseline", "nothing"),
    "rece": About(
        "UCE, then also erases the embeddings that would bring the concept back",
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
    "receler": About(
        "trains adapters to erase the concept where it is, also from prompts learnt to bring it back",
        "fine-tune",
        "outputs of the U-Net's cross-attention",
        "MIT",
        _bibtex(
            "huang2024receler",
            "Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight Erasers",
            "Huang, Chi-Pin and Chang, Kai-Po and Tsai, Chung-Ting and Lai, Yung-Hsuan and Yang, Fu-En and "
            "Wang, Yu-Chiang Frank",
            "European Conference on Computer Vision (ECCV)",
            2024,
            "2311.17717",
        ),
    ),
    "sa": About(
        "trains the U-Net to generate other things for the concept's prompts, and protects the rest",
        "fine-tune",
        "the U-Net's cross-attention, all but that, or all",
        "MIT",
        _bibtex(
            "heng2023selective",
            "Selective Amnesia: A Continual Learning Approach to Forgetting in Deep Generative Models",
            "Heng, Alvin and Soh, Harold",
            "Advances in Neural Information Processing Systems (NeurIPS)",
            2023,
            "2305.10120",
        ),
    ),
    "saemnesia": About(
        "turns down the neuron that a supervised SAE on a block of the denoiser assigned to the concept",
        "inference",
        "a block of the denoiser, step by step",
        "MIT (stated, without a licence file)",
        _SAEMNESIA,
    ),
    "saemnesia-text": About(
        "turns down the neuron that a supervised SAE on the text encoder assigned to the concept, as SNCE does",
        "inference",
        "a layer of the text encoder",
        "",
        _SAEMNESIA,
    ),
    "saeuron": About(
        "turns down neurons of an SAE on a block of the denoiser, chosen for each step",
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
    "safety-filter": About(
        "replaces prompts similar to the concept with the empty prompt, the baseline of every comparison",
        "baseline",
        "which prompts reach the U-Net",
    ),
    "safree": About(
        "projects the concept's words out of a prompt, for the first steps",
        "inference",
        "the text states that the U-Net reads",
        "none",
        _bibtex(
            "yoon2025safree",
            "SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image And Video Generation",
            "Yoon, Jaehong and Yu, Shoubin and Patil, Vaidehi and Yao, Huaxiu and Bansal, Mohit",
            "International Conference on Learning Representations (ICLR)",
            2025,
            "2410.12761",
        ),
    ),
    "sld": About(
        "guides away from the concept in every step, by a third U-Net call",
        "inference",
        "the guided prediction of the U-Net",
        "MIT",
        _bibtex(
            "schramowski2023safe",
            "Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models",
            'Schramowski, Patrick and Brack, Manuel and Deiseroth, Bj\\"orn and Kersting, Kristian',
            "Conference on Computer Vision and Pattern Recognition (CVPR)",
            2023,
            "2211.05105",
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
    "speed": About(
        "gives the concept's words the values of other words, without a change where kept words have any",
        "closed form",
        "values of the U-Net's cross-attention",
        "Apache-2.0",
        _bibtex(
            "li2026speed",
            "SPEED: Scalable, Precise, and Efficient Concept Erasure for Diffusion Models",
            "Li, Ouxiang and Wang, Yuan and Hu, Xinting and Jiang, Houcheng and Liang, Tao and Hao, Yanbin and "
            "Ma, Guojun and Feng, Fuli",
            "International Conference on Learning Representations (ICLR)",
            2026,
            "2503.07392",
        ),
    ),
    "spm": About(
        "trains rank-1 adapters of the U-Net to predict the opposite of the concept, weighted for every prompt",
        "fine-tune",
        "most layers of the U-Net, in proportion to a prompt's similarity to the concept",
        "Apache-2.0",
        _bibtex(
            "lyu2024one",
            "One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications",
            "Lyu, Mengyao and Yang, Yuhong and Hong, Haiwen and Chen, Hui and Jin, Xuan and He, Yuan and Xue, Hui and "
            "Han, Jungong and Ding, Guiguang",
            "Conference on Computer Vision and Pattern Recognition (CVPR)",
            2024,
            "2312.16145",
        ),
    ),
    "stg": About(
        "leads text states away from the concept, step by step, while a detector sees it in the picture",
        "inference",
        "the text states that the U-Net reads, in pictures that a detector finds",
        "Apache-2.0",
        _bibtex(
            "na2025training",
            "Training-Free Safe Text Embedding Guidance for Text-to-Image Diffusion Models",
            "Na, Byeonghu and Kang, Mina and Kwak, Jiseok and Park, Minsang and Shin, Jiwoo and Jun, SeJoon and "
            "Lee, Gayoung and Kim, Jin-Hwa and Moon, Il-Chul",
            "Advances in Neural Information Processing Systems (NeurIPS)",
            2025,
            "2510.24012",
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
"""Methods by name. A new method is one module, one entry here and in MODULES, and its settings in
excise.methods.configs, which are listed without importing torch."""

MODULES = {
    "adavd": "steering.adavd",
    "advunlearn": "trained.advunlearn",
    "ca": "trained.ca",
    "casteer": "steering.casteer",
    "casteer-gated": "steering.casteer_gated",
    "cgce": "steering.cgce",
    "concept-steerers": "sae.concept_steerers",
    "dumo": "trained.dumo",
    "esd-u": "trained.esd_u",
    "esd-x": "trained.esd_x",
    "hirm": "trained.hirm",
    "itd": "sae.itd",
    "leace": "steering.leace",
    "mace": "trained.mace",
    "none": "none",
    "rece": "closed_form.rece",
    "receler": "trained.receler",
    "sa": "trained.sa",
    "saemnesia": "sae.saemnesia",
    "saemnesia-text": "sae.saemnesia_text",
    "saeuron": "sae.saeuron",
    "safety-filter": "steering.safety_filter",
    "safree": "steering.safree",
    "sld": "steering.sld",
    "snce": "sae.snce",
    "speed": "closed_form.speed",
    "spm": "trained.spm",
    "stg": "steering.stg",
    "uce": "closed_form.uce",
}
"""Each method's module, below excise.methods. It is imported on first use."""
