"""How the operators that the user's code calls become the fewer ones of the graph.

Composite operators are decomposed into their parts, except those PopART has as one (`WHOLE`); in-place
and `out=` operators become their functional forms; some are rewritten by hand (`graph/rewrites.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Optional

import torch
from torch._ops import OpOverload

aten = torch.ops.aten

WHOLE = frozenset(
    {
        aten.linear.default,
        aten.matmul.default,
        aten.dropout.default,
        aten.cross_entropy_loss.default,
        aten.batch_norm.default,
        aten.instance_norm.default,
    }
)
"""Composite operators that stay one node; `RECURRENT` ones do too."""

RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
"""Recurrent layers. Their dropout is not supported, so they draw nothing."""

LOSSES = frozenset(
    {
        aten.binary_cross_entropy.default,
        aten.binary_cross_entropy_with_logits.default,
        aten.cosine_embedding_loss.default,
        aten.ctc_loss.IntList,
        aten.ctc_loss.Tensor,
        aten.hinge_embedding_loss.default,
        aten.huber_loss.default,
        aten.kl_div.default,
        aten.l1_loss.default,
        aten.margin_ranking_loss.default,
        aten.mse_loss.default,
        aten.nll_loss.default,
        aten.nll_loss2d.default,
        aten.nll_loss_nd.default,
        aten.poisson_nll_loss.default,
        aten.smooth_l1_loss.default,
        aten.soft_margin_loss.default,
        aten.triplet_margin_loss.default,
    }
)
"""Operators whose result is a loss without `poptorch.identity_loss` being said; `cross_entropy_loss` may be one."""

ASSIGNMENTS = frozenset(
    {
        aten.fill.Tensor,
        aten.masked_fill.Tensor,
        aten.index_put.default,
        aten.where.self,
        aten.lift_fresh.default,
    }
)
"""Operators that Python's `x[...] = number` makes, with the number as a tensor on the CPU."""

RESIZING = frozenset({"resize_", "resize_as_", "set_", "swapaxes_", "swapdims_"})
"""In-place operators that change a tensor's memory or its shape, and have no way of their own in `handlers.py`."""

_FUNCTIONAL_NAMES = {
    "normal_": "normal_functional",
    "copy_": "copy",
    "zero_": "zeros_like",
    "detach_": "detach",
    "__iand__": "bitwise_and",
    "__ior__": "bitwise_or",
    "__ixor__": "bitwise_xor",
    "__ilshift__": "bitwise_left_shift",
    "__irshift__": "bitwise_right_shift",
}


def named(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a call gives, by their names in the operator's schema."""
    return {**dict(zip((argument.name for argument in func._schema.arguments), args)), **kwargs}


@cache
def is_composite(target: OpOverload) -> bool:
    """Whether an operator is defined by others and is to be decomposed into them."""
    return target not in WHOLE and target not in RECURRENT and bool(target._can_decompose())


@cache
def is_random(target: OpOverload) -> bool:
    """Whether an operator draws random numbers."""
    return torch.Tag.nondeterministic_seeded in target.tags and target not in RECURRENT


@cache
def takes_dtype(target: OpOverload) -> bool:
    """Whether an operator has a `dtype` argument."""
    return any(argument.name == "dtype" for argument in target._schema.arguments)


@cache
def written_argument(target: OpOverload) -> Optional[str]:
    """The name of the argument that an operator writes to, None for a functional one."""
    for argument in target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            return argument.name
    return None


@cache
def functional_form(target: OpOverload) -> Optional[OpOverload]:
    """The operator that computes what `target` writes, without writing; None if there is none."""
    if target is aten.dropout_.default:
        return aten.dropout.default  # Its first argument has another name.
    name = target._schema.name.removeprefix("aten::")
    base = _FUNCTIONAL_NAMES.get(name) or (name[:-1] if name.endswith("_") else name)
    packet = getattr(aten, base, None)
    if packet is None:
        return None
    wanted = [a.name for a in target._schema.arguments if not a.kwarg_only or a.alias_info is None]
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    fitting = [overload for overload in overloads if _fits(target, overload, wanted)]
    named = [overload for overload in fitting if overload._overloadname == target._overloadname]
    return next(iter(named or fitting), None)


def only_restrides(
    tensor: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: Optional[int]
) -> bool:
    """Whether `as_strided` leaves all elements in place, as where average pooling to one value says "channels last"."""
    same = tuple(size) == tuple(tensor.shape) and offset in (None, tensor.storage_offset())
    return same and all(n == 1 or new == old for n, new, old in zip(size, stride, tensor.stride()))


def _fits(target: OpOverload, overload: OpOverload, wanted: list[str]) -> bool:
    """Whether an operator takes what `target` does, and writes nothing."""
    names = [a.name for a in overload._schema.arguments]
    return (
        written_argument(overload) is None
        and names[: len(wanted)] == wanted
        and _same_types(target, overload)
    )


def _same_types(one: OpOverload, other: OpOverload) -> bool:
    theirs = {a.name: str(a.type) for a in other._schema.arguments}
    return all(
        theirs.get(a.name, str(a.type)) == str(a.type)
        for a in one._schema.arguments
        if not (a.kwarg_only and a.alias_info is not None)
    )
