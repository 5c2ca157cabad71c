"""Pipeline families: the text encoders that each reads, where their layers are and which hidden states it reads.

To add a family, add one entry. Taps are indices of `hidden_states`: n is the state after n layers, -1 the last one, -2
that one layer before. An eraser must act before the earliest tap, or the concept passes there.
"""

from __future__ import annotations

from dataclasses import dataclass

from excise.pipeline import Pipeline


@dataclass(frozen=True)
class Encoder:
    """One text encoder of a family."""

    layers: str
    """Path of its stack of layers."""
    taps: tuple[int, ...] = (-1,)
    """The hidden states that the pipeline reads, pooled vectors (made from the last) included."""
    component: str = "text_encoder"
    glyphs: bool = False
    """Whether it reads only quoted text to be rendered as letters. An eraser need not cover it."""
    masked: bool = False
    """Whether padding is masked, so that a word's state does not depend on the length that the prompt is padded to."""


@dataclass(frozen=True)
class Family:
    """Pipelines with the same text side."""

    name: str
    pipelines: tuple[str, ...]
    """Prefixes of their class names."""
    encoders: tuple[Encoder, ...]
    separate: bool = False
    """Whether the denoiser's input does not show which prompt is the unconditional one: it runs once for each branch of
    guidance, or reads the branches in another order than other families. Then that prompt is edited like the other."""
    one_call: bool = False
    """Whether each step calls the denoiser once, with both branches of guidance in one batch."""

    def encoder(self, component: str) -> Encoder | None:
        """Return its text encoder of that name, if it has one."""
        return next((encoder for encoder in self.encoders if encoder.component == component), None)


_CLIP, _T5, _LLM = "encoder.layers", "encoder.block", "model.layers"
_QWEN_VL = "model.language_model.layers"


def _second(layers: str, *taps: int, glyphs: bool = False) -> Encoder:
    return Encoder(layers, taps or (-1,), "text_encoder_2", glyphs)


_SDXL = Encoder(_CLIP, (-2,)), _second(_CLIP, -2, -1)

FAMILIES = (
    Family(
        "Stable Diffusion 1 and 2",
        ("StableDiffusion", "AltDiffusion", "LatentConsistency"),
        (Encoder(_CLIP),),
        one_call=True,
    ),
    Family("Stable Diffusion XL", ("StableDiffusionXL",), _SDXL, one_call=True),
    Family("Stable Diffusion XL InstructPix2Pix", ("StableDiffusionXLInstructPix2Pix",), _SDXL, separate=True),
    Family(
        "Stable Diffusion 3",
        ("StableDiffusion3",),
        (Encoder(_CLIP, (-2, -1)), _second(_CLIP, -2, -1), Encoder(_T5, (-1,), "text_encoder_3")),
        one_call=True,
    ),
    Family("FLUX.1", ("Flux",), (Encoder(_CLIP), _second(_T5))),
    Family("FLUX.2", ("Flux2",), (Encoder(_QWEN_VL, (10, 20, 30)),)),
    Family("FLUX.2 Klein", ("Flux2Klein",), (Encoder(_LLM, (9, 18, 27)),)),
    Family("Sana", ("Sana",), (Encoder("layers"),), one_call=True),
    Family("Lumina 2", ("Lumina2",), (Encoder("layers", (-2,)),), separate=True),
    Family("Qwen-Image", ("QwenImage",), (Encoder(_QWEN_VL),)),
    Family("Z-Image", ("ZImage",), (Encoder("layers", (-2,)),), separate=True),
    Family("PixArt", ("PixArt",), (Encoder(_T5, masked=True),), one_call=True),
    Family("Kandinsky 5", ("Kandinsky5",), (Encoder(_QWEN_VL), _second(_CLIP))),
    Family("HunyuanImage", ("HunyuanImage",), (Encoder(_QWEN_VL, (-3,)), _second(_T5, glyphs=True))),
    Family("Wan", ("Wan",), (Encoder(_T5, masked=True),), separate=True),
    Family("text encoder alone", ("TextEncoding",), (Encoder("encoder.layer"),)),
    Family("language model", ("LanguageModel",), (Encoder(_LLM),)),
)


def family_of(pipe: Pipeline) -> Family | None:
    """Return the pipeline's family, by the longest matching prefix of its class name, or None if it is unknown."""
    name = type(pipe).__name__
    fits = [(len(start), family) for family in FAMILIES for start in family.pipelines if name.startswith(start)]
    return max(fits, key=lambda fit: fit[0])[1] if fits else None
