from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from torch import Tensor

from excise.erasers.hooks import known_vectors as module
from excise.erasers.hooks.fingerprints import Fingerprints, Held, Place, hashes
from excise.erasers.hooks.known_vectors import OWN, SPARED, UNKNOWN, KnownVectors


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def vectors() -> KnownVectors:
    """Knows ten vectors that are 4 wide and ten that are 6 wide."""
    made = KnownVectors()
    made.add([random(2, 5, 4), random(10, 6, seed=1)])
    return made


def made_of(row: list[float], known: list[list[float]]) -> bool:
    """Brute force: whether known vectors, joined in some order, and zeros behind them make up the row."""
    if not any(row):
        return True
    return any(row[: len(k)] == k and made_of(row[len(k) :], known) for k in known)


def test_known_vectors_joined_filled_up_and_in_any_order_are_known(vectors: KnownVectors) -> None:
    narrow, wide = random(2, 5, 4).flatten(0, 1), random(10, 6, seed=1)
    assert vectors.knows(narrow.flip(0)[None])
    assert vectors.knows(torch.cat([narrow, wide], 1))
    assert vectors.knows(torch.cat([wide, narrow, torch.zeros(10, 3)], 1))
    assert vectors.knows(torch.zeros(2, 7))
    assert not vectors.knows(torch.cat([narrow, random(10, 6, seed=2)], 1))
    assert not vectors.knows(torch.cat([torch.zeros(10, 3), wide], 1)), "zeros stand at the end"
    assert not vectors.knows(narrow + 1e-7)


@pytest.mark.parametrize("seed", range(20))
def test_it_knows_what_brute_force_knows(vectors: KnownVectors, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = {4: random(2, 5, 4).flatten(0, 1), 6: random(10, 6, seed=1)}
    known = [row for part in parts.values() for row in part.tolist()]
    for widths in product((4, 6, 0), repeat=3):
        pieces = [parts[w][torch.randint(10, (1,), generator=generator)] if w else torch.zeros(1, 2) for w in widths]
        row = torch.cat(pieces, 1)
        if torch.rand(1, generator=generator) < 0.3:
            row[0, int(torch.randint(row.shape[1], (1,), generator=generator))] += 1
        assert vectors.knows(row) == made_of(row[0].tolist(), known)


def test_pieces_say_what_a_row_is_made_of(vectors: KnownVectors) -> None:
    narrow, wide = random(2, 5, 4).flatten(0, 1), random(10, 6, seed=1)
    joined = torch.cat([wide[:3], narrow[:3], torch.zeros(3, 2)], 1)
    unknown = random(1, 12, seed=3)
    ((numbers, parts, filled),) = vectors.pieces(torch.cat([joined, unknown]))
    assert numbers.tolist() == [0, 1, 2]
    assert parts == ((0, 6), (6, 4))
    assert filled


def test_a_hash_is_of_values_whatever_the_dtype() -> None:
    rows = random(5, 4).half()
    assert hashes(rows).tolist() == hashes(rows.float()).tolist()
    assert not set(hashes(rows).tolist()) & set(hashes(rows + 1).tolist())


def test_states_cast_to_the_denoisers_dtype_are_known_too() -> None:
    vectors, states = KnownVectors(), random(1, 5, 4)
    vectors.add([states])
    assert vectors.knows(states.bfloat16()) and vectors.knows(states.half())
    vectors.forget()
    assert not vectors.knows(states)


def test_masks_and_flat_tensors_are_no_states() -> None:
    vectors = KnownVectors()
    vectors.add([torch.ones(2, 4, dtype=torch.int64), torch.ones(4)])
    assert vectors.widths == []


def test_what_was_added_is_known_as_it_was_then() -> None:
    """Vectors are hashed at the first lookup. What was written into the tensor meanwhile must not count."""
    made, states = KnownVectors(), random(3, 4)
    made.add([states])
    before = states.clone()
    states += 1
    assert made.knows(before)
    assert not made.knows(states)


def test_threads_that_ask_at_once_miss_nothing() -> None:
    made = KnownVectors()

    def one(seed: int) -> bool:
        states = random(50, 8, seed=seed)
        made.add([states])
        return made.knows(states)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(200)))


def test_no_more_waits_than_a_few_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 100)
    made = KnownVectors()
    for seed in range(10):
        made.add([random(4, 4, seed=seed)])
    assert sum(tensor.nbytes for tensor, _ in made._added) <= 100
    assert all(made.knows(random(4, 4, seed=seed)) for seed in range(10))


def test_what_is_asked_for_or_made_again_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 8 * 3 * 20)
    made, asked, remade, forgotten = KnownVectors(), random(2, 4), random(2, 4, seed=1), random(2, 4, seed=2)
    made.add([asked, remade, forgotten])
    for seed in range(3, 40):
        made.add([random(2, 4, seed=seed), remade])
        assert made.knows(random(2, 4, seed=seed))
        assert made.knows(asked)
        assert made.nbytes <= 8 * 3 * 40
    assert made.knows(remade)
    assert not made.knows(forgotten)


