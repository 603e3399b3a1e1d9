"""Dump to text: speed, markup left, and how much of wikiextractor's prose is kept.

pip install wikiextractor    # on Python < 3.11, or with its two inline regex flags moved to the front
wikiextractor DUMP --no-templates -o REFERENCE
python bench/data_wikitext.py DUMP [--reference REFERENCE]
"""

from __future__ import annotations

import argparse
import bz2
import random
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))

from sentences import SentenceSplitter
from wikipedia_dump import Page, parse_pages

_MARKUP = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|</?\w|''|={2,}|&[a-z]+;|\bhttps?:|__[A-Z]+__|\|\||^\s*[|!*#;:]"
)
_DOCUMENT = re.compile(r'<doc id="\d+" url="[^"]*" title="([^"]*)">\n(.*?)\n</doc>', re.DOTALL)
_WORD = re.compile(r"\w+")
_PROSE_WORDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dump", type=Path)
    parser.add_argument("--reference", type=Path)
    arguments = parser.parse_args()
    started = time.process_time()
    xml = bz2.decompress(arguments.dump.read_bytes())
    pages = list(parse_pages(xml, str(arguments.dump)))
    seconds = time.process_time() - started
    text_bytes = sum(len(line.encode()) for page in pages for line in page.paragraphs)
    print(
        f"{len(xml) / 1e6:.1f} MB of XML -> {text_bytes / 1e6:.1f} MB of text: "
        f"{len(xml) / 1e6 / seconds:.2f} MB per CPU-s"
    )
    report_markup(pages)
    if arguments.reference:
        report_kept(pages, arguments.reference)


def report_markup(pages: list[Page]) -> None:
    splitter = SentenceSplitter()
    sentences = [s for page in pages for paragraph in page.paragraphs for s in splitter.split(paragraph)]
    sample = random.Random(0).sample(sentences, min(1000, len(sentences)))
    left = [sentence for sentence in sample if _MARKUP.search(sentence)]
    print(
        f"markup in {len(left)} of {len(sample)} sampled sentences, in "
        f"{sum(map(bool, map(_MARKUP.search, sentences)))} of all {len(sentences)}",
        *left,
        sep="\n  ",
    )


def report_kept(pages: list[Page], reference: Path) -> None:
    """Share of wikiextractor's runs of 5 words that ours has too, over its lines of 8 words and more."""
    ours = {page.title: grams(words(" ".join(page.paragraphs))) for page in pages}
    kept = total = 0
    lost: list[str] = []
    for file in sorted(reference.rglob("wiki_*")):
        for title, text in _DOCUMENT.findall(file.read_text()):
            if title not in ours or not ours[title]:
                continue
            for line in text.split("\n")[1:]:
                if len(words(line)) >= _PROSE_WORDS:
                    here = grams(words(line))
                    found = len(here & ours[title])
                    kept, total = kept + found, total + len(here)
                    if found < 0.5 * len(here):
                        lost.append(f"{title}: {line[:200]}")
    print(
        f"kept {kept / total:.2%} of wikiextractor's prose ({total} runs of 5 words); {len(lost)} lines "
        "mostly lost, e.g."
    )
    print(*random.Random(0).sample(lost, min(15, len(lost))), sep="\n  ")


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def grams(text: list[str]) -> set[tuple[str, ...]]:
    return set(zip(*(text[start:] for start in range(5))))


if __name__ == "__main__":
    main()
