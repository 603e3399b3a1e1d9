"""Kernels over rows, with the operators they swallow, against torch's own operators and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bert_ipu.simulator.runtime import optimizer_ops, random, row_kernels
from bert_ipu.simulator.runtime.native import Kernels, load_kernels
from bert_ipu.simulator.runtime.random import Draws, make_places, seed_key
from bert_ipu.simulator.runtime.row_kernels import Dropping

pytestmark = pytest.mark.cpp

TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
DROPPINGS = pytest.mark.parametrize("dropping", [None, Dropping(7, 0.3)])


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    loaded = load_kernels()
    assert loaded is not None, "no compiler"
    return loaded


@pytest.fixture
def draws(kernels: Kernels) -> Draws:
    """Of two micro-batches."""
    return Draws(seed_key(11), make_places([(0, 5), (1, 5)]), kernels)


def kept(x: Tensor, dropping: Dropping | None, draws: Draws) -> Tensor:
    """What the dropout that is not fused multiplies by."""
    ones = torch.ones(x.shape)
    return ones if dropping is None else random.dropout(ones, dropping.p, draws, dropping.op)


def near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@TYPES
@DROPPINGS
@pytest.mark.parametrize("bias_rows", [0, 1, 16])
def test_softmax(
    kernels: Kernels, draws: Draws, dtype: torch.dtype, tolerance: float, dropping: Dropping | None, bias_rows: int
) -> None:  # fmt: skip
    scores = (torch.randn(4, 3, 16, 128) * 8).to(dtype)
    bias = None
    if bias_rows:
        bias = torch.where(torch.rand(4, 1, bias_rows, 128) < 0.4, -10000.0, 0.0).to(dtype)
    exact = scores.float().requires_grad_()
    expected = torch.softmax(exact * 0.125 + (0.0 if bias is None else bias.float()), -1)
    dropped = expected * kept(scores, dropping, draws)
    found, found_dropped = row_kernels.softmax(scores, 3, 0.125, bias, dropping, draws, kernels)
    near(found, expected.detach(), tolerance)
    near(found_dropped, dropped.detach(), tolerance)
    gradient = torch.randn(scores.shape).to(dtype)
    dropped.backward(gradient.float())
    result = row_kernels.softmax_grad(gradient, found, -1, 0.125, dropping, draws, kernels)
    near(result, exact.grad, tolerance)


def test_softmax_of_masked_and_broken_rows(kernels: Kernels) -> None:
    scores = torch.randn(5, 64)
    scores[0, 1:] = -1000.0
    scores[1] = -torch.inf
    scores[2, 3] = torch.nan
    scores[3, 3] = torch.inf
    found, _ = row_kernels.softmax(scores, -1, 1.0, None, None, None, kernels)
    near(found[0], torch.nn.functional.one_hot(torch.tensor(0), 64), 0.0)
    assert found[1:4].isnan().all(1).equal(torch.softmax(scores, -1)[1:4].isnan().all(1))
    near(found[4], torch.softmax(scores[4], -1), 1e-6)


@TYPES
@DROPPINGS
@pytest.mark.parametrize("parts", [1, 2])
def test_layer_norm_of_a_sum(
    kernels: Kernels, draws: Draws, dtype: torch.dtype, tolerance: float, dropping: Dropping | None, parts: int
) -> None:  # fmt: skip
    x, residual = torch.randn(2, 40, 192).to(dtype), torch.randn(2, 40, 192).to(dtype)
    weight, bias = torch.randn(192).to(dtype), torch.randn(192).to(dtype)
    exact = [value.float().requires_grad_() for value in (x, residual, weight, bias)]
    total = exact[0] * kept(x, dropping, draws) + exact[1]
    expected = torch.nn.functional.layer_norm(total, (192,), exact[2], exact[3], 1e-3)
    found_total, found, mean, rstd = row_kernels.add_norm(
        x, residual, weight, bias, 1e-3, dropping, draws, kernels
    )
    near(found_total, total.detach(), tolerance)
    near(found, expected.detach(), 2 * tolerance)
    gradient, other = torch.randn(x.shape).to(dtype), torch.randn(x.shape).to(dtype)
    expected.backward(gradient.float() + (other.float() if parts == 2 else 0.0))
    out, weight_grad, bias_grad, dropped = row_kernels.norm_grad(
        gradient,
        other if parts == 2 else None,
        found_total,
        mean,
        rstd,
        weight,
        bias,
        dropping,
        draws,
        kernels,
    )
    near(out, exact[1].grad, 4 * tolerance)
    near(dropped, exact[0].grad, 4 * tolerance)
    near(weight_grad, exact[2].grad, 20 * tolerance)
    near(bias_grad, exact[3].grad, 20 * tolerance)


def test_a_width_that_random_words_do_not_divide(kernels: Kernels, draws: Draws) -> None:
    """The kernel leaves it to the operators it stands for: the mask is theirs."""
    x, residual, weight, bias = torch.randn(2, 5, 50), torch.randn(2, 5, 50), torch.randn(50), torch.randn(50)
    dropping = Dropping(3, 0.5)
    total, *_ = row_kernels.add_norm(x, residual, weight, bias, 1e-3, dropping, draws, kernels)
    torch.testing.assert_close(total, random.dropout(x, 0.5, draws, 3) + residual)


@TYPES
def test_the_gradient_of_such_a_width(
    kernels: Kernels, draws: Draws, dtype: torch.dtype, tolerance: float
) -> None:
    """Torch computes it where a dropout follows, of means that the kernel kept in float32."""
    x, residual, gradient = (torch.randn(2, 5, 50).to(dtype) for _ in range(3))
    weight, bias = torch.randn(50).to(dtype), torch.randn(50).to(dtype)
    total, _, mean, rstd = row_kernels.add_norm(x, residual, weight, bias, 1e-3, None, None, kernels)
    exact = [value.float().requires_grad_() for value in (total, weight, bias)]
    torch.nn.functional.layer_norm(exact[0], (50,), exact[1], exact[2], 1e-3).backward(gradient.float())
    dropping = Dropping(3, 0.5)
    *found, dropped = row_kernels.norm_grad(
        gradient, None, total, mean, rstd, weight, bias, dropping, draws, kernels
    )
    assert exact[0].grad is not None
    near(dropped, exact[0].grad * kept(x, dropping, draws), 8 * tolerance)
    for ours, theirs in zip(found, exact):
        assert ours.dtype == dtype and theirs.grad is not None
        near(ours, theirs.grad, 4 * tolerance)


@TYPES
def test_gelu(kernels: Kernels, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.linspace(-12, 12, 20_001).to(dtype)
    exact = x.double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    near(row_kernels.gelu(x, kernels), expected.detach(), tolerance)
    gradient = torch.randn(x.shape).to(dtype)
    expected.backward(gradient.double())
    near(row_kernels.gelu_grad(gradient, x, kernels), exact.grad, tolerance)


def test_gradient_of_embeddings(kernels: Kernels) -> None:
    index = torch.randint(0, 11, (4, 6, 9), dtype=torch.int32)
    gradient = torch.randn(4, 6, 9, 130)
    expected = torch.ops.aten.embedding_dense_backward(gradient, index, 11, 3, False)
    near(row_kernels.embedding_grad(gradient, index, 11, 3, kernels), expected, 1e-5)
    table = torch.randn(11, 130)
    summed = row_kernels.add_embedding_grad(table.clone(), gradient, index, 3, kernels)
    near(summed, table + expected, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sgd_equals_torch(kernels: Kernels, dtype: torch.dtype) -> None:
    weight = torch.randn(70_001)
    theirs = weight.clone().requires_grad_()
    reference = torch.optim.SGD([theirs], lr=0.1, weight_decay=0.01)
    for _ in range(3):
        gradient = torch.randn(70_001).to(dtype)
        theirs.grad = gradient.float()
        reference.step()
        optimizer_ops.sgd0_var_update_by_kernel(weight, gradient, 0.1, 1 - 0.1 * 0.01, kernels)
    near(weight, theirs.detach(), 1e-6)


def test_softmax_over_another_dimension(kernels: Kernels) -> None:
    scores, gradient = torch.randn(4, 8, 64), torch.randn(4, 8, 64)
    found, _ = row_kernels.softmax(scores, 1, 0.5, None, None, None, kernels)
    near(found, torch.softmax(scores * 0.5, 1), 1e-6)
    exact = scores.clone().requires_grad_()
    torch.softmax(exact * 0.5, 1).backward(gradient)
    near(row_kernels.softmax_grad(gradient, found, 1, 0.5, None, None, kernels), exact.grad, 1e-6)
