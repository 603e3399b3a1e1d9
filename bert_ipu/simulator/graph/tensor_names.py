"""Names of a program's tensors, for `getTensorNames` and anchors.

Inputs, variables, `Gradient___` and `UpdatedVar___` are called as PopART calls them; other tensors by their
modules and name scopes, with the operator and its number: "encoder/layer/0/linear:0".
"""

from __future__ import annotations

from torch import Tensor, fx

from bert_ipu.simulator.graph.ir import Program, Role, mutated


def tensors_by_name(program: Program) -> dict[str, fx.Node]:
    """Every tensor of the program by its name; a parameter has one name before its update and another after it."""
    named: dict[str, fx.Node] = {}
    for node in program.placeholders():
        variable = node.meta.get("variable")
        named[program.inputs[node.meta["input"]].name if variable is None else variable] = node
    for node in program.operators():
        written = program.variable_of(node) if mutated(node) else None
        if written is not None and written.role is Role.PARAMETER:
            named[f"UpdatedVar___{written.name}"] = node
        elif node.meta.get("pass") == "forward" and isinstance(node.meta["val"], Tensor):
            named[_path(node, program.module_scopes)] = node
    return {**named, **program.tensor_names}


def _path(node: fx.Node, module_scopes: bool) -> str:
    scopes = node.meta["module"].split(".") if module_scopes and node.meta.get("module") else []
    for depth, name in reversed(node.meta.get("scopes", ())):
        scopes.insert(depth, name)
    return "/".join([*scopes, f"{node.name}:0"])
