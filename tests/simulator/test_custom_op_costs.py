"""Cycles and bytes of recorded steps, worked out by hand from poplibs' estimators for a Mk2 IPU of 1,472 tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from custom_op_builds import load_probe

from bert_ipu.simulator.custom_ops import CompiledOp, StepCost

pytestmark = pytest.mark.cpp

TILES, WORKERS = 1472, 6
F32, F16, I32 = torch.float32, torch.float16, torch.int32
FULL = TILES * WORKERS * 8
"""Elements that give each worker eight."""


def cost(kind: str, *inputs: tuple[tuple[int, ...], torch.dtype], **attributes: Any) -> StepCost:
    """The cost of the one step of a kind of the probe op."""
    load_probe()
    op = CompiledOp("test.probe", "Probe", 1, inputs, {"kind": kind, **attributes}, isolate=False)
    (step,) = op.cost
    return step


@pytest.mark.parametrize(
    ("code", "dtype", "cycles"),
    [
        (8, F32, 6 * (33 + 4 * 6) + 20),  # exp: vectors of 2, 6 cycles each
        (8, F16, 6 * (33 + 2 * 4) + 20),
        (17, F32, 6 * (17 + 4 * 12) + 20),  # log
        (29, F16, 6 * (17 + 2 * 23) + 20),  # sqrt
        (20, F32, 6 * (17 + 4 * 2) + 20),  # neg
    ],
)
def test_unary_operators(code: int, dtype: torch.dtype, cycles: int) -> None:
    """W (17, or 33 for exp, + loops) + 9 + 11."""
    step = cost("unary", ((FULL,), dtype), ints=[code])
    assert (step.cycles, step.bytes) == (cycles, 2 * FULL * dtype.itemsize)


@pytest.mark.parametrize(
    ("code", "dtype", "cycles"),
    [
        (0, F32, 6 * (29 + 4 * 3) + 11),  # add
        (17, F16, 6 * (26 + 2 * 3) + 11),  # multiply
        (6, F32, 6 * (29 + 4 * 10) + 11),  # divide
        (6, F16, 6 * (26 + 2 * 21) + 11),
        (15, F16, 6 * (26 + 2 * 4) + 11),  # maximum
    ],
)
def test_binary_operators(code: int, dtype: torch.dtype, cycles: int) -> None:
    """W (29, or 26 for half, + vectors x (table + 2)) + 11."""
    step = cost("binary", ((FULL,), dtype), ((FULL,), dtype), ints=[code])
    assert (step.cycles, step.bytes) == (cycles, 3 * FULL * dtype.itemsize)


def test_comparisons_cost_what_their_operands_do() -> None:
    step = cost("binary", ((FULL,), F32), ((FULL,), F32), ints=[9], out_dtype="BOOL")
    assert (step.cycles, step.bytes) == (6 * (29 + 4 * 3) + 11, FULL * (4 + 4 + 1))


@pytest.mark.parametrize(
    ("source", "target", "name", "worker"),
    [
        (F32, F16, "FLOAT16", 19 + 2 * 2 + 2),  # two vectors of four, two loads each; two checks for a rest
        (F16, F32, "FLOAT", 19 + 4 * 1 + 1),  # four vectors of two, one store each
        (F32, I32, "INT32", 19 + 8 * 2),  # one by one
    ],
)
def test_casts(source: torch.dtype, target: torch.dtype, name: str, worker: int) -> None:
    """12 + W (worker + 18)."""
    step = cost("cast", ((FULL,), source), out_dtype=name)
    assert (step.cycles, step.bytes) == (12 + 6 * (worker + 18), FULL * (source.itemsize + target.itemsize))


@pytest.mark.parametrize(
    ("dtype", "columns", "row"),
    [
        (F32, 3, 11 + 2 * 3),
        (F32, 2, 8),  # one vector: a path of its own
        (F16, 6, 13 + 2 * (3 + 1)),  # the scale is a float, wider than the table
        (F16, 3, 13 + 3 * 20),  # parts of words are written element by element
    ],
)
def test_sparse_accumulation(dtype: torch.dtype, columns: int, row: int) -> None:
    """W (3 + 29 or 30 + 4 + 2 for float + rows x row), less one where a row is one vector."""
    rows, width = 50, TILES * columns
    step = cost("update", ((100, width), dtype), ((rows, width), dtype), ((rows,), I32), floats=[1.0])
    before = 3 + 29 + 4 + 2 if dtype == F32 else 3 + 30 + 4
    assert step.cycles == 6 * (before - (columns == 2) + rows * row)
    assert step.bytes == 2 * rows * width * dtype.itemsize + rows * 4


def test_lookups() -> None:
    """W (30 + rows x (19 + 2 ceil(columns / 2)))."""
    rows, width = 40, TILES * 5
    step = cost(
        "gather", ((100, width), F32), ((rows,), I32), ints=[0], out_shape=[rows, width]
    )
    assert (step.cycles, step.bytes) == (6 * (30 + rows * (19 + 2 * 3)), 2 * rows * width * 4 + rows * 4)


def test_dropout_and_products() -> None:
    """6 + 24 W + 2 vectors; 16 multiply-accumulates per tile and cycle in float."""
    dropout = cost("random", ((FULL,), F32), ints=[0])
    assert dropout.cycles == 6 + 24 * 6 + 2 * (48 // 2)
    product = cost("matmul", ((64, TILES), F32), ((TILES, 32), F32), out_shape=[64, 32])
    assert product.cycles == 64 * 32 // 16
    assert product.bytes == 4 * (64 * TILES + TILES * 32 + 64 * 32)
