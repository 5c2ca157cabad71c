"""What an attached eraser lives through, or refuses with a reason: offloading, compiling, threads, siblings, saving."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import excise
from excise.erasers import Eraser, SAEEdit, made_for
from excise.errors import EraserDidNotFire
from excise.sites import Site, TextEncoding, default_site

GUN, CAT = "a gun on grass", "a cat on grass"


def draw(pipe: Any, prompt: Any = GUN, seed: int = 3, **options: Any) -> Tensor:
    how = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", **options}
    made: Tensor = pipe(prompt, generator=torch.Generator().manual_seed(seed), **how).images
    return made


@pytest.fixture
def erased(build_pipe: Any, gun_eraser: Eraser) -> Tensor:
    """The picture of a gun as it should look under the eraser."""
    pipe = build_pipe()
    with gun_eraser.attach(pipe):
        return draw(pipe)


@pytest.fixture
def plain(build_pipe: Any) -> Tensor:
    return draw(build_pipe())


def test_weights_that_accelerate_keeps_elsewhere(
    tiny_pipe: Any, gun_eraser: Eraser, erased: Tensor, plain: Tensor
) -> None:
    """Do what `enable_sequential_cpu_offload` does, with the CPU instead of the GPU."""
    accelerate = pytest.importorskip("accelerate")
    with gun_eraser.attach(tiny_pipe):
        for module in (tiny_pipe.text_encoder, tiny_pipe.unet, tiny_pipe.vae):
            accelerate.cpu_offload(module, torch.device("cpu"), offload_buffers=True)
        assert next(tiny_pipe.text_encoder.parameters()).is_meta
        assert torch.equal(draw(tiny_pipe), erased)
        assert torch.equal(draw(tiny_pipe), erased)
    assert torch.equal(draw(tiny_pipe), plain), "the offloading's own wrapper is still there"
    with gun_eraser.attach(tiny_pipe) as attachment:
        assert torch.equal(draw(tiny_pipe), erased)
        assert attachment.status()["bypasses"] == 0


def test_a_model_that_accelerate_moves_as_a_whole(
    tiny_pipe: Any, gun_eraser: Eraser, erased: Tensor, plain: Tensor
) -> None:
    """What `enable_model_cpu_offload` does, before and after attaching."""
    accelerate = pytest.importorskip("accelerate")
    with gun_eraser.attach(tiny_pipe):
        _, hook = accelerate.cpu_offload_with_hook(tiny_pipe.text_encoder, torch.device("cpu"))
        assert torch.equal(draw(tiny_pipe), erased)
        hook.offload()
        assert torch.equal(draw(tiny_pipe), erased)
    assert torch.equal(draw(tiny_pipe), plain)
    with gun_eraser.attach(tiny_pipe):
        assert torch.equal(draw(tiny_pipe), erased)
    assert torch.equal(draw(tiny_pipe), plain)


@pytest.mark.parametrize("older", [True, False])
def test_nothing_stays_of_a_detached_eraser_under_an_offloading(
    tiny_pipe: Any, gun_eraser: Eraser, erased: Tensor, plain: Tensor, older: bool
) -> None:
    """An offloading that diffusers renews after every picture: older than the eraser, it drops the eraser's wrappers,
    and a younger one lies above them."""
    import accelerate
    from accelerate.hooks import remove_hook_from_module

    def renew() -> None:
        for part in (tiny_pipe.text_encoder, tiny_pipe.unet):
            remove_hook_from_module(part, recurse=True)
            accelerate.cpu_offload_with_hook(part, torch.device("cpu"))

    if older:
        renew()
    for _ in range(2):
        with gun_eraser.attach(tiny_pipe) as attachment:
            guard = weakref.ref(attachment.denoiser_guard)
            for _ in range(2):
                renew()
                assert torch.equal(draw(tiny_pipe), erased)
        del attachment
        gc.collect()
        assert guard() is None
        assert not any("_diffusers_hook" in vars(module) for module in tiny_pipe.unet.modules())
        assert not any("_diffusers_hook" in vars(module) for module in tiny_pipe.text_encoder.modules())
        assert torch.equal(draw(tiny_pipe), plain)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_groups_that_diffusers_offloads(
    tiny_pipe: Any, gun_eraser: Eraser, erased: Tensor, plain: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.hooks import apply_group_offloading

    cpu = torch.device("cpu")
    if torch.accelerator.current_accelerator() is None:  # diffusers 0.38 asks it for its type all the same
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cpu)
    with gun_eraser.attach(tiny_pipe):
        for module in (tiny_pipe.text_encoder, tiny_pipe.unet):
            apply_group_offloading(module, cpu, cpu, offload_type=kind, num_blocks_per_group=1)
        assert torch.equal(draw(tiny_pipe), erased)
    assert torch.equal(draw(tiny_pipe), plain)
    with gun_eraser.attach(tiny_pipe):
        assert torch.equal(draw(tiny_pipe), erased)
    assert torch.equal(draw(tiny_pipe), plain)


@pytest.mark.parametrize(
    ("how", "when"),
    [
        ("wrapped", "before"),
        pytest.param("in place", "after", marks=pytest.mark.slow),
        pytest.param("wrapped", "after", marks=pytest.mark.slow),
        pytest.param("in place", "before", marks=pytest.mark.slow),
    ],
)
def test_compiled_in_one_graph(
    tiny_pipe: Any, gun_eraser: Eraser, erased: Tensor, plain: Tensor, when: str, how: str
) -> None:
    """`fullgraph=True` raises at any graph break, in the text encoder as in the U-Net."""
    torch._dynamo.reset()

    def compile_both() -> None:
        for name in ("text_encoder", "unet"):
            module = getattr(tiny_pipe, name)
            if how == "in place":
                module.compile(backend="aot_eager", fullgraph=True)
            else:
                setattr(tiny_pipe, name, torch.compile(module, backend="aot_eager", fullgraph=True))

    if when == "before":
        compile_both()
        torch.testing.assert_close(draw(tiny_pipe), plain)
    with gun_eraser.attach(tiny_pipe) as attachment:
        if when == "after":
            compile_both()
        torch.testing.assert_close(draw(tiny_pipe), erased)
        attachment.strength = 0.0
        torch.testing.assert_close(draw(tiny_pipe), plain)
        attachment.strength = 1.0
        torch.testing.assert_close(draw(tiny_pipe), erased)
        # As the pipeline calls it: anything else would be compiled once more.
        nothing = {"timestep_cond": None, "cross_attention_kwargs": None, "added_cond_kwargs": None}
        given = {"encoder_hidden_states": torch.randn(2, 77, 64), "return_dict": False, **nothing}
        with pytest.raises(EraserDidNotFire), torch.no_grad():
            tiny_pipe.unet(torch.zeros(2, 4, 8, 8), torch.tensor(10), **given)
    torch.testing.assert_close(draw(tiny_pipe), plain)


def test_another_dtype(build_pipe: Any, gun_eraser: Eraser) -> None:
    """An eraser fitted in float32 acts on the bfloat16 model, and on one that is cast under it."""
    half = build_pipe().to(torch.bfloat16)
    before = draw(half)
    with gun_eraser.attach(half):
        assert not torch.equal(draw(half), before)
    assert torch.equal(draw(half), before)
    pipe = build_pipe()
    with gun_eraser.attach(pipe) as attachment:
        pipe.to(torch.bfloat16)
        edited = draw(pipe)
        assert attachment.status()["bypasses"] == 0
    assert not torch.equal(edited, draw(pipe))


def test_a_move_to_the_device_it_is_on(tiny_pipe: Any, gun_eraser: Eraser, erased: Tensor) -> None:
    with gun_eraser.attach(tiny_pipe):
        assert torch.equal(draw(tiny_pipe.to("cpu")), erased)


def test_the_eraser_is_not_saved_with_the_model(
    tiny_pipe: Any, gun_eraser: Eraser, plain: Tensor, erased: Tensor, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    with gun_eraser.attach(tiny_pipe) as attachment:
        tiny_pipe.save_pretrained(tmp_path)
        assert attachment.status()["saved_with_the_model"] is False
        assert torch.equal(draw(tiny_pipe), erased)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(again), plain)
    with gun_eraser.attach(again):
        torch.testing.assert_close(draw(again), erased)


def test_two_pipelines_share_an_encoder(tiny_pipe: Any, gun_eraser: Eraser, plain: Tensor) -> None:
    from diffusers import StableDiffusionPipeline

    other = StableDiffusionPipeline(**tiny_pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    second = replace(gun_eraser, name="second", edits=(replace(gun_eraser.edits[0], lam=0.3),))
    first = gun_eraser.attach(tiny_pipe)
    both = second.attach(other)
    assert torch.equal(draw(tiny_pipe), draw(other)), "one encoder, whoever is asked"
    first.detach()
    assert not torch.equal(draw(tiny_pipe), plain), "the other's eraser still acts in it"
    both.detach()
    assert torch.equal(draw(tiny_pipe), plain)
    assert torch.equal(draw(other), plain)


def test_the_order_of_attaching_does_not_show(build_pipe: Any, gun_edit: SAEEdit) -> None:
    made = made_for(build_pipe())
    erasers = [
        Eraser((replace(gun_edit, lam=lam),), f"λ {lam}", "gun", (), made, canary=("a gun",)) for lam in (0.3, 0.7, 1.1)
    ]
    pictures = []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        pipe = build_pipe()
        for n in order:
            erasers[n].attach(pipe)
        pictures.append(draw(pipe))
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


def test_batches_repeats_and_branches(tiny_pipe: Any, gun_eraser: Eraser, plain: Tensor, erased: Tensor) -> None:
    with gun_eraser.attach(tiny_pipe) as attachment:
        draw(tiny_pipe, [GUN, CAT], negative_prompt=["dull", "grey"], num_images_per_prompt=2)
        unguided = draw(tiny_pipe, guidance_scale=1.0)
        embeds = tiny_pipe.encode_prompt(GUN, "cpu", 1, True, "dull")
        given = dict(zip(("prompt_embeds", "negative_prompt_embeds"), embeds, strict=True))
        torch.testing.assert_close(draw(tiny_pipe, None, **given), draw(tiny_pipe, negative_prompt="dull"))
        assert attachment.status()["bypasses"] == 0
    assert not torch.equal(unguided, draw(tiny_pipe, guidance_scale=1.0))


def test_attaching_and_detaching_while_others_draw(tiny_pipe: Any, gun_eraser: Eraser, plain: Tensor) -> None:
    """Three threads generate while a fourth attaches and detaches: every image is erased, unedited, or refused."""
    other = replace(gun_eraser, name="other", edits=(replace(gun_eraser.edits[0], lam=0.4),))
    with gun_eraser.attach(tiny_pipe):
        erased = draw(tiny_pipe)
        with other.attach(tiny_pipe):
            doubly = draw(tiny_pipe)
    wrong: list[object] = []
    done = threading.Event()

    def work(tokenizer: Any) -> None:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline(**tiny_pipe.components, requires_safety_checker=False)
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config)
        # Of its own: how to pad is a tokenizer's state, and the pipeline calls it now one way, now the other.
        pipe.tokenizer = tokenizer
        pipe.set_progress_bar_config(disable=True)
        while not done.is_set():
            try:
                made = draw(pipe)
                if not any(torch.equal(made, known) for known in (plain, erased, doubly)):
                    wrong.append("a picture that is neither")
            except EraserDidNotFire:
                pass  # attached between its encoding and its drawing
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(copy.deepcopy(tiny_pipe.tokenizer),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(6):
            with gun_eraser.attach(tiny_pipe), other.attach(tiny_pipe):
                pass
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert torch.equal(draw(tiny_pipe), plain)


def test_a_picture_is_edited_as_a_whole_while_a_canary_is_tried(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """Proving an eraser mutes the others in its own thread alone."""
    from excise.erasers.hooks.context import proving

    with gun_eraser.attach(tiny_pipe):
        edited, seen = draw(tiny_pipe), []
        with proving(object()):
            thread = threading.Thread(target=lambda: seen.append(draw(tiny_pipe)))
            thread.start()
            thread.join()
        assert torch.equal(seen[0], edited)


def test_a_prompt_weighting_through_excise_encode(tiny_pipe: Any, gun_eraser: Eraser) -> None:
    """compel's own embeddings, from the attached encoder, may be rendered; the weight does not bring the gun back."""
    compel = pytest.importorskip("compel")
    weighting = compel.Compel(tiny_pipe.tokenizer, tiny_pipe.text_encoder)
    with torch.no_grad(), gun_eraser.attach(tiny_pipe):
        outside = weighting("a (gun)1.4 on grass")
        with pytest.raises(EraserDidNotFire):
            draw(tiny_pipe, None, prompt_embeds=outside, negative_prompt_embeds=outside)
        inside = excise.encode(tiny_pipe, weighting, "a (gun)1.4 on grass")
        nothing = excise.encode(tiny_pipe, "")[0]
        draw(tiny_pipe, None, prompt_embeds=inside, negative_prompt_embeds=nothing)


