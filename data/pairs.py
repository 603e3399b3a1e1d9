"""Documents to BERT's training sequences: `[CLS] first [SEP] second [SEP]`.

The rule is BERT's (Devlin et al., 2019, appendix A.2; google-research/bert, create_pretraining_data.py):
sentences are gathered up to the wanted length and split in two at a random place; in half of the cases the
second part is replaced by text of another document, and the replaced sentences go back to be used next.  One
sequence in ten is made short on purpose.  Token ids travel as bytes, one item of `dtype` each.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SHORT_SEQUENCE_SHARE = 0.1
SPECIAL_TOKENS_PER_SEQUENCE = 3

Document = list[bytes]
"""Sentences, each as the bytes of its token ids."""


class Sequences(NamedTuple):
    """Training sequences one after the other, without [CLS] and [SEP]."""

    token_ids: np.ndarray
    """[total] integers."""
    first_lengths: np.ndarray
    """[n] uint16: tokens of the first part."""
    second_lengths: np.ndarray
    """[n] uint16."""
    next_sentence_labels: np.ndarray
    """[n] uint8: 1 where the second part is from another document."""


def make_sequences(documents: list[Document], sequence_length: int, dtype: str, seed: str) -> Sequences:
    """Sequences of at most `sequence_length` tokens, special ones included, from one piece of input.

    Random second parts come from the other documents of the piece; where it has one document only, from that.
    """
    generator = random.Random(seed)
    item = np.dtype(dtype).itemsize
    longest = (sequence_length - SPECIAL_TOKENS_PER_SEQUENCE) * item
    documents = [
        [part for sentence in document for part in _cut(sentence, longest)] for document in documents
    ]
    documents = [document for document in documents if document]
    pairs = [
        pair
        for number in range(len(documents))
        for pair in _pairs(documents, number, longest, item, generator)
    ]
    return Sequences(
        np.frombuffer(b"".join(part for first, second, _ in pairs for part in (first, second)), dtype),
        np.array([len(first) // item for first, _, _ in pairs], np.uint16),
        np.array([len(second) // item for _, second, _ in pairs], np.uint16),
        np.array([is_random for _, _, is_random in pairs], np.uint8),
    )


def _cut(sentence: bytes, longest: int) -> list[bytes]:
    """A sentence in parts that fit a sequence; none if it is empty."""
    return [sentence[start : start + longest] for start in range(0, len(sentence), longest)]


def _pairs(
    documents: list[Document], number: int, longest: int, item: int, generator: random.Random
) -> Iterator[tuple[bytes, bytes, bool]]:
    document = documents[number]
    target = _target(longest, item, generator)
    start = 0
    while start < len(document):
        end, gathered = start, 0
        while end < len(document) and gathered < target:
            gathered += len(document[end])
            end += 1
        first_end = generator.randrange(start + 1, end) if end - start >= 2 else end
        first = b"".join(document[start:first_end])
        is_random = first_end == end or generator.random() < 0.5
        if is_random:
            second = _random_text(documents, number, target - len(first), generator)
            end = first_end
        else:
            second = b"".join(document[first_end:end])
        yield *_truncated(first, second, longest, item, generator), is_random
        start = end
        target = _target(longest, item, generator)


def _target(longest: int, item: int, generator: random.Random) -> int:
    if generator.random() < SHORT_SEQUENCE_SHARE:
        return generator.randint(2, longest // item) * item
    return longest


def _random_text(documents: list[Document], number: int, wanted: int, generator: random.Random) -> bytes:
    """At least one sentence, up to `wanted` bytes, from a random place of another document."""
    other = number
    if len(documents) > 1:
        other = generator.randrange(len(documents) - 1)
        other += other >= number
    document = documents[other]
    start = end = generator.randrange(len(document))
    gathered = 0
    while end < len(document) and (end == start or gathered < wanted):
        gathered += len(document[end])
        end += 1
    return b"".join(document[start:end])


def _truncated(
    first: bytes, second: bytes, longest: int, item: int, generator: random.Random
) -> tuple[bytes, bytes]:
    """Shorten the longer part, then both alike, until they fit; a token goes from the front or the back."""
    excess = (len(first) + len(second) - longest) // item
    if excess <= 0:
        return first, second
    difference = (len(first) - len(second)) // item
    from_longer = min(excess, abs(difference))
    shared = excess - from_longer
    cut_first, cut_second = (
        shared // 2 + (difference > 0) * from_longer,
        shared // 2 + (difference < 0) * from_longer,
    )
    if shared % 2:
        cut_first, cut_second = (
            (cut_first + 1, cut_second) if generator.random() < 0.5 else (cut_first, cut_second + 1)
        )
    return _shortened(first, cut_first, item, generator), _shortened(second, cut_second, item, generator)


def _shortened(part: bytes, cut: int, item: int, generator: random.Random) -> bytes:
    # `cut` coin tosses, counted: how many of the tokens go from the front.
    front = generator.getrandbits(cut).bit_count() if cut else 0
    return part[front * item : len(part) - (cut - front) * item]
