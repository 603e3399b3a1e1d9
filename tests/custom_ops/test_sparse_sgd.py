"""Sparse accumulation equals the dense gradient, and the pattern rewrites exactly what it may."""

from __future__ import annotations

import time

import pytest
import torch
from own_ops import GraphBuilder, load_own, only

from bert_ipu.simulator.custom_ops import CompiledOp, CustomOpError

pytestmark = pytest.mark.cpp


def accumulate_op(
    vocabulary: int,
    width: int,
    index_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    **attributes: object,
) -> CompiledOp:
    load_own("sparse_sgd")
    specs = [((vocabulary, width), dtype), ((*index_shape, width), dtype)]
    if attributes.get("factor_const", 1) == 0:
        specs.append(((), torch.float32))
    return sparse_graph(specs, index_shape, attributes)


def sparse_graph(
    specs: list[tuple[tuple[int, ...], torch.dtype]],
    index_shape: tuple[int, ...],
    attributes: dict[str, object],
) -> CompiledOp:
    """The op with indices at input 3, as the pattern connects it, whether or not there is an input 2."""
    load_own("sparse_sgd")
    builder = GraphBuilder()
    names = ["accumulator", "gradient", "factor"][: len(specs)]
    for name, (shape, dtype) in zip(names, specs, strict=True):
        builder.tensor(name, shape, "variable" if name == "accumulator" else "stream", dtype)
    builder.tensor("ids", index_shape, "stream", torch.int32)
    builder.tensor("updated", specs[0][0], dtype=specs[0][1])
    inputs = dict(enumerate(names)) | {3: "ids"}
    op = builder.graph.add_op("SparseSGD1Accumulate", inputs, {0: "updated"}, attributes, domain="bert.ipu")
    return builder.graph.compile(op, isolate=False)


