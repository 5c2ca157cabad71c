"""Policies: what is accepted, and one line for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from excise.app.serve import policy
from excise.app.serve.policy import NotAllowed
from excise.errors import InvalidSetting, NotFound
from tests.documented import FENCE

FULL = """
erasers:
  gun: {folder: gun, digest: 0123456789ab, strength: 0.8, allow: [0.5, 1], when_fired: flag}
  knife: {folder: /erasers/knife}
signed_by: {public_key: keys/public.pem}
limits: {pictures: 2, waiting: 1}
"""


def read(folder: Path, text: str) -> policy.Policy:
    (folder / "policy.yaml").write_text(text, encoding="utf-8")
    return policy.read(folder / "policy.yaml")


def test_paths_are_relative_to_the_file_and_the_rest_has_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, FULL)
    assert found.erasers["gun"].folder == str(tmp_path / "gun")
    assert found.erasers["knife"].folder == "/erasers/knife"
    assert str(policy.signer(found)) == f"the key of {tmp_path / 'keys/public.pem'}"
    assert (found.limits.pictures, found.limits.waiting, found.limits.steps) == (2, 1, 50)
    assert found.erasers["gun"].bounds == (0.5, 1)
    assert found.erasers["knife"].bounds == (1, 1)
    assert policy.strengths(found, {}) == {"gun": 0.8, "knife": 1}
    assert policy.strengths(found, {"gun": 0.5}) == {"gun": 0.5, "knife": 1}
    for asked, message in (
        ({"gun": 0.4}, "allows 0.5 to 1"),
        ({"gun": 1.1}, "allows 0.5 to 1"),
        ({"knife": 0.9}, "allows 1 alone"),
        ({"cat": 1.0}, "there are gun, knife"),
    ):
        with pytest.raises(NotAllowed, match=message):
            policy.strengths(found, asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: it must have keys with values"),
        ("erasers: {}", "erasers"),
        ("erasers: [gun]", "erasers"),
        ("erasers: {gun: {}}", "erasers.gun.folder: it is missing"),
        ("erasers: {gun: {folder: ''}}", "erasers.gun.folder"),
        ("erasers: {gun: {folder: gun, strenght: 1}}", "erasers.gun.strenght: there is no such key"),
        ("erasers: {gun: {folder: gun, strength: 0}}", "erasers.gun.strength"),
        ("erasers: {gun: {folder: gun, strength: .nan}}", "erasers.gun.strength"),
        ("erasers: {gun: {folder: gun, strength: '1'}}", "erasers.gun.strength"),
        ("erasers: {gun: {folder: gun, strength: -1}}", "erasers.gun.strength"),
        ("erasers: {gun: {folder: gun, allow: [0.5, 0.9]}}", "it must hold the strength 1"),
        ("erasers: {gun: {folder: gun, allow: [-1, 1]}}", "lie between 0 and 20"),
        ("erasers: {gun: {folder: gun, allow: [.nan, 1]}}", "erasers.gun"),
        ("erasers: {gun: {folder: gun, allow: [1]}}", "erasers.gun.allow"),
        ("erasers: {gun: {folder: gun, when_fired: ignore}}", "erasers.gun.when_fired"),
        ("erasers: {gun: {folder: gun, digest: abc}}", "erasers.gun.digest"),
        ('erasers: {"gun\\n": {folder: gun}}', "cannot be an eraser's name"),
        ("erasers: {gun: {folder: gun}, gun: {folder: other}}", "'gun' is given twice"),
        ("erasers: {gun: &a {folder: gun}, knife: *a}", "has an alias"),
        ("erasers: {gun: {folder: gun}}\nlimits: {waiting: 0}", "limits.waiting"),
        ("erasers: {gun: {folder: gun}}\nlimits: {colour: 1}", "limits.colour"),
        ("erasers: {gun: !!python/object/apply:os.getcwd []}", "cannot be read"),
        ("erasers: {gun: {folder: gun}", "cannot be read"),
        ("[" * 5000, "cannot be read"),
    ],
)
def test_any_mistake_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message) as raised:
        read(tmp_path, text)
    assert str(tmp_path / "policy.yaml") in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_file_and_half_a_signer(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no policy"):
        policy.read(tmp_path / "none.yaml")
    half = read(tmp_path, "erasers: {gun: {folder: gun}}\nsigned_by: {identity: me@example.com}")
    with pytest.raises(InvalidSetting, match="an identity needs its provider"):
        policy.signer(half)


def test_the_documented_policy_is_one() -> None:
    page = Path(__file__).parents[3] / "docs" / "how-to" / "http-service.md"
    (text,) = (found["body"] for found in FENCE.finditer(page.read_text(encoding="utf-8")) if found["kind"] == "yaml")
    assert policy.Policy.model_validate(yaml.load(text, policy._Loader)).limits == policy.Limits()


def test_a_required_signature_needs_a_signer(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("erasers: {gun: {folder: gun}}")
    with pytest.raises(InvalidSetting, match="names no signer"):
        policy.read(tmp_path / "policy.yaml", require_signature=True)
