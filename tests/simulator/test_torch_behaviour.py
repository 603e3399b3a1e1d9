"""Functions of torch's own Python that would look at values or at the device run while a forward is captured."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils import checkpoint
from training_reference import trains_like_torch

import bert_ipu.simulator.poptorch as poptorch


class Checkpointed(nn.Module):
    """A block between two layers, called by `call(block, hidden)`; its weights do not come from the arguments."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 4)
        self.block = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.call = call

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return nn.functional.mse_loss(self.last(self.call(self.block, self.first(x))), target)


def _keep_products(context: Any, operator: Any, *_: Any, **__: Any) -> checkpoint.CheckpointPolicy:
    policy = checkpoint.CheckpointPolicy
    return policy.MUST_SAVE if operator is torch.ops.aten.mm.default else policy.PREFER_RECOMPUTE


_SELECTIVE = functools.partial(checkpoint.create_selective_checkpoint_contexts, _keep_products)


# torch would warn of inputs that need no gradient: they are no leaves of its autograd.
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "call",
    [
        functools.partial(checkpoint.checkpoint, use_reentrant=True),
        functools.partial(checkpoint.checkpoint, use_reentrant=False),
        functools.partial(checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=False, debug=True),
        functools.partial(checkpoint.checkpoint, use_reentrant=False, context_fn=_SELECTIVE),
        lambda block, x: checkpoint.checkpoint_sequential(block, 2, x, use_reentrant=False),
        lambda block, x: checkpoint.checkpoint(block, input=x, use_reentrant=False),
    ],
    ids=["reentrant", "not reentrant", "debug", "selective", "sequential", "by name"],
)
def test_checkpointed_functions_train_as_in_a_torch_loop(call: Callable[..., Tensor]) -> None:
    torch.manual_seed(1)
    trains_like_torch(Checkpointed(call), torch.randn(3, 4), torch.randn(3, 4))


def test_a_checkpointed_dropout_draws_once() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self) -> tuple[Tensor, Tensor]:
            kept = checkpoint.checkpoint(nn.functional.dropout, self.weight * 1.0, use_reentrant=False)
            return kept, poptorch.identity_loss(kept, reduction="sum")

    model = Masked()
    trained = poptorch.trainingModel(model, poptorch.Options(), torch.optim.SGD(model.parameters(), lr=1.0))
    kept, _ = trained()
    assert 300 < int((kept == 0).sum()) < 700
    torch.testing.assert_close(1.0 - model.weight.detach(), kept)


def test_hugging_faces_checkpointing_trains() -> None:
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertForMaskedLM(config)
            self.bert.gradient_checkpointing_enable()

        def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
            return self.bert(input_ids=tokens, labels=labels).loss

    model = Loss().train()
    assert model.bert.is_gradient_checkpointing
    trains_like_torch(model, torch.randint(0, 20, (2, 5)), torch.randint(0, 20, (2, 5)))


