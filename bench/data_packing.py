"""Packing 10^6 lengths: seconds, and rows against lower bounds and against non-negative least squares.

    python bench/data_packing.py sequence_length_histograms.json [--least-squares]

The lower bounds are the tokens, and the linear program over all strategies of three, solved by column
generation (Gilmore and Gomory, 1961).  `--least-squares` solves Graphcore's formulation with scipy, which
takes half a minute at 512.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

import numpy as np
from packing import least_rows, pack_histogram, row_count
from scipy import optimize, sparse

SEQUENCES = 10**6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("histograms", type=Path)
    parser.add_argument("--least-squares", action="store_true")
    options = parser.parse_args()
    for name, counts in json.loads(options.histograms.read_text()).items():
        share = np.array(counts) / sum(counts)
        row_length = len(counts)
        lengths = np.random.default_rng(0).choice(np.arange(1, row_length + 1), p=share, size=SEQUENCES)
        histogram = np.bincount(lengths, minlength=row_length + 1)
        print(f"{name}: {SEQUENCES:,} sequences in rows of {row_length}")
        program = linear_program_rows(histogram, row_length)
        print(f"  lower bound of the linear program, at most 3 to a row: {program:,.0f} rows")
        for depth in (None, 2, 3, 4):
            seconds = min(timed(histogram, row_length, depth) for _ in range(5))
            rows = row_count(pack_histogram(histogram, row_length, depth))
            bound = least_rows(histogram, row_length, depth)
            ratio = f"{bound / rows:.2%} of the bound"
            ratio += f", {program / rows:.2%} of the linear program" if depth == 3 else ""
            print(f"  at most {depth}: {rows:,} rows, {ratio}; {seconds * 1e3:.0f} ms")
        if options.least_squares:
            started = time.process_time()
            rows = least_squares_rows(histogram, row_length)
            print(f"  least squares, at most 3: {rows:,.0f} rows; {time.process_time() - started:.1f} s")


def timed(histogram: np.ndarray, row_length: int, depth: int | None) -> float:
    started = time.process_time()
    pack_histogram(histogram, row_length, depth)
    return time.process_time() - started


def linear_program_rows(histogram: np.ndarray, row_length: int) -> float:
    """Fewest rows, fractions allowed, of at most three sequences: no packing can have fewer."""
    present = np.flatnonzero(histogram)
    place = np.full(row_length + 1, -1)
    place[present] = np.arange(len(present))
    strategies = [strategy.lengths for strategy in pack_histogram(histogram, row_length, 3)]
    strategies += [(int(length),) for length in present]
    known = {tuple(sorted(strategy)) for strategy in strategies}
    while True:
        uses = np.concatenate([place[list(strategy)] for strategy in strategies])
        owner = np.repeat(np.arange(len(strategies)), [len(strategy) for strategy in strategies])
        matrix = sparse.csc_matrix((np.ones(len(uses)), (uses, owner)), shape=(len(present), len(strategies)))
        solved = optimize.linprog(np.ones(len(strategies)), A_ub=-matrix, b_ub=-histogram[present])
        prices = np.full(row_length + 1, -np.inf)
        prices[present], prices[0] = -solved.ineqlin.marginals, 0.0
        new = [triple for triple in best_triples(prices, row_length) if triple not in known]
        if not new:
            return solved.fun
        known.update(new)
        strategies += new


def best_triples(prices: np.ndarray, row_length: int) -> list[tuple[int, ...]]:
    """For each length, the dearest strategy of three that fills a row; only those dearer than a row."""
    pair = np.full(row_length + 1, -np.inf)
    second = np.zeros(row_length + 1, int)
    for length in range(row_length + 1):
        candidates = prices[length] + prices[: row_length + 1 - length]
        better = candidates > pair[length:]
        pair[length:][better] = candidates[better]
        second[length:][better] = length
    worth = prices + pair[::-1]
    triples = [
        (c, second[row_length - c], row_length - c - second[row_length - c])
        for c in np.flatnonzero(worth > 1 + 1e-7)
    ]
    return list({tuple(sorted(int(length) for length in triple if length)) for triple in triples})


def least_squares_rows(histogram: np.ndarray, row_length: int) -> float:
    """Rows of Graphcore's mixture of strategies of at most three, leftovers padded as its script does."""
    triples = [
        (a, b, row_length - a - b)
        for a in range(row_length // 3 + 1)
        for b in range(a, (row_length - a) // 2 + 1)
        if row_length - a - b >= b and not (b == 0 and a > 0)
    ]
    matrix = np.zeros((row_length + 1, len(triples)))
    for column, triple in enumerate(triples):
        for length in triple:
            matrix[length, column] += 1
    matrix = matrix[1:]
    weights = np.ones(row_length)
    weights[:8] = 8 / (2 * row_length)  # short sequences may be left over or padded
    weights = np.sqrt(weights)[:, None]
    mixture, _ = optimize.nnls(weights * matrix, weights[:, 0] * histogram[1:])
    mixture = np.rint(mixture)
    left_over = histogram[1:] - matrix @ mixture
    return float(mixture.sum() + left_over[left_over > 0].sum())


if __name__ == "__main__":
    main()
