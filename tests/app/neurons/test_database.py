from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from excise import sae as saes
from excise.app.models import loader
from excise.app.neurons import corpus
from excise.app.neurons.database import Watching, build, tag
from excise.app.neurons.nearest import near_neurons
from excise.app.neurons.reading import Reader, Reading
from excise.app.neurons.safe_sail import import_safe_sail
from excise.engine import engines
from excise.engine.local import Local
from excise.errors import ExciseError, ItemsFailed
from excise.locks import locked
from excise.methods.prompt_codes import prompt_codes
from excise.neurons.contexts import Contexts
from excise.neurons.database.database import NeuronDatabase
from excise.neurons.database.entry import Entry, Explanation, Measured, Tag
from excise.sites import capture
from excise.sites.activations.packing import can_pack
from excise.sites.tokens import pieces

SMALL = Watching(contexts=3, spread=2, nearest=4, near=3, bins=5)


@pytest.fixture
def folder(word_sae: Any, tiny_site: Any, tmp_path: Path) -> Path:
    saes.save(word_sae, tmp_path / "sae", {"site": asdict(tiny_site)})
    return tmp_path / "sae"


@pytest.fixture
def prompts(gun: Any) -> list[str]:
    return [text for pair in gun.pairs[::3] for text in (pair.concept, pair.deconcept)] + ["a cat, a dog; a gun!", ""]


@pytest.fixture
def made(tiny_pipe: Any, folder: Path, prompts: list[str], tmp_path: Path) -> Callable[..., NeuronDatabase]:
    """Builds a database and opens it."""

    def make(name: str = "neurons.db", **options: Any) -> NeuronDatabase:
        build(tiny_pipe, folder, prompts, tmp_path / name, watching=SMALL, **options)
        return NeuronDatabase.open(tmp_path / name)

    return make


def test_every_neuron_as_the_codes_of_whole_prompts_say(
    made: Any, tiny_pipe: Any, word_sae: Any, tiny_site: Any, prompts: list[str]
) -> None:
    codes, ids = prompt_codes(tiny_pipe, word_sae, tiny_site, prompts)
    contexts = Contexts(codes, [pieces(tiny_pipe.tokenizer, row) for row in ids.tolist()])
    live = contexts.density.nonzero()[:, 0].tolist()
    with made() as database:
        assert database.indices() == live
        assert 5 in live
        for entry in database.entries():
            histogram, peak = contexts.histogram(entry.index, 5)
            assert entry.density == pytest.approx(float(contexts.density[entry.index]))
            assert entry.peak == pytest.approx(peak, rel=1e-4)
            assert sum(entry.histogram) == sum(histogram)
            tops = [context.peak for context in contexts.top(entry.index, 3)]
            assert [context.peak for context in entry.contexts] == pytest.approx(tops, abs=1e-4)
        assert "gun" in database.neuron(5).contexts[0].text
        about = database.provenance
        assert (about.site, about.m, about.prompts) == ("text_encoder/encoder.layers.2", 64, len(prompts))
        assert about.settings["nearest_by"] == "mean states"


def test_reading_a_corpus_keeps_no_gradients(tiny_pipe: Any, word_sae: Any, tiny_site: Any, made: Any) -> None:
    with made() as database:
        read = corpus.read_corpus(tiny_pipe, word_sae, tiny_site, ["a gun on grass"], database)
    assert not any(tensor.requires_grad for tensor in (read.codes.values, read.means))


def test_nearest_tokens_by_hand(made: Any, tiny_pipe: Any, word_sae: Any, tiny_site: Any, prompts: list[str]) -> None:
    states: dict[int, list[torch.Tensor]] = {}
    for batch in capture(tiny_pipe, [tiny_site], prompts):
        for p, t in batch.scored.nonzero().tolist():
            states.setdefault(int(batch.ids[p, t]), []).append(batch.states[tiny_site][p, t].double())
    means = {i: torch.stack(some).mean(0) for i, some in states.items()}
    centre = torch.stack(list(means.values())).mean(0)
    with made() as database:
        for entry in database.entries():
            row = word_sae.W_dec[entry.index].detach().double()
            cosines = {
                pieces(tiny_pipe.tokenizer, [i])[0].strip(): float(F.cosine_similarity(mean - centre, row, dim=0))
                for i, mean in means.items()
            }
            best = sorted(cosines.items(), key=lambda item: -item[1])[:4]
            assert [how for _, how in entry.nearest] == pytest.approx([how for _, how in best], abs=1e-3)
            assert entry.nearest[0][0] == best[0][0]


