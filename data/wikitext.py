"""Wikitext to prose: what a reader of the article would read aloud.

mwparserfromhell parses; this module decides what of the tree is prose.  Kept: paragraphs, link labels,
quotations, units and words in other languages.  Dropped: templates that show no sentence (infoboxes, notices,
references), tables, list items that are no sentences, headings, images, and sections that hold references or
links only.

Before parsing goes what MediaWiki itself takes out before it parses (comments, and extension tags such as
<ref>, which do not nest), the link sections, and the brackets of plain links.  The parser spends most of its
time there: without it reads 1.1 MB of XML per CPU-second, with it 4 times as much, to the same text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import mwparserfromhell
from mwparserfromhell.nodes import (
    Argument,
    Comment,
    ExternalLink,
    Heading,
    HTMLEntity,
    Node,
    Tag,
    Template,
    Text,
    Wikilink,
)
from mwparserfromhell.wikicode import Wikicode

MAX_ARTICLE_BYTES = 4 << 20
"""Twice MediaWiki's own limit ($wgMaxArticleSize, 2 MiB): whatever is longer is no article."""

_EXTENSION_TAGS = (
    "ref|references|math|chem|gallery|timeline|score|syntaxhighlight|source|imagemap|hiero|pre|code|graph|"
    "templatedata|templatestyles|mapframe|maplink|includeonly|noinclude"
)
_OPAQUE = re.compile(
    rf"<!--.*?(?:-->|\Z)|<({_EXTENSION_TAGS})\b(?:[^<>\"]|\"[^\"]*\")*?(?:/\s*>|>.*?</\1\s*>)",
    re.DOTALL | re.IGNORECASE,
)
_LINK_SECTIONS = re.compile(
    r"^==[ \t]*(?:references?|external links?|see also|further reading|(?:foot)?notes?|bibliography|sources|"
    r"citations|notes and references|references and notes|gallery|works cited|literature|publications|"
    r"discography|filmography)[ \t]*==[ \t]*$.*?(?=^==[^=]|\Z)",
    re.DOTALL | re.IGNORECASE | re.MULTILINE,
)
_PLAIN_LINK = re.compile(r"\[\[(?:[^][{}|<>:\n]+\|)?([^][{}|<>:\n]+)\]\]")
_MAGIC_WORDS = re.compile(r"__[A-Z]+__")
_QUOTES = re.compile(r"'{2,}")
_NAMESPACE_LINK = re.compile(
    r"^\s*:?\s*(?:file|image|media|category|[a-z]{2,3}(?:-[a-z]+)?|simple)\s*:", re.IGNORECASE
)
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:[\w /-]*disambig\w*|dab|hndis|geodis|given name|surname|set index article|sia)\s*[|}]",
    re.IGNORECASE,
)
_REDIRECT = re.compile(r"\s*#\s*redirect\b", re.IGNORECASE)
_BROKEN_MARKUP = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?[a-zA-Z][^<>]*>|^\s*[|!]|={2,}|\[https?:|&[a-z]+;"
)
_EMPTY_BRACKETS = re.compile(r"\s*[(\[][\s,;:/–-]*[)\]]")
_BRACKET_START = re.compile(r"\(\s*(?:[,;:]\s*)+")
_SPACE_BEFORE = re.compile(r"\s+(?=[,.;:)](?:\s|$))")
_SPACES = re.compile(r"[^\S\n]+")

_LIST_MARK = "\x00"
_MIN_ITEM_WORDS = 12
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*$")
_LIST_TAGS = frozenset(("li", "dd", "dt"))
_DROPPED_TAGS = frozenset(
    f"table|tr|td|th|ul|ol|dl|hr|script|style|inputbox|section|onlyinclude|{_EXTENSION_TAGS}".split("|")
)


def prose(wikitext: str) -> list[str]:
    """The paragraphs of an article, without markup; empty for an article that has none."""
    text = _OPAQUE.sub("", wikitext)
    text = _LINK_SECTIONS.sub("", text)
    text = _PLAIN_LINK.sub(r"\1", text)
    pieces: list[str] = []
    _render(mwparserfromhell.parse(text, skip_style_tags=True).nodes, pieces)
    return [line for line in map(_tidied, "".join(pieces).split("\n")) if line]


def is_redirect(wikitext: str) -> bool:
    """Whether the page only sends readers on."""
    return _REDIRECT.match(wikitext) is not None


def is_disambiguation(title: str, wikitext: str) -> bool:
    """Whether the page only lists articles of similar names."""
    return "(disambiguation)" in title or _DISAMBIGUATION.search(wikitext) is not None


def _tidied(line: str) -> str:
    """A paragraph with the traces of dropped parts removed; empty if it is no prose."""
    if not line or _BROKEN_MARKUP.search(line):
        return ""
    if _LIST_MARK in line:
        line = line.replace(_LIST_MARK, " ").strip()
        if line.count(" ") < _MIN_ITEM_WORDS or not _SENTENCE_END.search(line):
            return ""
    line = _QUOTES.sub("", _MAGIC_WORDS.sub("", line))
    line = _BRACKET_START.sub("(", _EMPTY_BRACKETS.sub("", line))
    line = _SPACES.sub(" ", _SPACE_BEFORE.sub("", line)).strip()
    return line if any(character.isalpha() for character in line) else ""


def _render(nodes: Iterable[Node], pieces: list[str]) -> None:
    for node in nodes:
        _RENDERERS[type(node)](node, pieces)


def _text(node: Text, pieces: list[str]) -> None:
    pieces.append(node.value)


def _nothing(node: Node, pieces: list[str]) -> None:
    pass


def _heading(node: Heading, pieces: list[str]) -> None:
    pieces.append("\n")


