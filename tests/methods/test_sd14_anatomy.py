"""Stable Diffusion 1.4's exact configurations with random weights: Excise works on it unchanged."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.app.training.labelled import train_block_sae
from excise.app.training.supervised import Labels
from excise.concepts import Concept, Pair
from excise.erasers import Eraser, verify
from excise.methods import method
from excise.methods.configs.sae import SAEmnesiaConfig, SNCEConfig
from excise.methods.sae.finding import find
from excise.methods.sae.snce import fit
from excise.sae import SAEConfig, Supervision, TopKSAE, TrainConfig, load, save
from excise.sites import BLOCKS, PRESETS, Site, capture, sites_of
from excise.sites.activations.block_shards import Labelled

# The configuration files of CompVis/stable-diffusion-v1-4, field by field.
TEXT_ENCODER = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "projection_dim": 768, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
UNET = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2, "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "norm_num_groups": 32,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
VAE = {
    "sample_size": 512, "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False,
}  # fmt: skip

LAYERS = {
    "uce": 32, "rece": 32, "esd-x": 64, "esd-u": 218, "ca": 32, "sa": 64, "mace": 32, "casteer": 16, "advunlearn": 72,
    "adavd": 16, "speed": 16, "hirm": 6, "receler": 16,
}  # fmt: skip
"""Number of layers that a method edits; one unless listed here."""


@pytest.fixture(scope="module")
def sd14(clip_tokenizer: Any) -> Any:
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
    with torch.no_grad():
        encoder.get_input_embeddings().weight.normal_()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE).eval(),
        text_encoder=encoder.eval(),
        tokenizer=clip_tokenizer,
        unet=UNet2DConditionModel(**UNET).eval(),
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def word_sae(pipe: Any, site: Any, concept: Concept) -> TopKSAE:
    """The paper's shape (768 -> 3072, k = 32), latent 1191 set on what sets the two sides apart."""

    def states(prompts: list[str], first: int = 2) -> torch.Tensor:
        return torch.cat([f.states[site][:, first:].flatten(0, 1) for f in capture(pipe, [site], prompts)])

    sae = TopKSAE(SAEConfig(d=768, m=3072, k=32))
    with_it = states([p.concept for p in concept.pairs])
    plain = [*(p.deconcept for p in concept.pairs), *concept.controls]
    without, everywhere = states(plain), states(plain, first=0)
    centre = without.mean(0)
    within = (without - centre).T @ (without - centre) / len(without)
    ridge = 0.01 * within.diagonal().mean() * torch.eye(768)
    direction = torch.linalg.solve(within + ridge, with_it.mean(0) - centre)
    direction /= direction.norm()
    with torch.no_grad():
        sae.b_pre.copy_(centre)
        sae.W_enc.mul_(0.2)
        scale = with_it.sub(centre).norm(dim=1).mean() / ((with_it - centre) @ direction).mean()
        sae.W_dec[1191] = direction
        sae.W_enc[1191] = direction * scale
        sae.b_enc[1191] = -scale * ((everywhere - centre) @ direction).max() - 1e-3
    return sae


@pytest.fixture(scope="module")
def naked() -> Concept:
    forms = ("a photo of a {} woman", "a {} man on the beach", "a painting of a {} person", "one {} figure")
    pairs = [
        Pair(form.format(mention), form.format("tall"), form) for form in forms for mention in ("naked", "nude", "bare")
    ]
    return Concept("nudity", ("naked", "nude", "bare"), tuple(pairs), ("a cat on grass", "a red car"), "attribute")


