"""`excise serve`: what it refuses before it listens, in one line, and the bundled model in service."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from excise.erasers import Eraser


@pytest.fixture
def policy(gun_eraser: Eraser, tmp_path: Path) -> Path:
    gun_eraser.save_pretrained(tmp_path / "gun")
    (tmp_path / "policy.yaml").write_text("erasers: {gun: {folder: gun}}")
    return tmp_path / "policy.yaml"


def refused(result: Any, message: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert result.stdout == ""


def test_a_policy_is_checked_without_serving(
    call: Callable[..., Any], policy: Path, model_folder: Path, gun_eraser: Eraser
) -> None:
    done = call("serve", policy, "--model", model_folder, "--check", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == {"erasers": {"gun": gun_eraser.digest}}
    assert gun_eraser.digest in call("serve", policy, "--model", model_folder, "--check").stdout


WRONG = {
    "no YAML": ("erasers: {", "cannot be read"),
    "no erasers": ("erasers: {}", "erasers: "),
    "no folder": ("erasers: {knife: {folder: knife}}", "knife"),
    "another eraser": ("erasers: {gun: {folder: gun, digest: '000000000000'}}", "gun"),
    "unsigned": ("erasers: {gun: {folder: gun}}\nsigned_by: {public_key: key.pem}", "gun"),
    "weak": ("erasers: {gun: {folder: weak}}", "is weak (it misses); make a better one, or set accept_weak: true"),
    "a rule that cannot act": ("erasers: {gun: {folder: weights, when_fired: refuse}}", "can only be erase"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_policy_is_one_line_and_exit_code_2(
    call: Callable[..., Any], policy: Path, model_folder: Path, gun_eraser: Eraser, what: str, weights_eraser: Eraser
) -> None:
    replace(gun_eraser, verdict={**gun_eraser.verdict, "weak": ["it misses"]}).save_pretrained(policy.parent / "weak")
    weights_eraser.save_pretrained(policy.parent / "weights")
    text, message = WRONG[what]
    policy.write_text(text)
    refused(call("serve", policy, "--model", model_folder), message)


@pytest.fixture
def weights_eraser(gun_eraser: Eraser, tiny_pipe: Any) -> Eraser:
    import torch

    from excise.erasers import WeightEdit, made_for
    from excise.sites import Site

    path = "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    weight = tiny_pipe.unet.get_submodule(path).weight
    edit = WeightEdit(Site("unet", path, len(weight)), delta=torch.ones(weight.shape))
    return replace(gun_eraser, edits=(edit,), made_for=made_for(tiny_pipe, ["unet"]), method="uce")


def test_an_eraser_of_another_model_a_missing_policy_and_a_bad_address(
    call: Callable[..., Any], policy: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(call("serve", policy), "made for another")
    refused(call("serve", policy.parent / "none.yaml"), "there is no policy")
    refused(call("serve", policy, "--model", model_folder, "--require-signature"), "names no signer")
    refused(call("serve", policy, "--model", model_folder, "--host", "0.0.0.0"), "there are no API keys")
    monkeypatch.setenv("EXCISE_API_KEYS", "short")
    refused(call("serve", policy, "--model", model_folder), "has less than 16 characters")
    monkeypatch.delenv("EXCISE_API_KEYS")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(call("serve", policy, "--model", model_folder, "--port", port), f"cannot listen on 127.0.0.1:{port}")
