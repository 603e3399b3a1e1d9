"""Functions of torch's own Python that would look at values or at the device run while a forward is captured."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils import checkpoint

import bert_ipu.simulator.poptorch as poptorch


def _options() -> poptorch.Options:
    return poptorch.Options().showCompilationProgressBar(False)


def trains_like_torch(model: nn.Module, *inputs: Tensor) -> None:
    """Hold three steps of SGD against a loop of torch: losses and parameters."""
    reference = copy.deepcopy(model)
    trained = poptorch.trainingModel(model, _options(), torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        got = trained(*inputs)
        optimizer.zero_grad()
        expected = reference(*inputs)
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(got, expected.detach())
    for ours, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.detach(), theirs.detach())


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
    trained = poptorch.trainingModel(model, _options(), torch.optim.SGD(model.parameters(), lr=1.0))
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
        lambda x: checkpoint.checkpoint(failing, x, use_reentrant=False), _options()
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        run(torch.ones(2))
    assert before == [checkpoint.CheckpointFunction, torch.distributions.Distribution._validate_args]
    x = torch.ones(2, requires_grad=True)
    checkpoint.checkpoint(torch.exp, x, use_reentrant=True).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().exp())
