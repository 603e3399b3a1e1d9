"""The program that docs/tour.md shows is the one that its example compiles to."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

TOUR = Path(__file__).parents[2] / "docs/tour.md"


def test_the_listing_of_the_tour_is_what_its_example_compiles_to() -> None:
    section = TOUR.read_text().split("## Inside the simulator")[1]
    blocks = re.findall(r"(?:^    .*\n|^\n+(?=    ))+", section, flags=re.MULTILINE)
    example, *shown = [textwrap.dedent(block) for block in blocks]
    listed = [line.strip() for block in shown for line in block.splitlines() if line]
    names: dict[str, Any] = {}
    exec(example, names)
    listing = names["training"]._debugGetPopartIR()
    compiled = [line.partition("  #")[0].strip() for line in listing.splitlines()]
    assert len(listed) > 20
    assert [line for line in listed if line not in compiled] == []
