"""Rows of records to batches: masks drawn as a row is read, and the tensors that follow from its lengths.

Masks are a pure function of (seed, epoch, row): each epoch has fresh ones, the data set needs no duplicates,
and a resumed run draws what the uninterrupted one would have drawn.  Their rule is BERT's (Devlin et al.,
2019, section 3.1 and appendix A.1): 15% of a sequence's tokens, at most `mask_tokens`; of these 80% become
[MASK], 10% a random token and 10% stay.

Everything works on whole batches in numpy.  B rows, S tokens, P sequences of a row, M masked positions of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, TypeVar, Union

import numpy as np
import torch

from .batch import IGNORED_LABEL, PretrainBatch, SquadBatch
from .errors import DataError
from .records import Records, Rows
from .sampler import mixed, stream_keys
from .tfrecords import TFRecordDataset
from .tokenizer import read_vocab

Batch = TypeVar("Batch", PretrainBatch, SquadBatch)

MASKED_SHARE = 0.15
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_POSITION_BITS = 16
_SEQUENCE_SHIFT = 56
_NO_CANDIDATE = np.uint64(255)
_ROWS_AT_A_TIME = 512
"""Rows masked together: their hashes stay in a core's cache (512 rows of 128 tokens: 0.5 MB)."""


class Masking(NamedTuple):
    """How masks are drawn."""

    seed: int
    mask_tokens: int
    """Most masked positions of one sequence."""
    mask_id: int
    vocab_size: int
    word_starts: Optional[np.ndarray] = None
    """[vocab_size] bool, False for continuations (`##ing`): whole words are masked; None: single tokens."""


class MaskedRows(NamedTuple):
    """Token ids after masking, and what was there."""

    input_ids: np.ndarray
    """[B, S] int32."""
    positions: np.ndarray
    """[B, M] int32, ascending, 0 where unused."""
    labels: np.ndarray
    """[B, M] int32, IGNORED_LABEL where unused."""


class RowParts(NamedTuple):
    """Where the tokens of packed rows belong; all [B, S]."""

    sequence: np.ndarray
    """int32: 1 for tokens of the first sequence, 2 for the second...; 0 is padding."""
    position: np.ndarray
    """int32: place within the sequence."""
    second: np.ndarray
    """bool: in the second part of its sequence."""
    maskable: np.ndarray
    """bool: neither padding nor [CLS] nor [SEP]."""


def row_parts(rows: Rows) -> RowParts:
    """Tell for each token which sequence, which place and which part it is in."""
    count, length = rows.token_ids.shape
    columns = np.arange(length, dtype=np.int32)
    ends = np.cumsum(rows.lengths, axis=1, dtype=np.int32)
    starts = ends - rows.lengths
    sequence = np.zeros((count, length), np.int32)
    position = np.zeros((count, length), np.int32)
    second = np.zeros((count, length), bool)
    special = np.zeros((count, length), bool)
    for pack in range(rows.lengths.shape[1]):
        start, end = starts[:, pack, None], ends[:, pack, None]
        middle = start + rows.first_lengths[:, pack, None]
        inside = (columns >= start) & (columns < end)
        sequence += inside * np.int32(pack + 1)
        position += inside * (columns - start)
        second |= inside & (columns >= middle)
        special |= (columns == start) | (columns == middle - 1) | (columns == end - 1)
    return RowParts(sequence, position, second, (sequence > 0) & ~special)


