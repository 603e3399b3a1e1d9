from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from bert_ipu.errors import DataError
from bert_ipu.tokenizer import SPECIAL_TOKENS, load_tokenizer, special_tokens

SAMPLE = Path(__file__).parents[1] / "data" / "sample"


def write_vocab(path: Path, tokens: list[str]) -> Path:
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    return path


def test_all_reference_strings_give_the_reference_ids(shared_data: Path) -> None:
    model = shared_data / "models" / "all-MiniLM-L6-v2"
    tokenizer = load_tokenizer(model / "vocab.txt")
    with gzip.open(model / "wordpiece_reference.jsonl.gz", "rt", encoding="utf-8") as lines:
        expected = [json.loads(line) for line in lines]
    encodings = tokenizer.encode_batch([case["text"] for case in expected])
    pairs = zip(expected, encodings, strict=True)
    wrong = [case["text"] for case, encoding in pairs if case["ids"] != encoding.ids]
    assert len(expected) == 2500
    assert not wrong, f"{len(wrong)} strings differ, the first is {wrong[0]!r}"


def test_special_tokens_of_bert_stand_at_their_usual_places(shared_data: Path) -> None:
    for vocab in (SAMPLE / "vocab.txt", shared_data / "models" / "all-MiniLM-L6-v2" / "vocab.txt"):
        assert special_tokens(load_tokenizer(vocab)) == (0, 100, 101, 102, 103)


def test_the_sample_vocabulary_writes_the_sample_corpus_without_unknown_tokens() -> None:
    tokenizer = load_tokenizer(SAMPLE / "vocab.txt")
    corpus = tokenizer.encode((SAMPLE / "corpus.txt").read_text(encoding="utf-8"))
    assert special_tokens(tokenizer).unk not in corpus.ids
    assert tokenizer.get_vocab_size() == 2560


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "is empty"),
        (["[PAD]", "[UNK]", "[CLS]", "a"], r"lacks \[SEP\], \[MASK\]"),
        ([*SPECIAL_TOKENS, "a", "b", "a"], r"'a' twice, on lines 6 and 8"),
    ],
)
def test_a_broken_vocabulary_is_named(tmp_path: Path, tokens: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_tokenizer(write_vocab(tmp_path / "vocab.txt", tokens))


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no vocabulary"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_a_binary_file_is_no_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\x00[PAD]")
    with pytest.raises(DataError, match="UTF-8"):
        load_tokenizer(tmp_path / "vocab.txt")


def test_a_vocabulary_must_not_be_larger_than_the_model(tmp_path: Path) -> None:
    vocab = write_vocab(tmp_path / "vocab.txt", [*SPECIAL_TOKENS, "a", "b"])
    load_tokenizer(vocab, vocab_size=8)
    with pytest.raises(DataError, match="has 7 tokens, the model has 6 embeddings"):
        load_tokenizer(vocab, vocab_size=6)
