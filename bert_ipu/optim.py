"""Optimizers as PopTorch runs them on the device, their parameter groups, and the learning rate per step."""
from __future__ import annotations

from typing import Any, Dict, List

import poptorch
import torch
from torch import nn

from bert_ipu.config import OptimConfig

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def learning_rate(optim: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 0.

    Rises from 0 over the warm-up; then stays, or falls in a straight line to 0 at `total_steps`.
    """
    warmup = int(optim.warmup_fraction * total_steps)
    if step < warmup:
        return optim.lr * step / warmup
    if optim.schedule == "constant":
        return optim.lr
    return optim.lr * max(0.0, (total_steps - step) / max(1, total_steps - warmup))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate; it reaches the device with the model's `setOptimizer`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def parameter_groups(model: nn.Module, optim: OptimConfig) -> List[Dict[str, Any]]:
    """Weights with decay; layer norms and biases without, biases also without LAMB's scaling.

    Decay would pull gains and offsets to 0, which regularises nothing.  A bias starts at 0, so that the
    norms whose quotient LAMB scales by mean little for it; a largest weight norm of 0 turns the scaling off.
    """
    named = list(model.named_parameters())
    biases = [p for name, p in named if name.endswith("bias")]
    gains = [p for name, p in named if p.dim() == 1 and not name.endswith("bias")]
    weights = [p for _, p in named if p.dim() > 1]
    unscaled = {"max_weight_norm": 0.0} if optim.name == "lamb" else {}
    return [
        {"params": biases, "weight_decay": 0.0, **unscaled},
        {"params": gains, "weight_decay": 0.0},
        {"params": weights, "weight_decay": optim.weight_decay},
    ]


def make_optimizer(model: nn.Module, optim: OptimConfig) -> Any:
    """The configured poptorch optimizer; all but learning rate and loss scaling are compiled in."""
    groups = parameter_groups(model, optim)
    accum_type, momentum_type = DTYPES[optim.accumulation_type], DTYPES[optim.momentum_type]
    if optim.name == "sgd":
        separate = {"accum_type": accum_type, "velocity_accum_type": momentum_type}
        optimizer = poptorch.optim.SGD(
            groups, lr=optim.lr, momentum=optim.momentum, weight_decay=0.0, loss_scaling=optim.loss_scaling,
            use_combined_accum=optim.combined_accumulation,
            **({} if optim.combined_accumulation else separate))
        constants = ["momentum", "weight_decay"]
    elif optim.name == "adamw":
        optimizer = poptorch.optim.AdamW(
            groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=0.0,
            loss_scaling=optim.loss_scaling, bias_correction=optim.bias_correction, accum_type=accum_type,
            first_order_momentum_accum_type=momentum_type, second_order_momentum_accum_type=torch.float32)
        constants = ["betas", "eps", "weight_decay"]
    else:
        optimizer = poptorch.optim.LAMB(
            groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, weight_decay=0.0,
            loss_scaling=optim.loss_scaling, bias_correction=optim.bias_correction, accum_type=accum_type,
            first_order_momentum_accum_type=momentum_type, second_order_momentum_accum_type=torch.float32)
        constants = ["betas", "eps", "weight_decay", "max_weight_norm"]
    for attribute in constants:
        optimizer.variable_attrs.markAsConstant(attribute)
    return optimizer
