"""In-place writes that torch's autograd does not see: the gradient passes to what was there before, as it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_reference import trains_like_torch

import bert_ipu.simulator.poptorch as poptorch


class Writing(nn.Module):
    """Two layers, between and before which `write` does something in place."""

    def __init__(self, write: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.write = nn.Linear(4, 6), nn.Linear(6, 3), write
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self.last(self.write(self, x)), target)


def _clamped(m: nn.Module, x: Tensor) -> Tensor:
    hidden = m.first(x) * 2
    with torch.no_grad():
        hidden.clamp_(-1.0, 1.0)
    return hidden.square()


def _a_slice(m: nn.Module, x: Tensor) -> Tensor:
    hidden = m.first(x) * 1
    with torch.no_grad():
        hidden[:, 1:3] *= 0.5
        hidden[:, 0] = 0.5
    return hidden.square()


def _replaced(m: nn.Module, x: Tensor) -> Tensor:
    """No gradient goes where the new values come from."""
    hidden = m.first(x) * 1
    with torch.no_grad():
        hidden.copy_(m.first.bias.expand_as(hidden).exp())
    return hidden.square()


def _a_weight(m: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.first.weight.clamp_(-0.2, 0.2)
    return m.first(x)


def _a_weights_data(m: nn.Module, x: Tensor) -> Tensor:
    m.first.weight.data.mul_(0.5)
    return m.first(x)


def _a_detached_alias(m: nn.Module, x: Tensor) -> Tensor:
    hidden = m.first(x)
    alias = hidden.detach()
    alias += 1.0
    return hidden.square() + alias


def _a_view_read_between(m: nn.Module, x: Tensor) -> Tensor:
    """Where gradients are off, the view is derived again; it has its gradient afterwards."""
    hidden = m.first(x) * 1
    view = hidden[:, :3]
    with torch.no_grad():
        hidden.mul_(2.0)
        m.mean.mul_(0.9).add_(view.mean())
    return torch.cat([view.square(), hidden[:, 3:]], 1) + m.mean


@pytest.mark.parametrize(
    "write",
    [
        _clamped,
        _a_slice,
        _replaced,
        _a_weight,
        _a_weights_data,
        _a_detached_alias,
        _a_view_read_between,
    ],
)
def test_writes_outside_autograd_train_as_in_a_torch_loop(
    write: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    torch.manual_seed(6)
    trains_like_torch(Writing(write), torch.randn(4, 4), torch.randn(4, 3), accumulation=2)


@pytest.mark.parametrize("optimizer", [poptorch.optim.SGD, torch.optim.Adam])
def test_an_embedding_with_a_largest_norm_trains(optimizer: type[torch.optim.Optimizer]) -> None:
    """torch shortens the rows it is about to look up, in place."""

    class Shortened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(7, 4, max_norm=1.0), nn.Linear(4, 3)

        def forward(self, tokens: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(self.last(self.table(tokens)), target)

    torch.manual_seed(7)
    trains_like_torch(
        Shortened(), torch.randint(0, 7, (6,)), torch.randn(6, 3), optimizer=optimizer, accumulation=3
    )


def test_a_mask_is_changed_by_logical_operators_in_place() -> None:
    def forward(x: Tensor) -> Tensor:
        mask = x > -1.0
        mask &= x < 1.0
        mask |= x > 2.0
        mask ^= x > 0.5
        return torch.where(mask, x, -x)

    x = torch.linspace(-3.0, 3.0, 25)
    run = poptorch.inferenceModel(forward)
    torch.testing.assert_close(run(x), forward(x))
