from __future__ import annotations

from typing import Any

import pytest

from excise.app.finding import sweep, swept_sites
from excise.errors import ExciseError


def test_a_sweep_needs_a_text_encoder(tiny_pipe: Any, gun: Any) -> None:
    assert [site.path for site in swept_sites(tiny_pipe)][:2] == ["embeddings", "encoder.layers.0"]
    tiny_pipe.text_encoder = None
    with pytest.raises(ExciseError, match="no text encoder"):
        sweep(tiny_pipe, gun, ["a gun"], tokens=100)
