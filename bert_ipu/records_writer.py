"""Writes the data sets that records.py reads: shards first and, last, the manifest that makes them whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import numpy as np

from .errors import DataError
from .records import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    VOCAB_NAME,
    Layout,
    Rows,
    Shard,
    atomic_file,
    manifest_checksum,
    row_checksums,
    shard_name,
)


def write_shard(directory: Path, number: int, rows: Rows, layout: Layout) -> Shard:
    """Write `rows` as shard `number` of a data set and return its manifest entry.

    Raises DataError: a token id outside the vocabulary, or lengths that do not fit the row.
    """
    _check_rows(rows, layout)
    records = np.zeros(len(rows.token_ids), layout.dtype())
    for field, values in zip(Rows._fields, rows):
        records[field] = values
    records["checksum"] = row_checksums(records, np.full(len(records), number), np.arange(len(records)))
    shard = Shard(shard_name(number), number, len(records))
    with atomic_file(directory / shard.name) as file:
        file.write(records.tobytes())
    return shard


def write_manifest(
    directory: Path, layout: Layout, shards: Sequence[Shard], vocab_file: Path, report: Dict[str, Any]
) -> None:
    """Make the shards a data set: copy the vocabulary beside them and, last, write the manifest.

    `report` says where the rows come from and what they hold, for people; it must be JSON.
    """
    vocab = vocab_file.read_bytes()
    with atomic_file(directory / VOCAB_NAME) as file:
        file.write(vocab)
    manifest = {
        "format_version": FORMAT_VERSION,
        **layout._asdict(),
        "vocab_sha256": hashlib.sha256(vocab).hexdigest(),
        "rows": sum(shard.rows for shard in shards),
        "shards": [shard._asdict() for shard in shards],
        "report": report,
    }
    manifest["manifest_crc32"] = manifest_checksum(manifest)
    with atomic_file(directory / MANIFEST_NAME) as file:
        file.write(json.dumps(manifest, indent=1).encode())


def _check_rows(rows: Rows, layout: Layout) -> None:
    if rows.token_ids.size == 0:
        return
    highest = int(rows.token_ids.max())
    if highest >= layout.vocab_size:
        raise DataError(
            f"Token id {highest} does not fit a vocabulary of {layout.vocab_size} tokens. "
            "Use the vocabulary that the text was tokenised with."
        )
    longest = int(rows.lengths.sum(axis=1).max())
    if longest > layout.sequence_length or longest >= 1 << 16:
        raise DataError(f"A row of {longest} tokens does not fit rows of {layout.sequence_length} tokens.")
    assert (rows.first_lengths <= rows.lengths).all(), "a first part cannot be longer than its sequence"


def write_records(
    directory: Path, rows: Rows, layout: Layout, vocab_file: Path, shard_rows: Optional[int] = None
) -> None:
    """Write rows that are all in memory as a whole data set, in shards of `shard_rows` (default: one)."""
    directory.mkdir(parents=True, exist_ok=True)
    count = len(rows.token_ids)
    shard_rows = shard_rows or max(count, 1)
    shards = [
        write_shard(directory, number, Rows(*(field[start : start + shard_rows] for field in rows)), layout)
        for number, start in enumerate(range(0, count, shard_rows))
    ]
    write_manifest(directory, layout, shards, vocab_file, {"rows": count})
