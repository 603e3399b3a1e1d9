"""LAMB in plain torch, as published, for tests to be held against."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Lamb(torch.optim.Optimizer):
    """Algorithm 2 of You et al., arXiv 1904.00962, phi(z) = min(z, max_weight_norm); a ratio with 0 in it is 1.

    `bias_correction=False` leaves out its lines that divide the moments by 1 - beta^t.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_weight_norm: float = math.inf,
        bias_correction: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, {**defaults, "max_weight_norm": max_weight_norm, "bias_correction": bias_correction}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                update = self._direction(p, group["betas"], group["eps"], group["bias_correction"])
                update = update + group["weight_decay"] * p
                weight_norm, update_norm = (
                    min(float(p.norm()), group["max_weight_norm"]),
                    float(update.norm()),
                )
                trust = weight_norm / update_norm if weight_norm and update_norm else 1.0
                p.sub_(group["lr"] * trust * update)

    def _direction(self, p: Tensor, betas: tuple[float, float], eps: float, corrected: bool) -> Tensor:
        assert p.grad is not None, "step() comes after backward()"
        state, (b1, b2) = self.state[p], betas
        t = state["t"] = state.get("t", 0) + 1
        m = state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * p.grad
        v = state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * p.grad**2
        if corrected:
            m, v = m / (1 - b1**t), v / (1 - b2**t)
        return m / (v.sqrt() + eps)  # type: ignore[no-any-return]
