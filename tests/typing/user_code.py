"""Typical user code for Excise, which only type checkers read (tests/typing/test_types.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import excise
from excise import Attachment, Attachments, Concept, Eraser, MethodConfig, Pair, Ranking, Signer, SNCEConfig, TopKSAE


class Diffusers:
    """Pipeline as diffusers declares it: `components` is a property."""

    @property
    def components(self) -> dict[str, Any]:
        return {}

    def encode_prompt(self, prompt: str, device: str | None = None) -> tuple[Any, Any]:
        return prompt, device


def make(pipe: Diffusers, folder: Path) -> Eraser:
    concept = Concept("gun", ("gun",), (Pair("a gun", "a cat"),))
    eraser = excise.erase(pipe, concept, method="snce", sae=folder, k=2)
    eraser = excise.erase(pipe, "gun", "uce", lam=0.5)
    address: str | None = eraser.save_pretrained(str(folder), push_to_hub=True, repo_id="owner/name")
    pushed: str = eraser.push_to_hub("owner/name", private=True)
    names: list[str] = excise.list_methods()
    weak: tuple[str, ...] = eraser.weak
    digest: str = eraser.digest
    print(address, pushed, names, weak, digest)
    return Eraser.from_pretrained("owner/name", revision="main", subfolder="gun", cache_dir=folder)


def choose(method: str) -> tuple[int, float]:
    config: SNCEConfig = excise.method_config("snce", preset="paper", k=3)
    some: MethodConfig = excise.method_config(method)
    print(some.lam, vars(some))
    return config.k, excise.method_config("uce").lam


def find(pipe: Diffusers, folder: Path) -> tuple[int, ...]:
    sae: TopKSAE = TopKSAE.from_pretrained(folder, revision="main", device="cpu")
    sae.save_pretrained(folder)
    sae.push_to_hub("owner/sae")
    trained: TopKSAE = excise.train_sae(pipe, ["a gun", "a cat"], out=str(folder), tokens=1000)
    ranking: Ranking = excise.find_neurons(pipe, "gun", trained, top=3)
    first: float = ranking.entries[0].score
    print(first, sae.config.d)
    return ranking.top(2)


def use(pipe: Diffusers, folder: Path) -> None:
    loaded: Attachment | Attachments = excise.load_eraser(
        pipe, "owner/name", name="gun", revision="main", token=None, strength=0.5, on_bypass="warn"
    )
    with loaded:
        excise.set_erasers(pipe, ["gun"], [0.5])
        excise.set_erasers(pipe, "gun", 1)
    active: list[str] = excise.get_active_erasers(pipe)
    status: Mapping[str, Mapping[str, Any]] = excise.list_erasers(pipe)
    excise.disable_erasers(pipe)
    excise.enable_erasers(pipe)
    excise.delete_erasers(pipe, active)
    excise.unload_eraser(pipe)
    with Eraser.from_pretrained(folder).attach(pipe, strength=0.5) as attachment:
        attachment.strength = 0.2
        commit: str | None = attachment.commit
        print(commit, status)
    signature: Path = excise.sign(folder, folder / "key.pem")
    checks = excise.verify(folder, pipe, signed_by=Signer(public_key=str(signature)))
    passed: bool = all(check.passed for check in checks)
    print(passed)


def handle(pipe: Diffusers) -> str:
    try:
        excise.load_eraser(pipe, "owner/name")
    except excise.NotFound as error:
        return str(error)
    except (excise.WrongModel, excise.Tampered, excise.InvalidSetting, excise.MissingExtra):
        return "refused"
    except (excise.EraserDidNotFire, excise.WeakEraserError):
        return "without effect"
    except excise.ExciseError:
        return "another reason"
    return ""
