"""What the capture makes of a forward: values, in-place writes, names, random numbers, and clear errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_reference import run
from torch import Tensor, nn

from bert_ipu.simulator.compiler import compile_program
from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.graph import capture, ops
from bert_ipu.simulator.graph.annotations import Placement
from bert_ipu.simulator.graph.ir import Program
from bert_ipu.simulator.graph.request import Anchor, CompileRequest


class Module(nn.Module):
    """A forward given as a function of the module and its inputs, with a weight and a buffer."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.register_buffer("count", torch.zeros(3))
        self.register_buffer("other", torch.arange(3.0))
        self.register_buffer("square", torch.arange(9.0).reshape(3, 3))
        self.plain = torch.ones(3)
        self.entered = 0

    def forward(self, *inputs: Tensor) -> Any:
        self.entered += 1
        return self.function(self, *inputs)


def compiled(function: Callable[..., Any], *inputs: Tensor, training: bool = False) -> Program:
    module = Module(function)
    anchors = (Anchor("gradient", "Gradient___weight"),) if training else ()
    program = compile_program(
        CompileRequest(module.forward, module, inputs, training=training, anchors=anchors)
    )
    assert module.entered == 1
    return program


def targets(program: Program) -> list[str]:
    return [str(node.target) for node in program.operators()]


X = torch.arange(12.0).reshape(4, 3)


def _reshaped_in_place(_: Module, x: Tensor) -> Tensor:
    y = x * 1
    z = y.unsqueeze(0)
    z.squeeze_().t_()
    z[0] += 1.0
    y.transpose_(0, 1).unsqueeze_(1)
    return y * z.unsqueeze(1) + y.squeeze(1).sum()


def _in_place(_: Module, x: Tensor) -> Tensor:
    y = x * 2
    column, corner = y[:, 1], y.view(2, 2, 3)[1, :, :2]
    column += 10
    corner.mul_(column[2:].clone().unsqueeze(1))
    y.t()[0].zero_()
    y[torch.tensor([0, 2]).to(y.device)] = -1.0
    y[y > 20] = 0.5
    torch.add(y, 1, out=y)
    return y + column.unsqueeze(1)


@pytest.mark.parametrize(
    "function",
    [
        _in_place,
        _reshaped_in_place,
        lambda m, x: x.chunk(2)[1].clone().fill_(3) + x.split(2)[0],
        lambda m, x: x.double() @ m.weight.double().T,
        lambda m, x: x.long() // 2 + torch.arange(3, device=x.device),
        lambda m, x: F.pad(x, (1, 1)).unfold(1, 2, 1).sum(-1),
        lambda m, x: torch.einsum("ij,kj->ik", x, m.weight).argmax(1),
        lambda m, x: torch.where(x > 3, x, torch.zeros_like(x)).sort(0, descending=True).values,
        lambda m, x: x.topk(2, 0).indices + x.cumsum(0).int()[:2],
        lambda m, x: (x.std(), x.var(0), x.median(), x.norm()),
        lambda m, x: torch.cumsum(x / 2, 0, out=torch.empty_like(x).int()),
        lambda m, x: F.one_hot((x / 3).long(), 5) * 2 + F.one_hot(x.int().long(), 12).sum(),
        lambda m, x: {"a": x + 1, "b": [x.mean(0), m.weight]},
    ],
)
def test_values_equal_torch(function: Callable[..., Any]) -> None:
    ours = run(compiled(function, X), [X.clone()])
    theirs = torch.utils._pytree.tree_leaves(Module(function)(X.clone()))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), check_dtype=False)


def test_writes_reach_buffers_and_inputs() -> None:
    def forward(m: Module, x: Tensor) -> tuple[Tensor, Tensor]:
        before = m.count * 1
        m.count += x.sum(0)
        x[0].add_(m.count)
        return before, m.count

    program = compiled(forward, X)
    x = X.clone()
    before, count, updated = run(program, [x])
    eager, expected = Module(forward), X.clone()
    wanted = [value.clone() for value in eager(expected)]
    torch.testing.assert_close([before, count, updated], [*wanted, expected])
    assert program.outputs[2].kind == "input_update"
    assert sum(node.target is ops.assign for node in program.operators()) == 1
    tensor = program.variables["count"].tensor
    assert tensor is not None
    torch.testing.assert_close(tensor, eager.count)


