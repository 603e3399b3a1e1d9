"""Graphcore's own TFRecord samples are read as they are; damage is named."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_ipu.batch import IGNORED_LABEL
from bert_ipu.errors import DataError
from bert_ipu.pretraining_data import open_pretraining_data
from bert_ipu.tfrecords import TFRecordDataset, _masked_crc32c
from bert_ipu.tokenizer import load_tokenizer


@pytest.fixture
def samples(shared_data: Path, tmp_path: Path) -> Path:
    for file in (shared_data / "graphcore_bert").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def restored(batch, row: int) -> list[int]:
    ids = batch.input_ids[row].clone()
    used = batch.masked_lm_labels[row] != IGNORED_LABEL
    ids[batch.masked_lm_positions[row][used].long()] = batch.masked_lm_labels[row][used]
    return ids.tolist()


def test_checksums_are_the_published_ones() -> None:
    """RFC 3720, appendix B.4: 32 zeros, 32 ones, 0 to 31; and the usual check string "123456789"."""
    messages = [bytes(32), b"\xff" * 32, bytes(range(32)), b"123456789"]
    expected = np.array([0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0xE3069283], np.uint32)
    masked = (expected >> 15 | expected << 17) + np.uint32(0xA282EAD8)
    assert np.array_equal(_masked_crc32c(messages), masked)
    assert np.array_equal(_masked_crc32c(messages[:1]), masked[:1])


@pytest.mark.parametrize("with_index", [True, False])
def test_plain_records_hold_the_sample_text(samples: Path, shared_data: Path, with_index: bool) -> None:
    """Unmasked, every row is text of the file the records were made from, cut at sentences."""
    if not with_index:
        (samples / "sample_text.index").unlink()
    data = open_pretraining_data([samples / "sample_text.tfrecord"], 128, 20, 30522)
    assert isinstance(data, TFRecordDataset) and len(data) == 45
    batch = data.batch(np.arange(45))
    vocab = shared_data / "models/all-MiniLM-L6-v2/vocab.txt"
    tokenizer = load_tokenizer(vocab, lowercase=True)
    text = tokenizer.encode((samples / "sample_text.txt").read_text()).tokens
    joined = " " + " ".join(text) + " "
    found = 0
    for row in range(45):
        length = int(batch.attention_mask[row].sum())
        ids = restored(batch, row)
        tokens = [tokenizer.id_to_token(number) for number in ids[:length]]
        first = tokens.index("[SEP]")
        assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and not any(ids[length:])
        segments = [0] * (first + 1) + [1] * (length - first - 1) + [0] * (128 - length)
        assert batch.token_type_ids[row].tolist() == segments
        halves = [" ".join(half) for half in (tokens[1:first], tokens[first + 1 : -1])]
        if "º" not in "".join(halves):
            found += 1
            assert all(half in joined for half in halves)
    # The text's line of Chinese and phonetic letters was read in another encoding for the records.
    assert found >= 30


def test_packed_records_have_whole_sequences(samples: Path) -> None:
    data = open_pretraining_data([samples / "sample_text_packed.tfrecord"], 128, 20, 30522)
    batch = data.batch(np.arange(len(data)))
    assert (len(data), data.max_sequences_per_pack, data.masked_positions) == (44, 3, 22)
    cls = torch.gather(batch.input_ids, 1, batch.next_sentence_positions.long())
    present = batch.next_sentence_labels != IGNORED_LABEL
    assert (cls[present] == 101).all() and present[:, 0].all()
    assert present.sum() == 45, "the 45 plain rows are all in the 44 packs"
    owner = torch.gather(batch.attention_mask, 1, batch.next_sentence_positions.long())
    for pack in range(3):
        assert (owner[present[:, pack], pack] == pack + 1).all()
        for row in torch.nonzero(present[:, pack]).flatten().tolist():
            positions = batch.position_ids[row][batch.attention_mask[row] == pack + 1]
            assert sorted(positions.tolist()) == list(range(len(positions)))


def test_several_files_and_workers(samples: Path) -> None:
    data = TFRecordDataset([samples / "sample_text.tfrecord"] * 2, 30522)
    batch = pickle.loads(pickle.dumps(data)).batch([3, 48, 3 + 90])
    assert len(data) == 90
    assert torch.equal(batch.input_ids[0], batch.input_ids[1]) and torch.equal(
        batch.input_ids[0], batch.input_ids[2]
    )


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "no file"),
        (lambda p: (p.write_bytes(b""), p.with_suffix(".index").unlink()), "is empty"),
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "does not fit"),
        (lambda p: (p.write_bytes(p.read_bytes()[:-3]), p.with_suffix(".index").unlink()), "is cut"),
        (lambda p: (flip(p, 2), p.with_suffix(".index").unlink()), "is cut"),
        (lambda p: flip(p, 841 + 300), "bytes 841 to 1628 does not match"),
    ],
)
def test_damage_is_named(samples: Path, damage, message: str) -> None:
    path = samples / "sample_text.tfrecord"
    damage(path)
    with pytest.raises(DataError, match=message):
        TFRecordDataset([path], 30522).batch(np.arange(45))


def test_tokens_outside_the_model_are_named(samples: Path) -> None:
    data = TFRecordDataset([samples / "sample_text.tfrecord"], 20_000)
    with pytest.raises(DataError, match=r"token id 29,\d+; the model has 20,000 embeddings"):
        data.batch(np.arange(45))


def test_kinds_and_sizes_must_agree(samples: Path) -> None:
    with pytest.raises(DataError, match="different kinds"):
        TFRecordDataset([samples / "sample_text.tfrecord", samples / "sample_text_packed.tfrecord"], 30522)
    with pytest.raises(DataError, match="set mask_tokens to 20"):
        open_pretraining_data([samples / "sample_text_packed.tfrecord"], 128, 76, 30522)
