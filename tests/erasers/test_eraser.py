from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from excise.erasers import Eraser, verify
from excise.erasers.artefact import files as saved_files
from excise.erasers.artefact.checks import check_files
from excise.erasers.artefact.files import FILES
from excise.erasers.edits.text_sae import CHOICES
from excise.errors import ExciseError, Tampered


@pytest.fixture
def saved(gun_eraser: Eraser, tmp_path: Path) -> Path:
    gun_eraser.save(tmp_path / "gun")
    return tmp_path / "gun"


def reseal(folder: Path) -> None:
    """Rewrite the manifest, as an attacker who alters the files would."""
    files = {name: (folder / name).read_bytes() for name in FILES}
    (folder / "manifest.json").write_bytes(saved_files.manifest(files))


def test_how_far_the_canary_moved_is_kept(gun_eraser: Eraser, tmp_path: Path) -> None:
    replace(gun_eraser, canary_shift=0.25).save(tmp_path / "moved")
    assert Eraser.load(tmp_path / "moved").canary_shift == 0.25


def test_it_comes_back_as_it_was_and_is_kilobytes(gun_eraser: Eraser, saved: Path) -> None:
    back = Eraser.load(saved)
    assert back.digest == gun_eraser.digest
    for name in ("name", "concept", "mentions", "made_for", "created", "measured", "canary", "canary_shift", "method"):
        assert getattr(back, name) == getattr(gun_eraser, name), name
    for name, tensor in gun_eraser.edits[0].tensors().items():
        assert torch.equal(back.edits[0].tensors()[name], tensor)
    assert all(getattr(back.edits[0], name) == getattr(gun_eraser.edits[0], name) for name in (*CHOICES, "lam", "site"))
    assert sum(path.stat().st_size for path in saved.iterdir()) < 10_000
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)


def test_the_format_follows_the_names_of_the_digests(gun_eraser: Eraser, tmp_path: Path) -> None:
    renamed = replace(gun_eraser, made_for={**gun_eraser.made_for, "names": "canonical", "lengths": {}})
    for eraser, schema in ((gun_eraser, "excise.eraser/1"), (renamed, "excise.eraser/2")):
        folder = tmp_path / schema
        eraser.save(folder)
        assert {json.loads((folder / name).read_text())["schema"] for name in (FILES[0], FILES[2])} == {schema}
        assert Eraser.load(folder).digest == eraser.digest
        assert all(check.passed for check in check_files(folder))
        files = {name: (folder / name).read_bytes() for name in FILES}
        other = {"excise.eraser/1": "excise.eraser/2", "excise.eraser/2": "excise.eraser/1"}[schema]
        changed = {**files, FILES[0]: files[FILES[0]].replace(schema.encode(), other.encode())}
        for described, stated in ((changed, schema), (changed, other), (files, other)):
            (folder / FILES[0]).write_bytes(described[FILES[0]])
            (folder / FILES[2]).write_bytes(saved_files.manifest(described, stated))
            with pytest.raises(Tampered, match="different formats"):
                Eraser.load(folder)


def test_concept_codes_are_kept(gun_eraser: Eraser, tmp_path: Path) -> None:
    edit = replace(gun_eraser.edits[0], source="concept", concept_codes=torch.rand(77, 1), align="pooled")
    replace(gun_eraser, edits=(edit, gun_eraser.edits[0])).save(tmp_path / "both")
    first, second = Eraser.load(tmp_path / "both").edits
    assert torch.equal(first.concept_codes, edit.concept_codes)  # type: ignore[arg-type]
    assert first.align == "pooled"
    assert second.concept_codes is None


