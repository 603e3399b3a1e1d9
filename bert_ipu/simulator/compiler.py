"""The compiler: a user's forward and optimizer in, a `Program` out, by the stages of PopART.

capture -> patterns -> autodiff -> patterns -> optimizer -> patterns (`docs/decisions/001-graph.md`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Optional

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import custom_gradients, gradients, limits, ops, overlapped_io, traced_gradients
from bert_ipu.simulator.graph.autodiff import Backward, GradientRule, differentiate
from bert_ipu.simulator.graph.capture import Capture
from bert_ipu.simulator.graph.dtypes import device_dtype
from bert_ipu.simulator.graph.ir import (
    InputSpec,
    OutputSpec,
    Pass,
    Program,
    Reduction,
    ReplicaGroups,
    Role,
    ScalarSource,
    Variable,
)
from bert_ipu.simulator.graph.loss_scaling import (
    LOSS_SCALING,
    AutomaticLossScaling,
    adapt_scale,
    add_loss_scale_update,
)
from bert_ipu.simulator.graph.losses import final_loss
from bert_ipu.simulator.graph.optimizer_spec import HyperParameter, OptimizerSpec, scalar_values
from bert_ipu.simulator.graph.optimizers import add_updates
from bert_ipu.simulator.graph.sources import note_origin
from bert_ipu.simulator.graph.tensor_names import tensors_by_name
from bert_ipu.simulator.graph.writes import assign_at_end, let_update_read_assigned, run_updates_last

aten = torch.ops.aten

Patterns = Callable[[Program, Pass], None]
"""Rewrites a program to a fixed point; run at the three places of PopART, after the pass it is told."""


@dataclass(frozen=True)
class Anchor:
    """A tensor the user wants returned besides the model's results."""

    short_name: str
    tensor_name: str
    mode: Optional[str] = None
    period: int = 1


@dataclass(frozen=True)
class CompileRequest:
    """Everything a compile depends on."""

    forward: Callable[..., Any]
    """Called once, with tensors that record what is done to them."""
    module: torch.nn.Module
    """Names the parameters, buffers and modules."""
    args: tuple[Any, ...]
    """Example inputs of one micro-batch: any nesting; tensors may be fake. Only shapes and dtypes count."""
    training: bool = False
    optimizer: Optional[OptimizerSpec] = None
    loss_scaling: Optional[AutomaticLossScaling] = None
    """Where the device adapts the loss scale; the optimizer's must not be constant then."""
    reduction: Reduction = field(default_factory=Reduction)
    groups: Mapping[str, ReplicaGroups] = field(default_factory=dict)
    """Parameters and buffers that differ between replicas, by name."""
    shared_buffers: bool = False
    """Replicas with inputs of their own have one copy of the buffers: a forward that writes them is refused."""
    strided_channel_groups: bool = False
    """PopART's `groupNormStridedChannelGrouping`."""
    module_scopes: bool = True
    """Whether tensors have the modules that made them in their names."""
    anchors: tuple[Anchor, ...] = ()
    patterns: Optional[Patterns] = None


def compile_program(request: CompileRequest) -> Program:
    """Compile a model, its loss and optimizer included where it trains.

    Raises Error for what the IPU cannot do: data-dependent shapes, operators it lacks, tensors left on
    the CPU, no loss or several, replaced buffers.
    """
    program = Program(fx.Graph(), FakeTensorMode(allow_non_fake_inputs=True), training=request.training)
    program.reduction, program.module_scopes = request.reduction, request.module_scopes
    run_patterns = request.patterns or _no_patterns
    writes = _capture(request, program)
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
    updates_weights = request.training and request.optimizer is not None
    if updates_weights:
        _add_optimizer(request, program, gradients)
    _add_anchors(program, request.anchors)
    if updates_weights:
        if request.loss_scaling is not None:
            add_loss_scale_update(program, request.loss_scaling)
        run_patterns(program, "optimizer")
    program.prune()
    program.validate()
    return program


