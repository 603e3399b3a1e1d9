"""The work behind prepare_wikipedia.py: pieces of input to parts, groups of parts to shards of records.

Both steps write one file per unit of work, under its final name only when it is whole.  So any number of
processes share the work, a run that was killed carries on with the units that have no file yet, and the
result is the same bytes in every case: what a unit holds depends on the input, the options and its number
alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from articles import articles
from packing import assign, pack_histogram
from pairs import SPECIAL_TOKENS_PER_SEQUENCE, Sequences, make_sequences
from sentences import SentenceEncoder, SentenceSplitter
from sources import PIECE_BYTES, Piece

from bert_ipu.errors import DataError, writing_to
from bert_ipu.records import Layout, Rows, Shard, atomic_file, shard_name
from bert_ipu.records_writer import write_shard
from bert_ipu.tokenizer import read_vocab

_PARTS_VERSION = 1
GROUP_TOKENS = 8 << 20
"""Tokens of the sequences that are packed together and become one shard: some 16 MB."""
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Job:
    """What is to be prepared; the result depends on nothing else."""

    inputs: tuple[Path, ...]
    vocab_file: Path
    out: Path
    sequence_length: int
    max_sequences_per_pack: int
    lowercase: bool
    seed: int
    held_out_every: int = 0
    """Every so many-th piece goes to a data set of its own, OUT/held_out; 0: none."""

    @property
    def parts(self) -> Path:
        """Where the parts lie until they are records."""
        return self.out / ".parts"

    def part(self, number: int) -> Path:
        """The file of a piece's sequences."""
        return self.parts / f"part-{number:06d}.npz"

    def splits(self, pieces: int) -> dict[Path, list[int]]:
        """The parts of each data set, by directory; the main one comes last."""
        held_out = [part for part in range(pieces) if self.held_out_every and part % self.held_out_every == 0]
        if self.held_out_every and len(held_out) in (0, pieces):
            raise DataError(
                f"The input is {pieces} pieces of {PIECE_BYTES >> 20} MB; one of each {self.held_out_every} "
                "cannot be held out. Give more text, or prepare held-out files as a data set of their own."
            )
        training = sorted(set(range(pieces)) - set(held_out))
        return {self.out / "held_out": held_out, self.out: training} if held_out else {self.out: training}

    def layout(self) -> Layout:
        """The layout of the records."""
        return Layout(self.sequence_length, self.max_sequences_per_pack, len(_vocabulary(self.vocab_file)))

    def fingerprint(self, files: list[Path]) -> dict[str, Any]:
        """What must be the same for a run to carry on with another run's parts."""
        options = {
            key: value for key, value in asdict(self).items() if key not in ("inputs", "vocab_file", "out")
        }
        return {
            **options,
            "vocab_sha256": hashlib.sha256(self.vocab_file.read_bytes()).hexdigest(),
            "files": [[file.name, file.stat().st_size, _checksum_of_ends(file)] for file in files],
            "parts_version": _PARTS_VERSION,
            "piece_bytes": PIECE_BYTES,
            "group_tokens": GROUP_TOKENS,
        }


@functools.lru_cache(maxsize=2)
def _vocabulary(vocab_file: Path) -> dict[str, int]:
    return read_vocab(vocab_file)


@functools.lru_cache(maxsize=1)
def _encoder(vocab_file: Path, lowercase: bool) -> SentenceEncoder:
    """One encoder per process: its dictionary of words is worth keeping from piece to piece."""
    return SentenceEncoder(vocab_file, lowercase)


def _checksum_of_ends(file: Path, size: int = 1 << 16) -> int:
    with open(file, "rb") as opened:
        head = opened.read(size)
        opened.seek(max(0, file.stat().st_size - size))
        return zlib.crc32(opened.read(size), zlib.crc32(head))


def start(job: Job, files: list[Path]) -> None:
    """Make the directory of parts, or check that the one that is there belongs to this job.

    Raises DataError: the directory holds something else.
    """
    expected = job.fingerprint(files)
    path = job.parts / "job.json"
    if path.exists():
        found = json.loads(path.read_text())
        different = sorted(key for key in expected if found.get(key) != expected[key])
        if different:
            raise DataError(
                f"{job.out} holds an unfinished job with other {', '.join(different)}. Use the former "
                "options to carry on with it, name another --out, or remove the directory."
            )
        return
    with writing_to(job.out, "--out"):
        if job.out.exists() and any(job.out.iterdir()) and not job.parts.exists():
            raise DataError(f"{job.out} is not empty. Name another --out, or remove the directory.")
        job.parts.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(expected).encode())


def encode_piece(job: Job, piece: Piece) -> int:
    """Write the part of a piece and return the bytes of its text; raises DataError on damaged input."""
    encoder, splitter = _encoder(job.vocab_file, job.lowercase), SentenceSplitter()
    counts: Counter[str] = Counter()
    documents = []
    for paragraphs, discarded in articles(piece):
        if discarded:
            counts[f"discarded: {discarded}"] += 1
            continue
        documents.append([encoder.encode(s) for paragraph in paragraphs for s in splitter.split(paragraph)])
        counts["articles"] += 1
        counts["text_bytes"] += sum(len(paragraph.encode()) for paragraph in paragraphs)
        counts["sentences"] += len(documents[-1])
        counts["tokens"] += sum(map(len, documents[-1])) // np.dtype(encoder.dtype).itemsize
    sequences = make_sequences(
        documents, job.sequence_length, encoder.dtype, seed=f"{job.seed} {piece.number}"
    )
    counts["sequences"] += len(sequences.first_lengths)
    with atomic_file(job.part(piece.number)) as file:
        np.savez(file, counts=np.frombuffer(json.dumps(counts).encode(), np.uint8), **sequences._asdict())
    return counts["text_bytes"]


