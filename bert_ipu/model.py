"""BERT in plain torch, top to bottom in reading order: embeddings, encoder, pooler, heads, losses.

Parameters have Hugging Face's names, so its checkpoints load as they are and ours load there.  The model
knows no device: pipeline.py places it, and hands in the two parts that an IPU computes in slices (word
embedding, MLM decoder).  Operators are those that PopTorch has.

Dimension letters as in batch.py: B micro-batch, S sequence, H hidden, N heads, D head size, M masked
positions, P sequences in a row, V vocabulary.

The model: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2018 (arXiv 1810.04805).
Packed rows: Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021 (arXiv 2107.02027).
"""
from __future__ import annotations

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from bert_ipu.batch import IGNORED_LABEL, PretrainBatch, PretrainOutput, SquadBatch, SquadOutput
from bert_ipu.config import ModelConfig

PAD_ID = 0
"""The token id of [PAD]; as in Hugging Face's BERT, its embedding learns nothing from being looked up."""
MASKED_SCORE = -10000.0
"""Added to the score of a token that may not be attended to: exp gives 0 for it, and float16 can hold it."""


def attention_bias(attention_mask: torch.Tensor, packed: bool, dtype: torch.dtype) -> torch.Tensor:
    """What is added to attention scores: 0 where a token may look, MASKED_SCORE where not.

    Takes [B, S] sequence numbers (0 is padding); gives [B, 1, 1, S], or [B, 1, S, S] for packed rows, where
    a token sees its own sequence only.
    """
    visible = (attention_mask != 0)[:, None, None, :]
    if packed:
        visible = visible & (attention_mask[:, None, None, :] == attention_mask[:, None, :, None])
    return (1.0 - visible.to(dtype)) * MASKED_SCORE