def parameters_and_buffers(model: Any) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers by name, shared ones once, under their first; none for a function."""
    if not isinstance(model, torch.nn.Module):
        return {}
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def optimizer_scalars(program: Program, described: Mapping[str, Any]) -> dict[str, float]:
    """Values of a program's SCALAR variables for PopTorch's description of an optimizer."""
    spec = OptimizerSpec.from_description(described, {})
    return scalar_values(spec, program.reduction, program.scalars)


def _drop_dropout(program: Program) -> None:
    """Dropout in training mode drops nothing in an inference session (PopART's `DropoutOpx::grow`)."""
    for node in program.operators():
        if node.target is aten.dropout.default:
            source: Any = node.args[0]
            if program.variable_of(source) is not None:  # The program may overwrite it later.
                with program.before(node):
                    source = program.emit(aten.clone.default, source, origin=node)
            program.replace(node, source)


def _drop_unrecorded_writes(program: Program) -> None:
    """They exist for autodiff only, which is done: what was written takes their place."""
    for node in program.operators():
        if node.target is ops.unrecorded_write:
            program.replace(node, node.args[1])  # type: ignore[arg-type]


def _no_patterns(program: Program, after: Pass) -> None:
    """No library with patterns is loaded."""


# -- capture -----------------------------------------------------------------------------------


def _capture(request: CompileRequest, program: Program) -> list[tuple[str, fx.Node]]:
    """Enter the forward; returns the variables it wrote, with their new values."""
    modules = {id(module): name for name, module in request.module.named_modules()}
    capture = Capture(program, modules, request.strided_channel_groups)
    named = parameters_and_buffers(request.module)
    capture.declare(_variable(name, tensor, request) for name, tensor in named.items())
    args = _inputs(request, program, capture)
    slots = list(_slots(request.module))
    try:
        with capture.recording():
            results = request.forward(*args)
    except Exception as error:
        note_origin(error, modules)
        raise
    finally:
        replaced = _put_back(slots)
    if replaced is not None:
        raise poptorch_error(replaced)
    _add_results(program, capture, results)
    limits.check_results(program)
    if request.shared_buffers:
        _check_not_written([name for name, _ in capture.variables_written_in_place()])
    overlapped_io.settle(program)
    _keep_constants(program)
    return list(capture.variables_written())


def _variable(name: str, tensor: torch.Tensor, request: CompileRequest) -> Variable:
    """A parameter, a buffer, or a constant if it holds whole numbers, of which PopART has no variables.

    Source: PopTorch's `JITDispatch::addParameter`.
    """
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    groups = request.groups.get(name)
    shape = tuple(tensor.shape[1:] if groups is not None else tensor.shape)
    role = Role.PARAMETER if is_parameter else Role.BUFFER
    return Variable(
        name,
        role if tensor.is_floating_point() else Role.CONSTANT,
        shape,
        device_dtype(tensor.dtype),
        tensor,
        requires_grad=is_parameter and tensor.requires_grad,
        groups=groups,
    )


def _inputs(request: CompileRequest, program: Program, capture: Capture) -> tuple[Any, ...]:
    """The forward's arguments, every tensor among them entered as an input of the program."""
    leaves, structure = tree_flatten(request.args)
    arguments: list[Any] = []
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, torch.Tensor):
            arguments.append(leaf)
            continue
        _check_input(leaf, index)
        name = "input" if not program.inputs else f"input/{len(program.inputs)}"
        spec = InputSpec(
            name, tuple(leaf.shape), leaf.dtype, device_dtype(leaf.dtype), batched=leaf.dim() > 0
        )
        arguments.append(capture.input(spec))
    return tree_unflatten(arguments, structure)  # type: ignore[no-any-return]


def _check_input(leaf: torch.Tensor, index: int) -> None:
    if 0 in leaf.shape:
        raise poptorch_error(f"Zero-sized tensors are unsupported (Got shape {list(leaf.shape)}).")
    if leaf.requires_grad:
        raise poptorch_error(
            f"Input {index} has requires_grad=True, which no input of an IPU model may: {leaf}\n"
            "Pass it detached; a gradient for it is had by `x.requires_grad_()` inside the forward, as one more result."
        )
    try:
        device_dtype(leaf.dtype)
    except TypeError as error:
        raise poptorch_error(f"Input {index}: {error}.") from error


class _Slot(NamedTuple):
    """Where a module keeps a parameter or buffer."""

    kind: str
    name: str
    table: dict[str, Any]
    key: str
    tensor: torch.Tensor


def _slots(module: torch.nn.Module) -> Iterator[_Slot]:
    for prefix, each in module.named_modules():
        for kind, table in (("Buffer", each._buffers), ("Parameter", each._parameters)):
            for key, tensor in table.items():
                if tensor is not None:
                    yield _Slot(kind, f"{prefix}.{key}" if prefix else key, table, key, tensor)


def _put_back(slots: Iterable[_Slot]) -> Optional[str]:
    """Undo what the forward did to the module's tables; returns what to say of the first replacement, if any."""
    message = None
    for kind, name, table, key, tensor in slots:
        now = dict(table.items()).get(key)  # A scripted module's tables have no get().
        if now is tensor:
            continue
        table[key] = tensor
        if now is None:
            message = message or f"{kind} {name} is removed from the model when calling the forward method."
        else:
            message = message or (
                f"{kind} {name} is reassigned within the model when calling the forward method. This is not "
                f"supported. Consider using self.{name}.copy_(src) to copy data from a source tensor, where "
                "src is the name of the source tensor."
            )
    return message


def _add_results(program: Program, capture: Capture, results: Any) -> None:
    """The output node: the user's results, then the inputs that were written in place."""
    leaves, _ = tree_flatten(results)
    nodes: list[fx.Node] = []
    for position, leaf in enumerate(leaves):
        node = capture.node_of(leaf)
        if node is None and isinstance(leaf, torch.Tensor):
            node = capture.constant(leaf)
        if node is not None:
            nodes.append(node)
            program.outputs.append(OutputSpec(f"output_{position}", "result", position))
    for index, node in capture.inputs_written():
        nodes.append(node)
        program.outputs.append(OutputSpec(f"input_update_{index}", "input_update", index))
    program.graph.output(tuple(nodes))


def _check_not_written(buffers: Sequence[str]) -> None:
    """Raise Error for buffers that the forward writes, where each replica would write other values."""
    if buffers:
        raise poptorch_error(
            "PopTorch does not support broadcasting buffers. If your model is able to tolerate buffers becoming out of "
            "sync between replicas, you can disable buffer broadcasting using "
            f"poptorch.Options.broadcastBuffers(False). The forward writes {buffers[0]}."
        )


def _keep_constants(program: Program) -> None:
    """Give constants the values that the model's tensors have now, whatever the host does to these later."""
    for variable in program.variables.values():
        if variable.role is Role.CONSTANT and variable.tensor is not None:
            variable.tensor = variable.tensor.detach().to(variable.dtype).clone()


# -- backward, writes, anchors -----------------------------------------------------------------


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


def _add_optimizer(request: CompileRequest, program: Program, gradients: Mapping[str, fx.Node]) -> None:
    assert request.optimizer is not None, "a program without an optimizer updates nothing"
    add_updates(program, request.optimizer, gradients)
    let_update_read_assigned(program)


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
