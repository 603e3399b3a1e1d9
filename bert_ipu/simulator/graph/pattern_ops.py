"""How the graph's operators appear to custom-op patterns: PopART's types, input indices and attributes.

Views keep shapes honest but must not hide what lies behind them: each reads the tensor that its whole chain of
views starts from, so that it is one operator away from it, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from bert_ipu.simulator.graph import ops

aten = torch.ops.aten


@dataclass(frozen=True)
class Appearance:
    """One operator as PopART has it."""

    type: str
    slots: tuple[int, ...]
    """PopART's input index of each operand, in the order of `operands`; -1 hides one."""
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = "ai.onnx"
    version: int = 1


VIEWS = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.t.default,
        aten.transpose.int,
        aten.permute.default,
        aten.squeeze.dim,
        aten.unsqueeze.default,
        aten.alias.default,
    }
)

_TYPES: dict[Any, str] = {
    aten.index_select.default: "Gather",
    aten.detach.default: "Detach",
    aten.clone.default: "Identity",
    aten._to_copy.default: "Cast",
    aten.native_layer_norm.default: "LayerNormalization",
    aten.native_layer_norm_backward.default: "LayerNormalizationGrad",
    aten.cross_entropy_loss.default: "SoftmaxCrossEntropy",
    ops.cross_entropy_grad: "SoftmaxCrossEntropyGrad",
    ops.replica_reduce: "ReplicatedAllReduce",
    ops.accumulator_zero: "AccumulatorZero",
    ops.sgd1_nesterov: "SGD1Nesterov",
    ops.rmsprop_updater: "RMSPropUpdater",
}
_BINARY: dict[Any, str] = {
    aten.add.Tensor: "Add",
    aten.sub.Tensor: "Sub",
    aten.mul.Tensor: "Mul",
    aten.div.Tensor: "Div",
}
_PRODUCTS = frozenset({aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default})
ACCUMULATIONS = {
    "add": "Add",
    "dampened_add": "DampenedAdd",
    "dampened_add_square": "DampenedAddSquare",
    "decay_add": "DecayAdd",
    "moving_average": "MovingAverage",
    "moving_average_square": "MovingAverageSquare",
    "infinity": "Infinity",
    "mean": "Mean",
}
"""PopART's name of each kind of `ops.accumulate`."""


def operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among a node's arguments, in order, repeated where one is read twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def appearance(node: fx.Node) -> Appearance:
    """What PopART would call an operator; an unknown one keeps its own name, in PopART's spelling."""
    if node.target in VIEWS:
        return _view(node)
    if node.target in _BINARY:
        both = len(operands(node)) == 2
        return Appearance(_BINARY[node.target] + ("" if both else "Scalar"), _positions(node))
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node)
    return Appearance(_TYPES.get(node.target) or _camel_case(node.target), _positions(node))


def permutation(node: fx.Node) -> list[int] | None:
    """The order in which a transposing view reads its operand's dimensions; None for another view."""
    args: Any = node.args
    order = list(range(args[0].meta["val"].dim()))
    if node.target is aten.permute.default:
        return [order[dim] for dim in args[1]]
    if node.target is aten.t.default:
        return order[::-1]
    if node.target is aten.transpose.int:
        order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
        return order
    return None


