"""The encoder gives what the tokenizer gives, the splitter what blingfire gives."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import blingfire
import numpy as np
from sentences import SentenceEncoder, SentenceSplitter

from bert_ipu.tokenizer import load_tokenizer

SAMPLE = Path(__file__).parents[2] / "data/sample"


def test_the_reference_strings_are_encoded_alike(shared_data: Path) -> None:
    """Oracle: ids by the `tokenizers` library's own BERT tokenizer, in the reference file."""
    models = shared_data / "models/all-MiniLM-L6-v2"
    encoder = SentenceEncoder(models / "vocab.txt")
    with gzip.open(models / "wordpiece_reference.jsonl.gz", "rt") as file:
        cases = [json.loads(line) for line in file]
    assert len(cases) == 2500
    for case in cases:
        text, ids = (case[key] for key in ("text", "ids"))
        assert np.frombuffer(encoder.encode(text), encoder.dtype).tolist() == ids, text


def test_odd_characters_are_encoded_alike() -> None:
    vocab = SAMPLE / "vocab.txt"
    encoder, tokenizer = SentenceEncoder(vocab), load_tokenizer(vocab)
    for text in (
        "a\x1cb",
        "x\x85y",
        "e\u0301a",
        "\u200bzero",
        "a-b_c.d/e(f)",
        "don't",
        "中文字",
        "x" * 150,
        "",
        " ",
    ):
        assert np.frombuffer(encoder.encode(text), encoder.dtype).tolist() == tokenizer.encode(text).ids, (
            repr(text)
        )


def test_special_tokens_in_text_are_text() -> None:
    encoder = SentenceEncoder(SAMPLE / "vocab.txt")
    mask = load_tokenizer(SAMPLE / "vocab.txt").token_to_id("[MASK]")
    assert mask not in np.frombuffer(encoder.encode("a [MASK] b [SEP]"), encoder.dtype)


def test_the_dictionary_stays_bounded(monkeypatch) -> None:
    monkeypatch.setattr("sentences._MAX_CACHED_WORDS", 50)
    encoder = SentenceEncoder(SAMPLE / "vocab.txt")
    before = encoder.encode("the first words")
    for number in range(500):
        encoder.encode(f"word{number} x")
    assert len(encoder._words) <= 60 and encoder.encode("the first words") == before


def test_sentences_are_blingfires() -> None:
    splitter = SentenceSplitter()
    paragraphs = (SAMPLE / "corpus.txt").read_text().split("\n") + [
        "",
        "One. Two? Three!",
        "é" * 70_000 + ". End.",
        "x\0y. Z.",
    ]
    for paragraph in paragraphs[:-1]:
        assert splitter.split(paragraph) == blingfire.text_to_sentences(paragraph).split("\n")
    assert "".join(splitter.split("Dr. Smith went home. He slept.")) == "Dr. Smith went home.He slept."


def test_a_line_of_megabytes_is_cut_between_words() -> None:
    words = [f"word{number}" for number in range(40_000)]
    for paragraph in (" ".join(words), " ".join(words) + " " + "x" * 300_000):
        sentences = SentenceSplitter().split(paragraph)
        assert max(map(len, sentences)) <= 1 << 18
        assert "".join(" ".join(sentences).split()) == "".join(paragraph.split())
        assert set(words) <= set(" ".join(sentences).split())
