"""CTC prefix beam search (Graves & Jaitly 2014; Hannun et al., arXiv:1408.2873), on the host."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

Prefix = tuple[int, ...]


def _add(first: float, second: float) -> float:
    """log(exp(first) + exp(second))."""
    if first < second:
        first, second = second, first
    return first if second == -math.inf else first + math.log1p(math.exp(second - first))


def _step(
    beams: dict[Prefix, tuple[float, float]], row: list[float], blank: int
) -> dict[Prefix, tuple[float, float]]:
    """One time step: each prefix with its log probabilities of ending in blank and in its last label."""
    grown: dict[Prefix, tuple[float, float]] = defaultdict(lambda: (-math.inf, -math.inf))
    for prefix, (ends_blank, ends_label) in beams.items():
        total = _add(ends_blank, ends_label)
        for label, log_probability in enumerate(row):
            if label == blank:
                to_blank, to_label = grown[prefix]
                grown[prefix] = (_add(to_blank, total + log_probability), to_label)
                continue
            repeated = bool(prefix) and prefix[-1] == label
            if repeated:
                to_blank, to_label = grown[prefix]
                grown[prefix] = (to_blank, _add(to_label, ends_label + log_probability))
            longer = (*prefix, label)
            source = ends_blank if repeated else total
            to_blank, to_label = grown[longer]
            grown[longer] = (to_blank, _add(to_label, source + log_probability))
    return grown


def _decode(rows: list[list[float]], blank: int, beam_width: int) -> list[tuple[Prefix, float]]:
    beams: dict[Prefix, tuple[float, float]] = {(): (0.0, -math.inf)}
    for row in rows:
        grown = _step(beams, row, blank)
        best = sorted(grown, key=lambda prefix: _add(*grown[prefix]), reverse=True)[:beam_width]
        beams = {prefix: grown[prefix] for prefix in best}
    return [(prefix, _add(*scores)) for prefix, scores in beams.items()]


def beam_search(
    log_probs: Tensor, lengths: Tensor, blank: int, beam_width: int, top_paths: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `top_paths` likeliest label sequences of each batch entry of log probabilities [T, B, classes].

    Returns log probabilities [B, P] float32, lengths [B, P] int32 and labels [B, P, T] int32 (blank: unused).
    """
    steps, batch, _ = log_probs.shape
    scores = torch.full((batch, top_paths), -math.inf)
    path_lengths = torch.zeros(batch, top_paths, dtype=torch.int32)
    labels = torch.full((batch, top_paths, steps), blank, dtype=torch.int32)
    for entry in range(batch):
        rows = log_probs[: int(lengths[entry]), entry].tolist()
        for path, (prefix, score) in enumerate(_decode(rows, blank, beam_width)[:top_paths]):
            scores[entry, path] = score
            path_lengths[entry, path] = len(prefix)
            labels[entry, path, : len(prefix)] = torch.tensor(prefix, dtype=torch.int32)
    return scores, path_lengths, labels
