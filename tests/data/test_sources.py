"""Inputs of all kinds become the same pieces, and damaged ones are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import pytest
from articles import articles
from sources import Piece, Reader

from bert_ipu.errors import DataError

PAGE = (
    "<page><title>{0}</title><ns>0</ns><revision><text>Article {0} has some words. "
    + "More. " * 50
    + "</text></revision></page>\n"
)
DUMP = ("<mediawiki>\n" + "".join(PAGE.format(number) for number in range(200)) + "</mediawiki>\n").encode()
EXTRACTED = "".join(
    f'<doc id="{n}" url="u" title="T{n}">\nT{n}\n\n'
    + f"Article {n} has some words &amp; signs.\nHistory.\n</doc>\n"
    for n in range(50)
).encode()
PLAIN = "\n\n".join(f"Document {n} says this.\nIt has two paragraphs." for n in range(50)).encode()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces small enough for many cuts, and reads that end in the middle of everything."""
    monkeypatch.setattr("sources.PIECE_BYTES", 20_000)
    monkeypatch.setattr("sources._READ_BYTES", 1_003)


def read(*paths: Path) -> list[Piece]:
    return list(Reader(list(paths)).pieces())


def texts(pieces: list[Piece]) -> list[str]:
    return [paragraph for piece in pieces for paragraphs, _ in articles(piece) for paragraph in paragraphs]


def test_a_dump_is_cut_between_pages(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml"
    path.write_bytes(DUMP)
    pieces = read(path)
    assert [piece.number for piece in pieces] == list(range(5))
    assert b"".join(piece.content for piece in pieces) == DUMP
    assert all(piece.content.endswith(b"</page>") for piece in pieces[:-1])
    assert all(len(piece.content) < 20_000 + 500 + 1_003 for piece in pieces)
    assert [text.split(".")[0] for text in texts(pieces)] == [
        f"Article {n} has some words" for n in range(200)
    ]


@pytest.mark.parametrize("content", [DUMP, EXTRACTED, PLAIN])
def test_compression_and_archives_change_nothing(tmp_path: Path, content: bytes) -> None:
    multistream = bz2.compress(content[:2_000]) + bz2.compress(content[2_000:])
    files = {
        "plain": content,
        "a.bz2": bz2.compress(content),
        "multistream.bz2": multistream,
        "a.gz": gzip.compress(content),
        "a.xz": lzma.compress(content),
        "no_suffix": bz2.compress(content),
    }
    for name, stored in files.items():
        (tmp_path / name).write_bytes(stored)
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "plain", "AA/plain")
    expected = [piece.content for piece in read(tmp_path / "plain")]
    assert len(texts(read(tmp_path / "plain"))) in (50, 100, 200)
    for name in [*files, "a.tar.xz"]:
        reader = Reader([tmp_path / name])
        assert [piece.content for piece in reader.pieces()] == expected, name
        assert reader.read_bytes == reader.total_bytes


def test_plain_text_and_extracted_text_lose_headings_and_entities(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(PLAIN.replace(b"\n", b"\r\n"))
    (tmp_path / "c").write_bytes(EXTRACTED)
    found = texts(read(tmp_path))
    assert found[:2] == ["Document 0 says this.", "It has two paragraphs."]
    assert found[100:102] == ["Article 0 has some words & signs.", "Article 1 has some words & signs."]
    assert len(found) == 150


def test_an_article_of_50_mb_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sources._READ_BYTES", 1 << 18)
    huge = PAGE.format("huge").encode().replace(b"</text>", b"word " * 10_000_000 + b"</text>")
    (tmp_path / "dump.xml").write_bytes(
        b"<mediawiki>" + huge + PAGE.format("small").encode() + b"</mediawiki>"
    )
    results = [result for piece in read(tmp_path / "dump.xml") for result in articles(piece)]
    assert [discarded for _, discarded in results] == ["longer than an article can be", ""]


def cut_archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        member = tarfile.TarInfo("AA/wiki_00")
        member.size = len(EXTRACTED)
        archive.addfile(member, io.BytesIO(EXTRACTED))
    return buffer.getvalue()[:-300]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.xml", b"", "is empty"),
        ("feed.xml", b'<?xml version="1.0"?><rss></rss>', "no MediaWiki dump"),
        ("cut.xml", DUMP[:-4_000], "ends in the middle"),
        ("cut.xml.bz2", bz2.compress(DUMP)[:-500], "cut short"),
        ("wrong.xml.bz2", b"BZh9" + bytes(1000), "damaged"),
        ("cut.xml.gz", gzip.compress(DUMP)[:-500], "cut short"),
        ("cut.tar.xz", cut_archive(), "cut short"),
        ("bytes.xml", DUMP.replace(b"Article 7 ", b"Article \xe9 "), "damaged: not well-formed"),
        ("page.xml.bz2", b"<!DOCTYPE html><html>404</html>", "no MediaWiki dump"),
        ("latin.txt", "Ein Café.".encode("latin1"), "not in UTF-8: byte 0xe9 in line 1"),
        ("endless.txt", b"word " * 60_000, "blank lines"),
    ],
)
def test_damaged_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.setattr("sources.MAX_DOCUMENT_BYTES", 200_000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts(read(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no input"):
        Reader([tmp_path / "nothing"])
