"""The on-disk format of pretraining data: rows of token ids, not yet masked.

A data set is a directory:

    manifest.json      written last: a directory without it is half-written and refused
    vocab.txt          the vocabulary the ids belong to
    rows-00000.bin     shards: fixed-size rows one after the other
    rows-00001.bin     ...

A row holds up to P sequences (a pack; P = 1 where nothing is packed) of at most S tokens together.  Each
sequence is `[CLS] first [SEP] second [SEP]`; with their lengths, the lengths of their first parts (up to and
with the first [SEP]) and their next-sentence labels, a batch's other tensors are arithmetic.  Rows have one
size, so that the n-th is found by multiplication and a whole batch is one gather from a memory map.  Each row
starts with a checksum over its bytes and its place, checked at every read: it costs about 1% of the time it
takes to mask the row, and names the damaged row instead of training on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

from .errors import DataError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
VOCAB_NAME = "vocab.txt"
_CHECKSUM_BYTES = 4


class Rows(NamedTuple):
    """Rows of a data set, or of a part of it."""

    token_ids: np.ndarray
    """[n, S] integers: the sequences of a row one after the other, then zeros."""
    lengths: np.ndarray
    """[n, P] integers: tokens of each sequence; 0 where the row has fewer than P."""
    first_lengths: np.ndarray
    """[n, P] integers: tokens of each sequence that belong to its first part, [CLS] and [SEP] included."""
    next_sentence_labels: np.ndarray
    """[n, P] integers: 0 the second part follows the first, 1 it is random."""


class Layout(NamedTuple):
    """What fixes the size of a row."""

    sequence_length: int
    max_sequences_per_pack: int
    vocab_size: int

    def dtype(self) -> np.dtype[Any]:
        """The bytes of one row."""
        packs = (self.max_sequences_per_pack,)
        token = "<u2" if self.vocab_size <= 1 << 16 else "<u4"
        fields: List[Any] = [
            ("checksum", "<u4"),
            ("lengths", "<u2", packs),
            ("first_lengths", "<u2", packs),
            ("next_sentence_labels", "u1", packs),
            ("token_ids", token, (self.sequence_length,)),
        ]
        return np.dtype(fields)


class Shard(NamedTuple):
    """One file of rows, as the manifest lists it."""

    name: str
    number: int
    rows: int


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name only when it is whole and on the disk; nothing is left of it on an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def shard_name(number: int) -> str:
    """The file name of shard `number` of a data set."""
    return f"rows-{number:05d}.bin"


class Records:
    """A data set opened for reading; rows are addressed by their number, from 0, over all shards."""

    def __init__(self, directory: Path) -> None:
        """Check the manifest, the vocabulary and the size of every shard; rows are checked when read.

        Raises DataError: the directory is no whole data set.
        """
        self.directory = Path(directory)
        manifest = read_manifest(self.directory)
        self.layout = Layout(*(int(manifest[field]) for field in Layout._fields))
        self.vocab_file = self.directory / VOCAB_NAME
        self.vocab_sha256 = str(manifest["vocab_sha256"])
        self.report: Dict[str, Any] = manifest["report"]
        self.shards = [Shard(**entry) for entry in manifest["shards"]]
        self._check_files()
        self._ends = np.cumsum([shard.rows for shard in self.shards])
        self._maps = [self._mapped(shard) for shard in self.shards]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> Tuple[Any, ...]:
        # A memory map would be pickled as a copy of the whole data set; a worker process maps it again.
        return Records, (self.directory,)

    def read(self, indices: np.ndarray) -> Rows:
        """Rows by number, in the order of `indices` [n]; all fields int32.

        Raises DataError: a row whose bytes are not those written.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(
                f"rows {indices.min()} to {indices.max()} asked of a data set of {len(self)} rows"
            )
        shard_of = np.searchsorted(self._ends, indices, side="right")
        row_of = indices - np.concatenate([[0], self._ends])[shard_of]
        records = np.empty(len(indices), self.layout.dtype())
        for shard in np.unique(shard_of):
            here = shard_of == shard
            records[here] = self._maps[shard][row_of[here]]
        numbers = np.array([shard.number for shard in self.shards])[shard_of]
        damaged = np.flatnonzero(row_checksums(records, numbers, row_of) != records["checksum"])
        if damaged.size:
            self._refuse(int(shard_of[damaged[0]]), int(row_of[damaged[0]]))
        return Rows(*(records[field].astype(np.int32) for field in Rows._fields))

    def verify(self, rows_at_a_time: int = 1 << 14) -> None:
        """Read everything once; raises DataError naming the first damaged row."""
        for start in range(0, len(self), rows_at_a_time):
            self.read(np.arange(start, min(start + rows_at_a_time, len(self))))

    def _mapped(self, shard: Shard) -> np.ndarray:
        if shard.rows == 0:
            return np.empty(0, self.layout.dtype())
        return np.memmap(self.directory / shard.name, self.layout.dtype(), mode="r")

    def _check_files(self) -> None:
        if not sum(shard.rows for shard in self.shards):
            raise DataError(f"{self.directory} holds no row. Prepare it again from an input that has text.")
        for shard in self.shards:
            path = self.directory / shard.name
            expected = shard.rows * self.layout.dtype().itemsize
            found = path.stat().st_size if path.exists() else None
            if found != expected:
                what = "is missing" if found is None else f"has {found:,} bytes"
                raise DataError(
                    f"{path} {what}; the manifest says {shard.rows:,} rows of "
                    f"{self.layout.dtype().itemsize} bytes, {expected:,} in all. "
                    "Copy the data set again, or prepare it again."
                )
        vocab = self.vocab_file.read_bytes() if self.vocab_file.exists() else b""
        if hashlib.sha256(vocab).hexdigest() != self.vocab_sha256:
            raise DataError(
                f"{self.vocab_file} is not the vocabulary this data set was made with (SHA-256 "
                f"{self.vocab_sha256[:16]}…). Put the right file back, or prepare the data again."
            )

    def _refuse(self, shard: int, row: int) -> None:
        path, row_bytes = self.directory / self.shards[shard].name, self.layout.dtype().itemsize
        raise DataError(
            f"{path}: row {row} (bytes {row * row_bytes} to {(row + 1) * row_bytes - 1}) does not match its "
            "checksum: the file is damaged. Copy this shard again from its source, or prepare the data again."
        )