def mask_rows(
    rows: Rows, parts: RowParts, epochs: np.ndarray, indices: np.ndarray, masking: Masking
) -> MaskedRows:
    """Mask rows that have numbers `indices` [B] in `epochs` [B].

    Every token gets a pseudo-random number from (seed, epoch, index, position); those of a sequence with
    the smallest are masked.  M = mask_tokens + P - 1: each further sequence of a pack is rounded up again.
    """
    keys = _row_keys(epochs, indices, masking.seed)
    length = rows.token_ids.shape[1]
    random = mixed(keys[:, None] + np.arange(length, dtype=np.uint64) * _GOLDEN)
    wanted = _masked_counts(rows.lengths, masking.mask_tokens)
    slots = masking.mask_tokens + rows.lengths.shape[1] - 1
    if masking.word_starts is None:
        positions = _first_of_each_sequence(_masking_order(random, parts), parts, wanted, slots, length)
    else:
        starts = _word_starts(rows, parts, masking.word_starts)
        order = _masking_order(np.take_along_axis(random, starts, axis=1), parts)
        positions = _whole_words(order, parts, starts, wanted, slots, length)
    positions.sort(axis=1)
    used = positions < length
    positions[~used] = 0
    originals = np.take_along_axis(rows.token_ids, positions, axis=1)
    draws = mixed(keys[:, None] + (positions.astype(np.uint64) + np.uint64(length)) * _GOLDEN)
    replacements = np.where(used, _replacements(originals, draws, masking), originals)
    input_ids = rows.token_ids.astype(np.int32)
    # Unused slots write [CLS] over the [CLS] at position 0, which is never masked.
    np.put_along_axis(input_ids, positions, replacements.astype(np.int32), axis=1)
    labels = np.where(used, originals, IGNORED_LABEL).astype(np.int32)
    return MaskedRows(input_ids, positions.astype(np.int32), labels)


def _row_keys(epochs: np.ndarray, indices: np.ndarray, seed: int) -> np.ndarray:
    """One uint64 per row, [B]."""
    seed_key = stream_keys(seed, 0x6D61736B, 1)  # apart from the sampler's keys of the same seed
    return mixed(mixed(indices.astype(np.uint64) * _GOLDEN + seed_key) + epochs.astype(np.uint64) * _GOLDEN)


def _masking_order(random: np.ndarray, parts: RowParts) -> np.ndarray:
    """Positions of a row in the order of masking, [B, S]: sequence by sequence, by `random` [B, S] in each.

    Sorting plain integers that hold (sequence, random number, position) in their bits is several times as
    fast as an indirect sort.  Positions that are never masked come last.
    """
    sequence = np.where(parts.maskable, parts.sequence.astype(np.uint64), _NO_CANDIDATE)
    order: np.ndarray = (
        random >> np.uint64(64 - _SEQUENCE_SHIFT + _POSITION_BITS) << np.uint64(_POSITION_BITS)
    )
    order |= sequence << np.uint64(_SEQUENCE_SHIFT)
    order |= np.arange(random.shape[1], dtype=np.uint64)
    order.sort(axis=1)
    order &= np.uint64((1 << _POSITION_BITS) - 1)
    return order.astype(np.int64)


def _masked_counts(lengths: np.ndarray, mask_tokens: int) -> np.ndarray:
    """How many positions of each sequence are masked, [B, P]; a row's sum is at most mask_tokens + P - 1."""
    present = lengths > 0
    rounded = np.rint(lengths * MASKED_SHARE).astype(np.int64)
    wanted: np.ndarray = np.clip(rounded, 1, mask_tokens)
    wanted = np.minimum(wanted, np.maximum(lengths - 3, 0)) * present
    left = np.full(len(lengths), mask_tokens + lengths.shape[1] - 1)
    for pack in range(lengths.shape[1]):
        later = present[:, pack + 1 :].sum(axis=1)
        wanted[:, pack] = np.minimum(wanted[:, pack], left - later)
        left -= wanted[:, pack]
    return wanted


def _first_of_each_sequence(
    order: np.ndarray, parts: RowParts, wanted: np.ndarray, slots: int, unused: int
) -> np.ndarray:
    """The first `wanted` [B, P] positions of each sequence in `order`; [B, slots], then `unused`."""
    slot = np.arange(slots)
    column = np.broadcast_to(slot, (len(order), slots)).copy()
    taken = np.cumsum(wanted, axis=1)
    for pack in range(wanted.shape[1] - 1):
        candidates = ((parts.sequence == pack + 1) & parts.maskable).sum(axis=1)
        column += (slot >= taken[:, pack, None]) * (candidates - wanted[:, pack])[:, None]
    positions = np.take_along_axis(order, np.minimum(column, order.shape[1] - 1), axis=1)
    return np.where(slot < taken[:, -1:], positions, unused)


