"""Run the patterns of loaded libraries on a graph of the simulator.

The caller describes its graph as PopART would see it, at PopART's granularity and with views folded, and gets
back the graph after the patterns ran to a fixed point:

    graph = PatternGraph(training=True)
    graph.add_tensor("w", "variable", (30522, 768), torch.float32)
    op = graph.add_op("GatherGrad", {0: "dy", 1: "ids"}, {0: "dw"}, {"axis": 0})
    edits = graph.run_patterns("optimizer", {"SparseSGDPattern": True})
    for node in graph.ops():              # in an order that respects tensors and constraints
        node.id, node.type, node.inputs, node.outputs
    sparse = graph.compile(node.id)       # a CompiledOp for an op that a pattern inserted

Ids given by `add_op` stay what they were for every op no pattern removed, so the caller finds its own ops
again; what is new is either an op the simulator knows by type (Identity) or one to compile. Tensors must be
added before the ops that use them, the outputs of ops as kind 'activation'.

Ops with a class of their own, which patterns recognise: Add Sub Mul Sum Identity MatMul MatMulLhsGrad
MatMulRhsGrad Transpose(perm) Reshape(shape) Gather(axis) GatherGrad(axis) Dropout(ratio) DropoutGrad(ratio)
Softmax(axis) SoftmaxGrad(axis) Accumulate(accumulation_type, factor, factor_const)
SGD1Accumulate(dpsf1, dpsf1_const) SGD1VarUpdate(slr1, ...) SGD1AcclUpdate(smm1, swd1, ...)
SGD0VarUpdate(slr0, wdsf0, ...) AdamUpdater AdamVarUpdate(lr, ...) LambSquare. `X_const=0` says that X arrives
as a tensor. Any other type is carried along. Input and output indices are PopART's: Accumulate reads 0 the
accumulator, 1 the gradient, 2 the factor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bert_ipu.simulator.custom_ops import CompiledOp
from bert_ipu.simulator.native import abi

TensorKind = Literal["variable", "constant", "stream", "activation"]
Phase = Literal["forward", "backward", "optimizer"]


@dataclass(frozen=True)
class PatternOp:
    """One op of the graph; indices map to tensor ids, `after` holds ids of ops that must run before it."""

    id: int
    domain: str
    type: str
    version: int
    name: str
    outer: bool
    """Runs once per weight update, after the micro-batches (`ExecutionContext::AccumulateOuterFragment`)."""
    inputs: dict[int, str]
    outputs: dict[int, str]
    attributes: dict[str, str]
    after: tuple[int, ...]
    tied_after: tuple[int, ...]


@dataclass(frozen=True)
class PatternTensor:
    """One tensor of the graph."""

    id: str
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class PatternEdit:
    """One successful application of a pattern."""

    pattern: str
    matched: int
    matched_type: str
    removed: tuple[int, ...]
    added: tuple[int, ...]


class PatternGraph:
    """A graph offered to C++ patterns; raises CustomOpError for whatever they refuse."""

    def __init__(self, *, training: bool, gradient_accumulation: int = 1) -> None:
        self._ir = abi.IrHandle(training=training)
        self._ir.set_accumulation(gradient_accumulation)

    def add_tensor(self, tensor_id: str, kind: TensorKind, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Add a tensor; 64-bit types are narrowed, as on the device."""
        self._ir.add_tensor(tensor_id, kind, shape, abi.boundary_dtype(dtype))

    def add_op(
        self,
        op_type: str,
        inputs: Mapping[int, str],
        outputs: Mapping[int, str],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "ai.onnx",
        version: int = 1,
        name: str = "",
    ) -> int:
        """Add an op between tensors that exist; returns its id."""
        return self._ir.add_op(
            domain, op_type, version, inputs, outputs, name=name, attributes=attributes or {}
        )

    def constrain(self, before: int, after: int, *, tied: bool = False) -> None:
        """Require an order; a tied op runs directly after the other one."""
        self._ir.constrain(before, after, tied=tied)

    def set_anchors(self, tensor_ids: Sequence[str]) -> None:
        """Name the tensors the user reads, which patterns must leave alone."""
        self._ir.set_anchors(tensor_ids)

    def run_patterns(self, phase: Phase, settings: Mapping[str, bool] | None = None) -> list[PatternEdit]:
        """Run every enabled pattern to a fixed point; `settings` overrides the defaults by name."""
        return [
            PatternEdit(
                edit["pattern"],
                edit["matched"],
                edit["matched_type"],
                tuple(edit["removed"]),
                tuple(edit["added"]),
            )
            for edit in self._ir.run_patterns(phase, settings or {})
        ]

    def ops(self) -> list[PatternOp]:
        """All ops, in an order they can run in."""
        return [_op(entry) for entry in self._ir.describe()["ops"]]

    def tensors(self) -> dict[str, PatternTensor]:
        """All tensors by id."""
        return {
            entry["id"]: PatternTensor(
                entry["id"], entry["kind"], tuple(entry["shape"]), abi.DTYPES[entry["dtype"]]
            )
            for entry in self._ir.describe()["tensors"]
        }

    def compile(self, op: int, *, isolate: bool = True) -> CompiledOp:
        """Compile an op that a pattern inserted; its inputs come in the order of their indices."""
        return CompiledOp.from_graph(self._ir, op, isolate=isolate)


def _op(entry: dict[str, Any]) -> PatternOp:
    return PatternOp(
        entry["id"],
        entry["domain"],
        entry["type"],
        entry["version"],
        entry["name"],
        entry["outer"],
        {int(index): tensor for index, tensor in entry["inputs"].items()},
        {int(index): tensor for index, tensor in entry["outputs"].items()},
        entry["attributes"],
        tuple(entry["after"]),
        tuple(entry["tied_after"]),
    )
