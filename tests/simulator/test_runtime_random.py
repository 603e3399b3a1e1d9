"""Random numbers: published test vectors, the C++ kernel against plain torch, and what a draw depends on."""

from __future__ import annotations

import pytest
import torch

from bert_ipu.simulator.runtime import random, rounding
from bert_ipu.simulator.runtime.native import load_kernels
from bert_ipu.simulator.runtime.random import Draws, make_places, seed_key

CPU = torch.device("cpu")


def draws(*places: tuple[int, int], seed: int = 7, native: bool = True) -> Draws:
    return Draws(seed_key(seed), make_places(list(places)), load_kernels() if native else None)


# Random123's kat_vectors for philox4x32: rounds; counter and key of zeros, of ones, and of pi's digits.
VECTORS = [
    (7, [0, 0, 0, 0], [0, 0], [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]),
    (7, [0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]),
    (10, [0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (10, [0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        10,
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), VECTORS)
def test_philox_gives_the_published_words(
    rounds: int, counter: list[int], key: list[int], expected: list[int]
) -> None:
    words = random._philox([torch.tensor([word]) for word in counter], key, rounds)
    assert [int(word) for word in words] == expected


@pytest.mark.cpp
def test_the_kernel_draws_what_torch_draws() -> None:
    places = [(1, 5), (2, 5), (3, 2**31 + 6)]
    native, plain = draws(*places, seed=2**40 + 3), draws(*places, seed=2**40 + 3, native=False)
    for elements in (1, 63, 64, 65, 1000):
        assert torch.equal(random.random_words(native, 9, elements), random.random_words(plain, 9, elements))


@pytest.mark.cpp
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_kernel_equals_torch(dtype: torch.dtype) -> None:
    x = torch.randn(2 * 37, 11).to(dtype)
    places = [(0, 1), (4, 1)]
    native = random.dropout(x, 0.3, draws(*places), 5)
    assert torch.equal(native, random.dropout(x, 0.3, draws(*places, native=False), 5))


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    out = random.dropout(torch.ones(1 << 20), 0.1, draws((0, 0)), 1)
    assert abs(float((out == 0).float().mean()) - 0.1) < 1e-3
    assert abs(float(out.mean()) - 1) < 1.5e-3


def test_a_draw_depends_on_seed_step_stream_and_operator_only() -> None:
    base = random.random_words(draws((3, 8)), 2, 256)
    together = random.random_words(draws((1, 8), (3, 8)), 2, 256)
    assert torch.equal(together[1:], base)
    for other in (draws((3, 9)), draws((2, 8)), draws((3, 8), seed=8)):
        assert (random.random_words(other, 2, 256) == base).float().mean() < 0.05
    assert (random.random_words(draws((3, 8)), 3, 256) == base).float().mean() < 0.05


def test_uniform_and_normal_have_their_moments() -> None:
    uniform = random.uniform((1 << 19,), draws((0, 0)), 1, CPU)
    assert abs(float(uniform.mean()) - 0.5) < 2e-3 and abs(float(uniform.var()) - 1 / 12) < 1e-3
    normal = random.normal((1 << 19,), draws((0, 0)), 1, CPU)
    assert abs(float(normal.mean())) < 5e-3 and abs(float(normal.var()) - 1) < 1e-2


@pytest.mark.parametrize("native", [pytest.param(True, marks=pytest.mark.cpp), False])
@pytest.mark.parametrize("value", [1.0 + 2**-12, 3.1415926, 100.03, 2.0**-15 * 1.37, 2.0**-25, 3e-8])
def test_stochastic_rounding_is_unbiased(value: float, native: bool) -> None:
    for sign in (1.0, -1.0):
        x = torch.full((1 << 18,), sign * value)
        rounded = rounding.round_half_stochastic(x.clone(), draws((0, 0), native=native), 1, torch.inf)
        down, up = sorted({float(v) for v in rounded.unique()} | {float(x[0].half())})[:2] or (0.0, 0.0)
        assert torch.equal(rounded, rounded.half().float())
        assert abs(float(rounded.double().mean()) - sign * value) < 4 * (up - down) / 2 / 512 + 1e-12
        assert rounded.unique().numel() == 2


@pytest.mark.cpp
def test_rounding_kernels_equal_torch() -> None:
    x = torch.cat([torch.randn(4001) * scale for scale in (1e-8, 1e-5, 1.0, 3e4)])
    x = torch.cat([x, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 65504.0, 65519.0, 65520.0, 1e30])])
    kernels = load_kernels()
    assert torch.equal(rounding.round_half(x.clone(), kernels, torch.inf), x.half().float())
    places = draws((0, 3)), draws((0, 3), native=False)
    native, plain = (rounding.round_half_stochastic(x.clone(), each, 4, torch.inf) for each in places)
    assert torch.equal(native, plain)
    assert rounding.round_half_stochastic(torch.tensor([torch.nan]), places[0], 4, torch.inf).isnan()


def test_stochastic_rounding_keeps_half_values() -> None:
    exact = torch.arange(-2048, 2049).float()
    assert torch.equal(rounding.round_half_stochastic(exact.clone(), draws((0, 0)), 1, torch.inf), exact)


@pytest.mark.parametrize("overflow", [65504.0, torch.inf])
@pytest.mark.parametrize("native", [pytest.param(True, marks=pytest.mark.cpp), False])
def test_what_is_too_large_saturates_or_becomes_infinite(overflow: float, native: bool) -> None:
    """Poplar's `FloatingPointBehaviour`: without NaN on overflow, half saturates; infinity propagates."""
    x = torch.tensor([65520.0, -65520.0, 1e30, -1e6, torch.inf, -torch.inf, torch.nan, 65504.0, -2.0])
    expected = [overflow, -overflow, overflow, -overflow, torch.inf, -torch.inf, torch.nan, 65504.0, -2.0]
    nearest = rounding.round_half(x.clone(), load_kernels() if native else None, overflow)
    torch.testing.assert_close(nearest, torch.tensor(expected), rtol=0.0, atol=0.0, equal_nan=True)
    x[:2] *= 1.01  # 65520 lies between 65504 and the power of two after it
    stochastic = rounding.round_half_stochastic(x, draws((0, 0), native=native), 1, overflow)
    torch.testing.assert_close(stochastic, torch.tensor(expected), rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.cpp
def test_fp16_values_are_left_alone_whatever_stands_beside_them() -> None:
    exact = torch.cat([torch.randn(500).half().float(), torch.zeros(200), torch.full((68,), 2.0**-24)])
    assert torch.equal(rounding.round_half_stochastic(exact.clone(), draws((0, 0)), 3, torch.inf), exact)
    mixed = exact.clone()
    mixed[::100] = 1 / 3
    rounded = rounding.round_half_stochastic(mixed.clone(), draws((0, 0)), 3, torch.inf)
    assert torch.equal(rounded[mixed == exact], exact[mixed == exact])
    assert set(rounded[::100].tolist()) <= {0.333251953125, 0.33349609375}