def _positions(node: fx.Node) -> tuple[int, ...]:
    """Each operand's place among all arguments, those inside lists counted one by one."""
    leaves: list[Any] = []

    def visit(value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for item in value:
                visit(item)
        else:
            leaves.append(value)

    visit([*node.args, *node.kwargs.values()])
    return tuple(index for index, leaf in enumerate(leaves) if isinstance(leaf, fx.Node))


def _camel_case(target: Any) -> str:
    name = target.name if hasattr(target, "mutates") else target._schema.name.split("::")[-1]
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def _view(node: fx.Node) -> Appearance:
    order = permutation(node)
    if order is not None:
        return Appearance("Transpose", (0,), {"perm": order})
    return Appearance("Reshape", (0,), {"shape": list(node.meta["val"].shape) or [1]})


def _product(node: fx.Node) -> Appearance:
    forward, operand = node.meta.get("forward_node") or (None, None)
    if forward is None or forward.target not in (*_PRODUCTS, aten.addmm.default) or operand is None:
        return Appearance("MatMul", _positions(node))
    of_left = operand == (1 if forward.target is aten.addmm.default else 0)
    if of_left:
        return Appearance("MatMulLhsGrad", (0, 1))
    # PopART reads the gradient first; linear's product has it there, the others' have it second.
    return Appearance("MatMulRhsGrad", (0, 1) if forward.target is aten.linear.default else (1, 0))


def _addmm(node: fx.Node) -> Appearance:
    return Appearance("MatMul", (2, 0, 1))


def _lookup(node: fx.Node) -> Appearance:
    return Appearance("Gather", (0, 1), {"axis": 0})


def _lookup_grad(node: fx.Node) -> Appearance:
    """GatherGrad, or PopTorch's own operator where a padding row is left out."""
    padding, scaled = node.args[3:5]
    if scaled:
        return Appearance("ScaledGatherGrad", (0, 1))
    if padding < 0:  # type: ignore[operator]
        return Appearance("GatherGrad", (0, 1), {"axis": 0})
    return Appearance("EmbeddingGrad", (0, 1), {"padding_idx": padding}, "poptorch.custom_ops")


def _dropout(node: fx.Node) -> Appearance:
    return Appearance("Dropout", (0,), {"ratio": float(node.args[1])})  # type: ignore[arg-type]


def _dropout_grad(node: fx.Node) -> Appearance:
    return Appearance("DropoutGrad", (0,), {"ratio": float(node.args[1])})  # type: ignore[arg-type]


def _softmax(node: fx.Node) -> Appearance:
    return Appearance("Softmax", (0,), {"axis": node.args[1]})


def _softmax_grad(node: fx.Node) -> Appearance:
    return Appearance("SoftmaxGrad", (0, 1), {"axis": node.args[2]})


def _accumulate(node: fx.Node) -> Appearance:
    kind = ACCUMULATIONS[str(node.kwargs["kind"])]
    attributes = {"accumulation_type": kind, **_scalar("factor", node.args[2] if len(node.args) > 2 else 1.0)}
    return Appearance("Accumulate", _positions(node), attributes)


def _update(op_type: str, **scalars: int) -> Callable[[fx.Node], Appearance]:
    """An update whose hyper-parameters are at the given argument positions."""

    def rule(node: fx.Node) -> Appearance:
        attributes: dict[str, Any] = {}
        for name, position in scalars.items():
            attributes |= _scalar(name, node.args[position])
        return Appearance(op_type, _positions(node), attributes)

    return rule


def _scalar(name: str, value: Any) -> dict[str, Any]:
    """A hyper-parameter: `NAME_const=0` where the host may change it, so that it arrives as a tensor."""
    constant = not isinstance(value, fx.Node)
    return {name: float(value) if constant else 1.0, f"{name}_const": int(constant)}


def _assign(node: fx.Node) -> Appearance:
    """The reduced accumulator, written back: PopART reduces in place, by an operator of one input."""
    value: Any = node.args[1]
    if isinstance(value, fx.Node) and value.target is ops.replica_reduce and value.args[0] is node.args[0]:
        return Appearance("ReplicatedAllReduceInplace", (-1, 0))
    return Appearance("CopyVarUpdate", _positions(node))


def _custom(node: fx.Node) -> Appearance:
    options: Any = node.kwargs
    return Appearance(
        options["name"], _positions(node), dict(options["attributes"]), options["domain"], options["version"]
    )


def _custom_grad(node: fx.Node) -> Appearance:
    options: Any = node.kwargs
    return Appearance(f"{options['name']}Grad{options['index']}", _positions(node))


_RULES: dict[Any, Callable[[fx.Node], Appearance]] = {
    **dict.fromkeys(_PRODUCTS, _product),
    aten.addmm.default: _addmm,
    aten.embedding.default: _lookup,
    aten.embedding_dense_backward.default: _lookup_grad,
    aten.dropout.default: _dropout,
    ops.dropout_grad: _dropout_grad,
    aten._softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_grad,
    ops.accumulate: _accumulate,
    ops.assign: _assign,
    ops.custom_op: _custom,
    ops.custom_op_grad: _custom_grad,
    ops.sgd0_var_update: _update("SGD0VarUpdate", slr0=2, wdsf0=3),
    ops.sgd1_var_update: _update("SGD1VarUpdate", slr1=2),
    ops.sgd1_accl_update: _update("SGD1AcclUpdate", smm1=2, swd1=3),
    ops.adam_var_update: _update("AdamVarUpdate", lr=2),
}
