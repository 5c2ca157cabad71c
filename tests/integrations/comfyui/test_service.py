"""Enforcement, the health check, the report, and the pack as one: what it imports and ships."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from excise.errors import EraserDidNotFire, WrongModel
from tests.integrations.comfyui import double
from tests.integrations.comfyui.conftest import PACK, Make, eraser_of, forget, make_clip
from tests.integrations.comfyui.test_traps import CAT, GUN, by_hand, states

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "integrations" / "comfyui"
LIGHT = ("excise.erasers.artefact", "excise.erasers.edits", "excise.erasers.hooks.known_vectors")
"""Packages of Excise that the pack may use without diffusers and transformers."""


@pytest.fixture
def enforced(monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace) -> SimpleNamespace:
    """Return the pack's modules, with an eraser of "gun" and one of "pistol" enforced."""
    clip = make_clip()
    for word in ("gun", "pistol"):
        eraser_of(clip, word).save(tmp_path / "enforced" / word)
    monkeypatch.setenv("EXCISE_ENFORCE", str(tmp_path / "enforced"))
    double.install(monkeypatch, erasers)
    forget()
    importlib.import_module(PACK)
    names = ("apply", "guard", "report", "service")
    return SimpleNamespace(**{name: importlib.import_module(f"{PACK}.{name}") for name in names})


def status() -> Any:
    """Return what `GET /excise/status` answers."""
    import server

    handler = server.PromptServer.instance.routes.by_path["/excise/status"]  # type: ignore[attr-defined]
    return asyncio.run(handler(None))


def test_every_clip_has_the_enforced_erasers(enforced: SimpleNamespace) -> None:
    import comfy.samplers

    clip = make_clip()
    erasers = [each.eraser for each in clip.patcher.get_attachment("excise").items]
    assert sorted(eraser.concept for eraser in erasers) == ["gun", "pistol"]
    torch.testing.assert_close(states(clip, GUN), by_hand(clip, erasers, GUN), atol=1e-5, rtol=1e-5)
    skipped = clip.clone()
    skipped.layer_idx = -2
    ours = skipped.encode("a pistol on grass")
    model = double.Patcher(torch.nn.Linear(1, 1))
    assert comfy.samplers.CFGGuider(model, ours).sample() == "a picture"
    more = enforced.apply.applied(clip, eraser_of(clip, "cat"))
    assert comfy.samplers.CFGGuider(model, more.encode(CAT)).sample() == "a picture"
    foreign = {**ours, "cross_attn": ours["cross_attn"] + 0.1}
    with pytest.raises(EraserDidNotFire, match="gun-eraser, pistol-eraser"):
        comfy.samplers.CFGGuider(model, foreign).sample()
    told = status()["enforced"]
    assert {eraser["concept"] for eraser in told["erasers"]} == {"gun", "pistol"}
    assert (told["clips"], told["samplings"], told["refused"]) == (1, 2, 1)
    assert "grass" not in json.dumps(told), "it holds no prompt"


def test_a_clip_that_no_enforced_eraser_fits_is_not_made(enforced: SimpleNamespace) -> None:
    with pytest.raises(WrongModel, match="no eraser of gun, pistol for this text encoder"):
        make_clip(seed=1)
    assert status()["enforced"]["refused"] == 1


def test_without_enforcing_the_status_says_so(pack: SimpleNamespace) -> None:
    assert status() == {"enforced": None}


@pytest.mark.parametrize("spoil", ["missing", "empty", "altered", "denoiser"])
def test_it_does_not_start_with_a_bad_folder(
    spoil: str, monkeypatch: pytest.MonkeyPatch, erasers: Path, tmp_path: Path, pack: SimpleNamespace
) -> None:
    folder = tmp_path / "enforced"
    if spoil == "altered":
        eraser_of(make_clip()).save(folder / "gun")
        (folder / "gun" / "eraser.json").write_text("{}")
    if spoil == "empty":
        folder.mkdir()
    if spoil == "denoiser":
        folder = ROOT / "tests" / "erasers" / "old" / "uce"
    monkeypatch.setenv("EXCISE_ENFORCE", str(folder))
    double.install(monkeypatch, erasers)
    forget()
    with pytest.raises(SystemExit, match="EXCISE_ENFORCE is set, but Excise did not start"):
        importlib.import_module(PACK)


def test_the_report_says_what_fired_and_no_prompt(pack: SimpleNamespace, clip: Any, make: Make) -> None:
    assert pack.report.report(clip) == "This CLIP has no eraser."
    eraser = make(clip)
    erased = pack.apply.applied(clip, eraser, 0.5, strict=False)
    for text in (GUN, CAT, "a gun and tree"):
        erased.encode(text)
    told = pack.report.report(erased)
    assert "fired in 2 of 3 prompts" in told
    assert eraser.digest in told
    assert "strength 0.5, not strict" in told
    assert "grass" not in told
    output = pack.nodes.EraserReport.execute(erased)
    assert output.args == (told,)
    assert output.ui == {"text": (told,)}


def test_every_node_has_a_help_page_and_a_prefix(pack: SimpleNamespace) -> None:
    nodes = asyncio.run(pack.nodes.Excise().get_node_list())
    ids = [node.define_schema().node_id for node in nodes]
    assert all(name.startswith("Excise") for name in ids)
    assert sorted(path.stem for path in (FOLDER / "web" / "docs").glob("*.md")) == sorted(ids)


def imported(path: Path) -> set[str]:
    """Return the modules that a file of the pack imports at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module))
    return found


def test_the_pack_needs_only_excises_light_core() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "safetensors", "comfy", "comfy_api", "folder_paths", "server"}
    allowed |= {"aiohttp"}
    for path in FOLDER.glob("*.py"):
        for name in imported(path):
            if name.partition(".")[0] == "excise":
                small = ("excise.errors", "excise.files", "excise.sites.site", "excise.sites.denoiser")
                small += ("excise.erasers.apply.shared_gates",)
                assert name.startswith(LIGHT) or name in small, (path.name, name)
            else:
                assert name.partition(".")[0] in allowed, (path.name, name)


def test_it_runs_where_diffusers_and_transformers_are_missing() -> None:
    program = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'diffusers', 'transformers', 'peft', 'PIL', 'accelerate'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import pytest\n"
        "from pathlib import Path\n"
        "from tests.integrations.comfyui import double\n"
        "from tests.integrations.comfyui.conftest import eraser_of, make_clip\n"
        "double.install(pytest.MonkeyPatch(), Path('models/erasers'))\n"
        "from integrations.comfyui import nodes\n"
        "clip = make_clip()\n"
        "erased = nodes.ApplyEraser.execute(clip, eraser_of(clip), 1.0, True).args[0]\n"
        "assert not erased.encode('a gun')['cross_attn'].equal(clip.encode('a gun')['cross_attn'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
