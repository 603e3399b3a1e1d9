"""The operators of the IPU that ATen lacks, under the names (and with the meaning) of PopART's.

Optimizer hyper-parameters are numbers where they are constant and nodes of SCALAR variables where
the host may change them.  Formulas: PopART's `willow/include/popart/sgd.hpp` and `adam.hpp`.
"""

from __future__ import annotations

from typing import Any, Optional

import torch

from bert_ipu.simulator.graph.ir import IpuOp, Subgraph

# -- shapes and dtypes of results, by fake tensors ---------------------------------------------


def _like_first(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return value


def _float32_scalar(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty((), dtype=torch.float32, device=value.device)


def _reduced(value: torch.Tensor, *, reduction: str) -> torch.Tensor:
    return torch.empty_like(value) if reduction == "none" else value.new_empty(())


def _two_counts(value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(2, dtype=torch.int32, device=value.device)


Declared = tuple[tuple[tuple[int, ...], torch.dtype], ...]
"""Shapes and dtypes of an operator's results."""


def _as_declared(*inputs: Any, outputs: Declared, **_: Any) -> tuple[Any, ...]:
    return tuple(torch.empty(shape, dtype=dtype, device="cpu") for shape, dtype in outputs)


def _like_body(body: Subgraph, *_: Any, **__: Any) -> tuple[Any, ...]:
    return tuple(torch.empty_like(node.meta["val"]) for node in body.results)


def _like_weight(weight: Optional[torch.Tensor], accl1: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty_like(accl1 if weight is None else weight)


# -- forward and backward ----------------------------------------------------------------------

identity_loss = IpuOp("identity_loss", _reduced)
"""(x, *, reduction): "none" | "sum" | "mean"; marks x as a loss."""

dropout_grad = IpuOp("dropout_grad", _like_first)
"""(grad, p): grad times the mask / (1 - p) that the dropout of the same `random` number drew."""

cross_entropy_grad = IpuOp("cross_entropy_grad", lambda grad, logits, target, **_: torch.empty_like(logits))
"""(grad, logits, target, *, reduction, ignore_index): the gradient of `aten.cross_entropy_loss` (class
indices, no weights) with respect to the logits; `reduction` is torch's number: 0 none, 1 mean, 2 sum."""

nop = IpuOp("nop", _like_first)
"""(x): x itself, kept (`poptorch.nop`, `poptorch.recomputationCheckpoint`)."""

unrecorded_write = IpuOp("unrecorded_write", _like_first)
"""(old, new): new, whose gradient goes to old as it is: torch's autograd does not see such a write. Only the capture
of a training model makes one, and it is gone once the backward pass is there."""

print_tensor = IpuOp("print_tensor", _like_first, effect=True)
"""(x, *, title, print_gradient, summarise_threshold, edge_items, max_line_width, digits, float_format,
separator, open_bracket, close_bracket): x, printed."""

custom_op = IpuOp("custom_op", _as_declared, effect=True)
"""(*inputs, name, domain, version, attributes, outputs): a tuple. `outputs`: ((shape, dtype), ...)."""

custom_op_grad = IpuOp("custom_op_grad", _as_declared)
"""(*inputs, name, domain, version, attributes, outputs, live_outputs, index): the custom op's index-th
gradient operator, where the loss depends on `live_outputs`; `inputs` are in the order of its sources."""

pattern_op = IpuOp("pattern_op", _as_declared)
"""(*inputs, compiled, outputs): a tuple, by the `CompiledOp` of an operator that a pattern put in."""

pattern_update = IpuOp("pattern_update", _like_first, mutates=(0,))
"""(variable, *inputs, compiled): the same, of an operator that changes its first input in place."""

cpu_op = IpuOp("cpu_op", _as_declared, effect=True)
"""(*inputs, function, outputs): a tuple computed by a Python callable on the host."""

for_loop = IpuOp("for_loop", lambda body, count, *args, **_: _like_body(body))
"""(body, count, *inputs, carried): `body` run `count` times. The first `carried` inputs are replaced by the
body's results each time, the others stay. A tuple of the last results."""

cond = IpuOp("cond", lambda predicate, then, other, *args: _like_body(then))
"""(predicate, then, other, *inputs): a tuple, of `then`'s results where predicate is true, else `other`'s."""

# -- variables ---------------------------------------------------------------------------------

assign = IpuOp("assign", _like_first, mutates=(0,))
"""(variable, value): overwrite."""

accumulate = IpuOp("accumulate", _like_first, mutates=(0,))
"""(variable v, x, factor f, *, kind): PopART's Accumulate.
"add": v + x; "dampened_add": v + f x; "dampened_add_square": v + f x^2; "moving_average": f v + (1 - f) x;
"decay_add": f v + x; "moving_average_square": f v + (1 - f) x^2; "infinity": max(f v, |x|);
"mean": (f v + x) / (f + 1)."""

increment = IpuOp("increment", _like_first, mutates=(0,))
"""(variable): add 1 (a step counter)."""

accumulator_zero = IpuOp("accumulator_zero", _like_first, mutates=(0,))
"""(variable): set to 0."""

replica_reduce = IpuOp("replica_reduce", _like_first)
"""(x, *, reduction, groups): "sum" | "mean" over all replicas of all instances, or over the replicas that
share a value (`groups`: ReplicaGroups or None)."""

histogram = IpuOp("histogram", _two_counts)
"""(x, *, edge): how many elements have |x| < edge, and how many have not (NaN included); int32 [2]."""

# -- optimizers (outer context) ----------------------------------------------------------------

sgd0_var_update = IpuOp("sgd0_var_update", _like_first, mutates=(0,))
"""(w, g, slr0, wdsf0): wdsf0 w - slr0 g."""

sgd1_var_update = IpuOp("sgd1_var_update", _like_first, mutates=(0,))
"""(w, v, slr1): w - slr1 v."""

sgd1_accl_update = IpuOp("sgd1_accl_update", _like_first, mutates=(0,))
"""(v, w, smm1, swd1): smm1 v + swd1 w."""

sgd1_nesterov = IpuOp("sgd1_nesterov", _like_first)
"""(g, w, v, inverse_loss_scale, wd, ngsf, mm): ngsf (inverse_loss_scale g + wd w) + mm v."""

adam_updater = IpuOp("adam_updater", _like_weight)
"""(w or None, accl1, accl2, step or None, wd, b1, b2, eps, *, mode): the step direction, in w's dtype.
"adam" and "lamb": accl1 / (1 - b1^step) / (sqrt(accl2 / (1 - b2^step)) + eps) + wd w, with `step` counted
from 1; "adam_no_bias" and "lamb_no_bias": accl1 / (sqrt(accl2) + eps) + wd w;
"adamax": accl1 / (1 - b1^step) / (accl2 + eps) + wd w."""

lamb_square = IpuOp("lamb_square", _float32_scalar)
"""(x): the sum of squares, float32."""

adam_var_update = IpuOp("adam_var_update", _like_first, mutates=(0,))
"""(w, updater, lr, r1_squared=None, r2_squared=None, max_weight_norm=None): w - lr t updater, where the trust
ratio t is 1, or min(sqrt(r1_squared), max_weight_norm) / sqrt(r2_squared) unless either norm is 0."""

rmsprop_updater = IpuOp("rmsprop_updater", _like_first)
"""(g, accl1, accl2 or None, eps, *, tf): g / (sqrt(accl1) + eps), accl1 - accl2^2 where centred;
g / sqrt(accl1 + eps) in TensorFlow's variant (`tf`)."""

scaled_var_update = IpuOp("scaled_var_update", _like_first, mutates=(0,))
"""(w, x, lr, wd, *, lr_in_updater): (1 - lr wd) w - lr x, or (1 - lr wd) w - x where x has the rate in it."""

loss_scale_update = IpuOp("loss_scale_update", _like_first, mutates=(0,))
"""(factor, statistics [lower, upper], counter or None, *, proportion, period): factor / 2 where
upper > lower proportion / (1 - proportion), else 2 factor; factor itself where `period` does not divide the
counter."""
