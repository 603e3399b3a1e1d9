"""Random numbers that are a function of (seed, step, stream, operator, element), whatever the order of work.

Philox4x32 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) with the seed as key and
(block, operator, stream, step) as counter: 10 rounds, or 7, which passed all of their tests, for stochastic
rounding.  A stream is one micro-batch of one replica, counted over all instances: batching, resuming and the
number of instances change nothing.  `kernels/philox.hpp` is the same function in C++, and says how elements take
the words of blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.native import Kernels

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF
LANES, GROUP = 16, 64

ROUNDS, ROUNDS_OF_ROUNDING = 10, 7

ROUNDING = 1 << 31
"""Added to an operator's number where the draw is that of stochastic rounding, not the operator's own."""


@dataclass
class Draws:
    """What is fixed while one chunk of micro-batches runs: the seed, and each micro-batch's stream and step."""

    key: Tensor
    """[2] int32 bits of the seed."""
    places: Tensor
    """[K, 2] int32: stream and step of each micro-batch of the chunk."""
    kernels: Kernels | None
    copies: dict[torch.device, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.key_pointer = self.key.data_ptr()
        self.places_pointer = self.places.data_ptr()
        self.streams = self.places.shape[0]

    def places_on(self, device: torch.device) -> Tensor:
        """[K, 2] int64: `places` on a device, where it is copied once, as the host waits for each copy."""
        if device not in self.copies:
            self.copies[device] = self.places.to(device=device, dtype=torch.int64) & MASK
        return self.copies[device]


def seed_key(seed: int) -> Tensor:
    """The 64 bits of a seed as [2] int32."""
    return _bits([seed & MASK, (seed >> 32) & MASK])


def make_places(pairs: list[tuple[int, int]]) -> Tensor:
    """[K, 2] int32 of (stream, step) pairs."""
    return _bits([value & MASK for pair in pairs for value in pair]).view(-1, 2)


def _bits(words: list[int]) -> Tensor:
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def random_words(draws: Draws, op: int, elements: int, device: torch.device | None = None) -> Tensor:
    """[streams, elements] int64 holding 32-bit words."""
    if draws.kernels is not None and (device is None or device.type == "cpu"):
        words = torch.empty(draws.streams, elements, dtype=torch.int32)
        draws.kernels.random_words(
            words.data_ptr(), draws.streams, elements, draws.key_pointer, op, draws.places_pointer
        )
        return words.to(torch.int64) & MASK
    return words_in_torch(draws, op, elements, device)


def words_in_torch(
    draws: Draws, op: int, elements: int, device: torch.device | None, rounds: int = ROUNDS,
    first_group: int = 0,
) -> Tensor:  # fmt: skip
    """The same without a kernel, from a group of words on."""
    groups = -(-elements // GROUP)
    blocks = torch.arange(groups * LANES, dtype=torch.int64, device=device) + first_group * LANES
    places = draws.places_on(device or torch.device("cpu"))
    key = [int(word) & MASK for word in draws.key]
    shape = (draws.streams, groups * LANES)
    counter = [
        (blocks & MASK).expand(shape),
        torch.full(shape, op, dtype=torch.int64, device=device),
        places[:, :1].expand(shape),
        places[:, 1:].expand(shape),
    ]
    words = torch.stack(_philox(counter, key, rounds), dim=1)  # [streams, 4, blocks]
    words = words.view(draws.streams, 4, groups, LANES).transpose(1, 2)
    return words.reshape(draws.streams, groups * GROUP)[:, :elements]


def _philox(counter: list[Tensor], key: list[int], rounds: int) -> list[Tensor]:
    for _ in range(rounds):
        high0, low0 = _product(MULTIPLIERS[0], counter[0])
        high1, low1 = _product(MULTIPLIERS[1], counter[2])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(word + weyl) & MASK for word, weyl in zip(key, WEYL)]
    return counter


def _product(multiplier: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 by 32 bit product, in signed 64-bit arithmetic that never overflows."""
    low = words & 0xFFFF
    high = words >> 16
    partial = low * multiplier
    upper = high * multiplier + (partial >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (partial & 0xFFFF)


def threshold_for(probability: float) -> int:
    """Words below it come with the given probability, to 2^-32."""
    return min(round(probability * 2.0**32), MASK)


def dropout(x: Tensor, p: float, draws: Draws, op: int) -> Tensor:
    """x with each element zeroed with probability p and the others divided by 1 - p.

    x: [K * n, ...] or [K, ...] for K streams.  The same call on the gradient is dropout's backward.
    """
    if p <= 0.0:
        return x
    if p >= 1.0:
        return torch.zeros_like(x)
    scale = 1.0 / (1.0 - p)
    if draws.kernels is not None and x.device.type == "cpu" and x.dtype in _DROPOUT:
        x = x.contiguous()
        out = torch.empty_like(x)
        kernel = getattr(draws.kernels, _DROPOUT[x.dtype])
        kernel(
            x.data_ptr(), out.data_ptr(), draws.streams, x.numel() // draws.streams,
            draws.key_pointer, op, draws.places_pointer, threshold_for(p), scale,
        )  # fmt: skip
        return out
    kept = random_words(draws, op, x.numel() // draws.streams, x.device) >= threshold_for(p)
    return torch.where(kept.view(x.shape), x.float() * scale, 0.0).to(x.dtype)


_DROPOUT = {torch.float32: "dropout_f32", torch.bfloat16: "dropout_bf16"}


def uniform(shape: tuple[int, ...], draws: Draws, op: int, device: torch.device) -> Tensor:
    """[streams, *shape] float32 in (0, 1), 24 bits of each word."""
    words = random_words(draws, op, math.prod(shape), device)
    return (((words >> 8).float() + 0.5) * 2.0**-24).view(draws.streams, *shape)


def normal(shape: tuple[int, ...], draws: Draws, op: int, device: torch.device) -> Tensor:
    """[streams, *shape] float32 of the standard normal distribution, by Box and Muller's transform."""
    pairs = uniform((2, *shape), draws, op, device)
    return torch.sqrt(-2.0 * torch.log(pairs[:, 0])) * torch.cos(2.0 * math.pi * pairs[:, 1])
