"""C++ kernels against torch's own functions and optimizers."""

from __future__ import annotations

import ctypes
import math
import os
from pathlib import Path

import pytest
import torch

from bert_ipu.simulator.native import build
from bert_ipu.simulator.runtime import losses, native, optimizer_ops
from bert_ipu.simulator.runtime.fused_adam import adam_kernel
from bert_ipu.simulator.runtime.native import Kernels, load_kernels

pytestmark = pytest.mark.cpp


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    loaded = load_kernels()
    assert loaded is not None, "no compiler"
    return loaded


def test_the_kernels_share_torch_threads() -> None:
    """One OpenMP library in the process: torch's."""
    maps = Path("/proc/self/maps").read_text()
    names = {line.split("/")[-1] for line in maps.splitlines() if "gomp" in line or "libomp" in line}
    load_kernels()
    assert len(names) == 1


def test_a_library_that_was_cut_off_is_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader maps what the header names, and dies where the file ends before."""
    whole = build.build_kernels()
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    copy = tmp_path / whole.name
    copy.write_bytes(whole.read_bytes())
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 'note: first' >&2; echo 'fatal error: no space' >&2; exit 3")
    compiler.chmod(0o755)
    monkeypatch.setenv(build.CODELET_COMPILER_VARIABLE, str(compiler))
    assert build.build_kernels() == copy  # as it is
    for length in (copy.stat().st_size - 1, 1000, 10, 0):
        os.truncate(copy, length)
        with pytest.raises(build.BuildError, match=r"^.*compiler ended with status 3: fatal error: no space\n"):
            build.build_kernels()
    assert not list(tmp_path.glob("*.objects"))


def test_a_library_of_other_kernels_is_said_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "build_kernels", lambda: Path(torch._C.__file__))
    assert native.load_kernels.__wrapped__() is None
    assert "plain torch runs instead" in caplog.text and "undefined symbol" in caplog.text


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_cross_entropy_and_its_gradient(kernels: Kernels, dtype: torch.dtype, tolerance: float) -> None:
    scores = (torch.randn(33, 1003) * 3).to(dtype)
    labels = torch.randint(0, 1003, (33,), dtype=torch.int32)
    labels[::5] = -100
    share = torch.rand(33).to(dtype)
    exact = scores.float().requires_grad_()
    expected = torch.nn.functional.cross_entropy(exact, labels.long(), reduction="none")
    (expected * share.float()).sum().backward()
    found, saved = losses.cross_entropy_rows(scores, labels, kernels, -100)
    torch.testing.assert_close(found.float(), expected.detach(), rtol=tolerance, atol=tolerance)
    gradient = losses.cross_entropy_rows_grad(share, scores, labels, saved, kernels, -100)
    torch.testing.assert_close(gradient.float(), exact.grad, rtol=tolerance, atol=tolerance * 0.1)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_plain_cross_entropy_gradient(reduction: int) -> None:
    scores = torch.randn(6, 5, 3, requires_grad=True)
    labels = torch.randint(0, 5, (6, 3))
    labels[0, 0] = -100
    name = ("none", "mean", "sum")[reduction]
    loss = torch.nn.functional.cross_entropy(scores, labels, reduction=name)
    grad = torch.rand_like(loss)
    loss.backward(grad)
    found = losses.cross_entropy_grad(
        grad, scores.detach(), labels.int(), reduction=reduction, ignore_index=-100
    )
    torch.testing.assert_close(found, scores.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax(kernels: Kernels, dtype: torch.dtype) -> None:
    x = torch.randn(40, 7, 301).to(dtype)
    x[3, 3, 5] = torch.nan
    x[4, 4] = -torch.inf
    assert torch.equal(losses.argmax_rows(x, kernels).long(), x.argmax(-1))


@pytest.mark.parametrize("size", [1, 100, 70_001])
def test_adamw_equals_torch(kernels: Kernels, size: int) -> None:
    weight = torch.randn(size)
    theirs = weight.clone().requires_grad_()
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    first, second, step = torch.zeros(size), torch.zeros(size), torch.zeros(())
    update = adam_kernel(kernels, lamb=False, corrected=True)
    for _ in range(5):
        theirs.grad = torch.randn(size)
        update(weight, theirs.grad * 4, first, second, step, 0.25, 0.8, 0.95, 1e-6, 0.1, 0.01, None)
        reference.step()
    torch.testing.assert_close(weight, theirs.detach(), rtol=2e-5, atol=2e-6)


def test_adam_is_as_exact_as_float32_allows(kernels: Kernels) -> None:
    """From weights of 0 all rounding shows; 1 - beta, taken of a beta in float32, would be off by 5e-5."""
    weight, exact = torch.zeros(1000), torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    reference = torch.optim.AdamW([exact], lr=0.01, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0)
    first, second, step = torch.zeros(1000), torch.zeros(1000), torch.zeros(())
    update = adam_kernel(kernels, lamb=False, corrected=True)
    for _ in range(20):
        gradient = torch.randn(1000)
        exact.grad = gradient.double()
        update(weight, gradient, first, second, step, 1.0, 0.9, 0.999, 1e-6, 0.0, 0.01, None)
        reference.step()
    assert (weight - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("bound", [math.inf, 2.0])
def test_lamb_equals_its_formula(kernels: Kernels, bound: float) -> None:
    """arXiv 1904.00962, algorithm 2, with the weight's norm capped."""
    size = 50_000
    weight, expected = torch.randn(size), torch.empty(0)
    expected = weight.double()
    m, v = torch.zeros(size).double(), torch.zeros(size).double()
    first, second, step = torch.zeros(size), torch.zeros(size), torch.zeros(())
    update = adam_kernel(kernels, lamb=True, corrected=True)
    for t in range(1, 4):
        gradient = torch.randn(size)
        update(weight, gradient, first, second, step, 1.0, 0.9, 0.999, 1e-6, 0.01, 0.1, bound)
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient.double() ** 2
        move = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-6) + 0.01 * expected
        expected = expected - 0.1 * min(float(expected.norm()), bound) / move.norm() * move
    torch.testing.assert_close(weight.double(), expected, rtol=1e-4, atol=1e-5)


def test_plain_adam_operators_equal_torch() -> None:
    weight = torch.randn(300)
    theirs = weight.clone().requires_grad_()
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    first, second, step = torch.zeros(300), torch.zeros(300), torch.zeros(())
    for _ in range(5):
        theirs.grad = torch.randn(300)
        optimizer_ops.accumulate(first, theirs.grad, 0.9, kind="moving_average")
        optimizer_ops.accumulate(second, theirs.grad, 0.999, kind="moving_average_square")
        optimizer_ops.increment(step)
        move = optimizer_ops.adam_updater(weight, first, second, step, 0.1, 0.9, 0.999, 1e-8, mode="adam")
        optimizer_ops.adam_var_update(weight, move, 0.01)
        reference.step()
    torch.testing.assert_close(weight, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_scalars_have_the_layout_of_the_kernel() -> None:
    from bert_ipu.simulator.runtime.fused_adam import AdamScalars

    assert ctypes.sizeof(AdamScalars) == 11 * 4
