"""How PopTorch's calls inside a forward reach the program that is captured; outside, nothing happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..graph import capture, control_flow
from ..graph.annotations import Annotations, Placement
from ..graph.ir import IpuOp


def is_recording() -> bool:
    """Whether a program is being captured in this thread."""
    return capture.current() is not None


def current_annotations() -> Annotations | None:
    """What the next recorded operators get, None outside a capture."""
    current = capture.current()
    return None if current is None else current.recorder.annotations


def current_placement() -> Placement | None:
    """Where operators are recorded to run now, None outside a capture."""
    found = current_annotations()
    return None if found is None else found.placement


NO_BLOCK = Placement(ipu=-1)
"""Where operators are after a block has ended and before another begins: nowhere, which is an error."""


def place(placement: Placement | None) -> None:
    """Record what follows as running there."""
    found = current_annotations()
    if found is not None and placement is not None:
        found.place(placement)


def push_name_scope(name: str) -> None:
    """Put `name` into the names of what is recorded from here on, after the modules around it."""
    current = capture.current()
    if current is not None:
        current.recorder.annotations.push_scope(name, current.module_depth())


def pop_name_scope() -> None:
    """End the name scope that was entered last."""
    current = capture.current()
    if current is not None:
        current.recorder.annotations.pop_scope()


def emit(op: IpuOp, *args: Any, **kwargs: Any) -> Any:
    """Record one of the IPU's own operators; its result as the user sees it."""
    current = capture.current()
    assert current is not None, "operators are recorded inside a capture only"
    return current.emit(op, *args, **kwargs)


def mark(tensor: Any, key: str, value: Any) -> Any:
    """Attach a note to the operator that made the tensor; the tensor itself comes back."""
    current = capture.current()
    if current is not None:
        current.mark(tensor, key, value)
    return tensor


def for_loop(count: int, body: Callable[..., Any], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Record a loop; its last results."""
    current = capture.current()
    assert current is not None, "loops are recorded inside a capture only"
    return list(control_flow.for_loop(current, count, body, inputs))


def cond(
    condition: torch.Tensor,
    then: Callable[..., Any],
    then_inputs: list[torch.Tensor],
    other: Callable[..., Any],
    other_inputs: list[torch.Tensor],
) -> list[torch.Tensor]:
    """Record a choice between two functions; the results of the chosen one."""
    current = capture.current()
    assert current is not None, "branches are recorded inside a capture only"
    return list(control_flow.cond(current, condition, then, then_inputs, other, other_inputs))


def convolutions_of(number: int | None) -> list[fx.Node]:
    """The convolutions recorded in the multi-convolution of this number, in order."""
    current = capture.current()
    assert current is not None, "a multi-convolution ends in the capture it began in"
    nodes = (node for node in current.program.graph.nodes if node.meta.get("multi_conv") == number)
    return [node for node in nodes if node.target is torch.ops.aten.convolution.default]
