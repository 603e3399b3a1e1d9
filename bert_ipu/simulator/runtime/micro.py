"""The part of a program that runs per micro-batch, as a function; what no micro-batch changes is computed
apart.

prologue(run, variables) -> invariants        once per weight update: casts and slices of weights, constants
body(run, (*variables, *invariants, *inputs)) -> (*outputs, *crossing)        once per micro-batch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph.ir import Program, is_outer, mutated
from bert_ipu.simulator.runtime.fusion import fuse
from bert_ipu.simulator.runtime.instructions import Code, Instruction, Name, generate, remove_unused
from bert_ipu.simulator.runtime.lowering import Emitter, resolve
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.numerics import Numerics


def normal_nodes(program: Program) -> list[fx.Node]:
    return [node for node in program.operators() if not is_outer(node)]


def outer_nodes(program: Program) -> list[fx.Node]:
    return [node for node in program.operators() if is_outer(node)]


def crossing_nodes(program: Program) -> list[fx.Node]:
    """What the update reads of a micro-batch's values, in graph order."""
    return [
        node
        for node in normal_nodes(program)
        if not mutated(node) and any(is_outer(user) for user in node.users)
    ]


def written_variables(program: Program, nodes: Sequence[fx.Node]) -> set[str]:
    """Names of the variables that the nodes overwrite."""
    names = set()
    for node in nodes:
        for position in mutated(node):
            variable = program.variable_of(node.args[position])  # type: ignore[arg-type]
            assert variable is not None, f"{node} writes to no variable"
            names.add(variable.name)
    return names


@dataclass
class MicroBatch:
    """The compiled functions of one micro-batch (or one chunk of them)."""

    variables: list[str]
    prologue: Callable[..., tuple[Any, ...]]
    body: Callable[..., tuple[Any, ...]]
    source: str


def variable_nodes(program: Program) -> dict[str, fx.Node]:
    """Placeholders by the variable they stand for."""
    return {node.meta["variable"]: node for node in program.placeholders() if "variable" in node.meta}


def lower_micro_batch(
    program: Program,
    numerics: Numerics,
    device: torch.device,
    kernels: Kernels | None,
    crossing: list[fx.Node],
    batcher: Callable[[Emitter], Batcher] | None = None,
    merge: bool = True,
) -> MicroBatch:
    """Compile the program's normal context for one micro-batch at a time, or for a chunk with a batcher.

    `crossing`: what the update reads; an accumulation among them stands for the sum that it would add.  `merge`: let
    kernels stand for several operators.
    """
    code = Code("micro")
    emitter = Emitter(code, numerics, device, kernels, numerics.activation)
    nodes = normal_nodes(program)
    written = written_variables(program, nodes)
    variables = {name: Name(f"v{index}") for index, name in enumerate(variable_nodes(program))}
    inputs = [Name(f"x{index}") for index in range(len(program.inputs))]
    env: dict[fx.Node, Any] = {}
    for node in program.placeholders():
        if "variable" in node.meta:
            name = variables[node.meta["variable"]]
            env[node] = name if node.meta["variable"] in written else carried(emitter, node, name)
        else:
            env[node] = inputs[node.meta["input"]]
    outputs = [node for node in program.results() if not is_outer(node)]
    lower = _lower_each if batcher is None else batcher(emitter).lower_all
    results = lower(emitter, program, nodes, env, outputs, crossing)
    if merge and kernels is not None:
        results = fuse(code, results, kernels)
    return split(code, variables, inputs, results, written)


class Batcher(Protocol):
    """What lowers nodes for several micro-batches at once: `batching.Batcher`."""

    def lower_all(
        self,
        emitter: Emitter,
        program: Program,
        nodes: list[fx.Node],
        env: dict[fx.Node, Any],
        outputs: list[fx.Node],
        crossing: list[fx.Node],
    ) -> list[Name]:
        """Lower the nodes; the names of outputs, stacked, and of crossing values, summed."""


def _lower_each(
    emitter: Emitter,
    program: Program,
    nodes: list[fx.Node],
    env: dict[fx.Node, Any],
    outputs: list[fx.Node],
    crossing: list[fx.Node],
) -> list[Name]:
    for node in nodes:
        if mutated(node) and node in crossing:
            env[node] = env[node.args[1]]  # type: ignore[index]
        else:
            env[node] = emitter.operator(node, *resolve(node, env))
    return [env[node] for node in outputs + crossing]


def carried(emitter: Emitter, node: fx.Node, stored: Name) -> Name:
    """A variable as the micro-batch reads it: cast where half precision is stored wider."""
    value: Tensor = node.meta["val"]
    numerics = emitter.numerics
    if numerics.activation(value.dtype) == numerics.stored(value.dtype):
        return stored
    return emitter.code.emit(Tensor.to, stored, numerics.activation(value.dtype))


def split(
    code: Code, variables: dict[str, Name], inputs: list[Name], results: list[Name], written: set[str]
) -> MicroBatch:
    """Part the instructions in those no micro-batch changes and the others, and generate both functions."""
    instructions = remove_unused(code.instructions, results)
    fixed = {name for variable, name in variables.items() if variable not in written}
    hoisted: list[Instruction] = []
    rest: list[Instruction] = []
    for instruction in instructions:
        reads = instruction.reads()
        if instruction.pure and instruction.hoistable and reads <= fixed:
            fixed |= set(instruction.results)
            hoisted.append(instruction)
        else:
            rest.append(instruction)
    made = {name for instruction in hoisted for name in instruction.results}
    needed = {name for instruction in rest for name in instruction.reads()} | set(results)
    invariants = [name for instruction in hoisted for name in instruction.results if name in needed & made]
    names = list(variables.values())
    prologue, prologue_source = generate("prologue", names, remove_unused(hoisted, invariants), invariants)
    body, body_source = generate("micro_batch", [*names, *invariants, *inputs], rest, results)
    return MicroBatch(list(variables), prologue, body, f"{prologue_source}\n\n{body_source}")
