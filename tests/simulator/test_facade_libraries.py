"""Models of other libraries, which look at tensors' values where they can, run as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import transformers

import bert_ipu.simulator.poptorch as poptorch


@pytest.mark.parametrize("padding", [False, True])
def test_torchs_encoder_runs_with_masks_whose_values_are_not_known(padding: bool) -> None:
    encoder = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2
    ).eval()
    x, causal = torch.randn(2, 5, 8), torch.nn.Transformer.generate_square_subsequent_mask(5)
    hidden = torch.zeros(2, 5)
    hidden[1, 3:] = -torch.inf
    run = poptorch.inferenceModel(encoder)
    if padding:
        got, expected = run(x, None, hidden), encoder.train()(x, None, hidden)
    else:
        got, expected = run(x, causal), encoder(x, causal)
    torch.testing.assert_close(got, expected.detach(), atol=1e-5, rtol=1e-5)


class Squared(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return poptorch.identity_loss(self.layer(x).square(), reduction="mean")


def test_a_scripted_module_trains() -> None:
    model = Squared(torch.jit.script(torch.nn.Linear(4, 3)))
    before = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    x = torch.randn(2, 4)
    trained = poptorch.trainingModel(model, poptorch.Options(), torch.optim.SGD(model.parameters(), lr=0.5))
    loss = trained(x)
    expected = torch.nn.functional.linear(x, *before).square().mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for parameter, old in zip(model.parameters(), before):
        torch.testing.assert_close(parameter.detach(), old - 0.5 * old.grad)


def _bert() -> torch.nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def _gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(
        vocab_size=50,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("make", [_bert, _gpt2])
def test_hugging_faces_models_train_as_in_a_torch_loop(make: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(5)
    model = make().train()
    reference = copy.deepcopy(model)
    tokens = torch.randint(1, 50, (4, 10))
    mask = torch.ones(4, 10, dtype=torch.long)
    mask[1, 6:] = 0
    labels = torch.tensor([0, 2, 1, 0]) if make is _bert else tokens
    trained = poptorch.trainingModel(model, poptorch.Options(), torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for _ in range(3):
        got = trained(input_ids=tokens, attention_mask=mask, labels=labels)
        optimizer.zero_grad()
        expected = reference(input_ids=tokens, attention_mask=mask, labels=labels)
        expected.loss.backward()
        optimizer.step()
        torch.testing.assert_close(got.loss, expected.loss.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got.logits, expected.logits.detach(), atol=1e-4, rtol=1e-4)
