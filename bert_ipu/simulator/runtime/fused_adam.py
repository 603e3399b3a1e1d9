"""Adam and LAMB as one kernel per weight, where the graph has them as a chain of operators.

g = scale * gradient; accl1 = moving_average(g); accl2 = moving_average_square(g); step = increment(step)
updater = adam_updater(...); [r1, r2 = lamb_square(weight), lamb_square(updater)]; weight =
adam_var_update(...)
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.runtime.losses import SUFFIX
from bert_ipu.simulator.runtime.native import Kernels

aten = torch.ops.aten


class AdamScalars(ctypes.Structure):
    """The kernel's `AdamScalars`."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "factor", "beta1", "beta2", "rest1", "rest2", "eps", "decay", "rate", "bias1", "bias2", "max_weight_norm"
        )
    ]  # fmt: skip


@dataclass(frozen=True)
class AdamChain:
    """The operands of one weight's update; numbers may be nodes of scalars."""

    weight: fx.Node
    gradient: fx.Node
    first: fx.Node
    second: fx.Node
    step: fx.Node | None
    factor: Any
    beta1: Any
    beta2: Any
    eps: Any
    decay: Any
    rate: Any
    max_weight_norm: Any
    """None where LAMB does not scale."""
    corrected: bool
    absorbed: frozenset[fx.Node]
    """Nodes the kernel stands for, the last one apart."""

    @property
    def operands(self) -> list[Any]:
        return [
            self.weight, self.gradient, self.first, self.second, self.step, self.factor, self.beta1, self.beta2,
            self.eps, self.decay, self.rate, self.max_weight_norm,
        ]  # fmt: skip


def find_chains(nodes: Sequence[fx.Node], rounds: bool) -> dict[fx.Node, AdamChain]:
    """The updates that one kernel can do, by their last node; `rounds`: fp16 variables are rounded to fp16."""
    chains = {}
    for node in nodes:
        if node.target is ops.adam_var_update:
            chain = _match(node, rounds)
            if chain is not None:
                chains[node] = chain
    return chains


def _match(node: fx.Node, rounds: bool) -> AdamChain | None:
    operands: tuple[Any, ...] = node.args
    weight, updater, rate, *trust = operands
    if not _calls(updater, ops.adam_updater):
        return None
    decayed, first, second, step, decay, beta1, beta2, eps = updater.args
    mode = updater.kwargs["mode"]
    averages = _calls(first, ops.accumulate) and _calls(second, ops.accumulate)
    if (
        mode == "adamax"
        or not averages
        or decayed not in (weight, None)
        or first.args[1] is not second.args[1]
    ):
        return None
    absorbed = {updater, first, second, *trust[:2]}
    gradient, factor = first.args[1], 1.0
    if _calls(gradient, aten.mul.Tensor) and set(gradient.users) == {first, second}:
        absorbed.add(gradient)
        gradient, factor = gradient.args
    if _calls(gradient, aten._to_copy.default) and set(gradient.users) <= absorbed:
        absorbed.add(gradient)
        gradient = gradient.args[0]
    if step is not None:
        if not _calls(step, ops.increment):
            return None
        absorbed.add(step)
    chain = AdamChain(
        weight, gradient, first.args[0], second.args[0], step.args[0] if step is not None else None, factor,
        beta1, beta2, eps, decay, rate, trust[2] if trust else None, not mode.endswith("no_bias"),
        frozenset(absorbed),
    )  # fmt: skip
    return chain if _is_closed(chain, node, rounds) else None


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _is_closed(chain: AdamChain, last: fx.Node, rounds: bool) -> bool:
    """Whether only the chain reads its inner values, and none of its variables must be rounded to fp16."""
    inner = chain.absorbed | {last}
    if not all(user in inner for node in chain.absorbed for user in node.users):
        return False
    states = (chain.weight, chain.first, chain.second)
    return not rounds or all(node.meta["val"].dtype == torch.float32 for node in states)


def _correction(beta: float, count: float) -> float:
    """1 - beta^count; torch's power, as Python's is complex, or raises, for states that the host made up."""
    return 1.0 - float(torch.tensor(beta, dtype=torch.float64).pow(count))


def adam_kernel(kernels: Kernels, lamb: bool, corrected: bool) -> Callable[..., Tensor]:
    """A function (weight, gradient, first, second, step, factor, ...) that updates all of them in place."""
    chosen = {
        dtype: getattr(kernels, f"{'lamb' if lamb else 'adam'}_{suffix}") for dtype, suffix in SUFFIX.items()
    }

    def fused_update(
        weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: Tensor | None, factor: Any, beta1: Any,
        beta2: Any, eps: Any, decay: Any, rate: Any, max_weight_norm: Any,
    ) -> Tensor:  # fmt: skip
        count = 0.0 if step is None else float(step.add_(1))
        b1, b2 = float(beta1), float(beta2)
        scalars = AdamScalars(
            float(factor), b1, b2, 1.0 - b1, 1.0 - b2, float(eps), float(decay), float(rate),
            _correction(b1, count) if corrected else 1.0, _correction(b2, count) if corrected else 1.0,
            math.inf if max_weight_norm is None else float(max_weight_norm),
        )  # fmt: skip
        gradient = gradient.contiguous()
        chosen[gradient.dtype](
            weight.data_ptr(), gradient.data_ptr(), first.data_ptr(), second.data_ptr(), weight.numel(),
            ctypes.addressof(scalars),
        )  # fmt: skip
        return weight

    return fused_update
