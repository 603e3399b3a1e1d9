"""Tensors by their names: what `getTensorNames` lists can be anchored."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bert_ipu.simulator import poptorch
from bert_ipu.simulator.poptorch.options import Options


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(self.second(F.relu(self.first(x))) ** 2, reduction="mean")


X = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def trained(module: Network, options: Options) -> poptorch.PoplarExecutor:
    model = poptorch.trainingModel(
        module, options, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.0)
    )
    model(X)
    return model


def test_a_listed_activation_can_be_anchored() -> None:
    names = trained(Network(), Options()).getTensorNames()
    assert {"input", "first.weight", "Gradient___first.weight", "UpdatedVar___second.bias"} <= set(names)
    hidden = next(name for name in names if name.startswith("first/"))
    options = Options()
    options.anchorTensor("hidden", hidden)
    module = Network()
    expected = module.first(X).detach()
    torch.testing.assert_close(trained(module, options).getAnchoredTensor("hidden"), expected)


class Scoped(nn.Module):
    """A name scope inside a module that is called inside two others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Adding()

    def forward(self, x: Tensor) -> Tensor:
        with poptorch.NameScope("outer"), poptorch.NameScope("second"):
            return self.inner(x)


class Adding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with poptorch.NameScope("within"):
            return x + 1


def test_name_scopes_and_modules_nest_in_names() -> None:
    """PopTorch pushes both on one stack of scopes (`NameScopeHook`); its own test_name_scope expects such a prefix."""
    model = poptorch.inferenceModel(Scoped())
    model(X)
    assert any(name.startswith("outer/second/inner/within/") for name in model.getTensorNames())


def test_modules_may_be_left_out_of_names() -> None:
    """PopTorch registers the hooks that push modules' names unless `disableModuleNamescope` is called."""
    model = poptorch.inferenceModel(Scoped(), Options().disableModuleNamescope())
    model(X)
    assert any(name.startswith("outer/second/within/") for name in model.getTensorNames())


def test_operators_that_poptorch_registers_with_torch() -> None:
    """Graphcore's CNNs and Swin scope names by hooks that call them, its DINO casts by one."""

    def forward(x: Tensor) -> Tensor:
        torch.ops.poptorch.push_name_scope("hooked")
        halved = torch.ops.poptorch.internal_cast(x, "FLOAT16")
        torch.ops.poptorch.pop_name_scope()
        return halved * 2

    model = poptorch.inferenceModel(forward)
    torch.testing.assert_close(model(X), X.half() * 2)
    cast, doubled = [name for name in model.getTensorNames() if "/" in name or "mul" in name]
    assert cast.startswith("hooked/") and not doubled.startswith("hooked/")


def test_a_weight_has_a_name_before_and_after_its_update() -> None:
    options = Options()
    options.anchorTensor("before", "first.weight")
    options.anchorTensor("after", "UpdatedVar___first.weight")
    module = Network()
    initial = module.first.weight.detach().clone()
    model = trained(module, options)
    model.copyWeightsToHost()
    assert not torch.equal(initial, module.first.weight)
    assert torch.equal(model.getAnchoredTensor("before"), initial)
    assert torch.equal(model.getAnchoredTensor("after"), module.first.weight)


def test_every_nth_of_fewer_than_n_is_nothing() -> None:
    options = Options()
    options.anchorTensor("gradient", "Gradient___first.bias", poptorch.OutputMode.EveryN, 4)
    assert trained(Network(), options).getAnchoredTensor("gradient").shape == (0,)


def test_an_unknown_name_is_refused() -> None:
    options = Options()
    options.anchorTensor("gradient", "Gradient___third.bias")
    with pytest.raises(poptorch.Error, match=r"no tensor called 'Gradient___third\.bias' to anchor"):
        trained(Network(), options)
