"""How many AttemptRegroup ops the group pattern inserts, where, and that they change no value."""

from __future__ import annotations

import pytest
import torch
from own_ops import GraphBuilder, load_own, only

from bert_ipu.simulator.custom_ops import CompiledOp, CustomOpError

pytestmark = pytest.mark.cpp

SHAPE = (6, 4)


def add_weight(builder: GraphBuilder, name: str, gradient: str, *, reduced: bool = False) -> None:
    """SGD with momentum: gradient -> accumulator -> weight, with an all-reduce between replicas if asked."""
    builder.tensor(f"velocity_{name}", SHAPE, "variable")
    builder.op("SGD1Accumulate", [f"velocity_{name}", gradient], f"accumulated_{name}", SHAPE, dpsf1=0.5)
    updater = f"accumulated_{name}"
    if reduced:
        updater = builder.op("ReplicatedAllReduce", [updater], f"reduced_{name}", SHAPE)
    builder.op("SGD1VarUpdate", [name, updater], f"updated_{name}", SHAPE, slr1=0.1)


def model(*, tied: bool, optimizer: str = "sgd", reduced: bool = False) -> GraphBuilder:
    """A table looked up and, if tied, multiplied too; and two weights of products."""
    load_own("group_pattern")
    builder = GraphBuilder()
    for name in ("table", "dense1", "dense2"):
        builder.tensor(name, SHAPE, "variable")
    for name in ("x", "dy"):
        builder.tensor(name, SHAPE)
    builder.tensor("ids", (3,), "stream", torch.int32)
    builder.op("Gather", ["table", "ids"], "looked_up", (3, 4), axis=0)
    builder.op("MatMul", ["x", "dense1"], "y", SHAPE)
    for name in ("dense1", "dense2"):
        gradient = builder.op("MatMulRhsGrad", ["dy", "x"], f"grad_{name}", SHAPE)
        if optimizer == "sgd":
            add_weight(builder, name, gradient, reduced=reduced)
        else:
            builder.op("AdamVarUpdate", [name, gradient], f"updated_{name}", SHAPE)
    if tied:
        builder.op("MatMul", ["x", "table"], "logits", SHAPE)
        gradient = builder.op("MatMulRhsGrad", ["dy", "x"], "grad_table", SHAPE)
        add_weight(builder, "table", gradient)
        builder.tensor("sparse_rows", (3, 4))
        builder.tensor("velocity_after_rows", SHAPE)
        builder.graph.add_op(
            "SparseSGD1Accumulate",
            {0: "velocity_table", 1: "sparse_rows", 3: "ids"},
            {0: "velocity_after_rows"},
            domain="elsewhere",
        )
    return builder


@pytest.mark.parametrize("reduced", [False, True])
def test_untied_every_weight_of_a_product_is_regrouped_before_its_update(reduced: bool) -> None:
    builder = model(tied=False, reduced=reduced)
    edits = builder.graph.run_patterns("optimizer", only("GroupPattern"))
    assert [edit.matched_type for edit in edits] == ["SGD1VarUpdate"] * 2
    regroups = [op for op in builder.graph.ops() if op.type == "AttemptRegroup"]
    stage = "reduced" if reduced else "accumulated"
    assert sorted(op.inputs[0] for op in regroups) == [f"{stage}_dense1", f"{stage}_dense2"]
    assert sorted(op.inputs[1] for op in regroups) == ["dense1", "dense2"]
    updates = [op for op in builder.graph.ops() if op.type == "SGD1VarUpdate"]
    assert sorted(op.inputs[1] for op in updates) == [f"{stage}_dense{i}_regrouped" for i in (1, 2)]
    assert builder.graph.run_patterns("optimizer", only("GroupPattern")) == []


def test_a_tied_table_is_regrouped_before_accumulation_and_not_before_its_update() -> None:
    builder = model(tied=True)
    edits = builder.graph.run_patterns("optimizer", only("GroupPattern"))
    assert sorted(edit.matched_type for edit in edits) == ["Accumulate", "SGD1VarUpdate", "SGD1VarUpdate"]
    inputs = sorted(op.inputs[0] for op in builder.graph.ops() if op.type == "AttemptRegroup")
    assert inputs == ["accumulated_dense1", "accumulated_dense2", "grad_table"]


def test_other_optimizers_have_nothing_to_group() -> None:
    assert model(tied=False, optimizer="adam").graph.run_patterns("optimizer", only("GroupPattern")) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_never_change(dtype: torch.dtype) -> None:
    load_own("group_pattern")
    op = CompiledOp("bert.ipu", "AttemptRegroup", 1, [(SHAPE, dtype)] * 2)
    gradient, reference = torch.randn(SHAPE).to(dtype), torch.randn(SHAPE).to(dtype)
    assert torch.equal(op.run([gradient, reference])[0], gradient)
    wrong = CompiledOp("bert.ipu", "AttemptRegroup", 1, [(SHAPE, dtype), ((4, 6), dtype)])
    with pytest.raises(CustomOpError, match="cannot be grouped like one of shape"):
        wrong.run([gradient, reference.T])
