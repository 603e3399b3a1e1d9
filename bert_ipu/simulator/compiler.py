"""The compiler: a user's forward and optimizer in, a `Program` out, by the stages of PopART.

capture -> patterns -> autodiff -> patterns -> optimizer -> patterns (`docs/decisions/001-graph.md`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import custom_gradients, gradients, ops, traced_gradients
from bert_ipu.simulator.graph.autodiff import Backward, GradientRule, differentiate
from bert_ipu.simulator.graph.forward import enter_forward
from bert_ipu.simulator.graph.ir import OutputSpec, Pass, Program, Role, ScalarSource, Variable
from bert_ipu.simulator.graph.loss_scaling import LOSS_SCALING, adapt_scale, add_loss_scale_update
from bert_ipu.simulator.graph.losses import final_loss
from bert_ipu.simulator.graph.optimizer_spec import HyperParameter, OptimizerSpec, scalar_values
from bert_ipu.simulator.graph.optimizers import add_updates
from bert_ipu.simulator.graph.request import Anchor, CompileRequest
from bert_ipu.simulator.graph.tensor_names import tensors_by_name
from bert_ipu.simulator.graph.writes import assign_at_end, let_update_read_assigned, run_updates_last

aten = torch.ops.aten


def compile_program(request: CompileRequest) -> Program:
    """Compile a model, its loss and optimizer included where it trains.

    Raises Error for what the IPU cannot do: data-dependent shapes, operators it lacks, tensors left on
    the CPU, no loss or several, replaced buffers.
    """
    program = Program(fx.Graph(), FakeTensorMode(allow_non_fake_inputs=True), training=request.training)
    program.reduction, program.module_scopes = request.reduction, request.module_scopes
    run_patterns = request.patterns or _no_patterns
    writes = enter_forward(request, program)
    run_patterns(program, "forward")
    gradients: dict[str, fx.Node] = {}
    if request.training:
        program.loss = final_loss(program)
        gradients = _add_backward(request, program)
        _drop_unrecorded_writes(program)
        run_patterns(program, "backward")
    else:
        _drop_dropout(program)
    # Patterns may have put other nodes in the place of these.
    writes = [(name, program.latest(node)) for name, node in writes]
    gradients = {name: program.latest(node) for name, node in gradients.items()}
    gradients = assign_at_end(program, writes, gradients)
    run_updates_last(program)
    optimizer = request.optimizer if request.training else None
    if optimizer is not None:
        add_updates(program, optimizer, gradients)
        let_update_read_assigned(program)
    _add_anchors(program, request.anchors)
    if optimizer is not None:
        if request.loss_scaling is not None:
            add_loss_scale_update(program, request.loss_scaling)
        run_patterns(program, "optimizer")
    program.prune()
    program.validate()
    return program


def optimizer_scalars(program: Program, described: Mapping[str, Any]) -> dict[str, float]:
    """Values of a program's SCALAR variables for PopTorch's description of an optimizer."""
    spec = OptimizerSpec.from_description(described, {})
    return scalar_values(spec, program.reduction, program.scalars)


def _no_patterns(program: Program, after: Pass) -> None:
    """No library with patterns is loaded."""


def _drop_unrecorded_writes(program: Program) -> None:
    """They exist for autodiff only, which is done: what was written takes their place."""
    for node in program.operators():
        if node.target is ops.unrecorded_write:
            program.replace(node, node.args[1])  # type: ignore[arg-type]


def _drop_dropout(program: Program) -> None:
    """Dropout in training mode drops nothing in an inference session (PopART's `DropoutOpx::grow`)."""
    for node in program.operators():
        if node.target is aten.dropout.default:
            source: Any = node.args[0]
            if program.variable_of(source) is not None:  # The program may overwrite it later.
                with program.before(node):
                    source = program.emit(aten.clone.default, source, origin=node)
            program.replace(node, source)


def _rule_of(node: fx.Node) -> GradientRule:
    if node.target is ops.custom_op:
        return custom_gradients.custom_op_rule
    return gradients.RULES.get(node.target, traced_gradients.traced_rule)


def _add_backward(request: CompileRequest, program: Program) -> dict[str, fx.Node]:
    """Append the backward pass; returns each parameter's gradient, loss scaling still in it."""
    loss = program.loss
    assert loss is not None, "the loss is found before"
    gradients = differentiate(
        program,
        loss,
        functools.partial(_loss_gradient, request, loss),
        _rule_of,
        wide_losses=request.loss_scaling is not None,
    )
    for name, node in gradients.items():
        program.tensor_names[f"Gradient___{name}"] = node
    return gradients


def _loss_gradient(request: CompileRequest, loss: fx.Node, backward: Backward) -> fx.Node:
    """What the backward pass starts from: ones, times the loss scaling."""
    value = loss.meta["val"]
    scaling = HyperParameter(1.0) if request.optimizer is None else request.optimizer.loss_scaling
    if scaling.constant:
        assert request.loss_scaling is None, "automatic loss scaling varies the loss scale"
        return backward.emit(aten.full.default, list(value.shape), scaling.value, dtype=value.dtype)
    ones = backward.emit(aten.full.default, list(value.shape), 1.0, dtype=value.dtype)
    scale = _loss_scale_variable(backward.program, scaling.value)
    if request.loss_scaling is None:
        return backward.cast(backward.emit(aten.mul.Tensor, ones, scale), value.dtype)
    # Stays float32: with the device's own factor in it, it outgrows float16.
    return backward.emit(aten.mul.Tensor, ones, adapt_scale(backward.program, scale))


def _loss_scale_variable(program: Program, value: float) -> fx.Node:
    program.scalars[LOSS_SCALING] = ScalarSource("lossScaling", 0)
    return program.add_variable(Variable(LOSS_SCALING, Role.SCALAR, (), torch.float32, fill=value))


def _add_anchors(program: Program, anchors: tuple[Anchor, ...]) -> None:
    results = list(program.results())
    named = tensors_by_name(program) if anchors else {}
    for anchor in anchors:
        node = named.get(anchor.tensor_name)
        if node is None:
            raise poptorch_error(
                f"There is no tensor called '{anchor.tensor_name}' to anchor; see getTensorNames()."
            )
        results.append(node)
        program.outputs.append(
            OutputSpec(anchor.short_name, "anchor", mode=anchor.mode, period=anchor.period)
        )
    program.set_results(results)
