"""Prose to sentences, and sentences to token ids.

Sentences are found by blingfire (14 MB of text per CPU-second; punkt reads 4, syntok 1.2).
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import blingfire
from tokenizers import Tokenizer

from bert_ipu.tokenizer import load_tokenizer

# Control characters that Python takes for white space and BERT's tokenizer removes.
_NO_SPACE = re.compile("[\x1c-\x1f\x85]")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_MAX_CACHED_WORDS = 250_000
_LONGEST_PARAGRAPH = 1 << 18
"""Characters; whatever is longer is cut between words, or a line of 50 MB would take 2 GB of memory."""
_PARAGRAPH_PARTS = re.compile(rf".{{1,{_LONGEST_PARAGRAPH}}}(?!\S)|.{{{_LONGEST_PARAGRAPH}}}", re.DOTALL)


class SentenceSplitter:
    """Cuts paragraphs into sentences.

    It calls the library behind `blingfire.text_to_sentences` with one buffer for all calls; that function
    makes a new one each time, which doubles its cost on paragraphs.
    """

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(1 << 16)

    def split(self, paragraph: str) -> list[str]:
        """The sentences of a paragraph."""
        if len(paragraph) <= _LONGEST_PARAGRAPH:
            return self._split(paragraph)
        return [sentence for part in _PARAGRAPH_PARTS.findall(paragraph) for sentence in self._split(part)]

    def _split(self, paragraph: str) -> list[str]:
        text = paragraph.encode()
        if len(self._buffer) < 2 * len(text):
            self._buffer = ctypes.create_string_buffer(4 * len(text))
        size = blingfire.blingfire.TextToSentences(text, len(text), self._buffer, len(self._buffer))
        # The size counts a closing zero; -1 says that the library cannot read the text.
        return ctypes.string_at(self._buffer, size - 1).decode().split("\n") if size > 0 else [paragraph]


class SentenceEncoder:
    """Sentences to token ids, packed as bytes of 2 (or, for large vocabularies, 4) per id.

    BERT's tokenizer treats each run of characters between white space or punctuation on its own, so its
    result for a sentence is the joined results for these runs.  Few of them are new: kept in a dictionary,
    they make tokenising two (new text) to five times (known words) as fast as `tokenizers` alone.  The
    dictionary is emptied when it is full, so memory is bounded.
    """

    def __init__(self, vocab_file: Path, lowercase: bool = True) -> None:
        tokenizer = load_tokenizer(vocab_file, lowercase=lowercase)
        # Text that happens to hold "[SEP]" is text.
        tokenizer.encode_special_tokens = True
        self.dtype = "<u2" if tokenizer.get_vocab_size() <= 1 << 16 else "<u4"
        self._words = _Words(tokenizer, lowercase, int(self.dtype[-1]))

    def encode(self, sentence: str) -> bytes:
        """The ids of a sentence, without special tokens."""
        if len(self._words) > _MAX_CACHED_WORDS:
            self._words.clear()
        return b"".join(map(self._words.__getitem__, _NO_SPACE.sub("", sentence).split()))


class _Words(dict[str, bytes]):
    def __init__(self, tokenizer: Tokenizer, lowercase: bool, id_bytes: int) -> None:
        super().__init__()
        self._tokenizer, self._word_piece = tokenizer, tokenizer.model
        self._lowercase, self._id_bytes = lowercase, id_bytes

    def __missing__(self, word: str) -> bytes:
        runs = _PUNCTUATION.split(word)
        if len(word) > 1 and len(runs) > 1:
            value = b"".join(self[run] for run in runs if run)
        else:
            value = b"".join(number.to_bytes(self._id_bytes, "little") for number in self._ids(word))
        self[word] = value
        return value

    def _ids(self, word: str) -> list[int]:
        if word.isascii() and word.isalnum():
            # Nothing to normalise but case: WordPiece itself takes a fourth of the whole tokenizer's time.
            pieces = self._word_piece.tokenize(word.lower() if self._lowercase else word)
            return [piece.id for piece in pieces]
        return self._tokenizer.encode(word, add_special_tokens=False).ids
