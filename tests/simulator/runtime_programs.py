"""A small training program written out by hand, and the plain torch loop it must equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import InputSpec, OutputSpec, Program, Reduction, Role, Variable

aten = torch.ops.aten

BATCH, WIDTH, HIDDEN, CLASSES = 4, 8, 6, 5


def initial_weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"w1": (HIDDEN, WIDTH), "b1": (HIDDEN,), "w2": (CLASSES, HIDDEN), "b2": (CLASSES,)}
    return {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}


def data(micro_batches: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH * micro_batches, WIDTH, generator=generator)
    return x, torch.randint(0, CLASSES, (BATCH * micro_batches,), generator=generator, dtype=torch.int32)


def mlp(
    *, accumulation: int = 1, replicas: int = 1, dtype: torch.dtype = torch.float32, rate: float | None = 0.1
) -> Program:
    """linear, relu, linear, cross-entropy; SGD with means over replicas and micro-batches.

    rate=None makes the learning rate a scalar variable called "rate".
    """
    program = Program(torch.fx.Graph(), FakeTensorMode())
    program.graph.output(())
    program.training = True
    program.reduction = Reduction(accumulation, replicas)
    end = program.output
    x = program.add_input(InputSpec("x", (BATCH, WIDTH), torch.float32, dtype))
    y = program.add_input(InputSpec("y", (BATCH,), torch.int64, torch.int32))
    weights = {
        name: program.add_variable(Variable(name, Role.PARAMETER, tuple(value.shape), dtype, value, True))
        for name, value in initial_weights().items()
    }
    with program.before(end):
        hidden = program.emit(aten.linear.default, x, weights["w1"], weights["b1"], meta={"module": "first"})
        active = program.emit(aten.relu.default, hidden)
        logits = program.emit(aten.linear.default, active, weights["w2"], weights["b2"])
        log = program.emit(aten.log_softmax.int, logits, -1)
        classes = program.emit(aten.arange.default, CLASSES, dtype=torch.int32)
        target = program.emit(aten.eq.Tensor, program.emit(aten.unsqueeze.default, y, 1), classes)
        target = program.emit(aten._to_copy.default, target, dtype=dtype)
        chosen = program.emit(aten.sum.dim_IntList, program.emit(aten.mul.Tensor, log, target), [1])
        losses = program.emit(aten.neg.default, chosen)
        loss = program.emit(ops.identity_loss, losses, reduction="mean")
        gradients = _backward(program, x, target, weights, hidden, active, log)
        _sgd(program, weights, gradients, rate)
    program.loss = loss
    program.outputs = [OutputSpec("loss", "result"), OutputSpec("logits", "result", 1)]
    end.args = ((loss, logits),)
    program.validate()
    return program


def _backward(program, x, target, weights, hidden, active, log):  # type: ignore[no-untyped-def]
    emit = program.emit
    probabilities = emit(aten.exp.default, log)
    logits = emit(aten.div.Scalar, emit(aten.sub.Tensor, probabilities, target), BATCH)
    w2 = emit(aten.mm.default, emit(aten.transpose.int, logits, 0, 1), active)
    b2 = emit(aten.sum.dim_IntList, logits, [0])
    back = emit(aten.mm.default, logits, weights["w2"])
    back = emit(aten.threshold_backward.default, back, hidden, 0)
    w1 = emit(aten.mm.default, emit(aten.transpose.int, back, 0, 1), x)
    b1 = emit(aten.sum.dim_IntList, back, [0])
    return {"w1": w1, "b1": b1, "w2": w2, "b2": b2}


def _sgd(program, weights, gradients, rate):  # type: ignore[no-untyped-def]
    outer = {"context": "outer", "pass": "optimizer"}
    lr = rate
    if rate is None:
        lr = program.add_variable(Variable("rate", Role.SCALAR, (), torch.float32, fill=0.1))
    for name, gradient in gradients.items():
        value = gradient
        if program.reduction.accumulation > 1:
            val = gradient.meta["val"]
            accl = program.add_variable(
                Variable(f"accum_{name}", Role.STATE, tuple(val.shape), torch.float32)
            )
            value = program.emit(ops.accumulate, accl, gradient, 1.0, kind="add")
        reduced = program.emit(ops.replica_reduce, value, reduction="mean", groups=None, meta=outer)
        if program.reduction.accumulation > 1:
            reduced = program.emit(aten.div.Scalar, reduced, program.reduction.accumulation, meta=outer)
        program.emit(ops.sgd0_var_update, weights[name], reduced, lr, 1.0, meta=outer)
        if program.reduction.accumulation > 1:
            program.emit(ops.accumulator_zero, value, meta=outer)


def reference(
    x: Tensor, y: Tensor, micro_batches: int, rate: float = 0.1
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same training in plain torch: one update per `micro_batches`; losses of all micro-batches, and
    weights."""
    weights = {name: value.clone().requires_grad_() for name, value in initial_weights().items()}
    losses = []
    for start in range(0, len(x), BATCH * micro_batches):
        for first in range(start, start + BATCH * micro_batches, BATCH):
            rows, labels = x[first : first + BATCH], y[first : first + BATCH].long()
            hidden = torch.relu(torch.nn.functional.linear(rows, weights["w1"], weights["b1"]))
            logits = torch.nn.functional.linear(hidden, weights["w2"], weights["b2"])
            loss = torch.nn.functional.cross_entropy(logits, labels)
            (loss / micro_batches).backward()
            losses.append(loss.detach())
        with torch.no_grad():
            for weight in weights.values():
                weight -= rate * weight.grad
                weight.grad = None
    return losses, {name: weight.detach() for name, weight in weights.items()}
