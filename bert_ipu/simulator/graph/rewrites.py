"""Operators of torch rewritten by hand in terms of others, which the capture then records.

Each function has the signature of the operator it stands for and is called under the capture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch._ops import OpOverload

from bert_ipu.simulator.errors import poptorch_error

aten = torch.ops.aten


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
    for statistic, new in ((running_mean, mean), (running_var, var)):
        statistic.capture.update_at_end(statistic, new.to(statistic.dtype))  # type: ignore[attr-defined]
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


def _cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    # torch's own parts bound the norms in place without recording it, which has no functional form.
    x, y = aten.broadcast_tensors([x, y])  # type: ignore[no-untyped-call]
    norms = [torch.linalg.vector_norm(v, dim=dim, keepdim=True).clamp(min=eps) for v in (x, y)]
    product: Tensor = x / norms[0] * (y / norms[1])
    return product.sum(dim)


def _rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Tensor:
    slope = aten.uniform(torch.empty_like(x), lower, upper) if training else (lower + upper) / 2
    return torch.where(x >= 0, x, x * slope)


def _one_hot(indices: Tensor, num_classes: int = -1) -> Tensor:
    if num_classes == -1:
        raise poptorch_error("OneHot num classes must be specified and must be constant.")
    classes = torch.arange(num_classes, dtype=indices.dtype, device=indices.device)
    return (indices.unsqueeze(-1) == classes).to(indices.dtype)


def _bincount(x: Tensor, weights: Optional[Tensor] = None, minlength: int = 0) -> Tensor:
    if minlength <= 0:
        raise poptorch_error(
            "Bincount `minlength` must be specified and must be a constant. On the IPU MK2 platform the "
            "minimum length is also the maximum length, as shapes are static."
        )
    counted = torch.ones_like(x) if weights is None else weights
    return torch.zeros(minlength, dtype=counted.dtype, device=x.device).scatter_add(0, x, counted)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Optional[Tensor] = None,
    include_last_offset: bool = False,
    padding_idx: Optional[int] = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows [N, D] are summed (mode 0), averaged (1), or the largest taken (2), of the bag each lies in.

    Only the first of the four results is the operator's, as in PopTorch, whose refusals these are, too.
    """
    if scale_grad_by_freq or sparse or (padding_idx is not None and padding_idx >= 0):
        raise poptorch_error(
            f"embedding_bag has scale_grad_by_freq={scale_grad_by_freq}, sparse={sparse}, padding_idx={padding_idx}; "
            "the IPU takes False, False and None."
        )
    rows = torch.nn.functional.embedding(indices, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    positions = torch.arange(indices.size(0), device=indices.device).unsqueeze(1)
    bag = (positions >= offsets).sum(1, keepdim=True) - 1
    empty = torch.zeros(offsets.size(0), rows.size(1), dtype=rows.dtype, device=rows.device)
    if mode == 2:
        bags = empty.scatter_reduce(0, bag.expand_as(rows), rows, "amax", include_self=False)
    else:
        bags = empty.scatter_add(0, bag.expand_as(rows), rows)
    if mode == 1:
        sizes = (bag == torch.arange(offsets.size(0), device=bag.device)).sum(0).clamp(min=1)
        bags = bags / sizes.unsqueeze(1).to(bags.dtype)
    # With include_last_offset, what lies behind the last offset is in no bag.
    return (bags[:-1] if include_last_offset else bags), bag, offsets, offsets


def _index_fill(x: Tensor, dim: int, index: Tensor, value: Tensor) -> Tensor:
    if x.dim() == 0:
        return _index_fill(x.unsqueeze(0), dim, index, value).squeeze(0)
    filled = torch.zeros(x.size(dim), dtype=torch.int32, device=x.device).index_fill(0, index, 1)
    shape = [1] * x.dim()
    shape[dim] = -1
    return torch.where(filled.bool().reshape(shape), value, x)


_IMPOSSIBLE = -1e30
"""The log probability of a path that cannot be: finite, so that differences of two of them are."""


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int = 1,
    zero_infinity: bool = False,
) -> Tensor:
    """The forward algorithm (Graves et al. 2006, section 4.1): log_probs [T, B, classes], targets [B, S]."""
    if targets.dim() != 2:
        raise poptorch_error("ctc_loss needs targets of shape [batch, length], not concatenated ones.")
    steps, ends = _lengths(input_lengths, targets), _lengths(target_lengths, targets)
    batch, length = targets.shape
    blanks = torch.full_like(targets, blank)
    labels = torch.cat([torch.stack([blanks, targets], 2).reshape(batch, 2 * length), blanks[:, :1]], 1)
    no_skip = torch.cat(
        [torch.ones_like(labels[:, :2]), (labels[:, 2:] == labels[:, :-2]).to(labels.dtype)], 1
    )
    no_skip = no_skip.bool().logical_or(labels == blank)
    outside = torch.full_like(log_probs[0, :, :1], _IMPOSSIBLE)
    first = log_probs[0].gather(1, labels)
    alpha = torch.cat([first[:, :2], outside.expand(batch, 2 * length - 1)], 1)
    for t in range(1, log_probs.size(0)):
        step = torch.cat([outside, alpha[:, :-1]], 1)
        skip = torch.cat([outside, outside, alpha[:, :-2]], 1).masked_fill(no_skip, _IMPOSSIBLE)
        moved = torch.logsumexp(torch.stack([alpha, step, skip]), 0) + log_probs[t].gather(1, labels)
        alpha = torch.where((steps > t).unsqueeze(1), moved, alpha)
    last = torch.stack([2 * ends, (2 * ends - 1).clamp(min=0)], 1)
    loss = -torch.logsumexp(alpha.gather(1, last), 1)
    loss = loss + _gradient_of_softmax(log_probs, steps)
    loss = torch.where(
        loss > -_IMPOSSIBLE / 2, torch.full_like(loss, 0.0 if zero_infinity else math.inf), loss
    )
    if reduction == 0:
        return loss
    return loss.sum() if reduction == 2 else (loss / ends.clamp(min=1)).mean()


