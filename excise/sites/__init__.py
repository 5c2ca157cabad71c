"""Named places in a pipeline's text encoders where features are read and written."""

from __future__ import annotations

from excise.sites.capture import Features, capture, capture_to, is_capture_of, load_shards
from excise.sites.fidelity import final_state_cosine
from excise.sites.site import PRESETS, Site, resolve, site_at, sites_of, text_encoders

__all__ = [
    "PRESETS",
    "Features",
    "Site",
    "capture",
    "capture_to",
    "final_state_cosine",
    "is_capture_of",
    "load_shards",
    "resolve",
    "site_at",
    "sites_of",
    "text_encoders",
]