def read_manifest(directory: Path) -> Dict[str, Any]:
    """The manifest of a data set; raises DataError when there is no whole one."""
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise DataError(
            f"There is no directory {directory}. Make a data set with "
            f"`python data/prepare_wikipedia.py INPUT... --vocab VOCAB --out {directory}`."
        )
    if not path.exists():
        raise DataError(
            f"{directory} has no {MANIFEST_NAME}, which is written last: its preparation was interrupted, or "
            "it is no data set. Run data/prepare_wikipedia.py as before: it carries on where it stopped."
        )
    try:
        manifest = json.loads(path.read_bytes())
        checksum = manifest.pop("manifest_crc32")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}). Copy the data set again, or prepare it again."
        ) from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {manifest.get('format_version')}; this program reads version "
            f"{FORMAT_VERSION}. Prepare the data again with this version's data/prepare_wikipedia.py."
        )
    if checksum != manifest_checksum(manifest):
        raise DataError(f"{path} does not match its checksum. Copy the data set again, or prepare it again.")
    return dict(manifest)


def manifest_checksum(manifest: Dict[str, Any]) -> int:
    """CRC-32 of a manifest's content, whatever the order of its keys."""
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def row_checksums(records: np.ndarray, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each record less its checksum field; it starts from the place, so no two can be swapped."""
    size = records.dtype.itemsize
    content = np.ascontiguousarray(records).view(np.uint8).data
    starts = (shards.astype(np.int64) << 22 ^ rows).astype(np.uint32).tolist()
    checksums = [
        zlib.crc32(content[number * size + _CHECKSUM_BYTES : (number + 1) * size], start)
        for number, start in enumerate(starts)
    ]
    return np.array(checksums, np.uint32)