class Group(NamedTuple):
    """Consecutive parts that become one shard."""

    directory: Path
    number: int
    parts: list[int]

    @property
    def path(self) -> Path:
        """The shard's file."""
        return self.directory / shard_name(self.number)

    def shard(self, layout: Layout) -> Shard:
        """The manifest's entry of a shard that is written."""
        rows = self.path.stat().st_size // layout.dtype().itemsize
        return Shard(self.path.name, self.number, rows)


def groups(job: Job, directory: Path, parts: list[int]) -> Iterator[Group]:
    """The groups of a data set: its parts in order, a new group once GROUP_TOKENS are reached."""
    number = first = tokens = 0
    for place, part in enumerate(parts, 1):
        with np.load(job.part(part)) as content:
            tokens += int(content["first_lengths"].sum()) + int(content["second_lengths"].sum())
        if tokens >= GROUP_TOKENS or place == len(parts):
            yield Group(directory, number, parts[first:place])
            number, first, tokens = number + 1, place, 0


def write_group(job: Job, group: Group) -> None:
    """Pack the sequences of a group, shuffle the rows and write them as a shard, if it is not there yet."""
    if group.path.exists():
        return
    sequences = _read_parts(job, group.parts)
    layout = job.layout()
    lengths = (
        sequences.first_lengths.astype(np.int64) + sequences.second_lengths + SPECIAL_TOKENS_PER_SEQUENCE
    )
    histogram = np.bincount(lengths, minlength=job.sequence_length + 1)
    strategies = pack_histogram(histogram, job.sequence_length, job.max_sequences_per_pack)
    members = assign(lengths, strategies, job.max_sequences_per_pack, seed=job.seed + group.number)
    vocabulary = _vocabulary(job.vocab_file)
    rows = build_rows(sequences, members, layout, vocabulary["[CLS]"], vocabulary["[SEP]"])
    write_shard(group.directory, group.number, rows, layout)


def _read_parts(job: Job, parts: list[int]) -> Sequences:
    fields: list[list[np.ndarray]] = [[] for _ in Sequences._fields]
    for part in parts:
        with np.load(job.part(part)) as content:
            for field, name in zip(fields, Sequences._fields):
                field.append(content[name])
    return Sequences(*map(np.concatenate, fields))


def build_rows(sequences: Sequences, members: np.ndarray, layout: Layout, cls: int, sep: int) -> Rows:
    """Rows of the sequences numbered in `members` [rows, P] (-1: none), special tokens put in."""
    first = np.append(sequences.first_lengths, 0).astype(np.int64)[members]
    second = np.append(sequences.second_lengths, 0).astype(np.int64)[members]
    present = members >= 0
    lengths = (first + second + SPECIAL_TOKENS_PER_SEQUENCE) * present
    sizes = sequences.first_lengths.astype(np.int64) + sequences.second_lengths
    sources = np.append(np.cumsum(sizes) - sizes, 0)[members]
    token_ids = np.zeros((len(members), layout.sequence_length), sequences.token_ids.dtype)
    for begin in range(0, len(members), _ROWS_AT_A_TIME):
        here = slice(begin, begin + _ROWS_AT_A_TIME)
        rows = token_ids[here].reshape(-1)  # a view
        starts = np.cumsum(lengths[here], axis=1) - lengths[here]
        starts += np.arange(len(starts))[:, None] * layout.sequence_length
        used = present[here]
        start, source, one, two = (
            values[used] for values in (starts, sources[here], first[here], second[here])
        )
        rows[start] = cls
        rows[start + 1 + one] = sep
        rows[start + 2 + one + two] = sep
        rows[_runs(start + 1, one)] = sequences.token_ids[_runs(source, one)]
        rows[_runs(start + 2 + one, two)] = sequences.token_ids[_runs(source + one, two)]
    labels = np.append(sequences.next_sentence_labels, 0)[members]
    return Rows(token_ids, lengths, (first + 2) * present, labels)


def _runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """starts[0], starts[0] + 1, ... (lengths[0] of them), starts[1], ...: one index array."""
    return np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def summary(job: Job, parts: list[int]) -> tuple[Counter[str], np.ndarray]:
    """Counts over parts, and the histogram of sequence lengths, [sequence_length + 1]."""
    counts: Counter[str] = Counter()
    histogram = np.zeros(job.sequence_length + 1, np.int64)
    for part in parts:
        with np.load(job.part(part)) as content:
            counts.update(json.loads(content["counts"].tobytes()))
            lengths = content["first_lengths"].astype(np.int64) + content["second_lengths"]
            histogram += np.bincount(lengths + SPECIAL_TOKENS_PER_SEQUENCE, minlength=len(histogram))
    return counts, histogram
