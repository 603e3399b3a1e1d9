"""How the operators that the user's code calls become the fewer ones of the graph.

Composite operators are opened into their parts, except those PopART has as one (`WHOLE`); in-place
and `out=` operators become their functional forms; some are rewritten by hand (`REWRITES`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Optional

import torch
from torch import Tensor
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
        aten.cross_entropy_loss.default,
        aten.ctc_loss.IntList,
        aten.ctc_loss.Tensor,
        aten.hinge_embedding_loss.default,
        aten.huber_loss.default,
        aten.kl_div.default,
        aten.l1_loss.default,
        aten.margin_ranking_loss.default,
        aten.mse_loss.default,
        aten.multi_margin_loss.default,
        aten.multilabel_margin_loss.default,
        aten.nll_loss.default,
        aten.nll_loss2d.default,
        aten.nll_loss_nd.default,
        aten.poisson_nll_loss.default,
        aten.smooth_l1_loss.default,
        aten.soft_margin_loss.default,
        aten.triplet_margin_loss.default,
    }
)
"""Operators whose result is a loss without `poptorch.identity_loss` being said."""

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

RESIZING = frozenset(
    {"resize_", "resize_as_", "set_", "t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_"}
)
"""In-place operators that change a tensor's shape, which an IPU tensor cannot."""

_FUNCTIONAL_NAMES = {
    "normal_": "normal_functional",
    "copy_": "copy",
    "zero_": "zeros_like",
    "detach_": "detach",
}


@cache
def is_composite(target: OpOverload) -> bool:
    """Whether an operator is defined by others and is to be opened."""
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
    name = target._schema.name.removeprefix("aten::")
    base = _FUNCTIONAL_NAMES.get(name) or (name[:-1] if name.endswith("_") else name)
    packet = getattr(aten, base, None)
    if packet is None:
        return None
    wanted = [a.name for a in target._schema.arguments if not a.kwarg_only or a.alias_info is None]
    for overload_name in packet.overloads():
        overload = getattr(packet, overload_name)
        names = [a.name for a in overload._schema.arguments]
        same = target._overloadname in (overload_name, "out") or overload_name == "default"
        if (
            written_argument(overload) is None
            and names[: len(wanted)] == wanted
            and same
            and _same_types(target, overload)
        ):
            return overload  # type: ignore[no-any-return]
    return None


def _same_types(one: OpOverload, other: OpOverload) -> bool:
    theirs = {a.name: str(a.type) for a in other._schema.arguments}
    return all(
        theirs.get(a.name, str(a.type)) == str(a.type)
        for a in one._schema.arguments
        if not (a.kwarg_only and a.alias_info is not None)
    )


# -- rewrites: the user's operator in terms of others, called again under the capture -----------


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
        value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
    factor = 1.0 / math.sqrt(query.size(-1)) if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        length, width = query.size(-2), key.size(-2)
        visible = torch.ones(length, width, dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(visible.logical_not(), -math.inf)
    if attn_mask is not None:
        scores = (
            scores.masked_fill(attn_mask.logical_not(), -math.inf)
            if attn_mask.dtype == torch.bool
            else scores + attn_mask
        )
    return torch.matmul(torch.dropout(torch.softmax(scores, -1), dropout_p, dropout_p > 0), value)


def _feature_dropout(x: Tensor, p: float, train: bool) -> Tensor:
    if not train or p == 0:
        return x.clone()
    noise = torch.ones(*x.shape[:2], *([1] * (x.dim() - 2)), dtype=x.dtype, device=x.device)
    return x * torch.dropout(noise, p, True)


def _alpha_dropout(x: Tensor, p: float, train: bool) -> Tensor:
    return _alpha(x, p, train, torch.ones_like(x)) if train and p > 0 else x.clone()


def _feature_alpha_dropout(x: Tensor, p: float, train: bool) -> Tensor:
    if not train or p == 0:
        return x.clone()
    return _alpha(
        x, p, train, torch.ones(*x.shape[:2], *([1] * (x.dim() - 2)), dtype=x.dtype, device=x.device)
    )


def _alpha(x: Tensor, p: float, train: bool, ones: Tensor) -> Tensor:
    """Dropout that keeps mean and variance: dropped values take -alpha' (Klambauer et al. 2017)."""
    alpha = 1.7580993408473766
    a = 1.0 / math.sqrt((alpha * alpha * p + 1) * (1 - p))
    kept = torch.dropout(ones, p, True) * (1 - p)
    return a * (x * kept + (kept - 1) * alpha) + alpha * a * p


def _batch_norm(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not training:
        assert running_mean is not None and running_var is not None, "evaluation needs running statistics"
        return aten._native_batch_norm_legit_no_training(  # type: ignore[no-any-return]
            x, weight, bias, running_mean, running_var, momentum, eps
        )[0]
    if running_mean is None or running_var is None:
        alone = aten._native_batch_norm_legit.no_stats(x, weight, bias, True, momentum, eps)
        return alone[0]  # type: ignore[no-any-return]
    out, _, _, mean, var = aten._native_batch_norm_legit_functional(
        x, weight, bias, running_mean, running_var, True, momentum, eps
    )
    running_mean.copy_(mean)
    running_var.copy_(var)
    return out  # type: ignore[no-any-return]


def _instance_norm(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(x, weight, bias, running_mean, running_var, False, momentum, eps, False)
    rest = list(range(2, x.dim()))
    shape = [1, x.size(1), *[1] * len(rest)]
    mean, var = x.mean(rest, keepdim=True), x.var(rest, correction=0, keepdim=True)
    if running_mean is not None and running_var is not None:
        sample_var = x.var(rest, correction=1)
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean.reshape(x.shape[:2]).mean(0))
        running_var.copy_((1 - momentum) * running_var + momentum * sample_var.mean(0))
    out = (x - mean) * torch.rsqrt(var + eps)
    if weight is not None:
        out = out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


REWRITES: dict[OpOverload, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: _scaled_dot_product_attention,
    aten.feature_dropout.default: _feature_dropout,
    aten.alpha_dropout.default: _alpha_dropout,
    aten.feature_alpha_dropout.default: _feature_alpha_dropout,
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
}
