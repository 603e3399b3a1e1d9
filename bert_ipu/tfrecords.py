"""Graphcore's pretraining files, read as they are: TFRecord framing around tf.train.Example messages.

A TFRecord file is a run of records: length (u64), CRC of the length (u32), message, CRC of the message (u32).
The message is a protocol buffer: a map from feature names to lists of integers or floats
(tensorflow/core/example/example.proto).  An `.index` file beside it, where there is one, lists the offset and
size of every record.  Rows in these files are masked already, so the epoch changes nothing.

Packed files (`packed_input_ids` ...) put the [CLS] of the k-th sequence at the k-th place from the end.
"""

from __future__ import annotations

import functools
import mmap
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np
import torch

from .batch import IGNORED_LABEL, PretrainBatch
from .errors import DataError

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_FRAME_BYTES = _HEADER.size + _FOOTER_BYTES
_LENGTH_DELIMITED = 2
_FLOAT_LIST, _INT64_LIST = 2, 3
PLAIN_FEATURES = (
    "input_ids",
    "input_mask",
    "segment_ids",
    "masked_lm_positions",
    "masked_lm_ids",
    "masked_lm_weights",
    "next_sentence_labels",
)
PACKED_FEATURES = (
    "packed_input_ids",
    "packed_input_mask",
    "packed_segment_ids",
    "packed_position_ids",
    "packed_masked_lm_positions",
    "packed_masked_lm_ids",
    "packed_masked_lm_mask",
    "packed_next_sentence_labels",
    "packed_next_sentence_mask",
)