def dense(table: torch.Tensor, rows: torch.Tensor, index: torch.Tensor, factor: float) -> torch.Tensor:
    """index_add of torch in float64, without rows beyond the table."""
    keep = (index >= 0) & (index < len(table))
    flat = rows.reshape(-1, table.shape[1])[keep.flatten()]
    return table.double().index_add(0, index[keep].long(), factor * flat.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_20_steps_of_sgd_with_momentum_equal_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(11, 6, generator=generator)
    weight = start.clone().requires_grad_()
    reference = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    ours, velocity = start.clone(), torch.zeros(11, 6)
    op = accumulate_op(11, 6, (8,), dtype, factor_const=0)
    for _ in range(20):
        accumulator = torch.zeros(11, 6, dtype=dtype)
        reference.zero_grad()
        for _ in range(4):  # gradient accumulation; index 0 is padding and a row like any other
            index = torch.randint(0, 11, (8,), generator=generator, dtype=torch.int32)
            upstream = torch.randn(8, 6, generator=generator)
            op.run_in_place([accumulator, upstream.to(dtype), torch.tensor(0.25), index])
            (torch.nn.functional.embedding(index.long(), weight) * upstream * 0.25).sum().backward()
        reference.step()
        velocity = 0.9 * velocity + accumulator.float() + 0.01 * ours
        ours = ours - 0.1 * velocity
    tolerance = 2e-2 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(ours, weight.detach(), rtol=tolerance, atol=tolerance)


def test_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(CustomOpError, match="updates a table of rank 2, was given rank 3"):
        sparse_graph([((3, 4, 5), torch.float32), ((2, 5), torch.float32)], (2,), {}).run([])
    with pytest.raises(CustomOpError, match="needs 3 gradient rows of 4 elements, was given 8 elements"):
        sparse_graph([((5, 4), torch.float32), ((2, 4), torch.float32)], (3,), {}).run([])


def embedding_graph(
    accumulation: str = "DampenedAdd", *, axis: int = 0, second_reader: bool = False, factor_const: int = 0
) -> GraphBuilder:
    builder = GraphBuilder()
    builder.tensor("accumulator", (7, 4), "variable")
    builder.tensor("dy", (2, 3, 4))
    builder.tensor("ids", (2, 3), "stream", torch.int32)
    builder.tensor("factor", (), "stream")
    builder.op("GatherGrad", ["dy", "ids"], "table", (7, 4), axis=axis)
    inputs = ["accumulator", "table"] + ([] if factor_const else ["factor"])
    attributes = {"accumulation_type": accumulation, "factor": 0.5, "factor_const": factor_const}
    builder.op("Accumulate", inputs, "updated", (7, 4), **attributes)
    if second_reader:
        builder.op("LambSquare", ["table"], "norm", ())
    return builder


@pytest.mark.parametrize("accumulation", ["Add", "DampenedAdd"])
@pytest.mark.parametrize("factor_const", [0, 1])
def test_the_pattern_replaces_gather_gradient_and_accumulation(accumulation: str, factor_const: int) -> None:
    load_own("sparse_sgd")
    builder = embedding_graph(accumulation, factor_const=factor_const)
    (edit,) = builder.graph.run_patterns("optimizer", only("SparseSGDPattern"))
    assert (edit.pattern, edit.matched_type, len(edit.removed), len(edit.added)) == (
        "SparseSGDPattern",
        "GatherGrad",
        2,
        1,
    )
    (op,) = builder.graph.ops()
    scaled = accumulation == "DampenedAdd" and not factor_const
    expected = {0: "accumulator", 1: "dy", 3: "ids"} | ({2: "factor"} if scaled else {})
    assert (op.type, op.inputs, op.outputs) == ("SparseSGD1Accumulate", expected, {0: "updated"})
    assert "table" not in builder.graph.tensors()
    assert builder.graph.run_patterns("optimizer", only("SparseSGDPattern")) == []

    compiled = builder.graph.compile(op.id)
    table, rows = torch.zeros(7, 4), torch.randn(2, 3, 4)
    index = torch.tensor([[0, 1, 1], [6, 0, 2]], dtype=torch.int32)
    inputs = [table, rows, torch.tensor(0.5), index] if scaled else [table, rows, index]
    factor = 0.5 if accumulation == "DampenedAdd" else 1.0
    torch.testing.assert_close(compiled.run(inputs)[0].double(), dense(table, rows, index, factor))


def tied_graph(*, sum_type: str = "Add", lookups: int = 1, rows_first: bool = False) -> GraphBuilder:
    """A table that is looked up and multiplied: its gradient is the sum of all these gradients."""
    load_own("sparse_sgd")
    builder = GraphBuilder()
    builder.tensor("accumulator", (7, 4), "variable")
    builder.tensor("product", (7, 4))
    gradient = "product"
    for i in range(lookups):
        builder.tensor(f"dy{i}", (3, 4))
        builder.tensor(f"ids{i}", (3,), "stream", torch.int32)
        table = builder.op("GatherGrad", [f"dy{i}", f"ids{i}"], f"table{i}", (7, 4), axis=0)
        addends = [table, gradient] if rows_first else [gradient, table]
        gradient = builder.op(sum_type, addends, f"sum{i}", (7, 4))
    attributes = {"accumulation_type": "DampenedAdd", "factor": 0.5, "factor_const": 1}
    builder.op("Accumulate", ["accumulator", gradient], "updated", (7, 4), **attributes)
    return builder


@pytest.mark.parametrize("sum_type", ["Add", "Sum"])
@pytest.mark.parametrize("rows_first", [False, True])
@pytest.mark.parametrize("lookups", [1, 2])
def test_the_rows_of_a_tied_table_leave_the_sum_and_are_accumulated_first(
    sum_type: str, rows_first: bool, lookups: int
) -> None:
    builder = tied_graph(sum_type=sum_type, lookups=lookups, rows_first=rows_first)
    edits = builder.graph.run_patterns("optimizer", only("SparseSGDPattern"))
    assert [(edit.matched_type, len(edit.removed), len(edit.added)) for edit in edits] == [
        ("GatherGrad", 2, 1)
    ] * lookups
    *sparse, dense = builder.graph.ops()
    assert [op.type for op in sparse] == ["SparseSGD1Accumulate"] * lookups
    value = "accumulator"
    for op in sparse:  # each adds to what the one before it made
        number = op.inputs[1].removeprefix("dy")
        assert op.inputs == {0: value, 1: f"dy{number}", 3: f"ids{number}"}
        value = op.outputs[0]
    assert (dense.type, dense.inputs, dense.outputs) == (
        "Accumulate",
        {0: value, 1: "product"},
        {0: "updated"},
    )
    gone = {"table0", "sum0", "table1", "sum1"}
    assert not gone & set(builder.graph.tensors())


def test_the_padding_row_of_an_embedding_gets_nothing() -> None:
    """PopTorch's EmbeddingGrad, whose class patterns cannot see."""
    load_own("sparse_sgd")
    builder = GraphBuilder()
    builder.tensor("accumulator", (7, 4), "variable")
    builder.tensor("dy", (2, 3, 4))
    builder.tensor("ids", (2, 3), "stream", torch.int32)
    builder.tensor("table", (7, 4))
    builder.graph.add_op(
        "EmbeddingGrad", {0: "dy", 1: "ids"}, {0: "table"}, {"padding_idx": 6}, domain="poptorch.custom_ops"
    )
    attributes = {"accumulation_type": "DampenedAdd", "factor": 0.5, "factor_const": 1}
    builder.op("Accumulate", ["accumulator", "table"], "updated", (7, 4), **attributes)
    (edit,) = builder.graph.run_patterns("optimizer", only("SparseSGDPattern"))
    assert edit.matched_type == "EmbeddingGrad"
    (op,) = builder.graph.ops()
    index = torch.tensor([[0, 6, 1], [6, -1, 0]], dtype=torch.int32)
    rows = torch.randn(2, 3, 4)
    (found,) = builder.graph.compile(op.id).run([torch.zeros(7, 4), rows, index])
    expected = dense(torch.zeros(7, 4), rows, torch.where(index == 6, -1, index), 0.5)
    torch.testing.assert_close(found.double(), expected)


@pytest.mark.parametrize("anchored", ["table0", "sum0", "sum1"])
def test_a_sum_that_the_user_reads_keeps_its_rows(anchored: str) -> None:
    builder = tied_graph(lookups=2)
    builder.graph.set_anchors([anchored])
    builder.graph.run_patterns("optimizer", only("SparseSGDPattern"))
    assert anchored in builder.graph.tensors()
    kept = builder.types().count("GatherGrad")
    assert kept == (2 if anchored == "sum1" else 1)


@pytest.mark.parametrize("change", [{"axis": 1}, {"second_reader": True}, {"accumulation": "MovingAverage"}])
def test_the_pattern_leaves_dense_what_it_must(change: dict[str, object]) -> None:
    load_own("sparse_sgd")
    builder = embedding_graph(**change)  # type: ignore[arg-type]
    before = builder.types()
    assert builder.graph.run_patterns("optimizer", only("SparseSGDPattern")) == []
    assert builder.types() == before


def test_the_pattern_can_be_switched_off_and_anchors_are_kept() -> None:
    load_own("sparse_sgd")
    switches = {**only("SparseSGDPattern"), "SparseSGDPattern": False}
    assert embedding_graph().graph.run_patterns("optimizer", switches) == []
    anchored = embedding_graph()
    anchored.graph.set_anchors(["table"])
    assert anchored.graph.run_patterns("optimizer", only("SparseSGDPattern")) == []
    with pytest.raises(CustomOpError, match=r"Unknown pattern SparsePattern.*nearest:.*SparseSGDPattern"):
        embedding_graph().graph.run_patterns("optimizer", {"SparsePattern": True})


@pytest.mark.slow
def test_4096_rows_into_a_bert_vocabulary_are_ten_times_faster_than_dense() -> None:
    vocabulary, width, rows = 30522, 768, 4096
    op = accumulate_op(vocabulary, width, (rows,), factor=1.0)
    table, gradient = torch.zeros(vocabulary, width), torch.randn(rows, width)
    index = torch.randint(0, vocabulary, (rows,), dtype=torch.int32)
    sparse_s, dense_s = [], []
    for _ in range(7):  # interleaved, because other programs share the machine
        begin = time.perf_counter()
        op.run_in_place([table, gradient, index])
        sparse_s.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        table += torch.zeros_like(table).index_add_(0, index.long(), gradient)
        dense_s.append(time.perf_counter() - begin)
    ratio = sorted(dense_s)[3] / sorted(sparse_s)[3]
    saved = table.numel() * table.element_size()
    print(f"dense / sparse time: {ratio:.1f}, gradient table not allocated: {saved / 1e6:.1f} MB")
    assert ratio >= 10
    assert saved >= 90e6
