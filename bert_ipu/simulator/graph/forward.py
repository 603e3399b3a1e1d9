"""Enters the user's forward: its inputs and the module's tensors go in, its results and what it wrote come out.

What happens in between is `capture.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import limits, overlapped_io
from bert_ipu.simulator.graph.capture import Capture
from bert_ipu.simulator.graph.dtypes import device_dtype
from bert_ipu.simulator.graph.ir import InputSpec, OutputSpec, Program, Role, Variable
from bert_ipu.simulator.graph.request import CompileRequest, parameters_and_buffers
from bert_ipu.simulator.graph.sources import note_origin


def enter_forward(request: CompileRequest, program: Program) -> list[tuple[str, fx.Node]]:
    """Record the forward in the program; returns the variables that it wrote, with their new values.

    Raises what the forward raises, and Error for what the IPU cannot do.
    """
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
            node = capture.recorder.constant(leaf)
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