def test_saving_twice_gives_the_same_bytes(gun_eraser: Eraser, saved: Path, tmp_path: Path) -> None:
    Eraser.load(saved).save(tmp_path / "again")
    assert all((tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes() for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_noticed(saved: Path, name: str) -> None:
    """Every byte of the two json files, a sample of the tensors' bytes."""
    path = saved / name
    original = path.read_bytes()
    places: Any = range(len(original))
    if name.endswith(".safetensors"):
        places = sorted({*range(300), *random.Random(0).sample(places, 200)} & set(places))
    rng = random.Random(1)
    files = saved_files.read(saved)
    for place in places:
        altered = bytearray(original)
        altered[place] ^= rng.randrange(1, 256)
        with pytest.raises(ExciseError):
            saved_files.check_manifest(saved, {**files, name: bytes(altered)})
    path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(ExciseError):
        Eraser.load(saved)
    assert not all(check.passed for check in verify(saved))


@pytest.mark.parametrize("name", FILES)
def test_truncated_or_missing_files_are_noticed(saved: Path, name: str) -> None:
    path = saved / name
    original = path.read_bytes()
    for length in (0, 1, len(original) // 2, len(original) - 1):
        path.write_bytes(original[:length])
        with pytest.raises(ExciseError):
            Eraser.load(saved)
    path.unlink()
    with pytest.raises(ExciseError, match=f"not a complete eraser: {name}"):
        Eraser.load(saved)
    with pytest.raises(ExciseError, match="not a complete eraser"):
        Eraser.load(saved / "nowhere")


def _set(path: str, value: Any) -> Any:
    def change(described: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        target: Any = described
        for parent in parents:
            target = target[int(parent)] if parent.isdigit() else target[parent]
        if value is KeyError:
            del target[last]
        else:
            target[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", "excise.eraser/9", "this version reads"),
        ("schema", KeyError, "not a valid eraser"),
        ("extra", 1, "'extra' is unknown"),
        ("canary", KeyError, "'canary' is missing"),
        ("canary", [], "no canary prompt"),
        ("canary", [" "], "no canary prompt"),
        ("canary", [1], "should be text"),
        ("canary_shift", -1, "impossible canary shift"),
        ("name", 3, "should be text"),
        ("edits", [], "belongs to no edit"),
        ("edits", 3, "not a valid eraser"),
        ("edits/0/lam", "x", "not a valid eraser"),
        ("edits/0/lam", -2, "λ is -2"),
        ("edits/0/lam", 1e999, "the figure Infinity"),
        ("edits/0/gate", "always", "gate cannot be"),
        ("edits/0/source", "concept", "has concept codes, and needs them"),
        ("edits/0/unknown", 1, "'unknown' is unknown"),
        ("edits/0/site/width", 63, "has shape"),
        ("edits/0/concept_codes", True, "not a valid eraser"),
        ("made_for", 3, "not a valid eraser"),
    ],
)
def test_a_resealed_but_impossible_description_is_refused(saved: Path, path: str, value: Any, message: str) -> None:
    described = json.loads((saved / "eraser.json").read_text())
    _set(path, value)(described)
    (saved / "eraser.json").write_text(json.dumps(described))
    reseal(saved)
    with pytest.raises(ExciseError, match=message):
        Eraser.load(saved)
    assert [check.passed for check in verify(saved)] == [True, True, False]


def test_resealed_tensors_that_do_not_fit_are_refused(saved: Path) -> None:
    path = saved / "eraser.safetensors"
    good = load_file(path)
    for name, tensor in {
        "0.W_dec": good["0.W_dec"][:, :-1].contiguous(),
        "0.W_enc": good["0.W_enc"] * float("nan"),
        "0.b_enc": good["0.b_enc"].double(),
        "1.b_enc": good["0.b_enc"].clone(),
    }.items():
        save_file({**good, name: tensor}, path)
        reseal(saved)
        with pytest.raises(ExciseError):
            Eraser.load(saved)
    save_file({name: t for name, t in good.items() if name != "0.b_pre"}, path)
    reseal(saved)
    with pytest.raises(ExciseError, match="not a valid eraser"):
        Eraser.load(saved)


def test_verify_says_what_was_checked(
    firm_eraser: Eraser, tmp_path: Path, tiny_pipe: Any, build_pipe: Any, word_sae: Any
) -> None:
    saved = tmp_path / "firm"
    firm_eraser.save(saved)
    checks = verify(saved, tiny_pipe, sae=word_sae)
    assert [c.detail for c in checks if not c.passed] == []
    assert [c.name for c in checks] == ["files", "manifest", "content", "sites", "model", "rows", "canary", "removal"]
    alone = {check.name: check for check in verify(saved, tiny_pipe)}
    assert "was not at hand" in alone["rows"].detail
    assert alone["rows"].passed
    assert "that the rows of text_encoder/encoder.layers.2 are an SAE's" in alone["trusted as signed"].detail
    other = {check.name: check.passed for check in verify(saved, build_pipe(seed=1))}
    assert not other["model"]
    assert other["sites"]
    narrow = {check.name: check.passed for check in verify(saved, build_pipe(layers=2))}
    assert not narrow["sites"]
    assert not narrow["canary"]
    assert "removal" not in narrow


def test_the_shift_in_the_file_decides_nothing(firm_eraser: Eraser, tiny_pipe: Any, tmp_path: Path) -> None:
    """What is removed is measured: neither a large figure in the file refuses it, nor a small one lets it through."""
    (edit,) = firm_eraser.edits
    dud = replace(firm_eraser, edits=(replace(edit, lam=0.001),))  # type: ignore[call-arg]
    for shift in (0.0, 1e3):
        replace(firm_eraser, canary_shift=shift).save(tmp_path / "good")
        assert all(check.passed for check in verify(tmp_path / "good", tiny_pipe))
        replace(dud, canary_shift=shift).save(tmp_path / "dud")
        assert [c.name for c in verify(tmp_path / "dud", tiny_pipe) if not c.passed] == ["removal"]


def test_descriptions_that_are_not_json_are_refused(gun_eraser: Eraser, tmp_path: Path) -> None:
    for measured in ({"x": float("nan")}, {"x": torch.ones(1)}):
        with pytest.raises(ExciseError, match="cannot be saved as json"):
            replace(gun_eraser, measured=measured).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ExciseError, match="edits nothing"):
        replace(gun_eraser, edits=())
