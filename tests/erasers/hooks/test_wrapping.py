from __future__ import annotations

import pytest
import torch

from excise.erasers.hooks import wrapping


def test_the_operator_is_kept_out_of_cuda_graphs() -> None:
    """A graph that holds it would be replayed without it, under whatever eraser is attached then."""
    if not hasattr(torch.Tag, "cudagraph_unsafe"):
        pytest.skip("this torch has no such tag")
    assert torch.Tag.cudagraph_unsafe in torch.ops.excise.through.default.tags
    assert wrapping._operator._opoverload is torch.ops.excise.through.default
