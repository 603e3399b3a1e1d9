"""The weight update: what a program runs after the last micro-batch, over all replicas of the instance.

A value is one name where all replicas have the same, else one name per replica; `replica_reduce` makes one of
many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, is_outer, mutated
from bert_ipu.simulator.runtime.contexts import outer_nodes, variable_nodes
from bert_ipu.simulator.runtime.fused_adam import AdamChain, adam_kernel, find_chains
from bert_ipu.simulator.runtime.instructions import RUN, Code, Name, generate, remove_unused
from bert_ipu.simulator.runtime.lowering import Emitter, resolve
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.replication import Replication
from bert_ipu.simulator.runtime.settings import AllReduce

REDUCE = Name(f"{RUN.text}.all_reduce")

Replicated = list[Any]
"""One value where replicas agree, else one per replica."""


@dataclass
class Update:
    """The compiled function of the outer context: update(run, (*variables, *crossing)) -> outputs."""

    function: Callable[..., tuple[Any, ...]]
    source: str
    slots: list[tuple[str, int]]
    """(variable, replica) of each leading value it takes."""


@dataclass
class _Lowering:
    program: Program
    replication: Replication
    emitter: Emitter
    crossing: list[fx.Node]
    chains: dict[fx.Node, AdamChain] = field(default_factory=dict)
    env: dict[fx.Node, Replicated] = field(default_factory=dict)
    raw: dict[fx.Node, Replicated] = field(default_factory=dict)
    """Values of micro-batches in the dtype they came in, for kernels that read it."""

    def run(self, node: fx.Node) -> None:
        if node.target is ops.accumulator_zero and node.args[0] in self.crossing:
            return  # its accumulator was never written
        if node in self.chains:
            self._fused(node, self.chains[node])
            return
        if node.target is ops.replica_reduce:
            if node not in self.env:
                self.env[node] = self.reduce(node)
            return
        width = max((len(self.env[read]) for read in node.all_input_nodes), default=1)
        results = []
        for replica in range(width):
            local = {read: self._of(read, replica) for read in node.all_input_nodes}
            results.append(self.emitter.operator(node, *resolve(node, local)))
        self.env[node] = results

    def _fused(self, node: fx.Node, chain: AdamChain) -> None:
        kernels = self.emitter.kernels
        assert kernels is not None, "chains are looked for only where there are kernels"
        function = adam_kernel(kernels, chain.max_weight_norm is not None, chain.corrected)
        nodes = [operand for operand in chain.operands if isinstance(operand, fx.Node)]
        width = max(len(self.env[operand]) for operand in nodes)
        gradients = self.raw.get(chain.gradient, self.env[chain.gradient])
        self.env[node] = [
            self.emitter.code.emit(
                function,
                self._of(chain.weight, replica),
                gradients[replica if len(gradients) > 1 else 0],
                *[self._of(x, replica) if isinstance(x, fx.Node) else x for x in chain.operands[2:]],
                pure=False,
                label=chain.weight.name,
            )
            for replica in range(width)
        ]

    def _of(self, node: fx.Node, replica: int) -> Any:
        values = self.env[node]
        return values[replica] if len(values) > 1 else values[0]

    def reduce_ready(self, nodes: Sequence[fx.Node]) -> None:
        """Reduce all values that are known before the update starts, with one exchange between instances."""
        ready = [
            node
            for node in nodes
            if node.target is ops.replica_reduce
            and node.kwargs.get("groups") is None
            and node.args[0] in self.env
        ]
        everyone, local, emit = self.replication.total, self.replication.local, self.emitter.code.emit
        if everyone == local or not ready:
            return
        sums = []
        for node in ready:
            source: Any = node.args[0]
            values = self.env[source]
            repeated = values if source in self.replication.pooled else values * (local // len(values))
            sums.append(emit(combine, None, False, len(repeated), *repeated))
        means = tuple(node.kwargs["reduction"] == "mean" for node in ready)
        reduced = self.emitter.code.emit_tuple(len(ready), combine_together, REDUCE, means, everyone, *sums)
        self.env |= {node: [name] for node, name in zip(ready, reduced)}

    def reduce(self, node: fx.Node) -> Replicated:
        source: Any = node.args[0]
        values = self.env[source]
        groups: Any = node.kwargs.get("groups")
        mean = node.kwargs["reduction"] == "mean"
        emit = self.emitter.code.emit
        if groups is not None:
            return [
                emit(combine, None, mean, len(members), *[values[min(r, len(values) - 1)] for r in members])
                for members in self.replication.members(groups)
            ]
        everyone = self.replication.total
        pooled = source in self.replication.pooled
        if len(values) == 1 and (
            everyone == 1 or (pooled and not mean and self.replication.local == everyone)
        ):
            self.raw[node] = self.raw.get(source, values)
            return list(values)
        if pooled:
            return [emit(combine, REDUCE, mean, everyone, values[0])]
        if len(values) == 1:
            values = values * self.replication.local
        return [emit(combine, REDUCE, mean, everyone, *values)]


def combine(all_reduce: AllReduce | None, mean: bool, count: int, *values: Tensor) -> Tensor:
    """The sum (or mean) of `count` replicas' values, `values` being this instance's."""
    total = values[0]
    if len(values) > 1:
        total = values[0] + values[1]
        for value in values[2:]:
            total += value
    if all_reduce is not None:
        total = total.contiguous() if len(values) > 1 else total.clone(memory_format=torch.contiguous_format)
        all_reduce([total])
    return total / count if mean and count > 1 else total


def combine_together(
    all_reduce: AllReduce, means: Sequence[bool], count: int, *sums: Tensor
) -> tuple[Tensor, ...]:
    """Each sum (or mean) of `count` replicas' values, `sums` being those over this instance's."""
    totals = [value.clone(memory_format=torch.contiguous_format) for value in sums]
    all_reduce(totals)
    return tuple(total / count if mean else total for total, mean in zip(totals, means))


def lower_update(
    program: Program, replication: Replication, numerics: Numerics, device: torch.device, kernels: Kernels | None,
    crossing: list[fx.Node], fuse: bool,
) -> Update:  # fmt: skip
    """Compile the program's outer context for all replicas of the instance."""
    code = Code("update")
    emitter = Emitter(code, numerics, device, kernels, numerics.stored)
    chains = find_chains(outer_nodes(program), numerics.rounds) if fuse and kernels is not None else {}
    absorbed = {node for chain in chains.values() for node in chain.absorbed}
    lowering = _Lowering(program, replication, emitter, crossing, chains)
    parameters: list[Name] = []
    slots: list[tuple[str, int]] = []
    nodes = variable_nodes(program)
    for variable, node in nodes.items():
        width = replication.width(variable)
        names = [Name(f"v{len(parameters) + replica}") for replica in range(width)]
        parameters += names
        slots += [(variable, replica) for replica in range(width)]
        lowering.env[node] = names
    for node in crossing:
        width = 1 if node in replication.pooled else replication.local
        names = [Name(f"v{len(parameters) + replica}") for replica in range(width)]
        parameters += names
        lowering.raw[node] = names
        lowering.env[node] = [_widen(emitter, node, name) for name in names]
    for node in program.operators():
        if not is_outer(node) and mutated(node) and node not in crossing:
            lowering.env[node] = lowering.env[_placeholder(node)]
    remaining = [node for node in outer_nodes(program) if node not in absorbed]
    lowering.reduce_ready(remaining)
    for node in remaining:
        lowering.run(node)
    results = [lowering.env[node] for node in program.results() if is_outer(node)]
    flat = [name for values in results for name in values * (replication.local // len(values))]
    function, source = generate("update", parameters, remove_unused(code.instructions, flat), flat)
    return Update(function, source, slots)


def _placeholder(node: fx.Node) -> fx.Node:
    """The placeholder of the variable that a chain of in-place nodes writes."""
    while node.op != "placeholder":
        node = node.args[mutated(node)[0]]  # type: ignore[assignment]
    return node


def _widen(emitter: Emitter, node: fx.Node, name: Name) -> Name:
    """A micro-batch's value in the dtype that the update computes in."""
    held: Any = node.args[1] if mutated(node) else node
    dtype = held.meta["val"].dtype
    numerics = emitter.numerics
    if numerics.activation(dtype) == numerics.stored(dtype):
        return name
    return emitter.code.emit(Tensor.to, name, numerics.stored(dtype))
