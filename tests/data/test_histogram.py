"""The picture of the lengths, read back as XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from histogram import length_histogram_svg
from hypothesis import given
from hypothesis import strategies as st

SVG = "{http://www.w3.org/2000/svg}"


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=600).filter(any))
def test_bars_have_the_heights_of_the_counts(counts: list[int]) -> None:
    picture = ElementTree.fromstring(length_histogram_svg(np.array(counts)))
    bars = picture.find(f"{SVG}path[@fill]").get("d")
    heights = [float(height) for height in re.findall(r"M[\d.]+ 340V([\d.]+)H", bars)]
    shown = [count for count in counts if count]
    assert len(heights) == len(shown) and all(40 <= height < 340 for height in heights)
    for one, height in zip(shown, heights):
        assert height == pytest.approx(
            340 - 300 * (np.log10(2 * one) / np.log10(2 * top_of(shown))), abs=0.01
        )


def top_of(counts: list[int]) -> int:
    """The power of ten that is above every count."""
    return 10 ** max(1, len(str(max(counts))))


def test_axes_are_labelled() -> None:
    counts = np.zeros(129, int)
    counts[[5, 128]] = 3, 70
    labels = [text.text for text in ElementTree.fromstring(length_histogram_svg(counts)).iter(f"{SVG}text")]
    assert labels[0] == "73 sequences by length"
    assert labels[1:4] == ["1", "10", "100"]
    assert labels[4:13] == ["0", "16", "32", "48", "64", "80", "96", "112", "128"]