def _swap(m: Module, x: Tensor) -> Tensor:
    before = m.count.clone()
    m.count.copy_(m.other)
    m.other.copy_(before)
    return m.count - m.other


def _one_of_two(m: Module, x: Tensor) -> tuple[Tensor, Tensor]:
    first, rest = m.count.split([1, 2])
    kept = first.clone()
    m.count.add_(x[0])
    return kept, rest


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (m.count.clone(), m.count.add_(x[0])),
        lambda m, x: (m.count.view(3, 1).clone(), m.count.add_(x[0])),
        lambda m, x: (m.count.view(3, 1), m.count.add_(x[0])),
        lambda m, x: (m.count.expand(2, 3).clone(), m.count.mul_(2).add_(x[1]).sum()),
        lambda m, x: m.square.copy_(m.square.t().clone()),
        _one_of_two,
        _swap,
    ],
)
def test_a_copy_of_a_buffer_keeps_its_value_and_a_view_does_not(function: Callable[..., Any]) -> None:
    program = compiled(function, X)
    ours = run(program, [X.clone()])
    eager = Module(function)
    theirs = torch.utils._pytree.tree_leaves(eager(X.clone()))
    torch.testing.assert_close(ours, theirs)
    for name, buffer in eager.named_buffers():
        if name in program.variables:
            torch.testing.assert_close(program.variables[name].tensor, buffer)


def test_dtypes_are_those_of_the_device() -> None:
    program = compiled(lambda m, x, i: (x * 2, i + 1, i > 0), X.double(), torch.arange(3))
    assert [spec.dtype for spec in program.inputs] == [torch.float32, torch.int32]
    assert [node.meta["val"].dtype for node in program.results()] == [torch.float32, torch.int32, torch.bool]


def test_the_forward_sees_the_hosts_dtypes_and_an_ipu() -> None:
    seen: list[Any] = []

    def forward(m: Module, x: Tensor) -> Tensor:
        seen.extend([x.dtype, x.device, x.shape, isinstance(x, Tensor), capture.current() is not None])
        return x + 1

    compiled(forward, torch.arange(3))
    assert seen == [torch.int64, torch.device("ipu", 0), torch.Size([3]), True, True]
    assert capture.current() is None


def test_dropout_is_one_numbered_operator_with_its_gradient() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        h = F.dropout(x * m.weight[0], 0.5)
        return F.mse_loss(F.dropout(h, 0.1), x)

    program = compiled(forward, X, training=True)
    drawn = [node.meta["random"] for node in program.operators() if "dropout.default" in str(node.target)]
    assert drawn == [0, 1]
    assert compiled(lambda m, x: F.dropout(x, 0.5, training=False), X).operators() == []


def test_nodes_know_their_module_line_and_place() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        current = capture.current()
        assert current is not None
        current.recorder.annotations.place(Placement(ipu=3, stage=2))
        x = x + 1
        current.recorder.annotations.place(Placement())
        return x * 2

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Module(forward)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    outer = Outer()
    program = compile_program(CompileRequest(outer.forward, outer, (X,)))
    add, mul = program.operators()
    assert add.meta["module"] == "inner"
    assert add.meta["source"].startswith(__file__)
    assert (add.meta["ipu"], add.meta["stage"]) == (3, 2)
    assert "ipu" not in mul.meta


