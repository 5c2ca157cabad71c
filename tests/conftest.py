"""Shared fixtures: a tiny random Stable Diffusion of real classes, with CLIP's real tokenizer."""

from __future__ import annotations

import copy
import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.outside import nothing_is_read_outside, pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["nothing_is_read_outside", "pytest_make_collect_report", "pytest_runtest_makereport"]

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Read when torch is imported, here and in programs that tests start: competing processes take many times longer.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell script's `make test &`. Programs that tests start would inherit it and ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as under nohup

HEAVY = (
    "erasers/test_verify.py", "erasers/test_families.py", "erasers/test_survival.py", "bench/test_worker.py",
    "test_docs.py", "methods/test_default_erases.py", "cli/erase/test_erase.py", "app/bench/test_reproduce.py",
    "erasers/test_bypasses.py", "methods/trained/test_second_device.py", "erasers/edits/test_block_sae.py",
    "erasers/test_soak.py", "erasers/test_setting_races.py", "app/erase/test_hardening.py",
    "methods/trained/test_mace.py", "methods/test_bundled_saes.py", "erasers/apply/test_weights.py",
    "erasers/test_old_erasers.py", "bench/protocols/test_protocol_suite.py",
    "erasers/apply/test_known_prompts.py", "reference/test_bundle.py", "erasers/test_settings.py",
    "typing/test_types.py", "erasers/test_routes.py", "test_api.py", "methods/test_judging.py",
    "erasers/test_generating.py", "app/audit/test_audit.py", "erasers/guard/test_waits.py",
    "bench/canvas/test_canvas_suite.py", "erasers/test_service.py", "methods/sae/test_snce.py",
    "sae/test_supervised_training.py", "methods/trained/test_sa.py", "test_loading.py", "cli/test_bundled.py",
    "test_plugins.py", "bench/test_checker.py", "test_distributions.py", "app/serve/test_process.py",
    "app/studio/test_page.py", "sae/test_parallel_checkpoint.py", "sae/test_parallel.py",
)  # fmt: skip
"""The files that take longest, which come first: a worker that begins one at the end keeps the others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: n for n, name in enumerate(HEAVY)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Exclude the millions of objects made by imports from garbage collection, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _commands_made_once() -> None:
    """`CliRunner` makes every command of `excise` again at each call, which a process of its own does once."""
    import typer.testing

    if make := getattr(typer.testing, "_get_command", None):
        typer.testing._get_command = functools.cache(make)


@pytest.fixture(scope="session")
def _vocabularies_read_once() -> None:
    """A fast tokenizer makes a dictionary of its 49,408 words at each attaching. It is kept while no word is added."""
    from transformers import PreTrainedTokenizerFast

    owner = next(c for c in PreTrainedTokenizerFast.__mro__ if "get_vocab" in vars(c))
    read, kept = owner.get_vocab, dict[int, tuple[Any, int, dict[str, int]]]()

    def once(self: Any) -> dict[str, int]:
        fast = self._tokenizer
        size = fast.get_vocab_size(with_added_tokens=True)
        if id(fast) not in kept or kept[id(fast)][1] != size:
            if len(kept) > 8:
                kept.clear()
            kept[id(fast)] = fast, size, read(self)
        return dict(kept[id(fast)][2])

    owner.get_vocab = once


FORMS = ("{}", "a {}", "a {} on grass", "a {} on sand", "a picture of a {}", "{} on wood", "the {}", "a {} in the sky")
NOUNS = ("cat", "rose", "bus", "house", "frog", "star")
CONTROLS = ("tree", "crown")


@pytest.fixture(scope="session")
def clip_tokenizer(_vocabularies_read_once: None) -> Any:
    from tests.tiny import words

    return words.shared_clip()


@pytest.fixture(scope="session")
def build_pipe(clip_tokenizer: Any) -> Callable[..., Any]:
    """Return a function that builds a tiny random pipeline: 64 wide, 3 layers, 16x16 pictures. `build_pipe(seed=0)`."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from tests.tiny.copies import Copies

    def parts(seed: int, width: int, layers: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=49406,
                eos_token_id=49407,
                pad_token_id=49407,
            )
        )
        # CLIP's initialisation is so small that a random encoder hardly distinguishes prompts.
        with torch.no_grad():
            encoder.get_input_embeddings().weight.normal_()
            for name, parameter in encoder.named_parameters():
                if "self_attn" in name and name.endswith("weight"):
                    parameter.normal_(std=(2 if "v_proj" in name or "out_proj" in name else 0.7) * width**-0.5)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            attention_head_dim=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(4, 8),
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
        )
        scheduler = DPMSolverMultistepScheduler(steps_offset=1)
        return {"vae": vae.eval(), "text_encoder": encoder.eval(), "unet": unet.eval(), "scheduler": scheduler}

    made: dict[tuple[int, int, int], tuple[Copies, torch.Tensor]] = {}

    def build(seed: int = 0, width: int = 64, layers: int = 3) -> Any:
        """Return a copy of the parts made once, and restore the random state that making them left."""
        key = (seed, width, layers)
        if key not in made:
            made[key] = Copies(parts(*key)), torch.get_rng_state()
        copies, state = made[key]
        torch.set_rng_state(state)
        pipe = StableDiffusionPipeline(
            **copies(),
            tokenizer=clip_tokenizer,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return build


@pytest.fixture
def tiny_pipe(build_pipe: Callable[..., Any]) -> Any:
    """Return a new tiny pipeline with the same weights every time."""
    return build_pipe()


@pytest.fixture
def tiny_site() -> Any:
    from excise.sites import Site

    return Site("text_encoder", "encoder.layers.2", 64)


@pytest.fixture(scope="session")
def _made_once(build_pipe: Callable[..., Any]) -> tuple[Any, Any]:
    """Return the SAE of `word_sae` and the model digests of `tiny_pipe`, whose weights are always the same."""
    from excise.erasers import made_for
    from excise.sites import Site

    pipe = build_pipe()
    return make_word_sae(pipe, Site("text_encoder", "encoder.layers.2", 64)), made_for(pipe)


@pytest.fixture
def word_sae(_made_once: tuple[Any, Any]) -> Any:
    """Return a random TopK SAE (64 latents, 8 kept) for `tiny_site`; latent 5 reads and writes "gun" against "cat"."""
    return copy.deepcopy(_made_once[0])


def make_word_sae(pipe: Any, site: Any, neuron: int = 5, m: int = 64, k: int = 8) -> Any:
    import torch

    from excise.sae import SAEConfig, TopKSAE
    from excise.sites import capture

    def states(prompts: list[str]) -> Any:
        (features,) = capture(pipe, [site], prompts)
        return features.states[site][:, 1:].flatten(0, 1)

    guns = states([form.format("gun") for form in FORMS])
    cats = states([form.format(noun) for form in FORMS for noun in NOUNS + CONTROLS])
    sae = TopKSAE(SAEConfig(d=site.width, m=m, k=k), seed=1)
    # Fisher's discriminant: the direction in which "gun" differs at every position.
    centre = cats.mean(0)
    within = (cats - centre).T @ (cats - centre) / len(cats)
    direction = torch.linalg.solve(
        within + 0.1 * within.diagonal().mean() * torch.eye(site.width), guns.mean(0) - centre
    )
    direction /= direction.norm()
    with torch.no_grad():
        sae.b_pre.copy_(centre)
        sae.W_enc.mul_(0.5)
        sae.W_enc[neuron] = sae.W_dec[neuron] = direction
        without = (cats - centre) @ direction
        sae.b_enc[neuron] = -without.max()
        sae.W_enc[neuron] *= 4
        sae.b_enc[neuron] *= 4
    return sae


@pytest.fixture(scope="session")
def gun() -> Any:
    """Return a concept of 48 plain pairs, 8 wordings by 6 nouns; controls are other nouns in the same wordings."""
    from excise.concepts import Concept, Pair

    pairs = tuple(Pair(form.format("gun"), form.format(noun), form) for form in FORMS for noun in NOUNS)
    controls = tuple(form.format(noun) for form in FORMS for noun in CONTROLS)
    return Concept("gun", ("gun",), pairs, controls)


@pytest.fixture
def gun_edit(word_sae: Any, tiny_site: Any) -> Any:
    """Return an edit that turns down latent 5 by the prompt's code, without TopK."""
    from excise.erasers import SAEEdit

    return SAEEdit.from_sae(word_sae, tiny_site, [5], gate="relu")


@pytest.fixture
def gun_eraser(_made_once: tuple[Any, Any], gun_edit: Any) -> Any:
    """Return an eraser of `gun_edit` for `tiny_pipe`."""
    from excise.erasers import Eraser

    return Eraser((gun_edit,), "gun-test", "gun", ("gun",), copy.deepcopy(_made_once[1]), canary=("a gun",))


@pytest.fixture(scope="session")
def _bundled_pipe(_vocabularies_read_once: None) -> Any:
    from excise import reference

    return reference.load()


@pytest.fixture(scope="session")
def _read_once() -> dict[Any, list[Any]]:
    """Return the batches of states of the bundled pipeline by Site and prompts."""
    return {}


@pytest.fixture(scope="module")
def one_bundled_pipe(_bundled_pipe: Any, _read_once: dict[Any, list[Any]]) -> Iterator[Any]:
    """The bundled pipeline, loaded once a worker: in this module `reference.load()` returns it instead of a new one.

    Methods that fit on it read each list of prompts once, and so does `verify` what it reads unedited. Every test must
    leave the pipeline as it was.
    """
    from excise import reference
    from excise.erasers.hooks import context
    from excise.erasers.proof import removal
    from excise.methods import prompt_codes

    load, capture, states, read = reference.load, prompt_codes.capture, removal.conditional_states, _read_once
    plain: dict[tuple[str, ...], Any] = {}
    before = _state(_bundled_pipe)

    def shared(*given: Any, **options: Any) -> Any:
        return load(*given, **options) if given or options else _bundled_pipe

    def once(pipe: Any, sites: Any, prompts: Any, batch_size: int = 64) -> Any:
        if pipe is not _bundled_pipe:
            return capture(pipe, sites, prompts, batch_size)
        key = (*sites, *prompts, batch_size)
        read[key] = found = read.pop(key, None) or list(capture(pipe, sites, prompts, batch_size))
        while sum(len(batch.ids) for batches in read.values() for batch in batches) > max(3000, len(prompts)):  # 480 MB
            read.pop(next(iter(read)))  # the one that was not asked for longest
        return found

    def unedited_once(pipe: Any, prompts: list[str]) -> Any:
        if pipe is not _bundled_pipe or context._ONLY.get() is not context._NOBODY:
            return states(pipe, prompts)
        if tuple(prompts) not in plain:
            plain[tuple(prompts)] = states(pipe, prompts)
        return plain[tuple(prompts)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "load", shared)
        patch.setattr(prompt_codes, "capture", once)
        patch.setattr(removal, "conditional_states", unedited_once)
        yield _bundled_pipe
    assert _state(_bundled_pipe) == before, "a test left the bundled pipeline changed"


def _state(pipe: Any) -> dict[str, Any]:
    """What a test could leave behind: hooks, wrapped methods, other parts or settings, other weights."""
    import torch

    state: dict[str, Any] = {
        "pipe": sorted(name for name, value in vars(pipe).items() if callable(value)),
        "config": dict(pipe.config),
    }
    for name, part in pipe.components.items():
        state[name] = id(part)
        if isinstance(part, torch.nn.Module):
            state[f"{name}: weights"] = sum(float(p.detach().norm(1, dtype=torch.float64)) for p in part.parameters())
            state[f"{name}: hooks"] = [
                path
                for path, module in part.named_modules()
                if module._forward_hooks
                or module._forward_pre_hooks
                or {"forward", "_diffusers_hook"} & set(vars(module))
            ]
    return state


@pytest.fixture
def firm_eraser(gun_eraser: Any) -> Any:
    """`gun_eraser` twice as strong: it removes most of what "gun" makes of a prompt, so that `verify` accepts it."""
    from dataclasses import replace

    (edit,) = gun_eraser.edits
    return replace(gun_eraser, edits=(replace(edit, lam=2.0),))


@pytest.fixture
def few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit judges only 4 words for groups of people, which takes a quarter of its time on tiny models."""
    from excise.methods import judging

    every = judging.group_sentences()
    few = list(dict.fromkeys(sentence.word for sentence in every))[:4]
    monkeypatch.setattr(judging, "group_sentences", lambda: [s for s in every if s.word in few])


@pytest.fixture
def short_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` measures what is removed from 2 predictions, not 8: a random model's erasers may fail that anyway."""
    monkeypatch.setattr("excise.erasers.proof.replay.STEPS", 4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a running `tests.hub_server.Hub`, with huggingface_hub logged in to it and an empty cache."""
    from huggingface_hub import constants, file_download, hf_api

    from tests import hub_server

    with hub_server.Hub() as server:
        # The package reads the environment when it is imported, which may be earlier.
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):  # huggingface_hub < 1 keeps its own copy in the second
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server