def _gradient_of_softmax(log_probs: Tensor, steps: Tensor) -> Tensor:
    """Zeros [B], whose gradient is the probabilities of the steps that are there.

    Poplar's gradient of the loss, like torch's, is the one before a softmax (popnn's `includeSoftmaxGradient`): for
    log probabilities it makes no difference, as a softmax's own gradient takes the mean away.
    """
    there = torch.arange(log_probs.size(0), device=log_probs.device).unsqueeze(1) < steps
    # What is no log probability may be large.
    total = log_probs.float().clamp(max=80.0).exp().sum(2).masked_fill(there.logical_not(), 0.0).sum(0)
    return (total - total.detach()).to(log_probs.dtype)


def _lengths(lengths: Any, like: Tensor) -> Tensor:
    return lengths if isinstance(lengths, Tensor) else torch.tensor(lengths).to(like.device)


REWRITES: dict[OpOverload, Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: _scaled_dot_product_attention,
    aten.feature_dropout.default: _feature_dropout,
    aten.alpha_dropout.default: _alpha_dropout,
    aten.feature_alpha_dropout.default: _feature_alpha_dropout,
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
    aten.cosine_similarity.default: _cosine_similarity,
    aten.rrelu.default: _rrelu,
    aten.one_hot.default: _one_hot,
    aten.bincount.default: _bincount,
    aten.embedding_bag.default: _embedding_bag,
    aten.embedding_bag.padding_idx: _embedding_bag,
    aten.index_fill.int_Tensor: _index_fill,
    aten.ctc_loss.IntList: _ctc_loss,
    aten.ctc_loss.Tensor: _ctc_loss,
}