def test_backward_nodes_run_where_their_forward_nodes_do() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        current = capture.current()
        assert current is not None
        current.recorder.annotations.place(Placement(ipu=0, stage=0))
        h = torch.tanh(F.linear(x, m.weight))
        current.recorder.annotations.place(Placement(ipu=1, stage=1))
        return F.mse_loss(h * 2, torch.zeros_like(h))

    program = compiled(forward, X, training=True)
    backward = [n for n in program.operators() if n.meta["pass"] == "backward" and "forward_node" in n.meta]
    assert {node.meta["ipu"] for node in backward} == {0, 1}
    assert all(node.meta["ipu"] == node.meta["forward_node"][0].meta["ipu"] for node in backward)


def test_custom_functions_are_differentiated_through_their_forward() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise AssertionError("PopART never calls a Python backward")

    _, gradient = run(
        compiled(lambda m, x: F.mse_loss(Doubled.apply(m.weight[0] * x), x), X, training=True), [X]
    )
    weight = torch.arange(6.0).reshape(2, 3).requires_grad_()
    F.mse_loss((weight[0] * X) ** 2, X).backward()
    torch.testing.assert_close(gradient, weight.grad)


def test_no_grad_stops_gradients() -> None:
    def forward(m: Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = m.weight[0] * x
        return F.mse_loss(h, x)

    module = Module(forward)
    program = compile_program(CompileRequest(module.forward, module, (X,), training=True))
    assert program.tensor_names == {}


def _reassigned(m: Module, x: Tensor) -> Tensor:
    m.count = m.count + x[0]
    return m.count


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda m, x: x if x.sum() > 0 else -x,
            r"test_graph_capture.py:\d+\) needs a tensor's value on the host",
        ),
        (lambda m, x: x * x.sum().item(), "needs a tensor's value on the host"),
        (lambda m, x: x.nonzero(), "shape depends on its input's values"),
        (lambda m, x: x[x > 3], "shape depends on its input's values"),
        (lambda m, x: x.unique(), "shape depends on its input's values"),
        (
            lambda m, x: x + m.plain,
            r"Expected an IPU tensor but got tensor\(device=cpu, shape=\[3\], dtype=Float\)",
        ),
        (lambda m, x: x.to("cpu"), "tensors stay on the IPU"),
        (lambda m, x: x[4:], r"Zero-sized tensors are unsupported \(Got shape \[0, 3\]\)"),
        (lambda m, x: torch.complex(x, x), "The IPU has no torch"),
        (lambda m, x: (x * 1).resize_(3), "changes a tensor's shape in place"),
        (lambda m, x: x.mul_(2)[::2].add_(1), "step size other than 1"),
        (lambda m, x: F.one_hot(x.long()), "OneHot num classes must be specified"),
        (lambda m, x: F.interpolate(x[None], scale_factor=2, mode="linear"), "only 'nearest' is supported"),
        (_reassigned, r"Buffer count is reassigned within the model.*self\.count\.copy_\(src\)"),
    ],
)
def test_what_the_ipu_cannot_do_is_a_clear_error(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(Error, match=f"(?s){message}"):
        compiled(function, X)


def test_a_replaced_buffer_is_put_back() -> None:
    module = Module(_reassigned)
    buffer = module.count
    with pytest.raises(Error):
        compile_program(CompileRequest(module.forward, module, (X,)))
    assert module.count is buffer


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: (x * m.weight[0]).sum(), "Couldn't find a loss in graph!"),
        (
            lambda m, x: (F.mse_loss(m.weight[0] * x, x), F.l1_loss(m.weight[1] * x, x)),
            "Multiple independent losses found in graph",
        ),
    ],
)
def test_training_needs_one_final_loss(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        compiled(function, X, training=True)


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), X.clone().requires_grad_(), X.to(torch.complex64)])
def test_empty_complex_and_differentiable_inputs_are_refused(bad: Tensor) -> None:
    with pytest.raises(Error):
        compiled(lambda m, x: x + 1, bad)


def test_a_tensor_kept_by_the_model_is_refused_later() -> None:
    kept: list[Tensor] = []
    compiled(lambda m, x: kept.append(x) or x + 1, X)
    with pytest.raises(Error, match="after the model was compiled"):
        kept[0] + 1
