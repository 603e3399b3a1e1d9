"""Makes data/sample/vocab.txt: trains a small WordPiece vocabulary on the sample corpus and its questions.

    python data/make_sample_vocab.py

The trainer of the `tokenizers` library breaks ties at random, so a second run gives a slightly
different vocabulary, as good as the first: run it only when the sample's text has changed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

SAMPLE = Path(__file__).parent / "sample"
VOCAB_SIZE = 2560
"""A multiple of 512, so that every usual embedding_serialization_factor divides it."""

# Where bert-base-uncased has them; its first hundred ids are [PAD] and unused ones too.
RESERVED = ["[PAD]", *(f"[unused{index}]" for index in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def sample_texts(sample: Path) -> Iterator[str]:
    """Every paragraph of the corpus and every question asked about it."""
    yield from (sample / "corpus.txt").read_text(encoding="utf-8").splitlines()
    for article in json.loads((sample / "qa.json").read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            yield from (question["question"] for question in paragraph["qas"])


def train_vocab(texts: Iterator[str], vocab_size: int) -> list[str]:
    """The tokens of a WordPiece vocabulary, in the order of their ids."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=RESERVED, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    learned = sorted(set(tokenizer.get_vocab()) - set(RESERVED))
    return RESERVED + learned


def main() -> None:
    tokens = train_vocab(sample_texts(SAMPLE), VOCAB_SIZE)
    unfinished = SAMPLE / "vocab.txt.tmp"
    unfinished.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    os.replace(unfinished, SAMPLE / "vocab.txt")
    print(f"{len(tokens):,} tokens written to {SAMPLE / 'vocab.txt'}")


if __name__ == "__main__":
    main()
