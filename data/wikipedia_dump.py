"""A pages-articles dump: its pages as text, and which of them are articles.

The dump is XML with one `<page>` after the other (https://www.mediawiki.org/xml/export-0.11/).  It is cut
into pieces of whole pages before any parsing, so that pieces can be parsed in many processes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import NamedTuple

import wikitext

from bert_ipu.errors import DataError

PAGE_START, PAGE_END = b"<page>", b"</page>"
_ARTICLE_NAMESPACE = "0"


class Page(NamedTuple):
    """One page of a dump."""

    title: str
    paragraphs: list[str]
    discarded: str
    """Why the page gives no text; empty if it does."""


def parse_pages(xml: bytes, name: str) -> Iterator[Page]:
    """The pages in a piece of a dump; `name` is the piece's, for messages.

    Raises DataError: the piece is no XML.
    """
    start, end = xml.find(PAGE_START), xml.rfind(PAGE_END)
    if start < 0 or end < 0:
        return
    try:
        root = ElementTree.fromstring(b"<pages>" + xml[start : end + len(PAGE_END)] + b"</pages>")
    except ElementTree.ParseError as error:
        raise DataError(
            f"{name} is damaged: {error}. A dump is well-formed XML in UTF-8: download it again and compare "
            "its checksum with the one published beside it."
        ) from error
    for page in root:
        yield _page(page)


def _page(page: ElementTree.Element) -> Page:
    title = page.findtext("title") or ""
    text = page.findtext("revision/text") or ""
    discarded = ""
    if page.findtext("ns") not in (_ARTICLE_NAMESPACE, None):
        discarded = "not an article"
    elif page.find("redirect") is not None or wikitext.is_redirect(text):
        discarded = "redirect"
    elif len(text) > wikitext.MAX_ARTICLE_BYTES:
        discarded = "longer than an article can be"
    elif wikitext.is_disambiguation(title, text):
        discarded = "disambiguation"
    paragraphs = [] if discarded else wikitext.prose(text)
    if not discarded and not paragraphs:
        discarded = "no prose"
    return Page(title, paragraphs, discarded)
