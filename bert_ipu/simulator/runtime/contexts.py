"""The two contexts of a program: what runs per micro-batch, what runs once per update, and what goes from one to the
other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from bert_ipu.simulator.graph.ir import Program, is_outer, mutated


def normal_nodes(program: Program) -> list[fx.Node]:
    """The operators that run for each micro-batch."""
    return [node for node in program.operators() if not is_outer(node)]


def outer_nodes(program: Program) -> list[fx.Node]:
    """The operators of the weight update."""
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


def variable_nodes(program: Program) -> dict[str, fx.Node]:
    """Placeholders by the variable they stand for."""
    return {node.meta["variable"]: node for node in program.placeholders() if "variable" in node.meta}