def _entity(node: HTMLEntity, pieces: list[str]) -> None:
    try:
        character = node.normalize()
    except (ValueError, OverflowError, KeyError):
        return
    pieces.append(" " if character.isspace() else character)


def _wikilink(node: Wikilink, pieces: list[str]) -> None:
    if _NAMESPACE_LINK.match(str(node.title)):
        return
    _render((node.text or node.title).nodes, pieces)


def _external_link(node: ExternalLink, pieces: list[str]) -> None:
    if node.title is not None:
        _render(node.title.nodes, pieces)


def _tag(node: Tag, pieces: list[str]) -> None:
    name = str(node.tag).strip().lower()
    if name in _LIST_TAGS:
        pieces.append(_LIST_MARK)
    elif name == "br":
        pieces.append(" ")
    elif name == "blockquote":
        pieces.append("\n")
    if name not in _DROPPED_TAGS and node.contents is not None:
        _render(node.contents.nodes, pieces)
        if name == "blockquote":
            pieces.append("\n")


def _template(node: Template, pieces: list[str]) -> None:
    name = str(node.name).strip().lower().replace("_", " ")
    renderer = _TEMPLATES.get(name)
    if renderer is None and name.startswith("lang-"):
        renderer = _argument(1)
    if renderer is not None:
        renderer(node, pieces)


def _positional(node: Template) -> list[Wikicode]:
    return [parameter.value for parameter in node.params if not parameter.showkey]


def _argument(number: int, before: str = "") -> Callable[[Template, list[str]], None]:
    """Renders a template as its unnamed argument `number`, from 1, or as its last one if it has fewer."""

    def render(node: Template, pieces: list[str]) -> None:
        values = _positional(node)
        if not values and node.has(str(number)):
            values = [node.get(str(number)).value]
        if values:
            pieces.append(before)
            _render(values[min(number, len(values)) - 1].nodes, pieces)

    return render


def _literal(text: str) -> Callable[[Template, list[str]], None]:
    def render(node: Template, pieces: list[str]) -> None:
        pieces.append(text)

    return render


_RANGES = {
    "-": "–",
    "–": "–",
    "to": " to ",
    "and": " and ",
    "by": " by ",
    "x": " by ",
    "×": " by ",
    "or": " or ",
}


def _convert(node: Template, pieces: list[str]) -> None:
    """A measure as written, without its conversion: {{convert|5|to|7|km|mi}} is "5 to 7 km"."""
    values = [str(value).strip() for value in _positional(node)]
    if len(values) >= 4 and values[1] in _RANGES:
        pieces.append(f"{values[0]}{_RANGES[values[1]]}{values[2]} {values[3]}")
    elif len(values) >= 2:
        pieces.append(f"{values[0]} {values[1]}")


def _quotation(node: Template, pieces: list[str]) -> None:
    values = _positional(node)
    named = next((node.get(name).value for name in ("text", "quote", "1") if node.has(name)), None)
    content = named if named is not None else values[0] if values else None
    if content is not None:
        pieces.append("\n")
        _render(content.nodes, pieces)
        pieces.append("\n")


def _fraction(node: Template, pieces: list[str]) -> None:
    values = [str(value).strip() for value in _positional(node)]
    whole = f"{values[0]} " if len(values) == 3 else ""
    pieces.append(whole + "/".join(values[-2:]))


_FIRST_ARGUMENT = (
    "nowrap,nobr,nobreak,small,smaller,big,larger,sc,smallcaps,nobold,noitalic,no italic,abbr,tooltip,"
    "vanchor,visible anchor,angbr,angle bracket,ipa,not a typo,proper name,linktext,keypress,key press,sup,sub,"
    "strong,em,mono,unicode,script,nastaliq,resize,val,nihongo,ill,interlanguage link,inflation,sic,typo,"
    "formatnum,nts"
)
_SECOND_ARGUMENT = "lang,transl,transliteration,script/arabic,color,colour"
_QUOTATIONS = "quote,blockquote,cquote,quotation,quote box,rquote,poemquote"


def _table_of_templates() -> dict[str, Callable[[Template, list[str]], None]]:
    """Templates that stand for words of a sentence, by name; all others show nothing."""
    table = dict.fromkeys(_FIRST_ARGUMENT.split(","), _argument(1))
    table |= dict.fromkeys(_SECOND_ARGUMENT.split(","), _argument(2))
    table |= dict.fromkeys(_QUOTATIONS.split(","), _quotation)
    table |= dict.fromkeys(("convert", "cvt"), _convert)
    table |= dict.fromkeys(("frac", "fraction", "sfrac"), _fraction)
    table |= dict.fromkeys(("nbsp", "spaces", "thinsp", "pad", "zwsp", "hairsp"), _literal(" "))
    table |= dict.fromkeys(("ndash", "endash", "en dash"), _literal("–"))
    table |= dict.fromkeys(("snd", "spnd", "spaced ndash", "mdash", "emdash", "mdashb"), _literal(" – "))
    table |= {ship: _argument(1, ship.upper() + " ") for ship in ("uss", "hms", "ss", "rms")}
    table |= {"'s": _literal("'s"), "'": _literal("'"), "as of": _argument(1, "As of ")}
    table |= {"circa": _argument(1, "c. "), "c.": _argument(1, "c. "), "=": _literal("=")}
    return table


_TEMPLATES = _table_of_templates()
_RENDERERS: dict[type[Node], Callable[..., None]] = {
    Text: _text,
    Wikilink: _wikilink,
    Template: _template,
    Tag: _tag,
    ExternalLink: _external_link,
    HTMLEntity: _entity,
    Heading: _heading,
    Argument: _nothing,
    Comment: _nothing,
}
