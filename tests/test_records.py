"""The record format: what is written is read, and damage of any kind is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from bert_ipu.errors import DataError
from bert_ipu.records import MANIFEST_NAME, Layout, Records, Rows
from bert_ipu.records_writer import write_records, write_shard

VOCAB = Path(__file__).parents[1] / "data/sample/vocab.txt"
LAYOUT = Layout(sequence_length=32, max_sequences_per_pack=3, vocab_size=500)


def random_rows(count: int, layout: Layout = LAYOUT, seed: int = 0) -> Rows:
    generator = np.random.default_rng(seed)
    packs = layout.max_sequences_per_pack
    lengths = generator.integers(5, layout.sequence_length // packs, (count, packs))
    lengths[:, 1:] *= generator.random((count, packs - 1)) < 0.7
    lengths[:, 2:] *= lengths[:, 1:-1] > 0
    first_lengths = lengths // 2
    labels = generator.integers(0, 2, lengths.shape) * (lengths > 0)
    token_ids = generator.integers(1, layout.vocab_size, (count, layout.sequence_length))
    token_ids *= np.arange(layout.sequence_length) < lengths.sum(axis=1, keepdims=True)
    return Rows(token_ids, lengths, first_lengths, labels)


@pytest.fixture
def data_set(tmp_path: Path) -> tuple[Path, Rows]:
    rows = random_rows(100)
    write_records(tmp_path / "set", rows, LAYOUT, VOCAB, shard_rows=30)
    return tmp_path / "set", rows


def assert_same(rows: Rows, expected: Rows, indices: np.ndarray) -> None:
    for field, got, wanted in zip(Rows._fields, rows, expected):
        assert got.dtype == np.int32
        assert np.array_equal(got, wanted[indices]), field


@pytest.mark.parametrize("vocab_size", [500, 65536, 65537, 250_000])
def test_any_rows_come_back_in_any_order(tmp_path: Path, vocab_size: int) -> None:
    layout = LAYOUT._replace(vocab_size=vocab_size)
    rows = random_rows(100, layout)
    write_records(tmp_path, rows, layout, VOCAB, shard_rows=30)
    records = Records(tmp_path)
    assert len(records) == 100 and len(records.shards) == 4 and records.layout == layout
    indices = np.random.default_rng(1).integers(0, 100, 257)
    assert_same(records.read(indices), rows, indices)
    assert_same(pickle.loads(pickle.dumps(records)).read(indices), rows, indices)
    assert len(records.read(np.array([], int)).token_ids) == 0
    with pytest.raises(IndexError, match="100 rows"):
        records.read(np.array([100]))


def test_a_worker_gets_the_place_not_the_data(data_set: tuple[Path, Rows]) -> None:
    assert len(pickle.dumps(Records(data_set[0]))) < 500


def test_every_flipped_bit_of_a_row_is_found_and_named(data_set: tuple[Path, Rows]) -> None:
    directory, _ = data_set
    path = directory / "rows-00001.bin"
    content = path.read_bytes()
    row_bytes = LAYOUT.dtype().itemsize
    for bit in range(0, row_bytes * 8, 7):
        damaged = bytearray(content)
        damaged[5 * row_bytes + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        records = Records(directory)
        records.read(np.arange(35))
        with pytest.raises(DataError, match=r"rows-00001\.bin: row 5 "):
            records.read(np.array([3, 35]))
    with pytest.raises(DataError, match="row 5"):
        records.verify()


def test_swapped_rows_and_swapped_shards_are_found(data_set: tuple[Path, Rows]) -> None:
    directory, _ = data_set
    first, second = directory / "rows-00000.bin", directory / "rows-00001.bin"
    content, row_bytes = first.read_bytes(), LAYOUT.dtype().itemsize
    first.write_bytes(content[row_bytes : 2 * row_bytes] + content[:row_bytes] + content[2 * row_bytes :])
    with pytest.raises(DataError, match="row 0"):
        Records(directory).verify()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(DataError, match="rows-00000"):
        Records(directory).verify()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "rows-00002.bin").unlink(), r"rows-00002\.bin is missing"),
        (lambda d: (d / "rows-00002.bin").write_bytes((d / "rows-00002.bin").read_bytes()[:-1]), "has 2"),
        (lambda d: (d / MANIFEST_NAME).unlink(), "interrupted"),
        (lambda d: (d / MANIFEST_NAME).write_text("{"), "damaged"),
        (lambda d: (d / MANIFEST_NAME).write_text("[]"), "damaged"),
        (lambda d: rewrite_manifest(d, '"sequence_length": 32', '"sequence_length": 16'), "checksum"),
        (lambda d: rewrite_manifest(d, '"format_version": 1', '"format_version": 9'), "version 9"),
        (lambda d: (d / "vocab.txt").write_text("other\n"), "vocabulary"),
        (lambda d: (d / "vocab.txt").unlink(), "vocabulary"),
    ],
)
def test_damage_is_refused_at_the_start(data_set: tuple[Path, Rows], damage, message: str) -> None:
    damage(data_set[0])
    with pytest.raises(DataError, match=message):
        Records(data_set[0])


def rewrite_manifest(directory: Path, old: str, new: str) -> None:
    path = directory / MANIFEST_NAME
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_missing_and_empty_data_sets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prepare_wikipedia\.py"):
        Records(tmp_path / "nowhere")
    write_records(tmp_path / "empty", random_rows(0), LAYOUT, VOCAB)
    with pytest.raises(DataError, match="holds no row"):
        Records(tmp_path / "empty")


def test_ids_and_lengths_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    rows = random_rows(4)
    with pytest.raises(DataError, match="vocabulary of 10 tokens"):
        write_shard(tmp_path, 0, rows, LAYOUT._replace(vocab_size=10))
    with pytest.raises(DataError, match="does not fit rows"):
        write_shard(tmp_path, 0, rows._replace(lengths=rows.lengths + 32), LAYOUT)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_plain_json(data_set: tuple[Path, Rows]) -> None:
    manifest = json.loads((data_set[0] / MANIFEST_NAME).read_text())
    assert manifest["sequence_length"] == 32 and manifest["rows"] == 100 and len(manifest["shards"]) == 4
