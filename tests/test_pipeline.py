"""Where blocks lie, that parts computed in slices equal whole ones, and what reaches the graph."""

from __future__ import annotations

import dataclasses

import poptorch
import pytest
import torch

from bert_ipu.batch import PretrainBatch, SquadBatch
from bert_ipu.config import IpuConfig, ModelConfig, PretrainConfig, SquadConfig
from bert_ipu.pipeline import SerializedEmbedding, SerializedLinear, pretraining_model, squad_model
from bert_ipu.train import GeneratedRows

SHAPE = ModelConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=16,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
IPU = IpuConfig(layers_per_ipu=(0, 1, 1, 1), precision="float32")
PRETRAIN = PretrainConfig(model=SHAPE, ipu=IPU)
SQUAD = SquadConfig(model=SHAPE, ipu=IPU)


def placement(model: torch.nn.Module) -> dict[str, int]:
    """IPU of every block, by module path, from the hooks that PopTorch prints."""
    found = {}
    for name, module in model.model.named_modules():
        for hook in module._forward_pre_hooks.values():
            found[name] = int(repr(hook).rsplit("ipu_id=", 1)[1].rstrip(")"))
    return found


def test_embedding_and_pretraining_heads_share_an_ipu() -> None:
    assert placement(pretraining_model(PRETRAIN)) == {
        "bert.embeddings": 0, "bert.encoder.layer.0": 1, "bert.encoder.layer.1": 2, "bert.encoder.layer.2": 3,
        "bert.pooler": 0, "cls": 0}


def test_question_answering_ends_where_the_last_layer_is() -> None:
    assert placement(squad_model(SQUAD)) == {
        "bert.embeddings": 0, "bert.encoder.layer.0": 1, "bert.encoder.layer.1": 2, "bert.encoder.layer.2": 3,
        "qa_outputs": 3}


@pytest.mark.parametrize("factor", [2, 3, 6])
def test_serialized_embedding_equals_torchs(factor: int) -> None:
    torch.manual_seed(0)
    whole = torch.nn.Embedding(30, 4, padding_idx=0)
    sliced = SerializedEmbedding(30, 4, factor)
    sliced.load_state_dict(whole.state_dict())
    indices = torch.randint(30, (5, 7), dtype=torch.int32)
    weights = torch.randn(5, 7, 4)
    (sliced(indices) * weights).sum().backward()
    (whole(indices) * weights).sum().backward()
    assert torch.equal(sliced(indices), whole(indices))
    gradient = torch.cat([table.grad for table in sliced.parameters()])
    torch.testing.assert_close(gradient, whole.weight.grad)
    assert torch.equal(sliced.state_dict()["weight"], whole.weight)


def test_serialized_parts_leave_names_and_shapes_as_they_are() -> None:
    sliced = dataclasses.replace(IPU, embedding_serialization_factor=3)
    for build, config in [(pretraining_model, PRETRAIN), (squad_model, SQUAD)]:
        plain = build(config).model.state_dict()
        serialized = build(dataclasses.replace(config, ipu=sliced)).model.state_dict()
        assert {n: t.shape for n, t in plain.items()} == {n: t.shape for n, t in serialized.items()}


def test_sliced_model_gives_the_same_losses() -> None:
    """In PopTorch, where serialized products exist, against the whole model on the host."""
    torch.manual_seed(0)
    whole = pretraining_model(PRETRAIN).eval()
    sliced_ipu = dataclasses.replace(IPU, embedding_serialization_factor=3)
    sliced = pretraining_model(dataclasses.replace(PRETRAIN, ipu=sliced_ipu)).eval()
    assert isinstance(sliced.model.cls.predictions.decoder, SerializedLinear)
    sliced.model.load_state_dict(whole.model.state_dict())
    data = dataclasses.replace(PRETRAIN.data, sequence_length=16, mask_tokens=4)
    batch = GeneratedRows(data, 30, 8, seed=0).batch([0, 1])
    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    outputs = poptorch.inferenceModel(sliced, options)(*batch)
    for value, expected in zip(outputs, whole.model(batch)):
        torch.testing.assert_close(value.reshape(()), expected, rtol=1e-5, atol=1e-6)


def test_training_returns_scalars_with_the_loss_first() -> None:
    model = squad_model(dataclasses.replace(SQUAD, ipu=dataclasses.replace(IPU, precision="float16")))
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert (model.batch_type, pretraining_model(PRETRAIN).batch_type) == (SquadBatch, PretrainBatch)
    ids = torch.randint(30, (2, 16), dtype=torch.int32)
    label = torch.zeros(2, dtype=torch.int32)
    output = model.float().eval()(ids, torch.ones_like(ids), torch.zeros_like(ids), label, label)
    assert [value.shape for value in output] == [(), (2, 16), (2, 16)]
