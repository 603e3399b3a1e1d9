"""The part of a program that runs per micro-batch, as a function; what no micro-batch changes is computed
apart.

prologue(run, variables) -> invariants        once per weight update: casts and slices of weights, constants
body(run, (*variables, *invariants, *inputs)) -> (*outputs, *crossing)        once per micro-batch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph.ir import Program, is_outer, mutated
from bert_ipu.simulator.runtime.contexts import normal_nodes, variable_nodes, written_variables
from bert_ipu.simulator.runtime.fusion import fuse
from bert_ipu.simulator.runtime.instructions import Code, Instruction, Name, generate, remove_unused
from bert_ipu.simulator.runtime.lowering import Emitter, resolve
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.numerics import Numerics


@dataclass
class MicroBatch:
    """The compiled functions of one micro-batch (or one chunk of them)."""

    variables: list[str]
    prologue: Callable[..., tuple[Any, ...]]
    body: Callable[..., tuple[Any, ...]]
    source: str


class Lowering(Protocol):
    """How the nodes of micro-batches become instructions: one at a time, or many at once by `batching.Batcher`."""

    def enter(self, node: fx.Node, name: Name) -> Any:
        """What stands for a placeholder, whose value has this name."""

    def lower(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        """What stands for a node's value, or a tuple of them; `env` has what stands for its operands."""

    def stacked(self, value: Any) -> Name:
        """The name of the values of all micro-batches, as the run returns them."""

    def summed(self, value: Any) -> Name:
        """The name of their sum."""


@dataclass
class _OneAtATime:
    """Lowers one micro-batch: a name stands for a value."""

    emitter: Emitter

    def enter(self, node: fx.Node, name: Name) -> Name:
        return name

    def lower(self, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        return self.emitter.operator(node, *resolve(node, env))

    def stacked(self, value: Any) -> Name:
        return value  # type: ignore[no-any-return]

    def summed(self, value: Any) -> Name:
        return value  # type: ignore[no-any-return]


def lower_micro_batch(
    program: Program,
    numerics: Numerics,
    device: torch.device,
    kernels: Kernels | None,
    crossing: list[fx.Node],
    batcher: Callable[[Emitter], Lowering] | None = None,
    merge: bool = True,
) -> MicroBatch:
    """Compile the program's normal context for one micro-batch at a time, or for a chunk with a batcher.

    `crossing`: what the update reads; an accumulation among them stands for the sum that it would add.  `merge`: let
    kernels stand for several operators.
    """
    code = Code("micro")
    emitter = Emitter(code, numerics, device, kernels, numerics.activation)
    lowering = _OneAtATime(emitter) if batcher is None else batcher(emitter)
    nodes = normal_nodes(program)
    written = written_variables(program, nodes)
    variables = {name: Name(f"v{index}") for index, name in enumerate(variable_nodes(program))}
    inputs = [Name(f"x{index}") for index in range(len(program.inputs))]
    env: dict[fx.Node, Any] = {}
    for node in program.placeholders():
        if "variable" in node.meta:
            name = variables[node.meta["variable"]]
            name = name if node.meta["variable"] in written else carried(emitter, node, name)
        else:
            name = inputs[node.meta["input"]]
        env[node] = lowering.enter(node, name)
    for node in nodes:
        if mutated(node) and node in crossing:
            env[node] = env[node.args[1]]  # type: ignore[index]
        else:
            env[node] = lowering.lower(node, env)
    results = [lowering.stacked(env[node]) for node in program.results() if not is_outer(node)]
    results += [lowering.summed(env[node]) for node in crossing]
    if merge and kernels is not None:
        results = fuse(code, results, kernels)
    return split(code, variables, inputs, results, written)


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
