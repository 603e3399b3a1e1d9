"""Packing loses nothing, overfills nothing, and wastes little."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import assign, least_rows, pack_histogram, row_count


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=300), st.sampled_from([None, 1, 2, 3, 4, 9]))
def test_every_sequence_has_one_place(lengths: list[int], depth: int | None) -> None:
    sizes = np.array(lengths)
    histogram = np.bincount(sizes, minlength=65)
    strategies = pack_histogram(histogram, 64, depth)
    slots = depth or max(len(strategy.lengths) for strategy in strategies)
    rows = assign(sizes, strategies, slots, seed=1)
    members = rows[rows >= 0]
    assert sorted(members.tolist()) == list(range(len(sizes)))
    assert (np.where(rows >= 0, sizes[rows], 0).sum(axis=1) <= 64).all()
    assert least_rows(histogram, 64, depth) <= row_count(strategies) == len(rows) <= len(sizes)
    assert np.array_equal(rows, assign(sizes, strategies, slots, seed=1))


def test_which_sequences_meet_is_random() -> None:
    sizes = np.full(1000, 30)
    strategies = pack_histogram(np.bincount(sizes, minlength=65), 64, 2)
    rows = assign(sizes, strategies, 2, seed=0)
    assert abs(np.corrcoef(rows[:, :2].T)[0, 1]) < 0.15
    assert not np.array_equal(rows, assign(sizes, strategies, 2, seed=1))


@pytest.fixture(scope="module")
def million(shared_data: Path) -> np.ndarray:
    """Histogram of 10^6 lengths drawn like Wikipedia's sequences of at most 512 tokens."""
    histograms = json.loads((shared_data / "packing/sequence_length_histograms.json").read_text())
    counts = np.array(histograms["wikipedia_histogram"])
    lengths = np.random.default_rng(0).choice(np.arange(1, 513), p=counts / counts.sum(), size=10**6)
    return np.bincount(lengths, minlength=513)


def test_a_million_lengths_without_a_limit(million: np.ndarray) -> None:
    started = time.process_time()
    strategies = pack_histogram(million, 512)
    seconds = time.process_time() - started
    assert least_rows(million, 512) / row_count(strategies) >= 0.99
    assert seconds < 0.2, "50 ms on a quiet machine"


def test_a_million_lengths_three_to_a_row(million: np.ndarray) -> None:
    """The linear program of all strategies of three (solved in bench/data_packing.py) needs 500,491 rows."""
    assert row_count(pack_histogram(million, 512, 3)) <= 1.01 * 500_491