def gather_tokens(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The hidden states, [B, M, H], of the tokens of [B, S, H] at [B, M] positions.

    By a product with one-hot rows: its gradient is a product again, where indexing would need a scatter with
    additions, which an IPU does one row after the other.
    """
    tokens = torch.arange(hidden.shape[1], dtype=positions.dtype, device=positions.device)
    one_hot = (positions[:, :, None] == tokens).to(hidden.dtype)
    return torch.matmul(one_hot, hidden)


class Embeddings(nn.Module):
    """Sum of word, position and sentence embeddings, normalised."""

    def __init__(self, config: ModelConfig, word_embeddings: Optional[nn.Module] = None) -> None:
        super().__init__()
        H = config.hidden_size
        self.word_embeddings = word_embeddings or nn.Embedding(config.vocab_size, H, padding_idx=PAD_ID)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, H)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, H)
        self.LayerNorm = nn.LayerNorm(H, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Three [B, S] (or [S]) index tensors to [B, S, H]."""
        embedded = self.word_embeddings(input_ids)
        embedded = embedded + self.position_embeddings(position_ids)
        embedded = embedded + self.token_type_embeddings(token_type_ids)
        normalised: torch.Tensor = self.dropout(self.LayerNorm(embedded))
        return normalised


class SelfAttention(nn.Module):
    """Every token asks every other (query), is asked (key), and answers (value)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        H = config.hidden_size
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        self.query, self.key, self.value = nn.Linear(H, H), nn.Linear(H, H), nn.Linear(H, H)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """[B, S, H] hidden states and the attention bias to [B, S, H] mixtures of values."""
        query, key, value = self._query_key_value(hidden)
        # Dot products of D terms spread with the root of D; unscaled, softmax saturates (arXiv 1706.03762).
        scores = torch.matmul(query, key.transpose(-1, -2)) * (1.0 / math.sqrt(self.head_size))
        probabilities = self.dropout(torch.softmax(scores + bias, dim=-1))  # [B, N, S, S]
        mixed = torch.matmul(probabilities, value)  # [B, N, S, D]
        return mixed.transpose(1, 2).reshape(hidden.shape)

    def _query_key_value(self, hidden: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value, each [B, N, S, D], by one matmul.

        One product three times as wide keeps more of the device busy than three.  The weights stay three
        parameters, joined here: checkpoints need no conversion, and LAMB scales each by its own norm.
        """
        B, S, _ = hidden.shape
        parts = (self.query, self.key, self.value)
        joined = F.linear(
            hidden, torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        heads = joined.view(B, S, 3, self.num_heads, self.head_size).permute(2, 0, 3, 1, 4)
        return heads[0], heads[1], heads[2]


class ResidualOutput(nn.Module):
    """Project back to H, drop out, add what came in, normalise: the end of both halves of a layer."""

    def __init__(self, in_features: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        normalised: torch.Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + residual)
        return normalised


class Attention(nn.Module):
    """First half of a layer: self-attention and its residual output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config.hidden_size, config)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.output(self.self(hidden, bias), hidden)
        return attended


class Intermediate(nn.Module):
    """The wide part of the feed-forward half."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.feed_forward_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.dense(hidden))


class Layer(nn.Module):
    """One encoder layer, [B, S, H] to [B, S, H]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config.feed_forward_size, config)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        attended = self.attention(hidden, bias)
        transformed: torch.Tensor = self.output(self.intermediate(attended), attended)
        return transformed


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            hidden = layer(hidden, bias)
        return hidden


class Pooler(nn.Module):
    """What a sequence's [CLS] token says of the whole sequence."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_tokens: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(first_tokens))


class Bert(nn.Module):
    """Embeddings and encoder; with a pooler for whom wants one, which the heads call themselves."""

    def __init__(
        self, config: ModelConfig, word_embeddings: Optional[nn.Module] = None, with_pooler: bool = True
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, word_embeddings)
        self.encoder = Encoder(config)
        if with_pooler:
            self.pooler = Pooler(config)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor,
        position_ids: Optional[torch.Tensor] = None, packed: bool = False,
    ) -> torch.Tensor:
        """[B, S] index tensors to the last hidden states, [B, S, H]."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], dtype=torch.int32, device=input_ids.device)
        hidden = self.embeddings(input_ids, token_type_ids, position_ids)
        last: torch.Tensor = self.encoder(hidden, attention_bias(attention_mask, packed, hidden.dtype))
        return last


class PredictionTransform(nn.Module):
    """From hidden states to the space of word embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        transformed: torch.Tensor = self.LayerNorm(F.gelu(self.dense(hidden)))
        return transformed


class Predictions(nn.Module):
    """Scores of every word of the vocabulary: [..., H] to [..., V]."""

    def __init__(self, config: ModelConfig, decoder: Optional[nn.Linear] = None) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.decoder = decoder or nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = self.decoder.bias  # Hugging Face keeps the bias under both names

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.decoder(self.transform(hidden))
        return scores


class PretrainingHeads(nn.Module):
    """Masked words from their tokens, next sentence from the pooled [CLS] tokens."""

    def __init__(self, config: ModelConfig, decoder: Optional[nn.Linear] = None) -> None:
        super().__init__()
        self.predictions = Predictions(config, decoder)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def forward(self, masked: torch.Tensor, pooled: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """[B, M, H] and [B, P, H] to word scores, [B, M, V], and next-sentence scores, [B, P, 2]."""
        return self.predictions(masked), self.seq_relationship(pooled)


def mean_loss(scores: torch.Tensor, labels: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy and accuracy, float32 scalars, of [..., C] scores over the labels not ignored.

    Both are 0, not NaN, where every label is ignored.
    """
    flat_labels = labels.reshape(-1).long()
    flat_scores = scores.reshape(-1, scores.shape[-1])
    counted = (flat_labels != IGNORED_LABEL).float()
    count = counted.sum().clamp(min=1.0)
    losses = F.cross_entropy(flat_scores, flat_labels, ignore_index=IGNORED_LABEL, reduction="none")
    right = (flat_scores.argmax(dim=-1) == flat_labels).float() * counted
    return losses.float().sum() / count, right.sum() / count


class BertForPreTraining(nn.Module):
    """BERT with both pretraining heads; the MLM decoder shares the word embedding's weight."""

    def __init__(self, config: ModelConfig, decoder: Optional[nn.Linear] = None) -> None:
        super().__init__()
        self.bert = Bert(config)
        self.cls = PretrainingHeads(config, decoder)
        initialise(self, config)
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.get_parameter("weight")

    def forward(self, batch: PretrainBatch) -> PretrainOutput:
        """Losses and accuracies of one micro-batch, float32 scalars."""
        packed = batch.next_sentence_positions.shape[1] > 1
        hidden = self.bert(
            batch.input_ids, batch.attention_mask, batch.token_type_ids, batch.position_ids, packed)
        # Only the tokens that carry a loss go on: decoding all S of them would be most of the work.
        masked = gather_tokens(hidden, batch.masked_lm_positions)
        first_tokens = gather_tokens(hidden, batch.next_sentence_positions)
        word_scores, next_scores = self.cls(masked, self.bert.pooler(first_tokens))
        mlm_loss, mlm_accuracy = mean_loss(word_scores, batch.masked_lm_labels)
        nsp_loss, nsp_accuracy = mean_loss(next_scores, batch.next_sentence_labels)
        return PretrainOutput(mlm_loss + nsp_loss, mlm_loss, nsp_loss, mlm_accuracy, nsp_accuracy)


class BertForQuestionAnswering(nn.Module):
    """BERT that scores every token as first and as last of the answer."""

    def __init__(self, config: ModelConfig, word_embeddings: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.bert = Bert(config, word_embeddings, with_pooler=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialise(self, config)

    def forward(self, batch: SquadBatch) -> SquadOutput:
        """The loss, a float32 scalar, and start and end scores, [B, S] each."""
        hidden = self.bert(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        scores = self.qa_outputs(hidden)  # [B, S, 2]
        start_scores, end_scores = scores[:, :, 0], scores[:, :, 1]
        start_loss, _ = mean_loss(start_scores, batch.start_positions)
        end_loss, _ = mean_loss(end_scores, batch.end_positions)
        return SquadOutput((start_loss + end_loss) / 2, start_scores, end_scores)


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Draw weights from a normal distribution cut at two standard deviations; biases 0, layer norms 1.

    Weights of google-research/bert are drawn so; torch's own defaults train worse.
    """
    deviation = config.initializer_range
    mass = math.erf(2 / math.sqrt(2))  # of a normal distribution within two deviations
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # By the inverse of the distribution function: a tenth of the time of nn.init.trunc_normal_.
                parameter.uniform_(-mass, mass).erfinv_().mul_(deviation * math.sqrt(2))
                parameter.clamp_(-2 * deviation, 2 * deviation)
            elif name.endswith("bias"):
                parameter.zero_()
