"""Packing: which sequences share a row.

Two ways, both on the histogram of lengths, so that their cost depends on the number of different lengths and
not on the number of sequences; the one that needs fewer rows is taken:

* Best fit: from the longest sequence down, each joins the fullest row it fits, or opens one.  Where a row may
  hold any number of sequences, it wastes about a thousandth (Krell et al., "Efficient sequence packing
  without cross-contamination", 2021, describe it beside the non-negative least squares of Graphcore's
  scripts).
* Pairs: from the longest sequence down, each is joined by a long and a short one that together fill its row
  as far as possible.  Where three sequences are the limit, best fit would fill rows with two sequences and
  strand the short ones; here long sequences use the short ones up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Strategy(NamedTuple):
    """Rows of one kind."""

    count: int
    """How many such rows."""
    lengths: tuple[int, ...]
    """Lengths of the sequences in each, from the longest."""


def pack_histogram(
    histogram: np.ndarray, row_length: int, max_sequences: int | None = None
) -> list[Strategy]:
    """Put all sequences of a histogram, [row_length + 1] counts by length, into rows of `row_length` tokens.

    A row holds at most `max_sequences` (None: any number).
    """
    unlimited = _best_fit(histogram, row_length, row_length)
    if max_sequences is None:
        return unlimited
    packed = _best_fit(histogram, row_length, max_sequences)
    if max_sequences < 3 or row_count(packed) == row_count(unlimited):
        return packed  # the limit costs nothing
    return min(packed, _pair_fit(histogram, row_length), key=row_count)


def row_count(strategies: list[Strategy]) -> int:
    """Rows of all strategies together."""
    return sum(strategy.count for strategy in strategies)


def least_rows(histogram: np.ndarray, row_length: int, max_sequences: int | None = None) -> int:
    """The bound: no packing has fewer rows."""
    by_tokens = -(-int(histogram @ np.arange(len(histogram))) // row_length)
    return max(by_tokens, -(-int(histogram.sum()) // (max_sequences or row_length)))


def _best_fit(histogram: np.ndarray, row_length: int, max_sequences: int) -> list[Strategy]:
    done: list[Strategy] = []
    open_rows: list[list[Strategy]] = [[] for _ in range(row_length + 1)]  # by free tokens
    for length in range(row_length, 0, -1):
        left = int(histogram[length])
        while left:
            free = next((free for free in range(length, row_length) if open_rows[free]), row_length)
            available, row = open_rows[free].pop() if free < row_length else (left, ())
            copies = min(free // length, max_sequences - len(row), left)
            count = min(available, left // copies)
            if free < row_length and available > count:
                open_rows[free].append(Strategy(available - count, row))
            row += (length,) * copies
            left -= count * copies
            free -= length * copies
            full = free == 0 or len(row) == max_sequences
            (done if full else open_rows[free]).append(Strategy(count, row))
    return done + [strategy for rows in open_rows for strategy in rows]


def _pair_fit(histogram: np.ndarray, row_length: int) -> list[Strategy]:
    left = histogram.tolist()
    done: list[Strategy] = []

    def take(*lengths: int) -> None:
        count = min(left[length] // lengths.count(length) for length in lengths)
        if count:
            done.append(Strategy(count, lengths))
            for length in lengths:
                left[length] -= count

    for longest in range(row_length, 0, -1):
        gap = row_length - longest
        for filled in range(gap, 1, -1):
            for second in range(min(longest, filled - 1), (filled - 1) // 2, -1):
                if not left[longest]:
                    break
                if left[second] and left[filled - second]:
                    take(longest, second, filled - second)
        for second in range(min(longest, gap), 0, -1):
            take(longest, second)
        take(longest)
    return done


def assign(lengths: np.ndarray, strategies: list[Strategy], max_sequences: int, seed: int) -> np.ndarray:
    """Sequences of each row, [rows, max_sequences] int64: numbers into `lengths` [n], -1 where it has fewer.

    Which of the sequences of a length meet in a row, and the order of rows, are pseudo-random by `seed`.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(lengths))
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    next_of = np.searchsorted(lengths[by_length], np.arange(int(lengths.max(initial=0)) + 1))
    rows = np.full((row_count(strategies), max_sequences), -1, np.int64)
    start = 0
    for count, row in strategies:
        for slot, length in enumerate(row):
            rows[start : start + count, slot] = by_length[next_of[length] : next_of[length] + count]
            next_of[length] += count
        start += count
    return generator.permutation(rows)