def test_joined_tensors_that_are_held_are_known_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 8)
    made = KnownVectors()
    made.add([random(3, 4)])
    made.add([random(3, 6, seed=1)], spared=True)
    joined = torch.cat([random(3, 4), random(3, 6, seed=1), torch.zeros(3, 2)], 1)
    made.hold([joined])
    for seed in range(2, 9):
        made.add([random(5, 4, seed=seed)])
        assert made.knows(random(5, 4, seed=seed))
    assert made.marks(joined).tolist() == [SPARED] * 3
    assert made.marks(joined.half()).tolist() == [SPARED] * 3
    assert made.knows(random(3, 4))
    del joined
    for seed in range(9, 12):
        made.add([random(5, 4, seed=seed)])
        assert made.knows(random(5, 4, seed=seed))
    assert not made.knows(random(3, 4))


def test_spared_vectors_mark_the_rows_that_they_are_in(vectors: KnownVectors) -> None:
    narrow, wide, spared = random(2, 5, 4).flatten(0, 1), random(10, 6, seed=1), random(10, 6, seed=5)
    vectors.add([spared], spared=True)
    rows = [torch.cat([narrow, wide], 1), torch.cat([narrow, spared], 1), torch.cat([narrow, random(10, 6, seed=6)], 1)]
    assert [vectors.marks(row).unique().tolist() for row in rows] == [[OWN], [SPARED], [UNKNOWN]]
    assert vectors.knows(rows[0])
    assert not vectors.knows(rows[1])


@pytest.mark.parametrize("seed", range(5))
def test_fingerprints_are_a_set(seed: int) -> None:
    generator, made, known = torch.Generator().manual_seed(seed), Fingerprints(), set[int]()
    for _ in range(60):
        values = torch.randint(-50, 50, (int(torch.randint(1, 9, (1,), generator=generator)),), generator=generator)
        made.add(values.numpy())
        known |= set(values.tolist())
        assert len(made) == len(known)
    every = torch.arange(-60, 60)
    assert made.has(every.numpy()).tolist() == [value in known for value in every.tolist()]


def test_a_change_of_generations_reads_no_held_tensor_that_was_read_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done under a lock, and there may be thousands of them."""
    made, rows = KnownVectors(), [0]
    held = [random(5, 4, seed=seed) for seed in range(30)]
    for tensor in held:
        for _ in range(2):  # the same tensor is held once
            made.add([tensor])
            made.hold([tensor])
    for seed in range(30, 40):
        made.add([random(5, 4, seed=seed)])
        made.knows(random(5, 4, seed=seed))
    monkeypatch.setattr(module, "hashes", lambda given: rows.__setitem__(0, rows[0] + len(given)) or hashes(given))
    for _ in range(3):
        made._grow_old()
    assert rows == [0]
    assert all(made.knows(tensor) and made.knows(tensor.half()) for tensor in held)
    held[0].add_(1)
    assert not made.knows(held[0])


def test_what_is_let_in_after_it_was_read_is_held_too() -> None:
    made, tensor = KnownVectors(), random(5, 4)
    made.hold([tensor])
    for seed in range(1, 4):
        made.add([random(5, 4, seed=seed)])
        made.knows(tensor)
    made.add([tensor])
    made.hold([tensor])
    made.knows(tensor)
    for _ in range(3):
        made._grow_old()
    assert made.knows(tensor)


def test_memory_that_was_given_up_is_not_allocated_again() -> None:
    made, tensor = KnownVectors(), random(5, 4)
    made.add([tensor])
    made.hold([tensor])
    made.knows(tensor)
    tensor.untyped_storage().resize_(0)
    made._grow_old()
    assert tensor.untyped_storage().nbytes() == 0


def test_a_ledger_with_a_share_keeps_that_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 8 * 3 * 16 * 16)
    made, most = KnownVectors(1 / 16), 0
    for seed in range(100):
        made.add([random(2, 4, seed=seed)])
        assert made.knows(random(2, 4, seed=seed))
        most = max(most, made.nbytes)
    assert 8 * 3 * 8 <= most <= 8 * 3 * 2 * 16


def values(place: Place) -> list[list[float]]:
    made = place.tensor()
    assert made is not None
    found: list[list[float]] = made.tolist()
    return found


def test_tensors_are_held_as_long_as_a_view_of_them_lives() -> None:
    held, whole = Held(), random(4, 3)
    view = whole[1:]
    held.add(whole)
    del whole
    assert [values(place) for place in held] == [random(4, 3).tolist()]
    del view
    assert len(held) == 0
    assert list(held) == []
