"""Which node is the loss: the rules by which PopTorch finds the one that training minimises."""

from __future__ import annotations

from torch import fx

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, computed_from


def final_loss(program: Program) -> fx.Node:
    """The one loss that no other loss depends on.

    Raises Error where there is none, or more than one, or where it is not a scalar.
    """
    losses = [
        node for node in program.operators() if node.target is ops.identity_loss or node.meta.get("loss")
    ]
    if not losses:
        raise poptorch_error(
            "Couldn't find a loss in graph! The forward of a training model must return its loss: the result of "
            "one of torch's loss functions, or of poptorch.identity_loss. (cross_entropy of class probabilities, which "
            "torch composes of arithmetic, must be wrapped in poptorch.identity_loss.)"
        )
    inner = computed_from(operand for loss in losses for operand in loss.all_input_nodes)
    final = [loss for loss in losses if loss not in inner]
    if len(final) != 1:
        where = ", ".join(str(loss.meta.get("source")) for loss in final)
        raise poptorch_error(
            "Multiple independent losses found in graph. Graph must have one final loss. "
            f"Wrap final graph loss in poptorch.identity_loss. The losses are at {where}."
        )
    _check_scalar(final[0])
    return final[0]


def _check_scalar(loss: fx.Node) -> None:
    """Raise Error for a loss of several numbers, as PopART's `Ir::setFinalLoss` does."""
    shape = list(loss.meta["val"].shape)
    if loss.meta["val"].numel() > 1:
        raise poptorch_error(
            f"The loss must be a scalar, but that at {loss.meta.get('source')} has shape {shape}. Take its mean or sum "
            'by the function\'s own `reduction`, or by poptorch.identity_loss(..., reduction="mean").'
        )
