"""Named places in a pipeline's text encoders, or in a language model, where features are read and written."""

from __future__ import annotations

from excise.sites.activations.blocks import capture_blocks
from excise.sites.activations.capture import Features, capture, capture_to, load_shards
from excise.sites.activations.fidelity import final_state_cosine
from excise.sites.activations.length_buckets import capture_by_length
from excise.sites.denoiser import BLOCKS, block_site, module_at
from excise.sites.encoding import TextEncoding, encode_prompt
from excise.sites.families import FAMILIES, family_of
from excise.sites.language import LanguageModel
from excise.sites.site import PRESETS, Site, default_site, resolve, site_at, sites_of, text_encoders, to_cover

__all__ = [
    "BLOCKS",
    "FAMILIES",
    "PRESETS",
    "Features",
    "LanguageModel",
    "Site",
    "TextEncoding",
    "block_site",
    "capture",
    "capture_blocks",
    "capture_by_length",
    "capture_to",
    "default_site",
    "encode_prompt",
    "family_of",
    "final_state_cosine",
    "load_shards",
    "module_at",
    "resolve",
    "site_at",
    "sites_of",
    "text_encoders",
    "to_cover",
]
