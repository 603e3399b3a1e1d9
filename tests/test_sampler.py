"""The sample stream: every sample of every epoch once, for any ranks, from any position."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bert_ipu.errors import ConfigError
from bert_ipu.sampler import Position, StreamSampler, permuted, rank_places, stream_samples


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 1000))
def test_an_epoch_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    indices = permuted(np.arange(length), length, seed, epoch)
    assert np.array_equal(np.sort(indices), np.arange(length))
    assert np.array_equal(indices, permuted(np.arange(length), length, seed, epoch))


@given(st.integers(1, 10**12), st.integers(0, 2**32), st.data())
def test_any_place_of_a_huge_epoch_is_computed_alone(length: int, seed: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20, unique=True)))
    together = permuted(places, length, seed, 3)
    alone = [int(permuted(places[i : i + 1], length, seed, 3)[0]) for i in range(len(places))]
    assert together.tolist() == alone
    assert len(set(alone)) == len(alone) and min(alone) >= 0 and max(alone) < length


def test_epochs_and_seeds_give_unrelated_orders() -> None:
    length = 20_000
    orders = [
        permuted(np.arange(length), length, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0), (7, 3)]
    ]
    for i, first in enumerate(orders):
        assert abs(stats.spearmanr(np.arange(length), first).statistic) < 0.03
        for second in orders[:i]:
            assert abs(stats.spearmanr(first, second).statistic) < 0.03
            assert np.count_nonzero(first == second) < 15  # one fixed point is expected, by chance


def test_neighbours_scatter_evenly() -> None:
    """The first tenth of an epoch must hit all tenths of the data alike, or training sees it in slabs."""
    length = 100_003
    tenths = permuted(np.arange(length // 10), length, 42, 0) * 10 // length
    assert stats.chisquare(np.bincount(tenths, minlength=10)).pvalue > 1e-3
    gaps = np.diff(permuted(np.arange(length // 10), length, 42, 0))
    assert len(np.unique(np.abs(gaps))) > 0.85 * len(gaps)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 400),
    st.integers(1, 64),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 2),
    st.data(),
)
def test_ranks_are_disjoint_and_complete(
    length: int, world: int, turns: int, block: int, epoch: int, data: st.DataObject
) -> None:
    position = Position(epoch, data.draw(st.integers(0, length - 1)))
    samples_per_step = world * turns * block
    steps = 3
    ranks = [
        list(StreamSampler(length, 5, samples_per_step, steps, position, rank, world, block))
        for rank in range(world)
    ]
    start = epoch * length + position.consumed
    expected = stream_samples(length, 5, np.arange(start, start + steps * samples_per_step))
    assert sorted(chain.from_iterable(ranks)) == sorted(expected.tolist())
    # Names are unique over the whole stream: an epoch repeats nothing.
    assert len(set(expected.tolist())) == len(expected)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(10, 500),
    st.lists(st.tuples(st.integers(1, 16), st.integers(0, 6), st.integers(1, 4)), min_size=1, max_size=6),
)
def test_elastic_resume_loses_and_repeats_nothing(length: int, jobs: list[tuple[int, int, int]]) -> None:
    """Jobs of different sizes carry on one after the other from the position the last one saved."""
    position, seen = Position(), []
    for world, steps, share in jobs:
        for rank in range(world):
            seen += list(StreamSampler(length, 1, world * share, steps, position, rank, world))
        position = position.advanced(steps * world * share, length)
    assert position.epoch * length + position.consumed == len(seen)
    per_epoch = Counter(name // length for name in seen)
    for epoch in range(position.epoch):
        assert per_epoch[epoch] == length
    assert len(set(seen)) == len(seen)


def test_layouts_of_the_same_replicas_see_the_same_micro_batches() -> None:
    """4 replicas as 1x4, 2x2 and 4x1 instances, 2 device iterations, 3 samples per replica and iteration."""
    iterations, replicas, per_replica = 2, 4, 3

    def by_replica(instances: int) -> dict[tuple[int, int], list[int]]:
        local = replicas // instances
        seen = {}
        for rank in range(instances):
            places = rank_places(
                0, iterations * replicas * per_replica, rank, instances, block=local * per_replica
            )
            for iteration, rows in enumerate(places.reshape(iterations, local, per_replica)):
                for replica, row in enumerate(rows):
                    seen[iteration, rank * local + replica] = row.tolist()
        return seen

    assert by_replica(1) == by_replica(2) == by_replica(4)


def test_seek_is_free_in_a_billion_samples() -> None:
    """First batch and any seek within 10 ms and 10 MB; best of three, as the machine may be busy."""

    def first_batch(epoch: int, consumed: int) -> float:
        started = time.perf_counter()
        sampler = StreamSampler(10**9, 3, 4096, 10**6, Position(epoch, consumed), rank=3, world=16)
        assert len(sampler.step_samples(0)) == 256
        assert 0 <= next(iter(sampler)) - epoch * 10**9 < 10**9
        return time.perf_counter() - started

    for place in [(0, 0), (5, 987_654_321)]:
        assert min(first_batch(*place) for _ in range(3)) < 0.010
    tracemalloc.start()
    first_batch(2, 123)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("arguments", [(0, 10, 3, 4), (0, 8, 4, 4), (0, 12, 0, 4, 2)])
def test_uneven_shares_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="samples"):
        rank_places(*arguments)


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 samples"):
        StreamSampler(0, 1, 8, 1)
