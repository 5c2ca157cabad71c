"""Erasers to a hub and back: the real client against a real HTTP server that speaks the hub's endpoints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import excise
from excise.erasers import Eraser, Signer, WeightEdit, made_for, sign
from excise.erasers.artefact import hub as artefact_hub
from excise.erasers.artefact.files import FILES
from excise.erasers.artefact.hub import card as card_of
from excise.erasers.artefact.hub import push_folder
from excise.errors import ExciseError
from excise.sites import Site
from tests.hub_server import TOKEN, Hub

NAME = "someone/gun-eraser"


@pytest.fixture
def pushed(hub: Hub, gun_eraser: Eraser) -> Hub:
    gun_eraser.push_to_hub(NAME)
    return hub


def test_an_eraser_comes_back_from_the_hub_as_it_was(hub: Hub, gun_eraser: Eraser) -> None:
    url = gun_eraser.push_to_hub(NAME, commit_message="Erase guns")
    repository = hub.repositories[NAME]
    assert url == f"{hub.endpoint}/{NAME}/commit/{repository.branches['main']}"
    assert repository.messages == ["initial commit", "Erase guns"]
    assert not repository.private
    assert set(hub.files(NAME)) == {".gitattributes", "README.md", *FILES}
    assert {name: hub.files(NAME)[name] for name in FILES} == gun_eraser.pack()
    assert Eraser.from_pretrained(NAME).digest == gun_eraser.digest


def test_only_the_erasers_own_files_are_downloaded(pushed: Hub, tmp_path: Path) -> None:
    pushed.alter(NAME, {"pytorch_model.bin": b"a pickle", "eraser.py": b"raise SystemExit", "model.sig": b"signed"})
    Eraser.from_pretrained(NAME)
    (snapshot,) = (tmp_path / "hub-cache").glob("models--someone--gun-eraser/snapshots/*")
    assert {path.name for path in snapshot.iterdir()} == {*FILES, "model.sig"}


def test_with_the_server_down_the_cache_is_used(pushed: Hub, gun_eraser: Eraser, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="not in the cache"):
        Eraser.from_pretrained(NAME, local_files_only=True)
    Eraser.from_pretrained(NAME)
    Eraser.from_pretrained(NAME, cache_dir=tmp_path / "elsewhere")
    asked = len(pushed.asked)
    assert Eraser.from_pretrained(NAME, local_files_only=True).digest == gun_eraser.digest
    assert len(pushed.asked) == asked
    pushed.stop()
    for options in ({"local_files_only": True}, {}, {"cache_dir": tmp_path / "elsewhere"}):
        assert Eraser.from_pretrained(NAME, **options).digest == gun_eraser.digest  # type: ignore[arg-type]
    with pytest.raises(ExciseError, match="the hub was not reached"):
        Eraser.from_pretrained("someone/other")
    with pytest.raises(ExciseError, match="was not pushed: the hub was not reached"):
        gun_eraser.push_to_hub(NAME)


def test_what_cannot_be_had_is_one_clear_line(pushed: Hub, gun_eraser: Eraser) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        (
            "someone/nothing",
            {},
            r"^someone/nothing is not a folder, and no eraser was found .*\(no such repository",
        ),
        (NAME, {"revision": "v9"}, r"\(no such revision\)"),
        ("not a/name", {}, "no eraser was found on the hub"),
        ("a/b/c", {}, "no eraser was found on the hub"),
    ]
    for name, options, message in cases:
        with pytest.raises(ExciseError, match=message) as caught:
            Eraser.from_pretrained(name, **options)
        assert "\n" not in str(caught.value)
    for name, options, message in [
        (NAME, {"token": "hf_stranger"}, f"^{NAME} could not be pushed .*; check the name, and that your token"),
        ("not a/name", {}, "^.not a/name. is not a repository's name"),
    ]:
        with pytest.raises(ExciseError, match=message) as caught:
            gun_eraser.push_to_hub(name, **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_altered_on_the_server_is_refused(pushed: Hub, name: str) -> None:
    data = pushed.files(NAME)[name]
    pushed.alter(NAME, {name: data[:-1] + bytes([data[-1] ^ 1])})
    with pytest.raises(ExciseError, match="was altered or cut short"):
        Eraser.from_pretrained(NAME)
    pushed.alter(NAME, {name: None})
    with pytest.raises(ExciseError, match=f"not a complete eraser: {name}"):
        Eraser.from_pretrained(NAME)


def test_a_commit_is_kept_to_whatever_is_pushed_later(pushed: Hub, gun_eraser: Eraser) -> None:
    first = pushed.repositories[NAME].branches["main"]
    stronger = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], lam=3.0),))
    stronger.push_to_hub(NAME)
    assert Eraser.from_pretrained(NAME).digest == stronger.digest
    assert Eraser.from_pretrained(NAME, revision=first).digest == gun_eraser.digest
    gun_eraser.push_to_hub(NAME, revision="mild")
    assert Eraser.from_pretrained(NAME, revision="mild").digest == gun_eraser.digest
    assert Eraser.from_pretrained(NAME).digest == stronger.digest


def test_a_private_repository_wants_a_token(hub: Hub, gun_eraser: Eraser, monkeypatch: pytest.MonkeyPatch) -> None:
    gun_eraser.push_to_hub(NAME, private=True)
    assert hub.repositories[NAME].private
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(ExciseError, match="private one and no token"):
        Eraser.from_pretrained(NAME)
    assert Eraser.from_pretrained(NAME, token=TOKEN).digest == gun_eraser.digest


def test_a_signature_goes_along_and_never_outlives_what_it_signs(hub: Hub, gun_eraser: Eraser, tmp_path: Path) -> None:
    gun_eraser.save(tmp_path / "gun")
    (tmp_path / "gun" / "model.sig").write_bytes(b"signed")
    push_folder(tmp_path / "gun", NAME)
    assert hub.files(NAME)["model.sig"] == b"signed"
    replace(gun_eraser, name="other").push_to_hub(NAME)
    assert "model.sig" not in hub.files(NAME)


def test_a_signed_eraser_is_known_again_on_the_hub(hub: Hub, gun_eraser: Eraser, tmp_path: Path) -> None:
    """A real key, which an intruder with push access does not have."""
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))
    gun_eraser.save_pretrained(tmp_path / "gun")
    sign(tmp_path / "gun", private)
    push_folder(tmp_path / "gun", NAME)
    assert Eraser.from_pretrained(NAME, signed_by=Signer(public)).digest == gun_eraser.digest
    other = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], lam=0.0),))
    hub.alter(NAME, dict(other.pack()))
    assert Eraser.from_pretrained(NAME).digest == other.digest
    with pytest.raises(ExciseError, match="was altered since"):
        Eraser.from_pretrained(NAME, signed_by=Signer(public))
    other.push_to_hub(NAME)
    with pytest.raises(ExciseError, match="is not signed"):
        Eraser.from_pretrained(NAME, signed_by=Signer(public))


def test_save_pretrained_puts_a_card_beside_the_eraser(hub: Hub, gun_eraser: Eraser, tmp_path: Path) -> None:
    folder = tmp_path / "gun"
    gun_eraser.save(folder)
    assert gun_eraser.save_pretrained(folder) is None
    assert {path.name for path in folder.iterdir()} == {"README.md", *FILES}
    assert Eraser.from_pretrained(folder).digest == gun_eraser.digest
    assert '"owner/name"' in (folder / "README.md").read_text()
    gun_eraser.save_pretrained(folder, repo_id=NAME, push_to_hub=True, private=True)
    assert hub.repositories[NAME].private
    gun_eraser.save_pretrained(folder, push_to_hub=True)
    assert f"{NAME.split('/')[0]}/gun" in hub.repositories


def test_a_card_somebody_wrote_is_kept_and_our_own_learns_its_name(
    hub: Hub, gun_eraser: Eraser, tmp_path: Path
) -> None:
    gun_eraser.save_pretrained(tmp_path / "gun")
    push_folder(tmp_path / "gun", NAME)
    assert f'load_eraser(pipe, "{NAME}")' in hub.files(NAME)["README.md"].decode()
    (tmp_path / "gun" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    push_folder(tmp_path / "gun", NAME)
    assert hub.files(NAME)["README.md"].endswith(b"Mine.\n")


def test_an_older_versions_card_is_written_anew_unless_somebody_edited_it(
    hub: Hub, gun_eraser: Eraser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gun"
    with monkeypatch.context() as earlier:
        earlier.setattr(artefact_hub, "_CARD", artefact_hub._CARD.replace("## Dual use", "## Two uses"))
        gun_eraser.save_pretrained(folder)
    older = (folder / "README.md").read_bytes()
    assert b"## Two uses" in older
    before_marks = card_of(gun_eraser).rpartition("\n<!--")[0].encode()
    for generated in (older, older.replace(b"\n", b"\r\n"), before_marks):
        (folder / "README.md").write_bytes(generated)
        push_folder(folder, NAME)
        assert hub.files(NAME)["README.md"] == card_of(gun_eraser, NAME).encode()
    for edited in (older.replace(b"Two uses", b"My uses"), older + b"Mine.\n", b"---\nlicense: mit\n---\nMine.\n"):
        (folder / "README.md").write_bytes(edited)
        push_folder(folder, NAME)
        assert hub.files(NAME)["README.md"] == edited


def test_load_eraser_by_name_on_a_live_pipeline(pushed: Hub, tiny_pipe: Any) -> None:
    """The card's own snippet, run."""
    snippet = re.search(r"```python\n(.*?)```", pushed.files(NAME)["README.md"].decode(), re.DOTALL)
    assert snippet is not None
    assert f'excise.load_eraser(pipe, "{NAME}")' in snippet[1]

    def states() -> torch.Tensor:
        with torch.no_grad():
            return tiny_pipe.encode_prompt("a gun on grass", "cpu", 1, True)[0]  # type: ignore[no-any-return]

    before = states()
    with excise.load_eraser(tiny_pipe, NAME) as attachment:
        assert attachment.active
        assert not torch.equal(states(), before)
    exec(snippet[1].replace("=20", "=1"), {"pipe": tiny_pipe})
    assert excise.list_erasers(tiny_pipe) == {}
    assert torch.equal(states(), before)