def _whole_words(
    order: np.ndarray, parts: RowParts, starts: np.ndarray, wanted: np.ndarray, slots: int, unused: int
) -> np.ndarray:
    """Positions of whole words, taken in `order` while they fit `wanted` [B, P]; [B, slots].

    As in BERT, a word that would exceed the count is skipped and a shorter one may follow.  So the words are
    visited one after the other, but for all rows at once; `order` holds the tokens of a word together.
    """
    count, length = order.shape
    row = np.arange(count)
    word = starts + row[:, None] * length
    sizes = np.bincount(word.reshape(-1), minlength=count * length).reshape(count, length)
    head, size, usable, pack = (
        np.ascontiguousarray(np.take_along_axis(values, order, axis=1).T)
        for values in (starts == np.arange(length), sizes, parts.maskable, np.maximum(parts.sequence, 1) - 1)
    )
    remaining = wanted.copy()
    taken = np.zeros((length, count), bool)
    taking = np.zeros(count, bool)
    for column in range(length):
        fits = usable[column] & (size[column] <= remaining[row, pack[column]])
        taking = np.where(head[column], fits, taking)
        remaining[row, pack[column]] -= taking
        taken[column] = taking
    positions = np.where(taken.T, order, unused)
    positions.sort(axis=1)
    return positions[:, :slots]


def _word_starts(rows: Rows, parts: RowParts, word_starts: np.ndarray) -> np.ndarray:
    """Position of the first token of each token's word, [B, S]; a piece cut off its word starts one."""
    columns = np.arange(rows.token_ids.shape[1])
    starts = word_starts[rows.token_ids] | ~parts.maskable
    starts[:, 1:] |= ~parts.maskable[:, :-1]
    return np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


def _replacements(originals: np.ndarray, draws: np.ndarray, masking: Masking) -> np.ndarray:
    """What stands at masked positions: [MASK] in 80%, a random token in 10%, the original in 10%; [B, M]."""
    share = (draws >> np.uint64(32)) / 2.0**32
    random_tokens = (draws & np.uint64(0xFFFFFFFF)) * np.uint64(masking.vocab_size) >> np.uint64(32)
    return np.where(
        share < 0.8, masking.mask_id, np.where(share < 0.9, random_tokens.astype(np.int64), originals)
    )


def collated(rows: Rows, parts: RowParts, masked: MaskedRows) -> PretrainBatch:
    """The tensors of a batch, from rows and their masks."""
    present = rows.lengths > 0
    starts = np.cumsum(rows.lengths, axis=1) - rows.lengths
    labels = np.where(present, rows.next_sentence_labels, IGNORED_LABEL)
    return PretrainBatch(
        input_ids=_tensor(masked.input_ids),
        attention_mask=_tensor(parts.sequence),
        token_type_ids=_tensor(parts.second),
        position_ids=_tensor(parts.position),
        masked_lm_positions=_tensor(masked.positions),
        masked_lm_labels=_tensor(masked.labels),
        next_sentence_positions=_tensor(starts * present),
        next_sentence_labels=_tensor(labels),
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.int32))


class PretrainDataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Masked rows of a directory of records, addressed by the sampler's names, `epoch * len(self) + row`."""

    def __init__(
        self,
        records: Records,
        mask_tokens: int,
        seed: int = 0,
        whole_words: bool = False,
        fixed_masks: bool = False,
        rows: Optional[range] = None,
    ) -> None:
        """`rows` restricts the data set to a part (held-out rows); `fixed_masks` keeps epoch 0's masks.

        Raises DataError: the vocabulary of the records has no [MASK], or `rows` is outside of them.
        """
        rows = range(len(records)) if rows is None else rows
        if not 0 <= rows.start < rows.stop <= len(records) or rows.step != 1:
            raise DataError(
                f"Rows {rows.start} to {rows.stop} cannot be taken from the {len(records)} rows of "
                f"{records.directory}. Prepare more data, or hold fewer rows out."
            )
        vocab = read_vocab(records.vocab_file)
        self.records, self.rows, self.fixed_masks = records, rows, fixed_masks
        self.sequence_length = records.layout.sequence_length
        self.max_sequences_per_pack = records.layout.max_sequences_per_pack
        self.masked_positions = mask_tokens + self.max_sequences_per_pack - 1
        word_starts = _word_start_table(vocab) if whole_words else None
        self.masking = Masking(seed, mask_tokens, vocab["[MASK]"], len(vocab), word_starts)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, names: Union[np.ndarray, Sequence[int]]) -> PretrainBatch:
        """The batch of the named samples, [B] integers, in this order.

        Raises DataError: a row is damaged.
        """
        names = np.asarray(names, np.int64)
        chunks = [
            self._chunk(names[start : start + _ROWS_AT_A_TIME])
            for start in range(0, len(names), _ROWS_AT_A_TIME)
        ]
        return chunks[0] if len(chunks) == 1 else PretrainBatch(*(torch.cat(field) for field in zip(*chunks)))

    def _chunk(self, names: np.ndarray) -> PretrainBatch:
        epochs, indices = np.divmod(names, len(self))
        indices = indices + self.rows.start
        rows = self.records.read(indices)
        parts = row_parts(rows)
        epochs = np.zeros_like(epochs) if self.fixed_masks else epochs
        return collated(rows, parts, mask_rows(rows, parts, epochs, indices, self.masking))

    def __getitems__(self, names: List[int]) -> PretrainBatch:
        return self.batch(names)

    def __getitem__(self, name: int) -> PretrainBatch:
        return PretrainBatch(*(field[0] for field in self.batch([name])))


def collate(samples: Union[Batch, List[Batch]]) -> Batch:
    """`collate_fn` of a data loader: a batch stays as it is, single rows are stacked."""
    if isinstance(samples, tuple):
        return samples
    return type(samples[0])(*(torch.stack(field) for field in zip(*samples)))


def open_pretraining_data(
    inputs: Sequence[Path],
    sequence_length: int,
    mask_tokens: int,
    vocab_size: int,
    seed: int = 0,
    whole_words: bool = False,
    fixed_masks: bool = False,
) -> Union[PretrainDataset, TFRecordDataset]:
    """Open one directory of records, or TFRecord files of Graphcore's, and check that they fit the model.

    Raises DataError: they are missing, damaged, or have another sequence length, another number of masked
    positions or a larger vocabulary than the model.
    """
    if len(inputs) == 1 and Path(inputs[0]).suffix != ".tfrecord":
        records = Records(Path(inputs[0]))
        _check_length(inputs, records.layout.sequence_length, sequence_length)
        if records.layout.vocab_size > vocab_size:
            raise DataError(
                f"{inputs[0]} was made with {records.layout.vocab_size:,} tokens; the model has "
                f"{vocab_size:,} embeddings. Set model.vocab_size to the former, or prepare the data with "
                "the model's vocabulary."
            )
        return PretrainDataset(records, mask_tokens, seed, whole_words, fixed_masks)
    files = TFRecordDataset([Path(path) for path in inputs], vocab_size)
    _check_length(inputs, files.sequence_length, sequence_length)
    wanted = mask_tokens + files.max_sequences_per_pack - 1
    if files.masked_positions != wanted:
        raise DataError(
            f"{inputs[0]} has {files.masked_positions} masked positions a row; mask_tokens={mask_tokens} "
            f"with {files.max_sequences_per_pack} sequences a pack makes {wanted}. These files are masked "
            f"already: set mask_tokens to {files.masked_positions - files.max_sequences_per_pack + 1}."
        )
    return files


def _check_length(inputs: Sequence[Path], found: int, wanted: int) -> None:
    if found != wanted:
        raise DataError(
            f"{inputs[0]} has rows of {found} tokens; the configuration asks for {wanted}. Change "
            f"its sequence length to {found}, or prepare the data with --sequence-length {wanted}."
        )


def _word_start_table(vocab: Dict[str, int]) -> np.ndarray:
    starts = np.ones(len(vocab), bool)
    starts[[number for token, number in vocab.items() if token.startswith("##")]] = False
    return starts
