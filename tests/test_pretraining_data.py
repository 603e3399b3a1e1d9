"""Masking follows BERT's rule, depends on (seed, epoch, row) only, and packs read like their sequences."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_records import random_rows

from bert_ipu.batch import IGNORED_LABEL, PretrainBatch
from bert_ipu.errors import DataError
from bert_ipu.pretraining_data import PretrainDataset, collate, open_pretraining_data, row_parts
from bert_ipu.records import Layout, Records, Rows
from bert_ipu.records_writer import write_records
from bert_ipu.tokenizer import read_vocab

VOCAB = Path(__file__).parents[1] / "data/sample/vocab.txt"
VOCAB_SIZE = len(read_vocab(VOCAB))
COUNT = 600


def data_set(directory: Path, sequence_length: int = 128, packs: int = 1, **options) -> PretrainDataset:
    layout = Layout(sequence_length, packs, VOCAB_SIZE)
    write_records(directory, random_rows(COUNT, layout), layout, VOCAB, shard_rows=250)
    return PretrainDataset(Records(directory), mask_tokens=sequence_length * 15 // 100 + 1, **options)


def assert_equal(first: PretrainBatch, second: PretrainBatch) -> None:
    for name, one, other in zip(PretrainBatch._fields, first, second):
        assert torch.equal(one, other), name


def unmasked(batch: PretrainBatch) -> torch.Tensor:
    """Put the labels back where they were masked."""
    used = batch.masked_lm_labels != IGNORED_LABEL
    rows = torch.arange(len(used))[:, None].expand_as(used)[used]
    ids = batch.input_ids.clone()
    ids[rows, batch.masked_lm_positions[used].long()] = batch.masked_lm_labels[used]
    return ids


@pytest.mark.parametrize("packs", [1, 3])
@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_are_a_function_of_seed_epoch_and_row(tmp_path: Path, packs: int, whole_words: bool) -> None:
    data = data_set(tmp_path, packs=packs, seed=1, whole_words=whole_words)
    names = np.random.default_rng(0).permutation(COUNT)
    batch = data.batch(names)
    assert_equal(batch, data.batch(names))
    assert_equal(batch, collate([data[int(name)] for name in names]))
    assert_equal(batch, collate(pickle.loads(pickle.dumps(data)).__getitems__(names.tolist())))
    other_epoch = data.batch(names + COUNT)
    other_seed = PretrainDataset(data.records, data.masking.mask_tokens, seed=2).batch(names)
    for other in (other_epoch, other_seed):
        used = (batch.masked_lm_labels != IGNORED_LABEL) & (other.masked_lm_labels != IGNORED_LABEL)
        same = (other.masked_lm_positions == batch.masked_lm_positions)[used].float().mean()
        assert same < 0.35, "another epoch or seed has other masks"
    assert torch.equal(unmasked(batch), unmasked(other_epoch))
    assert torch.equal(unmasked(batch), torch.from_numpy(data.records.read(names).token_ids))


def test_fixed_masks_are_those_of_epoch_0_for_ever(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    fixed = PretrainDataset(data.records, data.masking.mask_tokens, fixed_masks=True)
    names = np.arange(40)
    assert_equal(fixed.batch(names + 7 * COUNT), data.batch(names))


def test_frequencies_are_berts(tmp_path: Path) -> None:
    """15% of a sequence; 80% [MASK], 10% random, 10% kept; all positions alike; within 3 standard errors."""
    data = data_set(tmp_path)
    batches = [data.batch(np.arange(COUNT) + epoch * COUNT) for epoch in range(20)]
    rows = data.records.read(np.arange(COUNT))
    wanted = np.clip(np.rint(rows.lengths[:, 0] * 0.15), 1, data.masking.mask_tokens)
    hits = np.zeros(rows.token_ids.shape)
    kinds = np.zeros(3)
    for batch in batches:
        used = (batch.masked_lm_labels != IGNORED_LABEL).numpy()
        assert np.array_equal(used.sum(axis=1), wanted)
        row, slot = np.nonzero(used)
        position = batch.masked_lm_positions.numpy()[row, slot]
        np.add.at(hits, (row, position), 1)
        now, before = batch.input_ids.numpy()[row, position], batch.masked_lm_labels.numpy()[row, slot]
        kinds += (
            (now == data.masking.mask_id).sum(),
            ((now != data.masking.mask_id) & (now != before)).sum(),
            0,
        )
        kinds[2] += len(row)
    total = kinds[2]
    chance = 1 / VOCAB_SIZE  # a random token may be [MASK] or the original
    for share, expected in [
        (kinds[0] / total, 0.8 + 0.1 * chance),
        (kinds[1] / total, 0.1 * (1 - 2 * chance)),
    ]:
        assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / total)
    maskable = row_parts(rows).maskable
    assert not hits[~maskable].any(), "[CLS], [SEP] and padding are never masked"
    expected = np.broadcast_to((wanted / maskable.sum(axis=1))[:, None], hits.shape)[maskable] * 20
    variance = expected * (1 - expected / 20)
    score = (hits[maskable] - expected) ** 2 / variance
    assert abs(score.mean() - 1) < 3 * np.sqrt(score.var() / score.size)


def test_random_tokens_are_uniform(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    seen = np.zeros(VOCAB_SIZE)
    for epoch in range(20):
        batch = data.batch(np.arange(COUNT) + epoch * COUNT)
        used = batch.masked_lm_labels != IGNORED_LABEL
        now = torch.gather(batch.input_ids, 1, batch.masked_lm_positions.long())[used].numpy()
        changed = (now != batch.masked_lm_labels[used].numpy()) & (now != data.masking.mask_id)
        seen += np.bincount(now[changed], minlength=VOCAB_SIZE)
    tenths = np.array([part.sum() for part in np.array_split(seen, 10)])
    expected = seen.sum() * np.array([len(part) for part in np.array_split(seen, 10)]) / VOCAB_SIZE
    assert (np.abs(tenths - expected) < 4 * np.sqrt(expected)).all()


def test_whole_words_are_masked_whole(tmp_path: Path) -> None:
    data = data_set(tmp_path, whole_words=True)
    rows = data.records.read(np.arange(COUNT))
    parts = row_parts(rows)
    batch = data.batch(np.arange(COUNT))
    continuation = ~data.masking.word_starts[rows.token_ids] & parts.maskable
    continuation[:, 1:] &= parts.maskable[:, :-1]
    masked = np.zeros(rows.token_ids.shape, bool)
    used = (batch.masked_lm_labels != IGNORED_LABEL).numpy()
    masked[np.nonzero(used)[0], batch.masked_lm_positions.numpy()[used]] = True
    joined = continuation[:, 1:]
    assert joined.sum() > COUNT, "the rows have words of several pieces"
    assert (masked[:, 1:][joined] == masked[:, :-1][joined]).all()
    wanted = np.clip(np.rint(rows.lengths[:, 0] * 0.15), 1, data.masking.mask_tokens)
    assert (used.sum(axis=1) <= wanted).all() and used.sum() > 0.97 * wanted.sum()


def test_a_pack_reads_like_its_sequences(tmp_path: Path) -> None:
    """Every tensor of a pack, cut at its sequences, is what the sequences alone have (masks apart)."""
    data = data_set(tmp_path, packs=3)
    rows = data.records.read(np.arange(COUNT))
    batch = data.batch(np.arange(COUNT))
    assert batch.masked_lm_positions.shape == (COUNT, data.masked_positions)
    for row in range(0, COUNT, 13):
        start = 0
        for pack, length in enumerate(rows.lengths[row].tolist()):
            slot = (batch.next_sentence_positions[row, pack], batch.next_sentence_labels[row, pack])
            if not length:
                assert slot == (0, IGNORED_LABEL)
                continue
            first = int(rows.first_lengths[row, pack])
            here = slice(start, start + length)
            assert slot == (start, rows.next_sentence_labels[row, pack])
            assert batch.attention_mask[row, here].tolist() == [pack + 1] * length
            assert batch.position_ids[row, here].tolist() == list(range(length))
            assert batch.token_type_ids[row, here].tolist() == [0] * first + [1] * (length - first)
            used = batch.masked_lm_labels[row] != IGNORED_LABEL
            positions = batch.masked_lm_positions[row][used]
            inside = ((positions >= start) & (positions < start + length)).sum()
            assert inside == min(max(1, round(length * 0.15)), data.masking.mask_tokens)
            start += length
        for field in (batch.attention_mask, batch.position_ids, batch.token_type_ids, batch.input_ids):
            assert not field[row, start:].any()


def test_few_slots_still_leave_each_sequence_one(tmp_path: Path) -> None:
    layout = Layout(128, 8, VOCAB_SIZE)
    lengths = np.full((5, 8), 16)
    ids = np.full((5, 128), 9)
    write_records(tmp_path, Rows(ids, lengths, lengths // 2, lengths * 0), layout, VOCAB)
    batch = PretrainDataset(Records(tmp_path), mask_tokens=2).batch(np.arange(5))
    assert batch.masked_lm_labels.shape == (5, 9)
    owners = torch.gather(batch.attention_mask, 1, batch.masked_lm_positions.long())
    assert all(set(row.tolist()) == set(range(1, 9)) for row in owners)


def test_held_out_rows_are_apart(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    held_out = PretrainDataset(data.records, data.masking.mask_tokens, rows=range(500, COUNT))
    assert len(held_out) == 100
    assert_equal(held_out.batch(np.arange(100)), data.batch(np.arange(500, COUNT)))
    with pytest.raises(DataError, match="hold fewer rows out"):
        PretrainDataset(data.records, 20, rows=range(600, 601))


def test_data_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    data_set(tmp_path)
    with pytest.raises(DataError, match="--sequence-length 512"):
        open_pretraining_data([tmp_path], 512, 20, VOCAB_SIZE)
    with pytest.raises(DataError, match="model has 100 embeddings"):
        open_pretraining_data([tmp_path], 128, 20, 100)
    assert len(open_pretraining_data([tmp_path], 128, 20, VOCAB_SIZE)) == COUNT


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torch_loader_gives_whole_batches(tmp_path: Path, workers: int) -> None:
    data = data_set(tmp_path)
    names = list(range(COUNT, COUNT + 64))
    loader = torch.utils.data.DataLoader(data, 16, sampler=names, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert_equal(PretrainBatch(*map(torch.cat, zip(*batches))), data.batch(names))
