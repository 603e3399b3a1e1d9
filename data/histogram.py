"""A picture of sequence lengths, as SVG: any browser shows it, and no plotting library is loaded for it.

(matplotlib takes 0.7 s of one core to draw this picture, as long as two cores need for 7 MB of text.)
"""

from __future__ import annotations

import math

import numpy as np

_WIDTH, _HEIGHT = 800, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 780, 40, 340


def length_histogram_svg(histogram: np.ndarray) -> str:
    """How many sequences have how many tokens, [longest + 1] counts, on a logarithmic scale."""
    longest, decades = len(histogram) - 1, max(1, math.ceil(math.log10(max(int(histogram.max()), 1) + 1)))

    def x(length: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * length / (longest + 1), 2)

    def y(count: float) -> float:
        # Half a sequence is the ground, so that a single one shows.
        share = math.log10(2 * count) / (decades + math.log10(2))
        return round(_BOTTOM - (_BOTTOM - _TOP) * share, 2)

    bars = "".join(
        f"M{x(length)} {_BOTTOM}V{y(count)}H{x(length + 1)}V{_BOTTOM}Z"
        for length, count in enumerate(histogram.tolist())
        if count
    )
    middle = (_LEFT + _RIGHT) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="13" text-anchor="middle">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{middle}" y="24" font-size="16">{int(histogram.sum()):,} sequences by length</text>',
        *(_height_line(y(10**decade), 10**decade) for decade in range(decades + 1)),
        f'<path d="{bars}" fill="#3b6ea5"/>',
        *(
            f'<text x="{x(length + 0.5)}" y="{_BOTTOM + 18}">{length}</text>'
            for length in range(0, longest + 1, max(1, longest // 8))
        ),
        f'<text x="{middle}" y="{_HEIGHT - 18}">tokens of a sequence, [CLS] and [SEP] included</text>',
        "</svg>\n",
    ]
    return "\n".join(lines)


def _height_line(height: float, count: int) -> str:
    return (
        f'<path d="M{_LEFT} {height}H{_RIGHT}" stroke="#ccc"/>'
        f'<text x="{_LEFT - 8}" y="{height + 4}" text-anchor="end">{count:,}</text>'
    )
