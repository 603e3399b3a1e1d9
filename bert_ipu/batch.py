"""Shapes and dtypes of what flows through a training step: batches in, outputs out.

Dimension letters, here and in every tensor file:
B micro-batch, S sequence (tokens of one packed row), H hidden, N heads, D head size,
M masked positions of a row, P sequences in a row (packing; 1 where nothing is packed), V vocabulary.

A row holds one sequence or a pack of up to P of them.  One layout serves both: an unpacked row
is a pack of one.  All integer tensors are int32, the only integer width of the IPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

IGNORED_LABEL = -100
"""Label of a masked position or next-sentence slot that is padding (torch's `ignore_index` default)."""


class PretrainBatch(NamedTuple):
    """One micro-batch of masked-language-model and next-sentence rows."""

    input_ids: torch.Tensor
    """[B, S] int32, after masking."""
    attention_mask: torch.Tensor
    """[B, S] int32: 0 is padding, k > 0 the k-th sequence of the row; tokens attend within equal k only."""
    token_type_ids: torch.Tensor
    """[B, S] int32: 0 first sentence, 1 second."""
    position_ids: torch.Tensor
    """[B, S] int32: position inside its own sequence, from 0."""
    masked_lm_positions: torch.Tensor
    """[B, M] int32: indices into S of the positions to predict; 0 where unused."""
    masked_lm_labels: torch.Tensor
    """[B, M] int32: the original token ids; IGNORED_LABEL where unused."""
    next_sentence_positions: torch.Tensor
    """[B, P] int32: index into S of each sequence's [CLS]; 0 where unused."""
    next_sentence_labels: torch.Tensor
    """[B, P] int32: 0 the second sentence follows the first, 1 it is random; IGNORED_LABEL where unused."""


class PretrainOutput(NamedTuple):
    """What one pretraining step returns, one value per returned micro-batch."""

    loss: torch.Tensor
    """MLM loss + NSP loss, as optimised."""
    mlm_loss: torch.Tensor
    nsp_loss: torch.Tensor
    mlm_accuracy: torch.Tensor
    """Share of real masked positions whose argmax is right."""
    nsp_accuracy: torch.Tensor


class SquadBatch(NamedTuple):
    """One micro-batch of question-and-context windows."""

    input_ids: torch.Tensor
    """[B, S] int32."""
    attention_mask: torch.Tensor
    """[B, S] int32: 1 token, 0 padding."""
    token_type_ids: torch.Tensor
    """[B, S] int32: 0 question, 1 context."""
    start_positions: torch.Tensor
    """[B] int32: first token of the answer in this window; 0 ([CLS]) when it has none."""
    end_positions: torch.Tensor
    """[B] int32: last token of the answer, inclusive."""


class SquadOutput(NamedTuple):
    """What one fine-tuning step returns."""

    loss: torch.Tensor
    start_logits: torch.Tensor
    """[B, S]."""
    end_logits: torch.Tensor
    """[B, S]."""
