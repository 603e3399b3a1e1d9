"""What the user names as input, cut into pieces of whole articles.

Inputs may be a Wikipedia dump (.xml, .xml.bz2, multistream or not), WikiExtractor's output (a folder, a file
or an archive of `<doc ...>` elements), or plain text (one paragraph a line, a blank line between documents).
All may be compressed (.gz, .bz2, .xz) or packed in a .tar.  Every input becomes one stream of bytes, read
once and forgotten; it is cut at the first end of an article after PIECE_BYTES.  Where the cuts are depends on
the input alone, so pieces can be worked on by any number of processes, in any order, again after a kill.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bert_ipu.errors import DataError

PIECE_BYTES = 1 << 20
_READ_BYTES = 1 << 18
MAX_DOCUMENT_BYTES = 64 << 20
"""Longest run of input without an end of an article; more is no text, and would fill the memory."""

DUMP, EXTRACTED, PLAIN = "dump", "extracted", "plain"
_ARTICLE_ENDS = {DUMP: b"</page>", EXTRACTED: b"</doc>", PLAIN: b"\n\n"}
_OPENERS: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"BZh": bz2.BZ2File,
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""By the first bytes of a file, which tell more than its name."""
_BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError)


class Piece(NamedTuple):
    """Whole articles of one input, about PIECE_BYTES of them."""

    number: int
    name: str
    kind: str
    content: bytes


class Reader:
    """Cuts inputs into pieces and counts the bytes of the files it has read, for the progress bar."""

    def __init__(self, inputs: list[Path]) -> None:
        """Raises DataError: an input is missing or empty."""
        self.files = [file for path in inputs for file in _files(path)]
        self.total_bytes = sum(file.stat().st_size for file in self.files)
        self._finished_bytes = 0
        self._open: BufferedReader | None = None

    @property
    def read_bytes(self) -> int:
        """Bytes on disk read so far."""
        return self._finished_bytes + (self._open.tell() if self._open and not self._open.closed else 0)

    def pieces(self) -> Iterator[Piece]:
        """All pieces, numbered from 0.

        Raises DataError: an input is damaged or cut short, or no text.
        """
        number = 0
        for file in self.files:
            try:
                for name, stream in self._streams(file):
                    for content, kind in _cut(stream, name):
                        yield Piece(number, name, kind, content)
                        number += 1
            except _BROKEN as error:
                raise DataError(
                    f"{file} is damaged or cut short: {error}. "
                    "Download it again and compare its checksum with the published one."
                ) from error
            self._finished_bytes += file.stat().st_size
            self._open = None

    def _streams(self, path: Path) -> Iterator[tuple[str, BinaryIO]]:
        """Uncompressed contents of a file, one for each member of an archive."""
        with open(path, "rb") as self._open:
            if ".tar" not in path.suffixes and path.suffix not in (".tgz", ".tbz2", ".txz"):
                head = self._open.peek(8)
                opener = next((open_ for magic, open_ in _OPENERS.items() if head.startswith(magic)), None)
                yield str(path), opener(self._open) if opener else self._open
                return
            with tarfile.open(fileobj=self._open, mode="r|*") as archive:
                for member in archive:
                    if member.isfile() and (content := archive.extractfile(member)):
                        yield f"{path}:{member.name}", content


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(
            f"There is no input {path}. Name dumps, WikiExtractor folders or archives, or text files."
        )
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not any(file.stat().st_size for file in files):
        raise DataError(f"The input {path} is empty. Name a file or folder that holds text.")
    return files


def _kind(head: bytes, name: str) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith((b"<mediawiki", b"<page>")):
        return DUMP
    if start.startswith(b"<doc "):
        return EXTRACTED
    if start.startswith((b"<?xml", b"<")) and b"<mediawiki" not in head:
        raise DataError(
            f"{name} is XML, but no MediaWiki dump: it starts with {start[:40]!r}. "
            "Give a pages-articles dump, WikiExtractor output or plain text."
        )
    return DUMP if b"<mediawiki" in head else PLAIN


def _cut(stream: BinaryIO, name: str) -> Iterator[tuple[bytes, str]]:
    kept = bytearray(stream.read(_READ_BYTES))
    if not kept.strip():
        return
    kind = _kind(bytes(kept), name)
    mark = b"\r\n\r\n" if kind == PLAIN and b"\r\n" in kept else _ARTICLE_ENDS[kind]
    searched = PIECE_BYTES
    while block := stream.read(_READ_BYTES):
        kept += block
        if len(kept) < PIECE_BYTES:
            continue
        end = kept.find(mark, searched - len(mark)) + len(mark)
        if end >= len(mark):
            yield bytes(kept[:end]), kind
            del kept[:end]
            searched = PIECE_BYTES
        else:
            searched = len(kept)
        if len(kept) > MAX_DOCUMENT_BYTES:
            raise DataError(
                f"{name} has {len(kept):,} bytes without an end of an article ({mark!r}); at most "
                f"{MAX_DOCUMENT_BYTES:,} are allowed. Put blank lines between the documents of plain text."
            )
    if kind == DUMP and not kept.rstrip().endswith(b"</mediawiki>"):
        raise DataError(
            f"{name} ends in the middle: a dump ends with </mediawiki>. Download it again and compare its "
            "checksum with the published one."
        )
    if kept.strip():
        yield bytes(kept), kind