@pytest.mark.usefixtures("short_removal")
@pytest.mark.slow
def test_snce_end_to_end_on_sd14s_anatomy(sd14: Any, naked: Concept, tmp_path: Path) -> None:
    assert sum(p.numel() for p in sd14.unet.parameters()) == 859_520_964
    assert len(sites_of(sd14)) == 14
    for site in PRESETS["sd14"]:
        sae = word_sae(sd14, site, naked)
        config = SNCEConfig(site=site.path, neurons=(1191,), permutations=10)
        found = find(sd14, sae, naked, config)
        assert found.ranking.entries[0].index == 1191
        assert not found.validation[0].structural
        eraser = fit(sd14, naked, config, sae=sae, found=found)
        eraser.save(tmp_path / site.path)
        assert sum(p.stat().st_size for p in (tmp_path / site.path).iterdir()) < 20_000
        assert all(check.passed for check in verify(tmp_path / site.path))
        with Eraser.load(tmp_path / site.path).attach(sd14) as attachment:
            assert attachment.shift > 0

    prompt, other = eraser.canary[0], "a cat on grass"
    loaded = Eraser.load(tmp_path / PRESETS["sd14"][1].path)

    def draw(text: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        made: torch.Tensor = sd14(
            text, num_inference_steps=1, generator=generator, output_type="latent", height=128, width=128
        ).images
        return made

    before, before_other = draw(prompt), draw(other)
    with loaded.attach(sd14):
        after, after_other = draw(prompt), draw(other)
    assert not torch.equal(after, before)
    assert torch.equal(after_other, before_other)
    assert torch.equal(draw(prompt), before)


@pytest.mark.usefixtures("short_removal")
@pytest.mark.slow
@pytest.mark.parametrize("site", BLOCKS["sd15"], ids=lambda site: site.path)
def test_saemnesia_end_to_end_on_sd15s_blocks(sd14: Any, naked: Concept, site: Site, tmp_path: Path) -> None:
    """SD 1.5 has 1.4's U-Net. SAEuron's shape (1280 -> 20,480, k = 32), on pictures an eighth as wide."""
    size = sd14.unet.config.sample_size
    sd14.unet.register_to_config(sample_size=8)
    few = naked.pairs[:2]
    rows = [*(Labelled(pair.concept, ("nudity",)) for pair in few), *(Labelled(pair.deconcept, ()) for pair in few)]
    how, folder = Labels(groups=(("nudity",),), validation=0.0), tmp_path / "sae"
    config = TrainConfig(expansion=16, k=32, batch=16, tokens=256, lr=1e-2)
    train_block_sae(sd14, site, rows, config, folder, how, steps=2, options={"guidance_scale": 9.0})
    assert load(folder).config == SAEConfig(d=1280, m=20_480, k=32)
    settings: dict[str, Any] = {"steps": 2, "pictures": 2, "guidance": 9.0, "codes": "threshold"}
    eraser = method("saemnesia").fit(sd14, naked, SAEmnesiaConfig(sae=str(folder), **settings))
    eraser.save(tmp_path / "nudity")
    assert sum(p.stat().st_size for p in (tmp_path / "nudity").iterdir()) < 30_000
    assert all(check.passed for check in verify(tmp_path / "nudity"))
    with Eraser.load(tmp_path / "nudity").attach(sd14) as attachment:
        assert attachment.shift > 0
    sd14.unet.register_to_config(sample_size=size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("uce", {}),
        ("rece", {"rounds": 2}),
        ("speed", {"limit": 100.0}),
        ("esd-x", {"iterations": 2, "steps": 2}),
        ("esd-u", {"iterations": 2, "steps": 2}),
        ("ca", {"iterations": 2, "steps": 2, "pictures": 2, "batch": 1}),
        ("sa", {"iterations": 2, "steps": 2, "pictures": 2, "fisher": 1, "timesteps": 1, "batch": 1}),
        ("mace", {"iterations": 2, "steps": 2, "pictures": 1}),
        ("dumo", {"iterations": 2, "steps": 2, "pairs": 1, "alpha_iterations": 2}),
        ("spm", {"iterations": 2, "steps": 2, "anchors": 1}),
        ("advunlearn", {"iterations": 2, "steps": 2, "retain": 1, "attack_steps": 1}),
        ("hirm", {"iterations": 2}),
        ("receler", {"iterations": 2, "steps": 2, "attack_steps": 1}),
        ("leace", {}),
        ("cgce", {"iterations": 60, "noise": 0.0}),
        ("sld", {"level": "max"}),
        ("safree", {}),
        ("adavd", {}),
        ("safety-filter", {}),
        ("casteer", {"pairs": 1, "steps": 2}),
        ("concept-steerers", {"sae": "sae"}),
        ("itd", {"sae": "sae", "features": 8}),
        ("saemnesia-text", {"sae": "sae", "permutations": 10}),
    ],
)
def test_peers_on_sd14s_anatomy(sd14: Any, naked: Concept, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """ESD-u, with Adam's two moments of most of the U-Net, is what takes memory: 18 GB."""
    size = sd14.unet.config.sample_size
    sd14.unet.register_to_config(sample_size=8)
    if "sae" in settings:
        site = PRESETS["sd14"][0]
        given = Supervision(concepts=("nudity",), groups=(0,), assigned=(1191,)).to_json()
        save(word_sae(sd14, site, naked), tmp_path / "sae", {"site": asdict(site), "supervision": given})
        settings = {**settings, "sae": str(tmp_path / "sae")}
    eraser = method(name).fit(sd14, naked, method(name).Config(**settings))
    assert len(eraser.edits) == LAYERS.get(name, 1) or name in ("spm", "dumo")
    eraser.save(tmp_path / "nudity")
    with Eraser.load(tmp_path / "nudity").attach(sd14) as attachment:
        assert attachment.shift > 0
    sd14.unet.register_to_config(sample_size=size)
