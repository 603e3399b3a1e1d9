"""The model against Hugging Face's: outputs, losses and the gradient of every parameter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bert_ipu.batch import IGNORED_LABEL, PretrainBatch, SquadBatch
from bert_ipu.config import ModelConfig
from bert_ipu.model import Bert, BertForPreTraining, BertForQuestionAnswering, mean_loss

SMALL = ModelConfig(
    vocab_size=300, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96,
    max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    layer_norm_eps=1e-12)
B, S, M = 3, 40, 7


def hugging_face_config(config: ModelConfig) -> transformers.BertConfig:
    return transformers.BertConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
        intermediate_size=config.feed_forward_size, max_position_embeddings=config.max_position_embeddings,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=config.layer_norm_eps,
        initializer_range=0.2)


def integers(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, dtype=torch.int32)


def padding_mask(lengths: list[int]) -> torch.Tensor:
    return (torch.arange(S) < torch.tensor(lengths)[:, None]).int()


def pretrain_batch() -> PretrainBatch:
    labels = integers(SMALL.vocab_size, B, M)
    labels[0, 4:] = IGNORED_LABEL
    positions = torch.stack([torch.randperm(20)[:M] for _ in range(B)]).int()
    return PretrainBatch(
        integers(SMALL.vocab_size, B, S), padding_mask([40, 31, 20]), integers(2, B, S),
        torch.arange(S, dtype=torch.int32).expand(B, S), positions, labels,
        torch.zeros(B, 1, dtype=torch.int32), integers(2, B, 1))


def assert_same_gradients(
    ours: torch.nn.Module, theirs: torch.nn.Module, vanishing: tuple[str, ...] = ("key.bias",)
) -> None:
    """Every gradient within 1e-5 of its norm.

    Some are 0 in exact arithmetic, so that only rounding is left: of a key's bias, which moves all scores of
    a query alike, and of others that the caller names.  They are held against the largest gradient.
    """
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    largest = max(gradient.norm() for gradient in expected.values())
    assert {name for name, _ in ours.named_parameters()} == set(expected)
    for name, parameter in ours.named_parameters():
        scale = largest if name.endswith(vanishing) else expected[name].norm()
        assert (parameter.grad - expected[name]).norm() <= 1e-5 * scale, name


def test_real_weights_give_the_reference_outputs(shared_data: Path) -> None:
    folder = shared_data / "models/all-MiniLM-L6-v2"
    published = json.loads((folder / "config.json").read_text())
    fields = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
              "max_position_embeddings", "type_vocab_size", "layer_norm_eps"]
    model = Bert(ModelConfig(**{field: published[field] for field in fields})).eval()
    weights = load_file(folder / "model.safetensors")
    weights.pop("embeddings.position_ids", None)
    model.load_state_dict(weights)
    reference = load_file(folder / "reference_outputs.safetensors")
    ids, types = reference["input_ids"], reference["token_type_ids"]
    with torch.no_grad():
        embedded = model.embeddings(ids, types, torch.arange(ids.shape[1]))
        hidden = model(ids, reference["attention_mask"], types)
        pooled = model.pooler(hidden[:, 0])
    torch.testing.assert_close(embedded, reference["embedding_output"], atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden, reference["last_hidden_state"], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, reference["pooler_output"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_pretraining_equals_hugging_face(seed: int) -> None:
    torch.manual_seed(seed)
    theirs = transformers.BertForPreTraining(hugging_face_config(SMALL)).eval()
    ours = BertForPreTraining(SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    batch = pretrain_batch()
    output = ours(batch)
    output.loss.backward()

    labels = torch.full((B, S), IGNORED_LABEL)
    labels.scatter_(1, batch.masked_lm_positions.long(), batch.masked_lm_labels.long())
    expected = theirs(
        batch.input_ids.long(), batch.attention_mask, batch.token_type_ids.long(), labels=labels,
        next_sentence_label=batch.next_sentence_labels.long())
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)
    assert_same_gradients(ours, theirs)

    predicted = expected.prediction_logits.argmax(-1)
    real = labels != IGNORED_LABEL
    assert output.mlm_accuracy == pytest.approx((predicted == labels)[real].float().mean().item())
    next_predicted = expected.seq_relationship_logits.argmax(-1)
    right = (next_predicted == batch.next_sentence_labels[:, 0]).float().mean().item()
    assert output.nsp_accuracy == pytest.approx(right)


@pytest.mark.parametrize("seed", range(3))
def test_question_answering_equals_hugging_face(seed: int) -> None:
    torch.manual_seed(seed)
    theirs = transformers.BertForQuestionAnswering(hugging_face_config(SMALL)).eval()
    ours = BertForQuestionAnswering(SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    batch = SquadBatch(
        integers(300, B, S), padding_mask([40, 31, 20]), integers(2, B, S), integers(20, B), integers(20, B))
    output = ours(batch)
    output.loss.backward()
    expected = theirs(
        batch.input_ids.long(), batch.attention_mask, batch.token_type_ids.long(),
        start_positions=batch.start_positions.long(), end_positions=batch.end_positions.long())
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(output.start_logits, expected.start_logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.end_logits, expected.end_logits, rtol=1e-5, atol=1e-5)
    # A constant added to all scores of a row changes no loss.
    assert_same_gradients(ours, theirs, ("key.bias", "layer.2.output.LayerNorm.bias", "qa_outputs.bias"))


def packed(sequences: PretrainBatch, lengths: list[int]) -> PretrainBatch:
    """The first `lengths` tokens of each row of `sequences`, one after the other in one row."""
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    padding = S - sum(lengths)

    def joined(tensor: torch.Tensor, filler: int = 0) -> torch.Tensor:
        parts = [row[:length] for row, length in zip(tensor, lengths)]
        return torch.cat([*parts, torch.full((padding,), filler, dtype=torch.int32)])[None]

    numbers = torch.arange(1, B + 1, dtype=torch.int32)[:, None].expand(B, S)
    return PretrainBatch(
        joined(sequences.input_ids), joined(numbers), joined(sequences.token_type_ids),
        joined(sequences.position_ids),
        (sequences.masked_lm_positions + starts[:, None]).int().reshape(1, -1),
        sequences.masked_lm_labels.reshape(1, -1), starts.int()[None], sequences.next_sentence_labels.T)


def test_a_pack_equals_its_sequences_by_hugging_face() -> None:
    torch.manual_seed(0)
    theirs = transformers.BertForPreTraining(hugging_face_config(SMALL)).eval()
    ours = BertForPreTraining(SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    lengths = [12, 9, 14]
    batch = pretrain_batch()._replace(
        attention_mask=padding_mask(lengths),
        masked_lm_positions=torch.stack([torch.randperm(9)[:M] for _ in range(B)]).int())
    ours(packed(batch, lengths)).loss.backward()
    labels = torch.full((B, S), IGNORED_LABEL)
    labels.scatter_(1, batch.masked_lm_positions.long(), batch.masked_lm_labels.long())
    theirs(batch.input_ids.long(), batch.attention_mask, batch.token_type_ids.long(), labels=labels,
           next_sentence_label=batch.next_sentence_labels.long()).loss.backward()
    assert_same_gradients(ours, theirs)


def test_nothing_to_predict_gives_zero_not_nan() -> None:
    scores = torch.randn(2, 5, 9, requires_grad=True)
    loss, accuracy = mean_loss(scores, torch.full((2, 5), IGNORED_LABEL, dtype=torch.int32))
    loss.backward()
    assert (loss.item(), accuracy.item()) == (0.0, 0.0)
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_half_precision_stays_finite() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(SMALL).half()
    output = model(pretrain_batch())
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert output.loss.dtype == torch.float32


def test_state_dict_is_hugging_faces() -> None:
    for ours, theirs in [(BertForPreTraining, transformers.BertForPreTraining),
                         (BertForQuestionAnswering, transformers.BertForQuestionAnswering)]:
        assert set(ours(SMALL).state_dict()) == set(theirs(hugging_face_config(SMALL)).state_dict())


def test_initial_weights_are_cut_at_two_deviations() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(SMALL)
    weight = model.bert.embeddings.word_embeddings.weight
    assert weight.abs().max() <= 2 * SMALL.initializer_range
    # A normal distribution cut at 2 standard deviations has 0.8796 of its deviation.
    assert weight.std().item() == pytest.approx(0.8796 * SMALL.initializer_range, rel=0.03)
    assert model.cls.predictions.bias.abs().max() == 0
