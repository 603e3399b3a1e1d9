"""Layers whose training needs more than their operators' usual gradients, against a loop of plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_reference import trains_like_torch

import bert_ipu.simulator.poptorch as poptorch


class Bags(nn.Module):
    """The loss of bags of embeddings; `look_up` gets the table and the tokens."""

    def __init__(self, look_up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.look_up = nn.Parameter(torch.randn(7, 4)), look_up

    def forward(self, tokens: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self.look_up(self.table * 1, tokens), target)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_train(mode: str) -> None:
    def look_up(table: Tensor, tokens: Tensor) -> Tensor:
        begins = torch.tensor([0, 2, 2, 7], device=tokens.device)  # the second is empty
        return F.embedding_bag(tokens, table, begins, mode=mode)

    trains_like_torch(Bags(look_up), torch.tensor([3, 1, 1, 6, 0, 2, 3, 5, 4]), torch.randn(4, 4))


def test_bags_of_one_size_train() -> None:
    model = Bags(lambda table, tokens: F.embedding_bag(tokens, table, mode="mean"))
    trains_like_torch(model, torch.randint(0, 7, (4, 3)), torch.randn(4, 4), accumulation=2)


def test_weighted_bags_train_where_the_last_offset_is_given() -> None:
    class Weighted(Bags):
        def __init__(self) -> None:
            super().__init__(self.weighted)
            self.weights = nn.Parameter(torch.rand(9))

        def weighted(self, table: Tensor, tokens: Tensor) -> Tensor:
            weights, begins = self.weights * 1, torch.tensor([0, 2, 5, 9], device=tokens.device)
            return F.embedding_bag(
                tokens, table, begins, mode="sum", per_sample_weights=weights, include_last_offset=True
            )

    trains_like_torch(Weighted(), torch.randint(0, 7, (9,)), torch.randn(3, 4))


@pytest.mark.parametrize("option", ["scale_grad_by_freq", "sparse"])
def test_bags_refuse_what_poptorch_refuses(option: str) -> None:
    layer = nn.EmbeddingBag(7, 4, mode="sum", **{option: True})
    run = poptorch.inferenceModel(layer)
    with pytest.raises(poptorch.Error, match=rf"embedding_bag has .*{option}=True"):
        run(torch.randint(0, 7, (2, 3)))


class Pooled(nn.Module):
    """Features, channels last, pooled to their means over all positions, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.pool = nn.Linear(5, 3), nn.AdaptiveAvgPool1d(1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(self.pool(self.layer(x).transpose(1, 2)).flatten(1), target)


def test_pooling_to_one_value_of_channels_that_come_last_trains() -> None:
    trains_like_torch(Pooled(), torch.randn(4, 7, 5), torch.randn(4, 3), accumulation=2)


def test_a_gradient_that_torch_gives_no_memory_is_zero() -> None:
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(self.last(torch.sign(self.first(x))), target)

    torch.manual_seed(1)
    trains_like_torch(Signs(), torch.randn(5, 4), torch.randn(5, 3))


class Weighted(nn.Module):
    """A loss that is the mean of a function of the input times the weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.tensor([0.0, 0.5, -1.0])), function

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(self.function(x * self.weight), "mean")


@pytest.mark.parametrize(
    "function",
    [
        F.gelu,
        lambda x: F.cross_entropy(x, torch.arange(2, device=x.device), reduction="none"),
        lambda x: F.group_norm(x.view(1, 2, 3).transpose(1, 2), 3).transpose(1, 2) * x.square(),
        lambda x: x**0,
        lambda x: x.mean().sum(0) * x.sum().mean(-1),
        lambda x: x.mean().index_fill(0, torch.tensor([0]).to(x.device), 2.0) + x.sum(),
    ],
    ids=["gelu", "losses of rows", "norm of turned groups", "power of 0", "sum of a number", "fill of a number"],
)
def test_functions_at_their_edges_train(function: Callable[[Tensor], Tensor]) -> None:
    """One gradient for all micro-batches, memory out of order, a slope at 0, tensors without dimensions."""
    trains_like_torch(Weighted(function), torch.randn(8, 3), accumulation=4)


class Spelling(nn.Module):
    """The connectionist temporal classification of a linear layer's scores, three words of four letters at most."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.normalised = nn.Linear(5, 6), normalised
        self.labels = torch.randint(1, 6, (3, 4), dtype=torch.int32)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        scores = self.layer(x).transpose(0, 1)
        labels, sizes = self.labels.to(x.device), torch.tensor([4, 3, 2], dtype=torch.int32, device=x.device)
        scores = scores.log_softmax(-1) if self.normalised else scores
        return F.ctc_loss(scores, labels, lengths, sizes, zero_infinity=True)


@pytest.mark.parametrize("normalised", [True, False])
def test_ctc_loss_trains_like_torch_whether_its_input_is_normalised_or_not(normalised: bool) -> None:
    """The last word has fewer steps than letters: its loss is infinite, and left out."""
    trains_like_torch(Spelling(normalised), torch.randn(3, 12, 5), torch.tensor([12, 9, 1], dtype=torch.int32))
