"""The states of a tokenised corpus, against all states of every prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from excise.app.models.loader import Loader
from excise.app.reading import tokenising
from excise.app.reading.corpus import Corpus
from excise.app.reading.group_states import TokenParts, in_memory, made_when_needed
from excise.app.reading.reading import Reading
from excise.app.reading.tokenising import build
from excise.app.training.text import train_sae
from excise.concepts.parts import parts_of
from excise.errors import ExciseError
from excise.sae import TrainConfig, card, stream
from excise.sae.data import Source
from excise.sae.parallel import Mesh
from excise.sites import Site, capture
from tests.sae.ranks import on_ranks

pytest.importorskip("pyarrow")

WORDS = ("gun", "cat", "dog", "bus", "apple") * 5
PROMPTS = [f"{word} number {n} {'on a table ' * (n % 4)}" for n, word in enumerate(WORDS)]
CONFIG = TrainConfig(tokens=3000, batch=100, k=4)


@pytest.fixture
def corpus(tiny_pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """25 prompts in row groups of eight."""
    monkeypatch.setattr(tokenising, "GROUP", 8)
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(PROMPTS))
    found = build(tiny_pipe, "text_encoder", source, list(parts_of(source)), tmp_path / "corpus", Loader())
    assert found is not None
    return found


def known(pipe: Any, site: Site, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return BOS' states, those of words and EOS, and those of padding, of a group of eight prompts."""
    (whole,) = capture(pipe, [site], [text.strip() for text in PROMPTS[8 * group : 8 * group + 8]])
    states, scored = whole.states[site], whole.scored
    padding = ~scored
    padding[:, 0] = False
    return states[:, 0], states[scored], states[padding]


def matched(some: torch.Tensor, others: torch.Tensor) -> bool:
    """Return whether each vector is one of the others."""
    return bool((torch.cdist(some.double(), others.double()).amin(1) < 1e-4).all())


