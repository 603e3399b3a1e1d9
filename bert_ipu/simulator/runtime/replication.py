"""Which values replicas share, and which replicas belong to one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, ReplicaGroups, Role, Variable, is_outer, mutated
from bert_ipu.simulator.runtime.contexts import (
    crossing_nodes,
    normal_nodes,
    outer_nodes,
    variable_nodes,
    written_variables,
)


@dataclass
class Replication:
    """The replicas of one instance, and what differs between them."""

    local: int
    total: int
    """Replicas over all instances."""
    first: int = 0
    """This instance's first replica."""
    divergent: set[str] = field(default_factory=set)
    """Variables of which each replica has its own value."""
    pooled: set[fx.Node] = field(default_factory=set)
    """Sums over micro-batches that the update only reads through a reduction over all replicas, or of which
    there is but one, so that one sum over the micro-batches of all replicas can stand for them: accumulators' new
    values, and crossing values."""

    def width(self, variable: str) -> int:
        """How many values of a variable there are."""
        return self.local if variable in self.divergent else 1

    def group_of(self, groups: ReplicaGroups, replica: int) -> int:
        """The group that a replica (counted over all instances) belongs to."""
        if groups.arrangement == "consecutive":
            return replica // groups.size
        return replica % (self.total // groups.size)

    def members(self, groups: ReplicaGroups) -> list[list[int]]:
        """For each replica of this instance, the local replicas of its group; groups must not cross
        instances."""
        owner = [self.group_of(groups, self.first + replica) for replica in range(self.local)]
        found = [[r for r in range(self.local) if owner[r] == group] for group in owner]
        assert all(len(members) == groups.size for members in found), "a replica group crosses instances"
        return found


def analyse_replication(program: Program, local: int, total: int, first: int) -> Replication:
    """Find what is pooled and what diverges; with one replica nothing does."""
    replication = Replication(local, total, first)
    replication.pooled = _pooled(program, total)
    if local == 1:
        return replication
    pooled_variables = {program.variable_of(node).name for node in replication.pooled if mutated(node)}  # type: ignore[union-attr]
    for variable in program.variables.values():
        if variable.groups is not None and variable.groups.size < total:
            replication.divergent.add(variable.name)
    replication.divergent |= written_variables(program, normal_nodes(program)) - pooled_variables
    _spread(program, replication)
    return replication


def _pooled(program: Program, total: int) -> set[fx.Node]:
    # With accumulation the update reads the last micro-batch's value, not a sum.
    crossing = crossing_nodes(program) if program.reduction.accumulation == 1 else []
    found = {node for node in crossing if _only_reduced(node)}
    last: dict[str, list[fx.Node]] = {}
    for node in normal_nodes(program):
        if mutated(node):
            variable = program.variable_of(node)
            assert variable is not None, f"{node} writes to no variable"
            last.setdefault(variable.name, []).append(node)
    zeroed = {
        program.variable_of(node).name  # type: ignore[union-attr]
        for node in outer_nodes(program)
        if node.target is ops.accumulator_zero
    }
    placeholders = variable_nodes(program)
    for name, writers in last.items():
        plain = name in zeroed and _is_plain_sum(program.variables[name], placeholders[name], writers)
        if plain and (total == 1 or _only_reduced(writers[-1])):
            found |= set(writers)
    return found


def _is_plain_sum(variable: Variable, first: fx.Node, writers: Sequence[fx.Node]) -> bool:
    """Whether a variable, zeroed by the update, is zero before the first one and then only added to."""
    starts_at_zero = variable.role is Role.STATE and variable.fill == 0.0 and variable.initial is None
    adds = all(node.target is ops.accumulate and node.kwargs.get("kind") == "add" for node in writers)
    return starts_at_zero and adds and all(user in writers for user in first.users)


def _only_reduced(node: fx.Node) -> bool:
    return all(
        (user.target is ops.replica_reduce and user.kwargs.get("groups") is None)
        or user.target is ops.accumulator_zero
        or (not is_outer(user) and user.target is ops.accumulate)
        for user in node.users
    )


def _spread(program: Program, replication: Replication) -> None:
    """Variables updated from what differs between replicas differ too; to a fixed point."""
    crossing = set(crossing_nodes(program)) - replication.pooled
    while True:
        before = len(replication.divergent)
        differs = set(crossing)
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.meta.get("variable") in replication.divergent:
                differs.add(node)
            elif node.op == "call_function" and is_outer(node):
                _spread_over(program, node, differs, replication)
            elif node.op == "call_function" and mutated(node) and node not in replication.pooled:
                differs.add(node)
        if len(replication.divergent) == before:
            return


def _spread_over(program: Program, node: fx.Node, differs: set[fx.Node], replication: Replication) -> None:
    if node.target is ops.replica_reduce and node.kwargs.get("groups") is None:
        return
    if any(read in differs for read in node.all_input_nodes) or (
        node.target is ops.replica_reduce and replication.local > 1
    ):
        differs.add(node)
        for position in mutated(node):
            variable = program.variable_of(node.args[position])  # type: ignore[arg-type]
            assert variable is not None, f"{node} writes to no variable"
            replication.divergent.add(variable.name)
