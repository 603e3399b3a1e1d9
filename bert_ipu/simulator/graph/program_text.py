"""A compiled program as text: what runs where, in order, and which line of the user's code each operator comes from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph.ir import Program, Role, Subgraph, is_outer

_SECTIONS = {
    "forward": "forward, for each micro-batch",
    "backward": "backward, for each micro-batch",
    "optimizer": "accumulation, for each micro-batch",
}
_OUTER = "weight update, after the last micro-batch"
_REST = 64
"""Columns before an operator's origin."""


def program_text(program: Program) -> str:
    """The inputs, variables, operators and results of a program, one line for each."""
    return "\n".join(
        [
            "inputs, of a micro-batch",
            *(
                f"  {_name(node)}: {_value(node.meta['val'])}"
                for node in program.placeholders()
                if "input" in node.meta
            ),
            "variables",
            *(
                f"  {variable.name}: {variable.role.value} {_type(variable.dtype, variable.shape)}"
                for variable in program.variables.values()
            ),
            *_operators(program),
            "results",
            *(
                f"  {spec.name or spec.kind}: {_name(node)}"
                for spec, node in zip(program.outputs, program.results())
            ),
        ]
    )


def _operators(program: Program) -> Iterator[str]:
    for section, nodes in groupby(program.operators(), _section):
        yield section
        for place, placed in groupby(nodes, _place):
            yield f"  {place}"
            for node in placed:
                yield from _operator(node, "    ")


def _operator(node: fx.Node, indent: str) -> Iterator[str]:
    """The line of an operator, and those of its bodies, where it is a loop or a branch."""
    line = f"{indent}{_name(node)}: {_value(node.meta['val'])} = {_call(node)}"
    origin = ", ".join(str(node.meta[key]) for key in ("module", "source") if node.meta.get(key))
    yield f"{line:{_REST}}  # {origin}" if origin else line
    for body in node.args:
        if isinstance(body, Subgraph):
            given = ", ".join(f"{_name(each)}: {_value(each.meta['val'])}" for each in body.placeholders)
            yield f"{indent}  {body.name}({given}):"
            for inner in body.graph.nodes:
                if inner.op == "call_function":
                    yield from _operator(inner, f"{indent}    ")
            yield f"{indent}    return {', '.join(map(_name, body.results))}"


def _section(node: fx.Node) -> str:
    return _OUTER if is_outer(node) else _SECTIONS[node.meta["pass"]]


def _place(node: fx.Node) -> str:
    named = {"ipu": "IPU", "stage": "stage", "phase": "phase"}
    said = [
        f"{name} {node.meta[key]}" for key, name in named.items() if node.meta.get(key, -1) not in (None, -1)
    ]
    return ", ".join(said) or "IPU 0"


def _call(node: fx.Node) -> str:
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    name = schema.name.removeprefix("aten::") if schema is not None else target.__name__
    given = [_argument(value) for value in node.args]
    given += [f"{key}={_argument(value)}" for key, value in node.kwargs.items()]
    return f"{name}({', '.join(given)})"


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return _name(value)
    if isinstance(value, Subgraph):
        return value.name
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_argument, value))}]"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value if isinstance(value, str) else repr(value)


def _name(node: fx.Node) -> str:
    """A variable's own name, or the node's without the name of ATen's usual overload."""
    return str(node.meta.get("variable", node.name.replace("_default", "")))


def _value(value: Any) -> str:
    if isinstance(value, Tensor):
        return _type(value.dtype, value.shape)
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_value, value))})"
    return type(value).__name__


def _type(dtype: torch.dtype, shape: Any) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


def held_by_ipus(program: Program) -> list[str]:
    """What each IPU keeps from run to run, one line for each; a variable is where it is read first."""
    held: dict[int, dict[Role, list[int]]] = {}
    for variable in program.variables.values():
        node = program.placeholder_of(variable.name)
        readers = list(node.users) if node is not None else []
        ipu = next((user.meta["ipu"] for user in readers if user.meta.get("ipu") is not None), 0)
        counted = held.setdefault(ipu, {}).setdefault(variable.role, [0, 0])
        elements = math.prod(variable.shape)
        counted[0] += elements
        counted[1] += elements * variable.dtype.itemsize
    return [
        f"IPU {ipu} holds "
        + ", ".join(f"{role.value} {elements:,} ({size:,} bytes)" for role, (elements, size) in roles.items())
        for ipu, roles in sorted(held.items())
    ]
