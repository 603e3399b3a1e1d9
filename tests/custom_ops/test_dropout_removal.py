"""Which dropouts the two patterns remove, and which they must not."""

from __future__ import annotations

import pytest
from own_ops import GraphBuilder, load_own

pytestmark = pytest.mark.cpp

SHAPE = (2, 4, 4)


def test_inference_has_no_dropout_left() -> None:
    load_own("dropout_removal")
    builder = GraphBuilder(training=False)
    builder.tensor("x", SHAPE)
    builder.tensor("seed", (2,), "stream")
    builder.op("Dropout", ["x", "seed"], "a", SHAPE, ratio=0.1)
    builder.op("Dropout", ["a", "seed"], "b", SHAPE, ratio=0.0)
    edits = builder.graph.run_patterns("forward")
    assert [edit.pattern for edit in edits] == ["RemoveInferenceDropout"] * 2
    first, second = builder.graph.ops()
    assert (first.type, first.inputs, first.outputs) == ("Identity", {0: "x"}, {0: "a"})
    assert (second.type, second.inputs, second.outputs) == ("Identity", {0: "a"}, {0: "b"})


def test_training_keeps_every_dropout_that_drops() -> None:
    load_own("dropout_removal")
    builder = GraphBuilder(training=True)
    builder.tensor("x", SHAPE)
    builder.op("Dropout", ["x"], "a", SHAPE, ratio=0.1)
    builder.op("Dropout", ["a"], "b", SHAPE, ratio=0.0)
    assert [edit.matched_type for edit in builder.graph.run_patterns("forward")] == ["Dropout"]
    assert builder.types() == ["Dropout", "Identity"]


def attention_backward(
    *, between: int = 0, product: str = "MatMulLhsGrad", ratio: float = 0.1, end: str = "SoftmaxGrad"
) -> GraphBuilder:
    """The way of a gradient: product -> views -> dropout -> softmax, and a hidden dropout aside."""
    load_own("dropout_removal")
    builder = GraphBuilder()
    for name in ("dy", "v", "probabilities"):
        builder.tensor(name, SHAPE)
    gradient = builder.op(product, ["dy", "v"], "product", SHAPE)
    for i in range(between):
        gradient = builder.op("Transpose", [gradient], f"transposed{i}", SHAPE, perm=[0, 1, 2])
    builder.op("DropoutGrad", [gradient], "attention", SHAPE, ratio=ratio)
    builder.op(end, ["attention", "probabilities"], "scores", SHAPE)
    builder.op("DropoutGrad", ["dy"], "hidden", SHAPE, ratio=ratio)
    return builder


ON = {"DisableAttnDropoutBwd": True}


@pytest.mark.parametrize("product", ["MatMulLhsGrad", "MatMul"])
@pytest.mark.parametrize("between", [0, 1])
def test_attention_dropout_passes_the_gradient_through(product: str, between: int) -> None:
    builder = attention_backward(between=between, product=product)
    assert [edit.pattern for edit in builder.graph.run_patterns("backward", ON)] == ["DisableAttnDropoutBwd"]
    (identity,) = [op for op in builder.graph.ops() if op.type == "Identity"]
    assert identity.outputs == {0: "attention"}
    (kept,) = [op for op in builder.graph.ops() if op.type == "DropoutGrad"]
    assert kept.outputs == {0: "hidden"}
    assert builder.graph.run_patterns("backward", ON) == []


def test_it_is_off_unless_asked_for() -> None:
    assert attention_backward().graph.run_patterns("backward") == []


@pytest.mark.parametrize("change", [{"between": 2}, {"ratio": 0.0}, {"end": "Mul"}, {"product": "Add"}])
def test_what_is_no_attention_dropout_stays(change: dict[str, object]) -> None:
    builder = attention_backward(**change)  # type: ignore[arg-type]
    assert builder.graph.run_patterns("backward", ON) == []
