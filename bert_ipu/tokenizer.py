"""WordPiece: text to the token ids of a BERT vocabulary, by the `tokenizers` library.

BERT's tokenizer has three parts, each one object of the library: a normaliser (drop control
characters, put spaces round Chinese characters, lower-case, strip accents), a pre-tokenizer
(split at white space and punctuation) and WordPiece (greedy longest match in the vocabulary;
what follows the first piece of a word starts with `##`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from bert_ipu.errors import DataError

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
"""Hugging Face's file beside a vocabulary, which says whether its words are lower-cased."""
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class SpecialTokens(NamedTuple):
    """Ids of BERT's special tokens in one vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int


def load_tokenizer(
    vocab_file: Path, vocab_size: Optional[int] = None, lowercase: Optional[bool] = None
) -> Tokenizer:
    """The WordPiece tokenizer of a `vocab.txt` (one token a line, its id is its line number from 0).

    `vocab_size` is the number of rows of the model's word embedding, where there is a model.  Without
    `lowercase`, the file beside the vocabulary says whether text is lower-cased (`lower_cases`).
    The tokenizer adds no special tokens by itself; `special_tokens` gives their ids.

    Raises DataError: the file is missing, empty, not UTF-8, names a token twice, lacks a special
    token, or has more tokens than the model has embeddings.
    """
    vocab = read_vocab(vocab_file)
    if vocab_size is not None and len(vocab) > vocab_size:
        raise DataError(
            f"{vocab_file} has {len(vocab):,} tokens, the model has {vocab_size:,} embeddings "
            f"(model.vocab_size). It needs one for each token: set model.vocab_size to {len(vocab)} or more, "
            "or take the vocabulary the model was trained with."
        )
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    lowercase = lower_cases(vocab_file) if lowercase is None else lowercase
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK] in a tokenizer made by `load_tokenizer`."""
    vocab = tokenizer.get_vocab()
    return SpecialTokens(*(vocab[token] for token in SPECIAL_TOKENS))


def lower_cases(vocab_file: Path) -> bool:
    """Whether a vocabulary is of lower-cased words, as BERT's is where no tokenizer_config.json says otherwise.

    Raises DataError: that file is damaged.
    """
    path = Path(vocab_file).with_name(TOKENIZER_CONFIG_NAME)
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("do_lower_case", True))
    except FileNotFoundError:
        return True
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Fetch it again, or write {{\"do_lower_case\": true}} into it, "
            "false for a vocabulary that keeps upper case."
        ) from error


def read_vocab(vocab_file: Path) -> Dict[str, int]:
    """Token to id of a `vocab.txt`; raises DataError like `load_tokenizer`."""
    try:
        text = Path(vocab_file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"There is no vocabulary {vocab_file}. It is the vocab.txt of a BERT checkpoint, "
            "one token a line; data/sample/vocab.txt is a small one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{vocab_file} cannot be read as a vocabulary: {error}. "
            "It must be a UTF-8 text file with one token a line."
        ) from error
    # str.splitlines would also split at characters that are tokens in multilingual vocabularies.
    lines = text.split("\n")
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    vocab = {token: index for index, token in enumerate(tokens)}
    _check_vocab(vocab_file, tokens, vocab)
    return vocab


def _check_vocab(vocab_file: Path, tokens: List[str], vocab: Dict[str, int]) -> None:
    if not tokens:
        raise DataError(f"{vocab_file} is empty. A vocabulary has one token a line.")
    if len(vocab) < len(tokens):
        line = next(index for index, token in enumerate(tokens) if vocab[token] != index)
        raise DataError(
            f"{vocab_file} names the token {tokens[line]!r} twice, on lines {line + 1} and "
            f"{vocab[tokens[line]] + 1}. A token's line is its id, so each may stand once: remove one."
        )
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise DataError(
            f"{vocab_file} lacks {', '.join(missing)}. A BERT vocabulary has {', '.join(SPECIAL_TOKENS)}, "
            "each on a line of its own: add what is missing, or take another vocabulary."
        )