def test_near_neurons_by_hand() -> None:
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    live = torch.tensor([0, 2, 3, 7, 8])
    for index, near in zip(live.tolist(), near_neurons(rows, live, 3), strict=True):
        cosines = {i: float(F.cosine_similarity(rows[i], rows[index], dim=0)) for i in live.tolist() if i != index}
        expected = sorted(cosines.items(), key=lambda item: -item[1])[:3]
        assert [i for i, _ in near] == [i for i, _ in expected]
        assert [how for _, how in near] == pytest.approx([how for _, how in expected], abs=1e-4)
    assert near_neurons(rows, torch.tensor([4]), 3) == [()]


def test_clip_is_read_without_padding_and_to_the_same_effect(
    tiny_pipe: Any, word_sae: Any, tiny_site: Any, prompts: list[str]
) -> None:
    long = [*prompts, "a cat and " * 60]
    whole, ids = prompt_codes(tiny_pipe, word_sae, tiny_site, long)
    chunk = corpus.read_chunk(tiny_pipe, word_sae, tiny_site, long, batch_size=7)
    scored = chunk["scored"]
    assert torch.equal(scored, whole.scored[:, : scored.shape[1]])
    assert torch.equal(chunk["ids"][scored], ids[whole.scored].int())
    assert torch.allclose(chunk["values"][scored], whole.values[whole.scored], atol=1e-4)
    assert not chunk["values"][~scored].any()


