"""Overlapped input and output (`poptorch.set_overlap_for_input`, `_output`): what may be marked for it.

While the forward is captured, a mark is a `nop` of its own, which `settle` takes out again: the input's placeholder
or the result's operator carries the mode from then on.  The rules are those of PopTorch's `OverlappedIO.cpp`.
"""

from __future__ import annotations

from torch import fx

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program

INPUT = "overlap_input"
OUTPUT = "overlap_output"
NO_OVERLAP = "no_overlap"


def settle(program: Program) -> None:
    """Replace marks by attributes. Raises Error for one that is on no input or result, or shares it."""
    for node in program.operators():
        attributes = node.meta.get("attrs", {})
        if node.target is ops.nop and INPUT in attributes:
            _check_input(node)
            _settle(program, node, INPUT)
        elif node.target is ops.nop and OUTPUT in attributes:
            _check_output(program, node)
            _settle(program, node, OUTPUT)


def overlaps(program: Program) -> bool:
    """Whether any input or result is to be transferred while the program computes."""
    modes = (node.meta.get("attrs", {}).get(key) for node in program.graph.nodes for key in (INPUT, OUTPUT))
    return any(mode not in (None, NO_OVERLAP) for mode in modes)


def _settle(program: Program, mark: fx.Node, key: str) -> None:
    source = mark.all_input_nodes[0]
    source.meta["attrs"] = {**source.meta.get("attrs", {}), key: mark.meta["attrs"][key]}
    program.replace(mark, source)


def _check_input(mark: fx.Node) -> None:
    source = mark.all_input_nodes[0]
    place = mark.meta.get("source")
    if source.op != "placeholder" or "input" not in source.meta:
        raise poptorch_error(
            f"poptorch.set_overlap_for_input applied on a node which is not a tensor input to the model ({place})."
        )
    if len(source.users) > 1:
        number = source.meta["input"]
        raise poptorch_error(
            "poptorch.set_overlap_for_input must be the only op applied to an input. This is not the case for input "
            f"{number} to the model ({place}): use the tensor that it returns everywhere."
        )


def _check_output(program: Program, mark: fx.Node) -> None:
    results, place = program.results(), mark.meta.get("source")
    if mark not in results:
        raise poptorch_error(
            f"poptorch.set_overlap_for_output applied on a node which is not a tensor output to the model ({place})."
        )
    if results.count(mark) + results.count(mark.all_input_nodes[0]) > 1:
        raise poptorch_error(
            "poptorch.set_overlap_for_output cannot be used with a tensor that is returned twice. Please check all "
            f"returned tensors including those nested in tuples/lists ({place})."
        )
