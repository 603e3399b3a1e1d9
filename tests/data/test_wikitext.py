"""Wikitext to prose: constructs one by one, and a real dump as a whole."""

from __future__ import annotations

import bz2
import re
from pathlib import Path

import pytest
from wikipedia_dump import parse_pages
from wikitext import is_disambiguation, is_redirect, prose

from bert_ipu.errors import DataError

_MARKUP = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?\w|''|={2,}|&[a-z]+;|__[A-Z]+__|\|\||^\s*[|!*#;:]")


@pytest.mark.parametrize(
    ("wikitext", "expected"),
    [
        ("'''Bold''' and ''italic'' words.", ["Bold and italic words."]),
        ("A [[cat]] is no [[Dog (animal)|dog]].", ["A cat is no dog."]),
        ("Two [[cat]]s.<ref name=\"a > b\">{{cite|x}} [[no]]</ref> End<ref name=b />.", ["Two cats. End."]),
        ("It<!-- not\n this --> goes on.", ["It goes on."]),
        ("It runs {{convert|5|to|7|km|mi}} and {{convert|3|m}}.", ["It runs 5 to 7 km and 3 m."]),
        ("Called {{lang|fr|la [[mer]]}} ({{IPA-fr|la mɛʁ|}}).", ["Called la mer."]),
        ("{{Infobox city|name=X|motto={{lang|la|pax}}}}\nIt is a city.", ["It is a city."]),
        ("{{quote|A wise word.|Author}}", ["A wise word."]),
        ("{{Unknown|with [[link]]}}Kept.", ["Kept."]),
        ("[[File:a.png|thumb|A ''caption'' with [[link]].]]Text.", ["Text."]),
        ("Text.\n[[Category:Things]]\n[[de:Ding]]", ["Text."]),
        ("See [http://a.b the site] or http://c.d now.", ["See the site or now."]),
        (
            "== History ==\nOnce upon.\n== References ==\n* A book.\nA note.\n== Later ==\nNow.",
            ["Once upon.", "Now."],
        ),
        ("{| class=x\n|-\n| cell with words || more\n|}\nAfter.", ["After."]),
        ("* item\n# item\n: quoted\nText.", ["Text."]),
        (
            "* This item is a whole sentence of many words, so it is kept too.",
            ["This item is a whole sentence of many words, so it is kept too."],
        ),
        ("A&nbsp;b &amp; c&mdash;d.", ["A b & c—d."]),
        ("One<br />two<sub>2</sub> <span style='x'>three</span>.", ["One two2 three."]),
        ("Born (; 3 May) here ( , ) .", ["Born (3 May) here."]),
        ("__NOTOC__\nText with <math>x^2</math> in it.", ["Text with in it."]),
        ("Broken {{template and [[link.\n\nWhole.", ["Whole."]),
        ("", []),
    ],
)  # fmt: skip
def test_constructs(wikitext: str, expected: list[str]) -> None:
    assert prose(wikitext) == expected


def test_pages_that_are_no_articles() -> None:
    assert is_redirect("#REDIRECT [[X]]") and is_redirect(" #redirect[[X]]") and not is_redirect("# list")
    assert is_disambiguation("Mercury (disambiguation)", "") and is_disambiguation(
        "A", "x {{disambiguation|geo}}"
    )
    assert is_disambiguation("A", "{{dab}}") and not is_disambiguation("A", "{{about|x}} {{distinguish|y}}")


@pytest.fixture(scope="module")
def small_dump(shared_data: Path) -> bytes:
    return bz2.decompress(
        (shared_data / "wikipedia/enwiki-pages-articles-sample-3pages.xml.bz2").read_bytes()
    )


def test_a_real_dump_gives_prose_without_markup(small_dump: bytes) -> None:
    pages = list(parse_pages(small_dump, "dump"))
    paragraphs = [paragraph for page in pages for paragraph in page.paragraphs]
    assert len(pages) == 3 and sum(map(len, paragraphs)) > 20_000
    assert not [paragraph for paragraph in paragraphs if _MARKUP.search(paragraph)]
    ends = sum(paragraph.rstrip("\"”')")[-1] in ".!?:" for paragraph in paragraphs)
    assert ends > 0.95 * len(paragraphs), "paragraphs are whole"


def test_reasons_are_given_for_what_is_left_out() -> None:
    page = "<page><title>{}</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"
    xml = "".join(
        (
            page.format("A", 0, "", "Some prose here."),
            page.format("B", 0, '<redirect title="A"/>', "#REDIRECT [[A]]"),
            page.format("Talk:A", 1, "", "Talk."),
            page.format("C", 0, "", "x {{disambig}}"),
            page.format("D", 0, "", "{{infobox}}"),
            page.format("E", 0, "", "word " * 1_000_000),
            page.format("F", 0, "", ""),
        )
    )
    found = {page.title: page.discarded for page in parse_pages(xml.encode(), "dump")}
    assert found == {
        "A": "", "B": "redirect", "Talk:A": "not an article", "C": "disambiguation", "D": "no prose",
        "E": "longer than an article can be", "F": "no prose",
    }  # fmt: skip


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"<b>", b"&nosuch;"])
def test_damaged_xml_is_named(damage: bytes) -> None:
    with pytest.raises(DataError, match=r"enwiki\.xml is damaged"):
        list(parse_pages(b"<page><title>A" + damage + b"</title></page>", "enwiki.xml"))
