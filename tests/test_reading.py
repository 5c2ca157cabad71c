"""Reading files from strangers: only regular ones, of bounded size, in bounded time and memory."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from excise.erasers import Eraser, SAEEdit
from excise.erasers.artefact.files import manifest
from excise.errors import ExciseError
from excise.files import SMALL, open_regular, parse_json, read_file, read_json, read_tensors
from excise.loading import refuse_foreign_modules
from excise.sites import Site
from tests.untrusted import DEEP, FILES, SURROGATE, put


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Fail an allocation of more than 512 MB instead of swapping."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("read", [open_regular, read_file, read_tensors, read_json])
def test_what_is_not_a_plain_file_is_refused_at_once(read: Callable[[Path], object], kind: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"regular file|holes|more than the|[Dd]irectory"):
        read(put(kind, tmp_path / "it"))


def test_plain_files_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "it"
    for data in (b"", b"{}", b"a" * 70_000):
        path.write_bytes(data)
        assert read_file(path) == read_tensors(path) == data
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link") == data
    with pytest.raises(OSError, match="70000 bytes, more than the 69999 allowed"):
        read_file(path, 69_999)


def test_a_file_without_a_size_is_refused() -> None:
    with pytest.raises(OSError, match="more than its size says"):
        read_file(Path("/proc/self/maps"))


def test_a_large_file_is_read_only_if_its_tensors_fill_it(tmp_path: Path) -> None:
    path, size = tmp_path / "it.safetensors", SMALL + 1000
    for end, fits in ((size, True), (size - 1, False), ("x", False)):
        header = b'{"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,%d]}}'
        text = header % end if isinstance(end, int) else b"[1]"
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" * size)
        if fits:
            assert len(read_tensors(path)) == size + 8 + len(text)
        else:
            with pytest.raises(OSError, match="table of tensors"):
                read_tensors(path)


@pytest.mark.parametrize("text", [DEEP, SURROGATE, "[" * 100_000, "[1", b"\xff", "9" * 5000, '{"\\ud800": 1}'])
def test_json_that_cannot_be_used_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_json_with_whole_pairs_is_read() -> None:
    assert parse_json('"\\ud83d\\ude00 \\u00e9"') == "\U0001f600 é"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["eraser.json", "eraser.safetensors", "manifest.json"])
def test_an_erasers_files_are_plain_files(name: str, kind: str, tmp_path: Path) -> None:
    for other in {"eraser.json", "eraser.safetensors", "manifest.json"} - {name}:
        (tmp_path / other).write_text("{}")
    put(kind, tmp_path / name)
    with pytest.raises(ExciseError, match="is not a complete eraser") as caught:
        Eraser.load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert os.path.lexists(tmp_path / name)


def test_an_eraser_with_more_canaries_than_fitting_makes_is_refused(tmp_path: Path) -> None:
    edit = SAEEdit(Site("text_encoder", "it", 1), torch.tensor([0]), *map(torch.ones, ((1, 1), 1, 1, (1, 1), 1, 1)))
    for canary in (("a gun",) * 14, ("g" * 2001,)):
        eraser = Eraser((edit,), "gun", "gun", canary=("a gun",), canary_shift=0.1)
        content = json.loads(eraser.pack()["eraser.json"]) | {"canary": canary}
        files = eraser.pack() | {"eraser.json": json.dumps(content).encode()}
        for name, data in (files | {"manifest.json": manifest(files)}).items():
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ExciseError, match="canary prompts of up to"):
            Eraser.load(tmp_path)


def test_a_models_index_names_no_module_that_nobody_imported() -> None:
    refuse_foreign_modules({"unet": ["diffusers", "UNet2DConditionModel"], "checker": ["stable_diffusion", "Any"]})
    for module in ("this", "antigravity", "os", "os.path", "subprocess", "nowhere"):
        with pytest.raises(ExciseError, match=f"takes unet from the module '{module}'"):
            refuse_foreign_modules({"unet": [module, "system"]})
    assert "antigravity" not in sys.modules
