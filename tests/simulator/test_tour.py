"""The program that docs/tour.md shows is the one that its example compiles to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TOUR = Path(__file__).parents[2] / "docs/tour.md"


def test_the_listing_of_the_tour_is_what_its_example_compiles_to() -> None:
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", TOUR.read_text(), flags=re.MULTILINE)
    lines = [line.removeprefix("    ") for block in blocks for line in block.splitlines()]
    listed = [line for line in lines if line.startswith("%")]
    names: dict[str, Any] = {}
    exec("\n".join(line for line in lines if not line.startswith("%")), names)
    listing = names["training"]._debugGetPopartIR()
    compiled = [line.strip().partition("  #")[0] for line in listing.splitlines()]
    assert len(listed) > 10
    assert [line for line in listed if line not in compiled] == []
