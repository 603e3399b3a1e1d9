"""Cross-entropy and argmax over rows of scores: C++ kernels that pass over each row once or twice, or plain
torch."""

from __future__ import annotations

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.native import Kernels

SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}


def cross_entropy_rows(
    logits: Tensor, target: Tensor, kernels: Kernels, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Losses [R] of [R, C] scores and their log-sum-exp [R]; an ignored row's loss is 0."""
    logits, target = logits.contiguous(), target.to(torch.int32).contiguous()
    rows, classes = logits.shape
    loss = torch.empty(rows, dtype=logits.dtype)
    log_sum_exp = torch.empty(rows, dtype=torch.float32)
    kernel = getattr(kernels, f"cross_entropy_{SUFFIX[logits.dtype]}")
    kernel(
        logits.data_ptr(),
        target.data_ptr(),
        rows,
        classes,
        ignore_index,
        loss.data_ptr(),
        log_sum_exp.data_ptr(),
    )
    return loss, log_sum_exp


def cross_entropy_rows_grad(
    share: Tensor, logits: Tensor, target: Tensor, log_sum_exp: Tensor, kernels: Kernels, ignore_index: int,
    over_logits: bool = False,
) -> Tensor:  # fmt: skip
    """The gradient [R, C] of the scores, where `share` [R] is the gradient of each row's loss.

    It may be written over the scores.
    """
    logits, target = logits.contiguous(), target.to(torch.int32).contiguous()
    share = share.to(logits.dtype).contiguous()
    rows, classes = logits.shape
    out = logits if over_logits else torch.empty_like(logits)
    kernel = getattr(kernels, f"cross_entropy_grad_{SUFFIX[logits.dtype]}")
    kernel(
        logits.data_ptr(), target.data_ptr(), log_sum_exp.data_ptr(), share.data_ptr(), rows, classes, ignore_index,
        out.data_ptr(),
    )  # fmt: skip
    return out


def cross_entropy_grad(
    grad: Tensor, logits: Tensor, target: Tensor, *, reduction: int, ignore_index: int
) -> Tensor:
    """In plain torch, any shape: softmax minus one-hot, times each row's share; classes are dimension 1, or 0
    alone."""
    classes = 1 if logits.dim() > 1 else 0
    labels = target.long().unsqueeze(classes)
    counted = labels != ignore_index
    labels = torch.where(counted, labels, 0)
    probabilities = torch.softmax(logits, classes)
    delta = probabilities.scatter_add(classes, labels, torch.full_like(labels, -1, dtype=logits.dtype))
    share = grad.unsqueeze(classes) if reduction == 0 else grad
    if reduction == 1:
        share = share / counted.sum()
    return delta * torch.where(counted, share, 0).to(logits.dtype)


def argmax_rows(x: Tensor, kernels: Kernels) -> Tensor:
    """Index, int32, of the first largest element of each row of [..., C]."""
    x = x.contiguous()
    out = torch.empty(x.shape[:-1], dtype=torch.int32)
    kernel = getattr(kernels, f"argmax_{SUFFIX[x.dtype]}")
    kernel(x.data_ptr(), out.numel(), x.shape[-1], out.data_ptr())
    return out
