"""Each op on 200 random shapes in both precisions: against torch, against finite differences, within its memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from guarded import run_guarded
from own_ops import GraphBuilder, load_own
from test_sparse_sgd import accumulate_op, dense

from bert_ipu.simulator.custom_ops import CompiledOp

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))
from custom_op_builds import OPS, load_probe

pytestmark = pytest.mark.cpp

TRIALS = 200
STEP = 1 / 8


def shape_of(generator: torch.Generator, rank: int, most: int = 9) -> tuple[int, ...]:
    return tuple(torch.randint(1, most, (rank,), generator=generator).tolist())


def precision(trial: int) -> torch.dtype:
    return torch.float16 if trial % 2 else torch.float32


def slope(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, direction: torch.Tensor) -> float:
    """The central difference of a scalar function along a direction; exact for a linear one."""
    above, below = (f(x.double() + sign * STEP * direction.double()) for sign in (1, -1))
    return ((above - below) / (2 * STEP)).item()


def test_regrouping_moves_no_value() -> None:
    load_own("group_pattern")
    generator = torch.Generator().manual_seed(0)
    for trial in range(TRIALS):
        shape, dtype = shape_of(generator, rank=trial % 5), precision(trial)
        op = CompiledOp("bert.ipu", "AttemptRegroup", 1, [(shape, dtype)] * 2, isolate=False)
        gradient, reference = torch.randn(2, *shape, generator=generator).to(dtype)
        assert torch.equal(run_guarded(op, [gradient, reference])[0], gradient)
        assert op.gradient() == []  # it stands behind the backward pass


@pytest.mark.parametrize("in_place", [False, True])
def test_sparse_accumulation_is_the_gradient_of_a_lookup(in_place: bool) -> None:
    """Repeated, padding and out-of-range indices included; the gradient's slope along a random direction."""
    generator = torch.Generator().manual_seed(1)
    factor = 0.75
    for trial in range(TRIALS):
        vocabulary, width, batch, length = shape_of(generator, rank=4)
        shape, dtype = (batch, length) if trial % 3 else (batch * length,), precision(trial)
        padding = trial % vocabulary if trial % 4 == 0 else -1
        op = accumulate_op(vocabulary, width, shape, dtype, factor=factor, padding_idx=padding)
        table = torch.randn(vocabulary, width, generator=generator).to(dtype)
        rows = torch.randn(*shape, width, generator=generator).to(dtype)
        index = torch.randint(-2, vocabulary + 2, shape, generator=generator, dtype=torch.int32)
        found = run_guarded(op, [table, rows, index], in_place=in_place)[0].double()

        updated = torch.where(index == padding, -1, index)
        tolerance = 1e-2 if dtype == torch.float16 else 1e-6
        torch.testing.assert_close(found, dense(table, rows, updated, factor), rtol=tolerance, atol=tolerance)

        def loss(weight: torch.Tensor, rows: torch.Tensor = rows, index: torch.Tensor = updated) -> torch.Tensor:
            keep = (index >= 0) & (index < len(weight))
            return (weight[index[keep].long()] * rows[keep].double()).sum()

        direction = torch.randn(vocabulary, width, generator=generator)
        accumulated = ((found - table.double()) / factor * direction.double()).sum().item()
        bound = tolerance * 10 * max(1.0, direction.abs().sum().item())
        assert accumulated == pytest.approx(slope(loss, table, direction), abs=bound)


def test_an_op_with_its_own_vertices() -> None:
    """|a - b| of numbers on a grid, apart by more than a step, so that both precisions are exact."""
    load_probe()
    generator = torch.Generator().manual_seed(2)
    attributes = {"path": str(OPS / "l1_codelet.cpp")}

    def on_grid(*shape: int) -> torch.Tensor:
        return torch.randint(-16, 17, shape, generator=generator) * STEP

    for trial in range(TRIALS):
        shape, dtype = shape_of(generator, rank=1 + trial % 3), precision(trial)
        op = CompiledOp("test.probe", "L1Distance", 1, [(shape, dtype)] * 2, attributes, isolate=False)
        b, upstream, direction = (on_grid(*shape) for _ in range(3))
        a = b + torch.where(torch.rand(shape, generator=generator) < 0.5, -4.0, 4.0)
        given = [x.to(dtype) for x in (a, b)]
        assert torch.equal(run_guarded(op, given)[0], (given[0] - given[1]).abs())

        (grad,) = op.gradient()
        grads = run_guarded(grad, [upstream.to(dtype), *given])
        slopes = (
            slope(lambda x, b=b, g=upstream: ((x - b).abs() * g).sum(), a, direction),
            slope(lambda x, a=a, g=upstream: ((a - x).abs() * g).sum(), b, direction),
        )
        for gradient, expected in zip(grads, slopes, strict=True):
            assert (gradient.double() * direction.double()).sum().item() == expected


def test_dropouts_are_removed_whatever_their_shape() -> None:
    """The two patterns on the way back through attention, and in inference; both leave an identity."""
    load_own("dropout_removal")
    generator = torch.Generator().manual_seed(3)
    for trial in range(TRIALS):
        shape, dtype = shape_of(generator, rank=1 + trial % 4), precision(trial)
        inference = GraphBuilder(training=False)
        inference.tensor("x", shape, dtype=dtype)
        inference.tensor("dropped", shape, dtype=dtype)
        inference.graph.add_op("Dropout", {0: "x"}, {0: "dropped"}, {"ratio": 0.1})
        training = GraphBuilder()
        for name in ("dy", "v", "p", "product", "attention", "scores"):
            training.tensor(name, shape, dtype=dtype)
        training.graph.add_op("MatMulLhsGrad", {0: "dy", 1: "v"}, {0: "product"})
        training.graph.add_op("DropoutGrad", {0: "product"}, {0: "attention"}, {"ratio": 0.1})
        training.graph.add_op("SoftmaxGrad", {0: "attention", 1: "p"}, {0: "scores"})
        for builder, phase, op_input in ((inference, "forward", "x"), (training, "backward", "product")):
            (edit,) = builder.graph.run_patterns(phase, {"DisableAttnDropoutBwd": True})
            (identity,) = [op for op in builder.graph.ops() if op.type == "Identity"]
            assert identity.inputs == {0: op_input}
            (made,) = identity.outputs.values()
            tensor = builder.graph.tensors()[made]
            assert (tensor.shape, tensor.dtype, len(edit.removed)) == (shape, dtype, 1)