def test_the_card_says_what_it_is(gun_eraser: Eraser) -> None:
    measured = {
        "neurons": [{"index": 5, "auroc": 0.98765, "p_value": None, "structural": False}],
        "fires": {"concept": 1.0, "controls": 0.0},
        "dominance": 3.25,
        "pairs": 48,
        "encoders": {"text_encoder_2": {"carried": 0.5}},
        "something new": [1, 2],
    }
    created = {"config": {"lam": 1.25, "batch_size": 64}, "versions": {"torch": "2.13"}}
    card = card_of(replace(gun_eraser, measured=measured, created=created, canary_shift=0.25), NAME)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "excise",
        "tags": ["excise", "concept-erasure", "sparse-autoencoder", "text-to-image"],
    }
    for expected in (
        "# gun-test",
        "Erases **gun** from the images of StableDiffusionPipeline, by turning down one neuron of a sparse autoencoder",
        "Words it was made for: gun.",
        "| text\\_encoder/encoder.layers.2 | 5 | 1 in codes | "
        "lead 0, gate relu, source prompt, uncond none, align position |",
        "| config: batch size | 64 |",
        "| neuron 5: AUROC on held-out wordings | 0.9877 |",
        "| neuron 5: carries the prompts' structure rather than the concept | no |",
        "| share of concept prompts edited | 1 |",
        "| ratio of the first neuron's score to the second's | 3.25 |",
        "| encoders: text\\_encoder\\_2: share of the change by the concept's word that the neuron carries | 0.5 |",
        "| something new | 1, 2 |",
        "| change of what the denoiser reads on the canary | 0.25 |",
        "## What it does not stop",
        "fine-tuning",
        "IP-Adapter",
        "attacks without text",
        "## Dual use",
        "allow_amplify=True",
    ):
        assert expected in text, expected
    assert "p, permutation test" not in text


