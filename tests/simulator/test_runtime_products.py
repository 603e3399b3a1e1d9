"""Products with fp16 multiplications against products in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bert_ipu.simulator.runtime import products
from bert_ipu.simulator.runtime.native import Kernels, load_kernels

pytestmark = pytest.mark.cpp

BOUND = 2e-3
"""Relative error of a product of normal numbers; bf16 operands give 2.9e-3."""


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    loaded = load_kernels()
    assert loaded is not None, "no compiler"
    if not products.has_half_products(loaded):
        pytest.skip("this CPU has no fp16 arithmetic (AVX512-FP16)")
    return loaded


def error(found: Tensor, a: Tensor, b: Tensor) -> float:
    exact = a.double() @ b.double()
    return float((found.double() - exact).norm() / exact.norm())


SHAPES = [
    (12, 64, 64), (1, 1, 1), (13, 70, 65), (300, 1100, 130), (40, 1100, 300), (4100, 33, 70), (40, 50, 4200),
    (1000, 1100, 2000),
]  # fmt: skip
"""Rows, depth, columns: whole tiles, parts of them, and more than one block of each; the right matrix packed whole,
the left one, neither."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turned", ["neither", "left", "right", "both"])
def test_a_product_is_as_exact_as_stated(kernels: Kernels, shape: tuple[int, int, int], turned: str) -> None:
    rows, depth, columns = shape
    a = torch.randn(depth, rows).t() if turned in ("left", "both") else torch.randn(rows, depth)
    b = torch.randn(columns, depth).t() if turned in ("right", "both") else torch.randn(depth, columns)
    out = products.multiply_into(torch.full((rows, columns), torch.nan), a, b, kernels)
    assert error(out, a, b) < BOUND
    assert error(out, a, b) < 0.7 * error((a.bfloat16() @ b.bfloat16()), a, b) or rows * columns < 100


def test_more_than_one_block_of_rows_and_of_columns(kernels: Kernels) -> None:
    a, b = torch.randn(4100, 300), torch.randn(300, 7100)
    found, exact = products.multiply_into(a.new_empty(4100, 7100), a, b, kernels), a @ b
    assert float((found - exact).norm() / exact.norm()) < BOUND


def test_bias_and_sums_of_rows(kernels: Kernels) -> None:
    a, b, bias = torch.randn(1500, 130).t(), torch.randn(1500, 140), torch.randn(140)
    out, sums = torch.empty(130, 140), torch.full((130,), torch.nan)
    products.multiply_into(out, a, b, kernels, bias, sums)
    exact = a.double() @ b.double() + bias.double()
    assert float((out - exact).norm() / exact.norm()) < BOUND
    torch.testing.assert_close(sums, a.double().sum(1).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(300, 2100, 140), (130, 1500, 140), (3000, 2100, 1499)])
def test_sums_of_rows_of_a_turned_matrix(kernels: Kernels, shape: tuple[int, int, int]) -> None:
    """A weight's gradient: the first and last are computed transposed, in strips and in blocks."""
    rows, depth, columns = shape
    a, b = torch.randn(depth, rows).t(), torch.randn(depth, columns)
    out, sums = products.product_and_row_sums(a, b, kernels)
    assert float((out - a @ b).norm() / out.norm()) < BOUND
    torch.testing.assert_close(sums, a.double().sum(1).float(), rtol=1e-4, atol=1e-3)


def test_strided_batches_equal_torch(kernels: Kernels) -> None:
    """Attention's products, on query, key and value as one product left them."""
    heads = torch.randn(3, 128, 3, 4, 64).permute(2, 0, 3, 1, 4)
    query, key, value = heads
    scores = products.matmul(query, key.transpose(-1, -2), kernels)
    assert error(scores, query, key.transpose(-1, -2)) < BOUND
    chances = torch.softmax(scores, -1)
    assert error(products.matmul(chances.transpose(-1, -2), value, kernels), chances.mT, value) < BOUND
    merged = products.merged_heads(chances, value, kernels)
    assert merged.is_contiguous()
    assert error(merged.transpose(1, 2), chances, value) < BOUND


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e30])
def test_no_scale_of_rows_or_columns_overflows_or_vanishes(kernels: Kernels, size: float) -> None:
    a, b = torch.randn(120, 200), torch.randn(200, 150)
    a[::2] *= size
    b[:, ::3] /= size
    out = products.matmul(a, b, kernels)
    exact = a.double() @ b.double()
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        for columns in (slice(0, None, 3), slice(1, None, 3)):
            part = exact[rows, columns]
            assert float((out[rows, columns].double() - part).norm() / part.norm()) < BOUND


def test_zeros_infinity_and_nan(kernels: Kernels) -> None:
    a, b = torch.randn(120, 128), torch.randn(128, 130)
    a[0] = 0.0
    a[1, 5] = torch.inf
    a[2, 7] = torch.nan
    out = products.matmul(a, b, kernels)
    assert torch.equal(out[0], torch.zeros(130))
    assert torch.equal(out[1], torch.copysign(torch.tensor(torch.inf), b[5]))
    assert out[2].isnan().all()
    assert out[3:].isfinite().all()


def test_linear_and_what_is_too_small_for_the_kernel(kernels: Kernels) -> None:
    for rows, inputs, outputs in [(4, 32, 8), (256, 128, 192)]:
        x, weight, bias = torch.randn(2, rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        found = products.linear(x, weight, bias, kernels)
        expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        assert found.shape == expected.shape
        assert float((found - expected).norm() / expected.norm()) < BOUND