@pytest.mark.parametrize("padding", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("group", [0, 2, 3])
def test_a_group_has_all_words_and_a_share_of_the_padding(
    tiny_pipe: Any, tiny_site: Site, corpus: Corpus, padding: float, bos: bool, group: int
) -> None:
    parts = TokenParts(corpus, padding, bos)
    told: list[int] = []
    states = parts.read(tiny_pipe, [tiny_site], group, told.append)[tiny_site]
    first, words, rest = known(tiny_pipe, tiny_site, group)
    count = len(words) + round(padding * len(rest)) + (len(first) if bos else 0)
    assert len(states) == count == parts.vectors()[group]
    assert sum(told) == parts.sizes()[group] == len(first)
    assert matched(words, states) and (not bos or matched(first, states))
    near = torch.cdist(states.double(), words.double()).amin(1) < 1e-4
    of_padding = states[~near & (torch.cdist(states.double(), first.double()).amin(1) >= 1e-4)]
    assert len(of_padding) == round(padding * len(rest))
    assert matched(of_padding, rest)
    if 0 < padding < 1:
        taken = torch.cdist(of_padding.double(), rest.double()).argmin(1)
        assert len(taken.unique()) == len(taken), "no state is there twice"
    again = parts.read(tiny_pipe, [tiny_site], group)[tiny_site]
    assert torch.equal(again, states)


def test_in_memory_they_are_the_groups_in_order(tiny_pipe: Any, tiny_site: Site, corpus: Corpus) -> None:
    parts = TokenParts(corpus, 0.2)
    whole = in_memory(tiny_pipe, [tiny_site], parts)[tiny_site]
    groups = [parts.read(tiny_pipe, [tiny_site], number)[tiny_site] for number in range(4)]
    assert torch.equal(whole, torch.cat(groups))


def test_states_made_when_needed_are_read_where_the_training_is(
    tiny_pipe: Any, tiny_site: Site, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BUFFER", 60)
    parts = TokenParts(corpus)
    shards = made_when_needed(tiny_pipe, tiny_site, parts)
    assert shards.sizes == parts.vectors()
    read: list[int] = []
    own = TokenParts.read
    monkeypatch.setattr(TokenParts, "read", lambda self, pipe, sites, number: read.append(number) or own(
        self, pipe, sites, number
    ))  # fmt: skip
    vectors = stream.Stream(Source(shards, seed=0), 20)
    counts = []
    for number in (0, 1600):
        read.clear()
        vectors.batch(number)
        counts.append(len(read))
    assert counts == [1, 1], "of four groups"
    other = made_when_needed(tiny_pipe, tiny_site, TokenParts(corpus, 0.5))
    site = made_when_needed(tiny_pipe, Site("text_encoder", "encoder.layers.1", 64), parts)
    assert len({shards.digest, other.digest, site.digest}) == 3


@pytest.mark.parametrize("states", [None, "made", "stored"])
def test_an_sae_is_trained_on_a_corpus(
    tiny_pipe: Any, tiny_site: Site, corpus: Corpus, tmp_path: Path, states: Any
) -> None:
    captured: list[int] = []
    train_sae(
        tiny_pipe, tiny_site, corpus, CONFIG, tmp_path / "sae", card={}, captured=captured.append, padding=0.1,
        reading=Reading(states=states),
    )  # fmt: skip
    assert sum(captured) == (0 if states == "made" else 25)
    about = card(tmp_path / "sae")
    assert (about["prompts"], about["padding"]) == (25, 0.1)
    assert about["recipe"]["vectors"] == sum(TokenParts(corpus, 0.1).vectors())
    assert about["metrics"]["final_state_cosine"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "prompts.txt", "sae"]


def test_stored_and_made_states_train_alike(tiny_pipe: Any, tiny_site: Site, corpus: Corpus, tmp_path: Path) -> None:
    """They differ by the rounding to float16 alone: same groups, same order."""
    found = []
    for states in ("made", "stored"):
        how: dict[str, Any] = {"reading": Reading(states=states)}
        found.append(train_sae(tiny_pipe, tiny_site, corpus, CONFIG, tmp_path / states, card={}, **how))
    torch.testing.assert_close(found[0].W_enc, found[1].W_enc, atol=0.05, rtol=0)
    torch.testing.assert_close(found[0].b_pre, found[1].b_pre, atol=0.01, rtol=0)


def test_what_cannot_be_made_is_refused(tiny_pipe: Any, tiny_site: Site, tmp_path: Path) -> None:
    with pytest.raises(ExciseError, match="from a tokenised corpus alone"):
        train_sae(tiny_pipe, tiny_site, ["a cat"], CONFIG, tmp_path / "sae", card={}, reading=Reading(states="made"))
    with pytest.raises(ExciseError, match="states are made or stored, not 'kept'"):
        Reading(states="kept")  # type: ignore[arg-type]
    with pytest.raises(ExciseError, match="leave out the engine"):
        Reading("processes:2", states="made")


def made_on_ranks(mesh: Mesh, pipe: Any, site: Site, corpus: Corpus, out: Path) -> tuple[list[int], dict[str, Any]]:
    """Train, and return the groups that this rank has read, and the SAE's tensors."""
    stream.BUFFER = 400
    read: list[int] = []
    own = TokenParts.read

    def counted(self: TokenParts, pipe: Any, sites: Any, number: int, *rest: Any) -> Any:
        read.append(number)
        return own(self, pipe, sites, number, *rest)

    TokenParts.read = counted  # type: ignore[method-assign]
    config = TrainConfig(tokens=900, batch=100, k=4, log_every=1)
    how: dict[str, Any] = {"reading": Reading(states="made"), "mesh": mesh, "padding": 0.2}
    sae = train_sae(pipe, site, corpus, config, out, card={}, **how)
    return read, {name: value.detach().clone() for name, value in sae.state_dict().items()}


def test_ranks_divide_the_making_of_states(tiny_pipe: Any, tiny_site: Site, corpus: Corpus, tmp_path: Path) -> None:
    given = tiny_pipe, tiny_site, corpus
    ((alone, tensors),) = on_ranks((1, 1), made_on_ranks, tmp_path / "a", *given, tmp_path / "1")
    found = on_ranks((2, 1), made_on_ranks, tmp_path / "b", *given, tmp_path / "2")
    statistics = len(corpus.groups)
    made = [len(read) for read, _ in found]
    assert made[0] - statistics + made[1] == len(alone) - statistics, "no group is read twice for a window"
    assert made[1] > 0
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in tensors)
    one, two = (card(tmp_path / name)["metrics"]["train"]["fvu"] for name in ("1", "2"))
    assert two == pytest.approx(one, rel=1e-3)