def test_the_card_of_other_kinds_of_edits(gun_eraser: Eraser) -> None:
    layer = Site("unet", "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 2)
    change = WeightEdit(layer, up=torch.ones(2, 1), down=torch.ones(1, 3))
    card = card_of(replace(gun_eraser, edits=(change,)), NAME)
    assert "by changed weights in 1 layers of its denoiser. The model's own weights" in card
    assert "sparse-autoencoder" not in card
    assert "acts only on the modules that it edits" in card
    both = card_of(replace(gun_eraser, edits=(*gun_eraser.edits, change)), NAME)
    assert "by turning down one neuron of a sparse autoencoder on its text encoder's states and by" in both


def test_the_card_names_a_base_model_only_if_it_is_one_on_the_hub(gun_eraser: Eraser, tiny_pipe: Any) -> None:
    def front(model: Any) -> Any:
        made = replace(gun_eraser, made_for={**made_for(tiny_pipe), "model": model})
        return yaml.safe_load(card_of(made).split("---\n")[1])

    found = front("CompVis/stable-diffusion-v1-4")
    assert (found["base_model"], found["base_model_relation"]) == ("CompVis/stable-diffusion-v1-4", "adapter")
    for path in ("/home/me/secret-project", "./model", "../x", "a/b/c", "", None, 3):
        assert "base_model" not in front(path)


def test_what_an_artefact_holds_cannot_break_the_card(gun_eraser: Eraser) -> None:
    evil = "x\n---\n<script>|[click](http://bad)`# {front}"
    card = card_of(replace(gun_eraser, name=evil, concept=evil, mentions=(evil,), measured={evil: evil}))
    assert card.count("\n---\n") == 1
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert "[click]" not in card.replace("\\[click\\]", "")


def test_an_eraser_that_needs_its_sae_says_so_on_the_card(gun_eraser: Eraser) -> None:
    topk = replace(gun_eraser, edits=(replace(gun_eraser.edits[0], gate="topk"),))
    assert f'load_eraser(pipe, "{NAME}", sae=sae)' in card_of(topk, NAME)


def test_excise_push(hub: Hub, gun_eraser: Eraser, tmp_path: Path) -> None:
    import json

    from typer.testing import CliRunner

    from excise.cli import app

    def call(*words: Any) -> Any:
        return CliRunner().invoke(app, [str(word) for word in words])

    gun_eraser.save(tmp_path / "gun")
    done = call("push", tmp_path / "gun", NAME, "--private", "--message", "Erase guns", "--json")
    assert done.exit_code == 0, done.output
    pushed = json.loads(done.stdout)
    assert pushed["digest"] == gun_eraser.digest
    assert pushed["url"].startswith(f"{hub.endpoint}/{NAME}/commit/")
    assert hub.repositories[NAME].private
    assert hub.repositories[NAME].messages[-1] == "Erase guns"
    assert "gun" in call("push", tmp_path / "gun", NAME, "--revision", "v1").stdout
    assert Eraser.from_pretrained(NAME, revision="v1").digest == gun_eraser.digest
    (tmp_path / "gun" / "eraser.json").write_text("{}")
    asked = len(hub.asked)
    altered = call("push", tmp_path / "gun", NAME)
    assert altered.exit_code == 2
    assert len(altered.stderr.strip().splitlines()) == 1
    assert len(hub.asked) == asked


@pytest.mark.slow
def test_a_process_that_knows_nothing_but_the_endpoint(
    hub: Hub, gun_eraser: Eraser, build_pipe: Callable[..., Any], tmp_path: Path
) -> None:
    """As a user would: HF_ENDPOINT and HF_TOKEN in the environment, `excise push`, then the name in a program."""
    gun_eraser.save(tmp_path / "gun")
    build_pipe().save_pretrained(tmp_path / "model")
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    code = f"""
from excise.cli import app
app(["push", "gun", "{NAME}"], standalone_mode=False)
import excise
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained("model", safety_checker=None)
with excise.load_eraser(pipe, "{NAME}") as attachment:
    print(attachment.status()["digest"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == gun_eraser.digest
    assert set(FILES) < set(hub.files(NAME))


def test_a_loaded_eraser_is_pinned_to_the_commit_it_came_from(pushed: Hub, tiny_pipe: Any, gun_eraser: Eraser) -> None:
    first = pushed.repositories[NAME].branches["main"]
    replace(gun_eraser, name="later").push_to_hub(NAME)
    with excise.load_eraser(tiny_pipe, NAME, revision=first, strength=0.5) as attachment:
        assert (attachment.commit, attachment.name, attachment.strength) == (first, "gun-test", 0.5)
        assert excise.list_erasers(tiny_pipe)["gun-test"]["commit"] == first
    eraser = Eraser.from_pretrained(NAME)
    assert eraser.commit == pushed.repositories[NAME].branches["main"] != first
    assert eraser.name == "later"
    assert replace(eraser, name="another").commit is None
    assert eraser.pack() == replace(gun_eraser, name="later").pack()
    with pytest.raises(excise.NotFound, match="no such revision"):
        excise.load_eraser(tiny_pipe, NAME, revision="v9")
    assert excise.list_erasers(tiny_pipe) == {}


def test_an_eraser_lies_in_a_folder_of_the_repository(
    hub: Hub, tiny_pipe: Any, gun_eraser: Eraser, tmp_path: Path
) -> None:
    gun_eraser.push_to_hub(NAME)
    hub.alter(NAME, {f"erasers/gun/{name}": data for name, data in replace(gun_eraser, name="below").pack().items()})
    options = {"subfolder": "erasers/gun", "cache_dir": str(tmp_path / "cache")}
    assert Eraser.from_pretrained(NAME, **options).name == "below"  # type: ignore[arg-type]
    with excise.load_eraser(tiny_pipe, NAME, **options) as attachment:  # type: ignore[arg-type]
        assert (attachment.name, attachment.commit) == ("below", hub.repositories[NAME].branches["main"])
    (snapshot,) = (tmp_path / "cache").glob("models--someone--gun-eraser/snapshots/*")
    assert [path.name for path in snapshot.iterdir()] == ["erasers"]
    gun_eraser.save(tmp_path / "here" / "gun")
    with excise.load_eraser(tiny_pipe, tmp_path / "here", subfolder="gun") as attachment:
        assert attachment.commit is None
    for wrong in ("../gun", "/gun", 5):
        with pytest.raises(excise.InvalidSetting, match="a path within the repository"):
            Eraser.from_pretrained(NAME, subfolder=wrong)  # type: ignore[arg-type]
    with pytest.raises(excise.NotFound):
        Eraser.from_pretrained(NAME, subfolder="erasers/knife")


def test_the_hubs_options_reach_it(pushed: Hub, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed.repositories[NAME].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(excise.NotFound, match="a private one and no token"):
        excise.load_eraser(tiny_pipe, NAME)
    with pytest.raises(excise.NotFound, match="not in the cache"):
        excise.load_eraser(tiny_pipe, NAME, token=TOKEN, local_files_only=True)
    with excise.load_eraser(tiny_pipe, NAME, token=TOKEN) as attachment:
        assert attachment.active
