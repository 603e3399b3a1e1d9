"""Gradients of compiled programs against torch's autograd on the same module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_reference import gradients
from torch import Tensor, nn


class Operator(nn.Module):
    """A function of a weight [4, 6] and further parameters, weighted and summed into a loss."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.function(x, *self.weights)
        flat = out.reshape(-1).float()
        slope = torch.linspace(-1.0, 2.0, flat.numel()).to(x.device)
        return out, poptorch_like_loss((flat * slope).sum())


def poptorch_like_loss(x: Tensor) -> Tensor:
    """A loss torch knows whose gradient is 1: the mean absolute error of a positive number from 0."""
    return F.l1_loss(x + 1000, torch.zeros((), device=x.device), reduction="sum")


IDS = torch.tensor([0, 3, 1, 3])
ROWS = torch.tensor([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]])

CASES: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda x, w, b: F.linear(x, w, b), ((5, 6), (5,))),
    "linear of a sequence": (lambda x, w, b: F.linear(x.reshape(2, 2, 6), w, b), ((5, 6), (5,))),
    "linear of a vector": (lambda x, w, b: F.linear(x[0], w, b), ((5, 6), (5,))),
    "matmul of batches": (lambda x, a, b: a @ b, ((3, 4, 5), (3, 5, 2))),
    "matmul, shared right": (lambda x, a, b: a @ b, ((3, 4, 5), (5, 2))),
    "matmul, shared left": (lambda x, a, b: a @ b, ((4, 5), (3, 5, 2))),
    "matmul of vectors": (lambda x, a, b: a @ b, ((5,), (5,))),
    "vector times batch": (lambda x, a, b: a @ b, ((5,), (3, 5, 2))),
    "batch times vector": (lambda x, a, b: a @ b, ((3, 4, 5), (5,))),
    "addmm": (lambda x, c, a, b: torch.addmm(c, a, b, alpha=2, beta=3), ((2,), (4, 5), (5, 2))),
    "einsum": (lambda x, a, b: torch.einsum("bij,bkj->bik", a, b), ((2, 3, 4), (2, 5, 4))),
    "broadcast arithmetic": (lambda x, a, b: (x + a) * b - a / (b.abs() + 1), ((4, 6), (6,))),
    "scalars": (lambda x, a: 3 - 2 * a / 4 + (1 - a), ((4, 6),)),
    "add with alpha": (lambda x, a: torch.add(x, a, alpha=3) + torch.sub(x, a, alpha=2), ((4, 6),)),
    "powers": (lambda x, a: a**2 + a**3 + a.abs().sqrt() + (a.abs() + 1).rsqrt(), ((4, 6),)),
    "exp, log": (lambda x, a: a.exp() + (a.abs() + 1).log() + torch.log1p(a.abs()), ((4, 6),)),
    "activations": (
        lambda x, a: F.relu(a) + F.gelu(a) + F.gelu(a, approximate="tanh") + a.tanh() + a.sigmoid(),
        ((4, 6),),
    ),
    "more activations": (
        lambda x, a: F.silu(a) + F.elu(a) + F.softplus(a) + F.leaky_relu(a) + F.hardtanh(a) + F.selu(a),
        ((4, 6),),
    ),
    "softmax": (lambda x, a: a.softmax(-1) + F.log_softmax(a, 0), ((4, 6),)),
    "layer norm": (lambda x, a, w, b: F.layer_norm(a, (6,), w, b), ((4, 6), (6,), (6,))),
    "layer norm, not affine": (lambda x, a: F.layer_norm(a, (6,)), ((4, 6),)),
    "group norm": (lambda x, a, w: F.group_norm(a, 2, w), ((3, 4, 5), (4,))),
    "batch norm": (lambda x, a, w: F.batch_norm(a, None, None, w, training=True), ((4, 6), (6,))),
    "instance norm": (lambda x, a: F.instance_norm(a), ((2, 3, 5),)),
    "embedding": (lambda x, w: F.embedding(ROWS.to(x.device), w), ((4, 6),)),
    "embedding with padding": (lambda x, w: F.embedding(ROWS.to(x.device), w, padding_idx=1), ((4, 6),)),
    "gather": (lambda x, w: w.gather(0, ROWS.to(x.device)), ((4, 6),)),
    "index select": (lambda x, w: w.index_select(0, IDS.to(x.device)), ((4, 6),)),
    "index": (lambda x, w: w[IDS.to(x.device)] + w[:, IDS.to(x.device)].sum(1, keepdim=True), ((4, 6),)),
    "slices": (lambda x, w: w[1:3, ::2] + w[0, 3:] - w[-1, :3], ((4, 6),)),
    "cat, stack": (lambda x, a, b: torch.cat([torch.stack([a, b], 1).flatten(0, 1), a], 0), ((4, 6), (4, 6))),
    "split": (lambda x, a: a.split(2, 1)[0] * a.chunk(3, 1)[2] + a.split([1, 2, 3], 1)[1], ((4, 6),)),
    "unbind": (lambda x, a: a.unbind(0)[0] * a.unbind(1)[2].sum(), ((4, 6),)),
    "views": (
        lambda x, a: a.view(2, 2, 6).transpose(0, 2).permute(1, 2, 0).unsqueeze(1).squeeze(1),
        ((4, 6),),
    ),
    "expand": (lambda x, a: a.expand(3, 4, 6) + a[:, :1].expand(4, 6), ((4, 6),)),
    "reductions": (lambda x, a: a.sum(1) + a.mean(1) + a.sum() + a.mean() + a.sum((0, 1)), ((4, 6),)),
    "keepdim": (lambda x, a: a - a.mean(-1, keepdim=True) + a.sum(0, keepdim=True), ((4, 6),)),
    "max, var, norm": (lambda x, a: a.max(1).values + a.var(1) + a.norm(dim=1) + a.amin(1), ((4, 6),)),
    "where, masked_fill": (lambda x, a: torch.where(x > 0, a, -a).masked_fill(x > 1, 7.0), ((4, 6),)),
    "clamp, minimum": (lambda x, a: a.clamp(-0.5, 0.5) + torch.minimum(a, x), ((4, 6),)),
    "half and float": (lambda x, a: a.half().float() * a, ((4, 6),)),
    "conv2d": (lambda x, a, w, b: F.conv2d(a, w, b, padding=1), ((2, 3, 5, 5), (4, 3, 3, 3), (4,))),
    "pooling": (lambda x, a: F.max_pool2d(a, 2) + F.avg_pool2d(a, 2), ((2, 3, 4, 4),)),
    "padding": (
        lambda x, a: F.pad(a, (1, 2)).sum(1) + F.pad(a[None], (1, 1), "reflect").sum(-1)[0],
        ((4, 6),),
    ),
    "attention": (
        lambda x, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        ((2, 4, 5), (2, 4, 5), (2, 4, 5)),
    ),
    "product of scattered values, zeros among them": (
        lambda x, a, b: torch.scatter_reduce(_with_zeros(a), 0, ROWS.to(x.device), _with_zeros(b), "prod"),
        ((4, 6), (2, 6)),
    ),
    "product of scattered values alone": (
        lambda x, a, b: a.scatter_reduce(0, ROWS.to(x.device), _with_zeros(b), "prod", include_self=False),
        ((4, 6), (2, 6)),
    ),
    "product over an index": (
        lambda x, a, b: a.index_reduce(0, IDS.to(x.device), _with_zeros(b), "prod"),
        ((4, 6), (4, 6)),
    ),
    "cosine similarity": (lambda x, a: F.cosine_similarity(x, a), ((4, 6),)),
    "cumsum": (lambda x, a: a.cumsum(1), ((4, 6),)),
    "in place": (lambda x, a: _in_place(a), ((4, 6),)),
    "detach": (lambda x, a: a * a.detach(), ((4, 6),)),
    "index_fill": (lambda x, a, v: a.index_fill(1, IDS.to(x.device), v), ((4, 6), ())),
    "max_pool3d": (lambda x, a: F.max_pool3d(a, 2), ((2, 4, 4, 6),)),
}


