"""Articles in a piece of input, whatever its kind: lists of paragraphs, or why there are none."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import sources
import wikipedia_dump

from bert_ipu.errors import DataError

_DOCUMENT = re.compile(r"<doc [^>]*>\n?(.*?)</doc>", re.DOTALL)
_MIN_PARAGRAPH_WORDS = 4
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def articles(piece: sources.Piece) -> Iterator[tuple[list[str], str]]:
    """(paragraphs, why there are none) of every article of a piece.

    Raises DataError: the piece is not in UTF-8, or not the XML it should be.
    """
    if piece.kind == sources.DUMP:
        for page in wikipedia_dump.parse_pages(piece.content, piece.name):
            yield page.paragraphs, page.discarded
        return
    text = _decoded(piece)
    if piece.kind == sources.EXTRACTED:
        for match in _DOCUMENT.finditer(text):
            # The first line repeats the title; lines of few words are headings ("History.").
            lines = html.unescape(_TAG.sub("", match.group(1))).split("\n")[1:]
            yield _result([line for line in lines if line.count(" ") >= _MIN_PARAGRAPH_WORDS - 1])
    else:
        for document in re.split(r"\n\s*\n", text):
            if document.strip():
                yield _result([line.strip() for line in document.split("\n")])


def _result(paragraphs: list[str]) -> tuple[list[str], str]:
    paragraphs = [paragraph for paragraph in paragraphs if paragraph]
    return paragraphs, "" if paragraphs else "no prose"


def _decoded(piece: sources.Piece) -> str:
    try:
        return piece.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = piece.content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{piece.name} is not in UTF-8: byte {piece.content[error.start]:#04x} in line {line} of piece "
            f"{piece.number} (of about 1 MB). Convert it, for example with `iconv -f latin1 -t utf-8`."
        ) from error