def test_torch_is_itself_again_after_a_capture_that_failed() -> None:
    def failing(x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    before = [checkpoint.CheckpointFunction, torch.distributions.Distribution._validate_args]
    run = poptorch.inferenceModel(
        lambda x: checkpoint.checkpoint(failing, x, use_reentrant=False), poptorch.Options()
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        run(torch.ones(2))
    assert before == [checkpoint.CheckpointFunction, torch.distributions.Distribution._validate_args]
    x = torch.ones(2, requires_grad=True)
    checkpoint.checkpoint(torch.exp, x, use_reentrant=True).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_gaussian_loss_trains_as_in_a_torch_loop(reduction: str) -> None:
    class Gaussian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.variance = nn.Linear(4, 3), nn.Linear(4, 3)
            self.loss = nn.GaussianNLLLoss(full=True, eps=0.5, reduction=reduction)

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            loss = self.loss(self.mean(x), target, self.variance(x).exp())
            return poptorch.identity_loss(loss, reduction="none")

    torch.manual_seed(3)
    trains_like_torch(Gaussian(), torch.randn(5, 4), torch.randn(5, 3))


def _adaptive() -> nn.AdaptiveLogSoftmaxWithLoss:
    torch.manual_seed(4)
    return nn.AdaptiveLogSoftmaxWithLoss(16, 10, [3, 6])


class Calling(nn.Module):
    """What `call` computes of a layer, the input and the target."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return self.call(self.layer, x, target)


@pytest.mark.parametrize(
    ("layer", "call", "instead"),
    [
        (nn.BatchNorm1d(16, momentum=None), lambda m, x, _: m(x), "give the layer a `momentum`"),
        (
            _adaptive(),
            lambda m, x, y: m(x, y).loss,
            "take `torch.nn.functional.nll_loss` of the layer's `log_prob`",
        ),
        (_adaptive(), lambda m, x, _: m.predict(x), "take the `argmax` of the layer's `log_prob`"),
        (
            nn.LazyLinear(3),
            lambda m, x, _: m(x),
            "layer.weight belongs to a lazy module and has no shape yet",
        ),
        (nn.LSTM(16, 2), lambda m, x, _: m(pack_sequence([x])).data, "mask what follows their ends"),
        (
            nn.Identity(),
            lambda m, x, y: torch.tensor_split(m(x), y[:2])[0],
            "compute it before the model is called",
        ),
    ],
)
def test_what_looks_at_values_is_refused_with_a_way_out(
    layer: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor], instead: str
) -> None:
    model = poptorch.inferenceModel(Calling(layer, call))
    with pytest.raises(poptorch.Error, match=re.escape(instead)):
        model(torch.randn(8, 16), torch.randint(0, 10, (8,)))


def test_the_way_out_of_an_adaptive_softmax_is_the_same_loss() -> None:
    x, target, layer = torch.randn(8, 16), torch.randint(0, 10, (8,)), _adaptive()
    model = Calling(
        layer, lambda m, x, y: (nn.functional.nll_loss(m.log_prob(x), y), m.log_prob(x).argmax(1))
    )
    loss, predicted = poptorch.inferenceModel(model)(x, target)
    torch.testing.assert_close(loss, layer(x, target).loss.detach())
    assert predicted.tolist() == layer.predict(x).tolist()


def test_a_lazy_module_runs_once_it_has_shapes() -> None:
    layer, x = nn.LazyLinear(3), torch.randn(2, 4)
    with pytest.raises(poptorch.Error, match="call the model with an example on the CPU"):
        poptorch.trainingModel(layer)
    run = poptorch.inferenceModel(layer)
    torch.testing.assert_close(layer(x).detach(), run(x))


@pytest.mark.parametrize("function", [torch.cov, torch.corrcoef])
def test_constants_that_torchs_own_functions_make_are_the_ipus(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6)
    torch.testing.assert_close(poptorch.inferenceModel(function)(x), function(x))


@pytest.mark.parametrize(
    "read",
    [
        lambda x, p: x[:, [0, -1]],
        lambda x, p: p[[1, 0, 1]],
        lambda x, p: x[[0, 1], [1, 0]],
        lambda x, p: _written(x, p),
    ],
    ids=["columns", "rows of a parameter", "elements", "written"],
)
def test_lists_of_numbers_index(read: Callable[[Tensor, Tensor], Tensor]) -> None:
    """torch makes a tensor of a list where the indexed tensor is."""

    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(8.0).view(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return read(x, self.table)

    x = torch.arange(12.0).view(3, 4)
    torch.testing.assert_close(poptorch.inferenceModel(Reading())(x), Reading()(x))


def _written(x: Tensor, p: Tensor) -> Tensor:
    written = x * 1
    written[:, [0, 2]] = p[0, [1, 3]]
    return written


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(self.layer(x) ** 2, reduction="mean")


def test_a_view_needs_no_strides() -> None:
    """PopTorch's tensors are contiguous whatever made them (`IpuTensorImpl`), and its `reshapeHandler` takes `view`."""
    x = torch.randn(2, 3)
    viewed = poptorch.inferenceModel(lambda x: x.t().view(-1))(x)
    torch.testing.assert_close(viewed, x.t().reshape(-1))


@pytest.mark.parametrize("shape", [60, (3, 4), (2, 3, 2)])
def test_unravel_index_makes_its_constants_on_the_ipu(shape: int | tuple[int, ...]) -> None:
    index = torch.arange(12).reshape(3, 4)
    model = poptorch.inferenceModel(lambda index: torch.unravel_index(index, shape))
    found, wanted = model(index), torch.unravel_index(index, shape)
    assert [part.tolist() for part in found] == [part.tolist() for part in wanted]


def test_a_model_trains_where_it_is_called_without_gradients() -> None:
    """PopTorch differentiates in its compiler and does not ask for torch's mode (none of its sources does)."""
    x, model = torch.linspace(-1.0, 1.0, 8).view(2, 4), Squared()
    expected = model.layer.weight.detach() - 0.1 * torch.autograd.grad(model(x), model.layer.weight)[0]
    training = poptorch.trainingModel(model, poptorch.Options(), torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.no_grad():
        training(x)
    torch.testing.assert_close(model.layer.weight.detach(), expected)


class Cast(nn.Module):
    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.enabled = enabled

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.enabled):
                x = self.layer(x)
        return nn.functional.mse_loss(x, target)


def test_autocast_has_no_effect_in_a_forward_nor_around(capsys: pytest.CaptureFixture[str]) -> None:
    """PopTorch's tensors are none of the CPU's, of which alone `torch.autocast("cpu")` takes notice."""
    model, x, target = Cast(enabled=True), torch.randn(2, 4), torch.randn(2, 4)
    plain = Cast(enabled=False)
    plain.load_state_dict(model.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = poptorch.inferenceModel(model)(x, target)
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(found, plain(x, target).detach())
    assert model(x, target) != found  # torch's own is itself again
    assert capsys.readouterr().err.count("torch.autocast has no effect") == 1


def test_a_model_in_torch_compile_trains_as_it_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    """torch gives such a module a length, which it refuses to tell where the one inside has none."""
    model, x, target = Cast(enabled=False), torch.randn(2, 4), torch.randn(2, 4)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model)
    optimizer = poptorch.optim.SGD(compiled.parameters(), lr=0.5)
    poptorch.trainingModel(compiled, optimizer=optimizer)(x, target)
    plain(x, target).backward()
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    torch.testing.assert_close(model.layer.weight, plain.layer.weight)
    assert "torch.compile has no effect" in capsys.readouterr().err


class Filled(nn.Module):
    """Values written into a tensor of the input's device, as PyTorch Geometric makes dense batches."""

    def forward(self, x: Tensor) -> Tensor:
        dense = torch.as_tensor(0.5, dtype=x.dtype, device=x.device).repeat(4, 3)
        dense[torch.as_tensor([2, 0], device=x.device)] = torch.as_tensor(x, device=x.device)
        return dense


def test_as_tensor_makes_tensors_on_the_device_of_another() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(poptorch.inferenceModel(Filled())(x), Filled()(x))


class WrittenLater(nn.Module):
    """Tensors that nobody has written, and then are: without a value between."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = x.new_empty(x.shape), torch.empty_like(x), torch.empty(2, 3, device=x.device)
        for empty in made:
            empty[0] = x[1]
            empty[1] = x[0]
        return made


def test_memory_that_nobody_has_written_is_no_floating_point_exception() -> None:
    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    x = torch.randn(2, 3)
    for got, expected in zip(poptorch.inferenceModel(WrittenLater(), options)(x), WrittenLater()(x)):
        assert torch.equal(got, expected)
