"""What a person names is looked for on the disk first; what cannot be loaded says what to do, and doing it helps."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from excise.app.models.pipelines import Weights, must_be_local
from excise.app.models.resolve import load_pipeline
from excise.errors import ExciseError
from tests.hub_server import Repository


@pytest.fixture(scope="module")
def saved(build_pipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_pipe().save_pretrained(folder)
    return folder


def files_of(folder: Path, variant: str = "") -> dict[str, bytes]:
    """A saved pipeline's files by path, its weights named as of `variant`."""
    return {
        p.relative_to(folder).as_posix().replace(".safetensors", f"{variant}.safetensors"): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }


def pickled(folder: Path, out: Path) -> None:
    """The pipeline with its weights as .bin alone."""
    for name, data in files_of(folder).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            old = {"model": "pytorch_model.bin", "diffusion_pytorch_model": "diffusion_pytorch_model.bin"}
            torch.save(load_file(folder / name), path.with_name(old[path.stem]))
        else:
            path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["/nope", "./nope", "../nope", "~/nope", "a/b/c", "some.safetensors", "x/model.ckpt", "m.gguf"]
)
def test_what_can_only_be_a_path_never_goes_to_the_hub(name: str, hub: Any) -> None:
    assert must_be_local(name)
    with pytest.raises(ExciseError, match=r"there is no .* on this machine; name a folder with model_index\.json"):
        load_pipeline(name)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["owner/name", "gpt2", "CompVis/stable-diffusion-v1-4", "a.b/c_d-e.1"])
def test_a_name_of_the_hub_may_be_one(name: str) -> None:
    assert not must_be_local(name)


def test_files_and_other_folders_say_what_is_wrong(saved: Path, tmp_path: Path, hub: Any) -> None:
    (tmp_path / "sd.safetensors").write_bytes(b"")
    with pytest.raises(ExciseError, match="is not a safetensors file"):
        load_pipeline(str(tmp_path / "sd.safetensors"))
    for name in ("sd.ckpt", "sd.pt", "sd.pth", "sd.bin"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ExciseError, match="is a pickle, which can run code"):
            load_pipeline(str(tmp_path / name))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ExciseError, match=r"notes\.txt is a file; name the folder"):
        load_pipeline(str(tmp_path / "notes.txt"))
    with pytest.raises(ExciseError, match=f"no model_index.json; did you mean {saved}"):
        load_pipeline(str(saved.parent))
    with pytest.raises(ExciseError, match="name the folder of a whole pipeline"):
        load_pipeline(str(saved / "vae"))
    with pytest.raises(ExciseError, match="is a folder; --revision is for a model of the hub"):
        load_pipeline(str(saved), "cpu", Weights(revision="main"))
    assert hub.asked == []


def test_pickled_weights_are_refused_and_what_the_line_says_mends_it(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled(saved, tmp_path / "old")
    with pytest.raises(ExciseError, match=r"alone, which can run code when it is read; if you trust it") as error:
        load_pipeline(str(tmp_path / "old"))
    command = shlex.split(str(error.value).partition("once: ")[2])
    assert command[:2] == ["python", "-c"] and len(command) == 3
    monkeypatch.chdir(tmp_path)
    exec(command[2], {})
    mended, first = load_pipeline(str(tmp_path / "old-safetensors")), load_pipeline(str(saved))
    for name in ("unet", "vae", "text_encoder"):
        weights = getattr(first, name).state_dict()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in getattr(mended, name).state_dict().items())


def test_variants_and_revisions_of_a_model_on_the_hub(saved: Path, build_pipe: Any, tmp_path: Path, hub: Any) -> None:
    hub.repositories["someone/tiny"] = repository = Repository(False)
    other = tmp_path / "other"
    build_pipe(seed=1).save_pretrained(other)
    repository.branches["second"] = repository.commit("main", files_of(other), "other weights")
    repository.commit("main", {**files_of(saved, ".fp16"), "vae/extra.txt": b""}, "fp16 alone")

    def first(pipe: Any) -> Any:
        return pipe.unet.conv_in.weight

    pipe = load_pipeline("someone/tiny")
    assert pipe.name_or_path == "someone/tiny"
    assert torch.equal(first(pipe), first(load_pipeline(str(saved))))
    assert torch.equal(first(pipe), first(load_pipeline("someone/tiny", "cpu", Weights(variant="fp16"))))
    second = first(load_pipeline("someone/tiny", "cpu", Weights(revision="second")))
    assert torch.equal(second, first(load_pipeline(str(other))))
    with pytest.raises(ExciseError, match="no variant 'ema'; there is fp16"):
        load_pipeline("someone/tiny", "cpu", Weights(variant="ema"))
    with pytest.raises(ExciseError, match="no revision 'third' on the hub"):
        load_pipeline("someone/tiny", "cpu", Weights(revision="third"))


def test_pickles_on_the_hub_are_refused_before_they_are_fetched(saved: Path, tmp_path: Path, hub: Any) -> None:
    pickled(saved, tmp_path / "old")
    hub.repositories["someone/old"] = repository = Repository(False)
    repository.commit("main", files_of(tmp_path / "old"), "pickles")
    with pytest.raises(ExciseError, match=r"from_pretrained\('someone/old', use_safetensors=False\)"):
        load_pipeline("someone/old")
    assert not [request for request in hub.asked if re.search(r"resolve/.*\.bin", request)]


def test_a_name_that_the_hub_does_not_know_is_said_to_be_so(hub: Any) -> None:
    with pytest.raises(ExciseError, match=r"cannot load someone/absent: .* no model of that name on the hub"):
        load_pipeline("someone/absent")
    hub.stop()
    with pytest.raises(ExciseError, match="no such folder here, and the hub cannot be reached"):
        load_pipeline("someone/absent")
