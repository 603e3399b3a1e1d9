"""Sentence pairs follow BERT's rule: real text, half of the second parts random, nothing too long."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import Sequences, make_sequences


def documents(count: int, sentences: int, seed: int = 0) -> list[list[bytes]]:
    """Documents whose token ids tell where they are from: all ids differ."""
    generator = np.random.default_rng(seed)
    following = 0
    result = []
    for _ in range(count):
        document = []
        for size in generator.integers(1, 40, sentences).tolist():
            document.append(np.arange(following, following + size, dtype="<u4").tobytes())
            following += size
        result.append(document)
    return result


def parts(sequences: Sequences) -> list[tuple[np.ndarray, np.ndarray, int]]:
    sizes = np.stack([sequences.first_lengths, sequences.second_lengths], axis=1).astype(int)
    cuts = np.split(sequences.token_ids, np.cumsum(sizes.reshape(-1))[:-1])
    return list(zip(cuts[::2], cuts[1::2], sequences.next_sentence_labels.tolist()))


def test_parts_are_runs_of_text_and_labels_are_true() -> None:
    texts = documents(30, 40)
    owner = np.concatenate([[number] * (sum(map(len, text)) // 4) for number, text in enumerate(texts)])
    found = parts(make_sequences(texts, 128, "<u4", "seed"))
    for first, second, is_random in found:
        assert len(first) and len(second) and len(first) + len(second) <= 125
        for part in (first, second):
            assert len(set(owner[part])) == 1, "a part is of one document"
            assert (np.diff(part.astype(int)) == 1).all(), "a part is a run of its text"
        assert (owner[first[0]] != owner[second[0]]) == bool(is_random)
        if not is_random:
            assert first[-1] < second[0] <= first[-1] + 125, "the second part follows, truncation apart"


def test_shares_are_berts() -> None:
    sequences = make_sequences(documents(300, 60), 128, "<u4", "seed")
    count = len(sequences.first_lengths)
    assert count > 3000
    # Half, and those whose gathered text is a single sentence: that has no second part of its own.
    share = sequences.next_sentence_labels.mean()
    assert 0.48 < share < 0.60
    lengths = sequences.first_lengths.astype(int) + sequences.second_lengths
    short = (lengths < 80).mean()
    assert 0.04 < short < 0.15, "one in ten is short on purpose"
    assert (lengths == 125).mean() > 0.6


def test_all_text_is_used_once_apart_from_random_parts_and_truncation() -> None:
    texts = documents(50, 50)
    found = parts(make_sequences(texts, 128, "<u4", "seed"))
    firsts = np.concatenate([first for first, _, _ in found])
    followers = np.concatenate([second for _, second, is_random in found if not is_random])
    used = np.concatenate([firsts, followers])
    assert len(np.unique(used)) == len(used), "nothing is repeated"
    assert len(used) > 0.85 * sum(sum(map(len, text)) // 4 for text in texts)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 300), max_size=8), max_size=6),
    st.integers(16, 200),
    st.integers(0, 1000),
)
def test_any_documents_fit(sizes: list[list[int]], length: int, seed: int) -> None:
    """Empty documents, empty sentences, sentences longer than a sequence, a single document."""
    texts = [[np.arange(size, dtype="<u2").tobytes() for size in document] for document in sizes]
    sequences = make_sequences(texts, length, "<u2", str(seed))
    again = make_sequences(texts, length, "<u2", str(seed))
    assert all(np.array_equal(*pair) for pair in zip(sequences, again))
    lengths = sequences.first_lengths.astype(int) + sequences.second_lengths
    assert lengths.sum() == len(sequences.token_ids)
    assert (lengths <= length - 3).all() and (sequences.first_lengths > 0).all()
    assert (sequences.second_lengths > 0).all()
    assert len(lengths) > 0 or not any(size for document in sizes for size in document)