def test_an_interrupted_build_goes_on_where_it_stopped(
    made: Any, tiny_pipe: Any, folder: Path, prompts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 5)
    out, runs = tmp_path / "half.db", [0]

    def stopping(after: int) -> Callable[[int], None]:
        seen: list[int] = []

        def stop(done: int) -> None:
            seen.append(done)
            if sum(seen) >= after:
                raise KeyboardInterrupt

        return stop

    assert can_pack(tiny_pipe.text_encoder)
    handle = tiny_pipe.text_encoder.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    for after in (12, len(prompts) + 20):
        with pytest.raises(KeyboardInterrupt):
            build(tiny_pipe, folder, prompts, out, stopping(after), watching=SMALL)
        assert not out.exists()
    told: list[int] = []
    with made("half.db", progress=told.append) as resumed, made("whole.db") as whole:
        handle.remove()
        # The first time it stopped in the third chunk, which was kept; each chunk is read once, then once for `whole`.
        assert runs[0] == 2 * -(-len(prompts) // 5)
        assert sum(told) == len(prompts) + 64
        assert list(resumed.entries()) == list(whole.entries())
        assert resumed.kept() == []
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_slices_read_their_parts_and_the_first_writes_the_same_database(
    made: Any, tiny_pipe: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 5)
    monkeypatch.setattr(engines, "Processes", lambda stage, needs, workers: Local(stage))
    monkeypatch.setattr(loader, "load_pipeline", lambda *named: tiny_pipe)
    n = -(-len(prompts) // 5)
    built = build(tiny_pipe, folder, prompts, tmp_path / "sliced.db", watching=SMALL, reader=Reader(engine="slice:1/2"))
    assert not built.written
    assert len(list((tmp_path / ".sliced.db.chunks").iterdir())) == n, "it helps where the first slice is late"
    with made("sliced.db", reader=Reader(engine="slice:0/2")) as sliced, made("whole.db") as whole:
        assert list(sliced.entries()) == list(whole.entries())
    assert list(tmp_path.glob(".*")) == []


def test_two_that_write_the_same_database_do_not_share_a_file(
    made: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    theirs = tmp_path / ".two.db.building"
    theirs.write_bytes(b"being written")
    (tmp_path / ".two.db.chunks").mkdir()
    with locked(tmp_path / ".two.db.chunks" / "lock"), made("two.db") as second, made("whole.db") as whole:
        assert list(second.entries()) == list(whole.entries())
    assert theirs.read_bytes() == b"being written"
    theirs.unlink()
    assert list(tmp_path.glob(".*")) == []

    def finished(stage: Reading, *arguments: Any) -> Any:
        (tmp_path / "whole.db").rename(tmp_path / "third.db")
        raise ExciseError("its chunks are gone")

    monkeypatch.setattr(Reading, "combined", finished)
    with made("third.db") as third:
        assert len(third)


def test_a_chunk_that_fails_is_set_aside(
    made: Any, monkeypatch: pytest.MonkeyPatch, prompts: list[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 5)
    read = corpus.read_chunk

    def failing(pipe: Any, sae: Any, site: Any, texts: Any, batch_size: int) -> Any:
        if texts[0] == prompts[5]:
            raise RuntimeError("out of memory")
        return read(pipe, sae, site, texts, batch_size)

    monkeypatch.setattr(corpus, "read_chunk", failing)
    with pytest.raises(ItemsFailed, match=r"1 of \d+ failed, the first chunk-00001: failed with RuntimeError: out of"):
        made()
    monkeypatch.setattr(corpus, "read_chunk", read)
    with pytest.raises(ItemsFailed):
        made()
    with made(reader=Reader(retry=True)) as database:
        assert len(database)
    assert not (tmp_path / "neurons.db.failures").exists()


def test_a_broken_or_other_beginning_is_begun_again(made: Any, tmp_path: Path) -> None:
    (tmp_path / ".neurons.db.building").write_bytes(b"")
    with made() as database:
        about = replace(database.provenance, prompts_sha256="another corpus")
        n = len(database)
    with NeuronDatabase.create(tmp_path / ".other.db.building", about) as begun:
        begun.add([Entry(63)])
    with made("other.db") as other:
        assert len(other) == n


def test_what_is_there_already_is_kept(
    made: Any, tiny_pipe: Any, folder: Path, prompts: list[str], tmp_path: Path
) -> None:
    with made() as database:
        database.set_explanation(5, "guns", "a person", "now")
    again = build(tiny_pipe, folder, prompts, tmp_path / "neurons.db", watching=SMALL)
    assert not again.fresh
    with NeuronDatabase.open(tmp_path / "neurons.db") as database:
        assert database.neuron(5).explanation == Explanation("guns", "a person", "now")
    with pytest.raises(ExciseError, match="describes another SAE or corpus"):
        build(tiny_pipe, folder, prompts[:-1], tmp_path / "neurons.db", watching=SMALL)


def test_an_attached_eraser_is_not_heard(made: Any, tiny_pipe: Any, gun_eraser: Any) -> None:
    with made() as plain, gun_eraser.attach(tiny_pipe), made("edited.db") as edited:
        # Prompts are packed otherwise where an eraser is attached, which the last digits show.
        for own, other in zip(plain.entries(), edited.entries(), strict=True):
            assert (own.index, own.density, own.histogram) == (other.index, other.density, other.histogram)
            assert own.peak == pytest.approx(other.peak, rel=1e-4)
            for mine, yours in zip(own.contexts, other.contexts, strict=True):
                assert mine.tokens == yours.tokens
                assert mine.codes == pytest.approx(yours.codes, rel=1e-4)


def test_what_cannot_be_watched_is_refused(tiny_pipe: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="no prompts"):
        build(tiny_pipe, folder, [], tmp_path / "n.db")
    with pytest.raises(ExciseError, match="at least 1 context"):
        Watching(contexts=0)
    with pytest.raises(ExciseError, match=r"name one of them: .*/sae"):
        build(tiny_pipe, tmp_path, ["a gun"], tmp_path / "n.db")
    assert not list(tmp_path.glob("*.db"))


def test_a_language_model_is_asked_by_the_logit_lens(tmp_path: Path) -> None:
    from excise.sae import SAEConfig, TopKSAE
    from excise.sites import LanguageModel, site_at
    from tests.tiny import encoders, words

    tokenizer = words.qwen()
    model = LanguageModel(encoders.qwen3(32, len(tokenizer) + 3, head=True), tokenizer)
    site = site_at(model, "model.layers.1")
    sae = TopKSAE(SAEConfig(d=32, m=16, k=4), seed=0)
    saes.save(sae, tmp_path / "sae", {"site": asdict(site)})
    build(model, tmp_path / "sae", ["a gun on grass", "the cat"], tmp_path / "n.db", watching=SMALL)
    with NeuronDatabase.open(tmp_path / "n.db") as database:
        assert database.provenance.settings["nearest_by"] == "logit lens"
        assert database.neuron(database.indices()[0]).contexts[0].text in ("a gun on grass", "the cat")
        for entry in database.entries():
            row, norm = sae.W_dec[entry.index], model.text_encoder.model.norm
            scaled = norm.weight * row / (row.pow(2).mean() + norm.variance_epsilon).sqrt()
            logits = (model.text_encoder.lm_head.weight @ scaled)[: len(tokenizer)].detach()
            shown = [pieces(tokenizer, [i])[0].strip() for i in logits.argsort(descending=True).tolist()]
            special = {tokenizer.decode([i]) for i in tokenizer.all_special_ids} | {"", "⟨end⟩"}
            expected = list(dict.fromkeys(text for text in shown if text not in special))
            assert [token for token, _ in entry.nearest] == expected[: len(entry.nearest)]
            assert entry.nearest[0][1] == pytest.approx(float(logits.max()), abs=1e-3) or shown[0] in special


def test_a_concept_s_neurons_are_tagged(
    made: Any, tiny_pipe: Any, folder: Path, gun: Any, word_sae: Any, tiny_site: Any, tmp_path: Path
) -> None:
    with made() as database:
        database.add_tag(database.indices()[-1], Tag("gun"))
        told: list[int] = []
        rows = tag(tiny_pipe, database, folder, [gun], top=2, progress=told.append)
        assert told == [1]
        best = rows[0]
        assert (best["concept"], best["neuron"], best["tagged"], best["why"]) == ("gun", 5, True, None)
        assert database.neuron(5).tags == (Tag("gun", best["score"], best["auroc"]),)
        assert best["auroc"] > 0.9
        tagged = {row["neuron"] for row in rows if row["tagged"]}
        assert {entry.index for entry in database.entries() if entry.tags} == tagged
        assert all(row["why"] for row in rows if not row["tagged"])
        other = word_sae
        with torch.no_grad():
            other.b_enc += 1
        saes.save(other, tmp_path / "other", {"site": asdict(tiny_site)})
        with pytest.raises(ExciseError, match="describes another SAE"):
            tag(tiny_pipe, database, tmp_path / "other", [gun])


BODY = {"explanation": "Detects *** and flowers.", "correlation_score": 0.25, "tag_list": ["politics", "politics"]}


@pytest.mark.parametrize(
    "content",
    [
        {"17_123": BODY},
        [{"neuron": "layer17/neuron123", **BODY}],
        [{"layer": 17, "index": 123, **BODY}],
        [{"L17-123": BODY}],
    ],
    ids=["dict", "named", "layer and index", "list of dicts"],
)
def test_safe_sail_s_database_is_imported(content: Any, tmp_path: Path) -> None:
    (tmp_path / "en_db.json").write_text(json.dumps(content))
    assert import_safe_sail(tmp_path / "en_db.json", tmp_path / "n.db") == [tmp_path / "n.db"]
    with NeuronDatabase.open(tmp_path / "n.db") as database:
        (entry,) = database.entries()
        assert entry.index == 123
        assert entry.explanation == Explanation("Detects *** and flowers.", "Safe-SAIL", "")
        assert entry.scores == {"correlation": Measured(0.25)}
        assert entry.tags == (Tag("politics"),)
        assert database.provenance.site == "layer 17"
        assert [found.index for found in database.search("flowers")] == [123]


def test_each_layer_gets_a_database(tmp_path: Path) -> None:
    (tmp_path / "en_db.json").write_text(json.dumps({"8_1": BODY, "35_1": BODY, "35_2": BODY}))
    paths = import_safe_sail(tmp_path / "en_db.json", tmp_path / "n.db")
    assert [path.name for path in paths] == ["n-layer8.db", "n-layer35.db"]
    with NeuronDatabase.open(paths[1]) as database:
        assert database.indices() == [1, 2]
    with pytest.raises(ExciseError, match=r"n-layer8\.db exists already"):
        import_safe_sail(tmp_path / "en_db.json", tmp_path / "n.db")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ("{}", "no neurons"),
        ("3", "no entries by neuron"),
        ('{"17_1": "text"}', "not an entry with an explanation"),
        ('{"17_1": {"explanation": null}}', "neuron 17_1 has no explanation"),
        ('{"seventeen": {"explanation": "x"}}', "does not hold a layer and a neuron"),
        ('{"17_1": {"explanation": "x", "correlation_score": "high"}}', "not a number"),
        ('{"17_1": {"explanation": "x", "tag_list": "politics"}}', "tags are not a list"),
    ],
)
def test_other_json_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "en_db.json").write_text(content)
    with pytest.raises(ExciseError, match=complaint):
        import_safe_sail(tmp_path / "en_db.json", tmp_path / "n.db")
    assert [path.name for path in tmp_path.iterdir()] == ["en_db.json"]