def test_an_encoder_alone(gun: Any) -> None:
    """BERT without a denoiser: what a search index or a classifier reads of it is edited, and foreign states are not
    taken for its own."""
    from transformers import BertConfig, BertModel

    from tests.planted import planted

    tokenizer = _word_pieces(gun)
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    encoder = BertModel(BertConfig(**size, intermediate_size=64, max_position_embeddings=16)).eval()
    pipe = TextEncoding(encoder, tokenizer)
    site = default_site(pipe)
    assert site == Site("text_encoder", "encoder.layer.1", 32)
    sae = planted(pipe, site, gun)
    edit = SAEEdit.from_sae(sae, site, [5], gate="relu")
    eraser = Eraser((edit,), "bert", "gun", ("gun",), made_for(pipe), canary=("a gun",))
    with torch.no_grad():
        plain, cat = pipe.encode_prompt("a gun"), pipe.encode_prompt("a cat")
        with eraser.attach(pipe):
            assert not torch.equal(pipe.encode_prompt("a gun"), plain)
            assert torch.equal(pipe.encode_prompt("a cat"), cat)
            with pytest.raises(EraserDidNotFire, match="prompt_embeds were not encoded"):
                pipe.encode_prompt("a gun", prompt_embeds=plain)
        assert torch.equal(pipe.encode_prompt("a gun"), plain)


def _word_pieces(concept: Any) -> Any:
    """BERT's tokenizer, its vocabulary the words of the concept's prompts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    texts = [text for pair in concept.pairs for text in (pair.concept, pair.deconcept)] + list(concept.controls)
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({word for text in texts for word in text.split()})]
    made = Tokenizer(models.WordPiece({word: n for n, word in enumerate(known)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **special)
