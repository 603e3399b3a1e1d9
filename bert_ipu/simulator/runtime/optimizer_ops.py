"""The optimizers' operators in plain torch, in place on the variables they update.

Semantics: the docstrings of `graph/ops.py`, from PopART's `sgd.hpp`, `adam.hpp` and `optimizer.cpp`.
Numbers are Python floats where constant, 0-dimensional tensors where the host may change them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

import torch
from torch import Tensor

from bert_ipu.simulator.runtime.losses import SUFFIX
from bert_ipu.simulator.runtime.native import Kernels

Scalar = Union[float, Tensor]


def assign(variable: Tensor, value: Tensor) -> Tensor:
    return variable.copy_(value)


def increment(variable: Tensor, by: int = 1) -> Tensor:
    return variable.add_(by)


def zero(variable: Tensor) -> Tensor:
    return variable.zero_()


def _add(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return v.add_(x)


def _dampened_add(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return v.add_(x * f)


def _dampened_add_square(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return v.add_(x.square() * f)


def _decay_add(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return v.mul_(f).add_(x)


def _moving_average(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return v.mul_(f).add_(x * (1 - f))


def _moving_average_square(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return v.mul_(f).add_(x.square() * (1 - f))


def _infinity(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return torch.maximum(v.mul_(f), x.abs(), out=v)


def _mean(v: Tensor, x: Tensor, f: Scalar) -> Tensor:
    return mean_of_more(v, x, f, 1)


def mean_of_more(v: Tensor, total: Tensor, f: Scalar, count: int) -> Tensor:
    """The mean v of f terms becomes that of them and `count` more, which add up to `total`."""
    return v.mul_(f).add_(total.to(v.dtype)).div_(f + count)


ACCUMULATE: dict[str, Callable[[Tensor, Tensor, Scalar], Tensor]] = {
    "add": _add,
    "dampened_add": _dampened_add,
    "dampened_add_square": _dampened_add_square,
    "decay_add": _decay_add,
    "moving_average": _moving_average,
    "moving_average_square": _moving_average_square,
    "infinity": _infinity,
    "mean": _mean,
}


def accumulate(v: Tensor, x: Tensor, f: Scalar = 1.0, *, kind: str) -> Tensor:
    return ACCUMULATE[kind](v, x.to(v.dtype), f)


def sgd0_var_update(w: Tensor, g: Tensor, slr0: Scalar, wdsf0: Scalar) -> Tensor:
    return w.mul_(wdsf0).sub_(g.to(w.dtype) * slr0)


def sgd0_var_update_by_kernel(w: Tensor, g: Tensor, slr0: Scalar, wdsf0: Scalar, kernels: Kernels) -> Tensor:
    """The same in one pass, where the kernel covers the dtypes."""
    if w.dtype != torch.float32 or g.dtype not in SUFFIX or not w.is_contiguous():
        return sgd0_var_update(w, g, slr0, wdsf0)
    g = g.contiguous()
    kernel = getattr(kernels, f"sgd_{SUFFIX[g.dtype]}")
    kernel(w.data_ptr(), g.data_ptr(), w.numel(), float(wdsf0), float(slr0))
    return w


def sgd1_var_update(w: Tensor, v: Tensor, slr1: Scalar) -> Tensor:
    return w.sub_(v.to(w.dtype) * slr1)


def sgd1_accl_update(v: Tensor, w: Tensor, smm1: Scalar, swd1: Scalar) -> Tensor:
    return v.mul_(smm1).add_(w.to(v.dtype) * swd1)


def sgd1_nesterov(
    g: Tensor, w: Tensor, v: Tensor, inverse_loss_scale: Scalar, wd: Scalar, ngsf: Scalar, mm: Scalar
) -> Tensor:
    return (g * inverse_loss_scale + w * wd) * ngsf + v * mm


def adam_updater(
    w: Tensor | None,
    accl1: Tensor,
    accl2: Tensor,
    step: Tensor | None,
    wd: Scalar,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    *,
    mode: str,
) -> Tensor:
    first, second = accl1.float(), accl2.float()
    if step is not None and not mode.endswith("no_bias"):
        first = first / bias_correction(b1, step)
        if mode != "adamax":
            second = second / bias_correction(b2, step)
    direction = first / ((second if mode == "adamax" else second.sqrt()) + eps)
    return direction if w is None else direction + w.float() * wd


def bias_correction(beta: Scalar, step: Tensor) -> Tensor:
    """1 - beta^step: in float64, as next to 1 a last bit of float32 is a thousandth of what is left."""
    return (1 - beta ** step.double()).float()


def lamb_square(x: Tensor) -> Tensor:
    return x.float().square().sum()


def trust_ratio(r1_squared: Tensor, r2_squared: Tensor, max_weight_norm: Scalar | None) -> Tensor:
    """LAMB's ratio of the weight's norm to the updater's, 1 where either is 0."""
    r1, r2 = r1_squared.sqrt(), r2_squared.sqrt()
    capped = r1 if max_weight_norm is None else r1.clamp(max=max_weight_norm)
    return torch.where((r1 == 0) | (r2 == 0), torch.ones_like(r1), capped / r2)


def adam_var_update(
    w: Tensor,
    updater: Tensor,
    lr: Scalar,
    r1_squared: Tensor | None = None,
    r2_squared: Tensor | None = None,
    max_weight_norm: Scalar | None = None,
) -> Tensor:
    rate = lr
    if r1_squared is not None and r2_squared is not None:
        rate = lr * trust_ratio(r1_squared, r2_squared, max_weight_norm)
    return w.sub_(updater.to(w.dtype) * rate)


def rmsprop_updater(g: Tensor, accl1: Tensor, accl2: Tensor | None, eps: Scalar, *, tf: bool) -> Tensor:
    variance = accl1 if accl2 is None else accl1 - accl2.square()
    return g / (torch.sqrt(variance + eps) if tf else torch.sqrt(variance) + eps)


def scaled_var_update(w: Tensor, x: Tensor, lr: Scalar, wd: Scalar, *, lr_in_updater: bool) -> Tensor:
    return w.mul_(1 - lr * wd).sub_(x.to(w.dtype) if lr_in_updater else x.to(w.dtype) * lr)


def histogram(x: Tensor, *, edge: float) -> Tensor:
    lower = (x.abs() < edge).sum(dtype=torch.int32)
    return torch.stack([lower, x.numel() - lower])


def loss_scale_update(
    factor: Tensor, statistics: Tensor, counter: Tensor | None, *, proportion: float, period: int
) -> Tensor:
    if counter is not None and int(counter) % period:
        return factor
    lower, upper = statistics.tolist()
    # With a proportion of 1 no share of large gradients is too large.
    too_large = proportion < 1 and upper > lower * proportion / (1 - proportion)
    return factor.mul_(0.5 if too_large else 2.0)