def record_places(path: Path) -> np.ndarray:
    """Offset and size of every record of a TFRecord file, [n, 2] int64: from its `.index`, or by a walk.

    Raises DataError: the file is missing, empty, cut, or does not fit its index.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}. Name the .tfrecord files of an existing data set.")
    size = path.stat().st_size
    index = path.with_suffix(".index")
    if index.exists():
        places = np.loadtxt(index, dtype=np.int64, ndmin=2)
        ends = places.sum(axis=1)
        if len(places) == 0 or ends[-1] != size or (places[1:, 0] != ends[:-1]).any():
            raise DataError(
                f"{index} does not fit {path} ({size:,} bytes). Remove the index: it is not needed."
            )
        return places
    places = _walk(path, size)
    if len(places) == 0:
        raise DataError(f"{path} is empty. Name a TFRecord file that holds records.")
    return places


def _walk(path: Path, size: int) -> np.ndarray:
    places, headers, offset = [], [], 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            headers.append(file.read(_HEADER.size))
            whole = _FRAME_BYTES + int.from_bytes(headers[-1][:8], "little")
            if len(headers[-1]) < _HEADER.size or offset + whole > size:
                break
            places.append((offset, whole))
            offset += whole
    stored = [int.from_bytes(header[8:], "little") for header in headers]
    if offset < size or (_masked_crc32c([header[:8] for header in headers]) != stored).any():
        raise DataError(
            f"{path} is cut or is no TFRecord file: from byte {offset} of {size:,} on there is no whole "
            "record. Copy the file again."
        )
    return np.array(places, np.int64).reshape(-1, 2)


@functools.lru_cache(maxsize=None)
def _crc32c_tables() -> np.ndarray:
    """[8, 256] uint32: the effect of a byte on the CRC-32C (Castagnoli) state, 0 to 7 bytes later."""
    tables = np.zeros((8, 256), np.uint32)
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, values >> 1 ^ np.uint32(0x82F63B78), values >> 1)
    tables[0] = values
    for step in range(1, 8):
        tables[step] = tables[0][tables[step - 1] & 0xFF] ^ tables[step - 1] >> 8
    return tables


def _masked_crc32c(messages: Sequence[bytes]) -> np.ndarray:
    """TFRecord's rotated CRC-32C of each message, [n] uint32; all at once, eight bytes a step.

    Zeros in front of a message do not change a CRC whose state starts at 0, so messages are aligned at their
    ends, and the usual start at all ones becomes a flip of the first four bytes.
    """
    width = -(-max((len(message) for message in messages), default=0) // 8) * 8
    aligned = np.zeros((len(messages), width), np.uint8)
    for row, message in enumerate(messages):
        start = width - len(message)
        aligned[row, start:] = np.frombuffer(message, np.uint8)
        aligned[row, start : start + 4] ^= 0xFF
    tables = _crc32c_tables()
    state = np.zeros(len(messages), np.uint32)
    for step in range(0, width, 8):
        mixed_in = state.view(np.uint8).reshape(-1, 4) ^ aligned[:, step : step + 4]
        state = np.zeros(len(messages), np.uint32)
        for byte in range(4):
            state ^= tables[7 - byte][mixed_in[:, byte]] ^ tables[3 - byte][aligned[:, step + 4 + byte]]
    crc = ~state
    return (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)


def parse_example(message: bytes) -> Dict[str, np.ndarray]:
    """The features of a tf.train.Example: names to [n] int64 or float32.

    Raises ValueError: the bytes are no such message.
    """
    features: Dict[str, np.ndarray] = {}
    for _, feature_map in _fields(message):
        for _, entry in _fields(feature_map):
            parts = dict(_fields(entry))
            for kind, content in _fields(parts[2]):
                features[parts[1].decode()] = _values(kind, content)
    return features


def _fields(message: bytes) -> Iterator[Tuple[int, bytes]]:
    """Field numbers and contents of a message that has length-delimited fields only."""
    place = 0
    while place < len(message):
        tag = message[place]
        length, place = _varint(message, place + 1)
        if tag & 7 != _LENGTH_DELIMITED or place + length > len(message):
            raise ValueError(f"unexpected tag {tag} at byte {place}")
        yield tag >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7


def _values(kind: int, content: bytes) -> np.ndarray:
    packed = dict(_fields(content)).get(1, b"")
    if kind == _FLOAT_LIST:
        return np.frombuffer(packed, "<f4")
    if kind != _INT64_LIST:
        raise ValueError(f"a list of kind {kind}; integers and floats are expected")
    data = np.frombuffer(packed, np.uint8).astype(np.int64)
    if not data.size:
        return data
    last = data < 0x80
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    within = np.arange(len(data)) - np.repeat(starts, np.diff(np.append(starts, len(data))))
    return np.add.reduceat((data & 0x7F) << (7 * within), starts)


class TFRecordDataset(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Rows of Graphcore's TFRecord files, plain or packed, addressed like those of `PretrainDataset`."""

    def __init__(self, paths: Sequence[Path], vocab_size: int) -> None:
        """Raises DataError: a file is missing or damaged, or the files are of different kinds or sizes."""
        self.paths, self.vocab_size = list(paths), vocab_size
        self._places = [record_places(path) for path in self.paths]
        self._ends = np.cumsum([len(places) for places in self._places])
        self._maps: List[Any] = [None] * len(self.paths)
        shapes = []
        for path, end, places in zip(self.paths, self._ends, self._places):
            features = self._features(np.array([end - len(places)]))[0]
            self.packed = "packed_input_ids" in features
            missing = sorted(set(PACKED_FEATURES if self.packed else PLAIN_FEATURES) - set(features))
            if missing:
                raise DataError(f"{path} lacks the features {', '.join(missing)}: it is no pretraining file.")
            shapes.append({name: values.shape for name, values in features.items()})
            if shapes[-1] != shapes[0]:
                raise DataError(
                    f"{path} and {self.paths[0]} have rows of different kinds: give files of one data set."
                )
        prefix = "packed_" if self.packed else ""
        self.sequence_length = shapes[0][prefix + "input_ids"][0]
        self.masked_positions = shapes[0][prefix + "masked_lm_ids"][0]
        self.max_sequences_per_pack = shapes[0][prefix + "next_sentence_labels"][0]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_maps": [None] * len(self.paths)}

    def batch(self, names: Union[np.ndarray, Sequence[int]]) -> PretrainBatch:
        """The batch of the named samples, [B] integers `epoch * len(self) + row`.

        Raises DataError: a record is damaged, or has a token id outside the model's vocabulary.
        """
        examples = self._features(np.asarray(names, np.int64) % len(self))
        features = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
        arrays = _packed_batch(features) if self.packed else _plain_batch(features)
        self._check_tokens(max(int(arrays[0].max()), int(arrays[5].max())))
        return PretrainBatch(*(torch.from_numpy(np.ascontiguousarray(array, np.int32)) for array in arrays))

    def __getitems__(self, names: List[int]) -> PretrainBatch:
        return self.batch(names)

    def __getitem__(self, name: int) -> PretrainBatch:
        return PretrainBatch(*(field[0] for field in self.batch([name])))

    def _check_tokens(self, highest: int) -> None:
        if highest >= self.vocab_size:
            raise DataError(
                f"{self.paths[0]} or a file beside it holds the token id {highest:,}; the model has "
                f"{self.vocab_size:,} embeddings, for ids from 0. Set model.vocab_size to that of the "
                "vocabulary these files were made with."
            )

    def _features(self, indices: np.ndarray) -> List[Dict[str, np.ndarray]]:
        files = np.searchsorted(self._ends, indices, side="right")
        places = [
            (int(file), *self._places[file][index - (self._ends[file] - len(self._places[file]))].tolist())
            for file, index in zip(files, indices)
        ]
        records = [self._map(file)[offset : offset + size] for file, offset, size in places]
        messages = [record[_HEADER.size : -_FOOTER_BYTES] for record in records]
        stored = [int.from_bytes(record[-_FOOTER_BYTES:], "little") for record in records]
        damaged = np.flatnonzero(_masked_crc32c(messages) != np.array(stored, np.uint32))
        if damaged.size:
            file, offset, size = places[damaged[0]]
            raise DataError(
                f"{self.paths[file]}: the record at bytes {offset} to {offset + size - 1} does not match its "
                "checksum: the file is damaged. Copy it again."
            )
        return [parse_example(message) for message in messages]

    def _map(self, file: int) -> mmap.mmap:
        if self._maps[file] is None:
            with open(self.paths[file], "rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        mapped: mmap.mmap = self._maps[file]
        return mapped


def _plain_batch(features: Dict[str, np.ndarray]) -> Tuple[np.ndarray, ...]:
    used = features["masked_lm_weights"] > 0
    token_type_ids = features["segment_ids"]
    columns = np.arange(token_type_ids.shape[1])
    return (
        features["input_ids"],
        features["input_mask"],
        token_type_ids,
        columns * features["input_mask"],
        features["masked_lm_positions"] * used,
        np.where(used, features["masked_lm_ids"], IGNORED_LABEL),
        np.zeros_like(features["next_sentence_labels"]),
        features["next_sentence_labels"],
    )


def _packed_batch(features: Dict[str, np.ndarray]) -> Tuple[np.ndarray, ...]:
    used = features["packed_masked_lm_mask"] > 0
    # The k-th sequence's slot is the k-th from the end; ours is the k-th.
    present = features["packed_next_sentence_mask"][:, ::-1] > 0
    length = features["packed_input_ids"].shape[1]
    cls = length - 1 - np.arange(present.shape[1])
    return (
        features["packed_input_ids"],
        features["packed_input_mask"],
        features["packed_segment_ids"],
        features["packed_position_ids"],
        features["packed_masked_lm_positions"] * used,
        np.where(used, features["packed_masked_lm_ids"], IGNORED_LABEL),
        cls * present,
        np.where(present, features["packed_next_sentence_labels"][:, ::-1], IGNORED_LABEL),
    )