def _with_zeros(a: Tensor) -> Tensor:
    return torch.cat([a[:, :2] * 0, a[:, 2:]], 1)


def _in_place(a: Tensor) -> Tensor:
    out = a * 1
    out[:, 0] += 2 * out[:, 1]
    out.view(-1)[0:6].mul_(out[1].clone())
    out.t()[2].copy_(out[:, 3])
    out.relu_()
    return out


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_autograd(name: str) -> None:
    function, shapes = CASES[name]
    module = Operator(function, *shapes)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found_results, found = gradients(module, x)
    results = module(x)
    results[1].backward()
    for ours, theirs in zip(found_results, results):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)
    for key, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[key], parameter.grad, rtol=1e-4, atol=1e-5)


class Losses(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.loss = loss

    def forward(self, target: Tensor) -> Tensor:
        return self.loss(self.weight * 1, target)  # `* 1`: so that it is on the device of the rest


LABELS = torch.tensor([1, 5, -100, 0])
REALS = torch.rand(4, 6, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (F.cross_entropy, LABELS),
        (lambda w, t: F.cross_entropy(w, t, reduction="sum"), LABELS),
        (lambda w, t: poptorch_like_loss(F.cross_entropy(w, t, label_smoothing=0.1)), LABELS),
        (lambda w, t: poptorch_like_loss(F.cross_entropy(w, t.softmax(-1))), REALS),
        (lambda w, t: F.nll_loss(F.log_softmax(w, -1), t), LABELS),
        (F.mse_loss, REALS),
        (F.l1_loss, REALS),
        (F.smooth_l1_loss, REALS),
        (F.binary_cross_entropy_with_logits, REALS),
        (lambda w, t: F.binary_cross_entropy(w.sigmoid(), t), REALS),
        (lambda w, t: F.kl_div(F.log_softmax(w, -1), t, reduction="sum"), REALS),
    ],
)
def test_losses_equal_autograd(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor) -> None:
    module = Losses(loss)
    (found_loss,), found = gradients(module, target)
    value = module(target)
    value.backward()
    torch.testing.assert_close(found_loss, value.detach())
    torch.testing.assert_close(found["weight"], module.weight.grad)
