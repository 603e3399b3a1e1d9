"""The text of a printed tensor, laid out as Poplar's `PrintTensor` lays it out.

What the settings mean is in PopTorch's documentation of `ipu_print_tensor`; brackets, indentation and the breaking
of lines are read off the texts that PopTorch's `ipu_print_tensor_test.py` expects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

_GAP = "..."


@dataclass(frozen=True)
class Layout:
    """How a tensor is written; `separator` and brackets count by their first character, as in PopART."""

    summarise_threshold: int
    edge_items: int
    max_line_width: int
    digits: int
    float_format: str
    separator: str
    open_bracket: str
    close_bracket: str

    def text(self, tensor: Tensor) -> str:
        """The text of a tensor of any shape."""
        summarised = 0 < self.summarise_threshold < tensor.numel()
        elements = _Elements(tensor, self)
        return "\n".join(self._lines(tensor, elements, 0, summarised))

    def _lines(self, tensor: Tensor, elements: _Elements, depth: int, summarised: bool) -> Iterator[str]:
        if tensor.dim() == 0:
            yield elements.text(tensor)
            return
        opening, closing, indent = self.open_bracket[:1], self.close_bracket[:1], " " * depth
        shown = self._shown(len(tensor), summarised)
        if tensor.dim() == 1:
            items = [_GAP if index is None else elements.text(tensor[index]) for index in shown]
            yield from self._broken(indent + opening, items, closing, " " * (depth + 2))
            return
        yield indent + opening
        for index in shown:
            if index is None:
                yield f"{indent} {_GAP}"
            else:
                yield from self._lines(tensor[index], elements, depth + 1, summarised)
        yield indent + closing

    def _shown(self, size: int, summarised: bool) -> list[int | None]:
        """The indices of a dimension that are written; None stands for those left out."""
        if not summarised or size <= 2 * self.edge_items:
            return list(range(size))
        return [*range(self.edge_items), None, *range(size - self.edge_items, size)]

    def _broken(self, line: str, items: list[str], closing: str, indent: str) -> Iterator[str]:
        """One row, in as many lines as its width asks for."""
        fresh = True
        for position, item in enumerate(items):
            piece = item + (closing if position == len(items) - 1 else self.separator[:1])
            if not fresh and 0 < self.max_line_width < len(line + piece):
                yield line.rstrip()
                line = indent
            line, fresh = line + piece, False
        yield line if items else line + closing


class _Elements:
    """Writes the elements of one tensor, all with the same width."""

    def __init__(self, tensor: Tensor, layout: Layout) -> None:
        self._layout = layout
        self._is_float = tensor.dtype.is_floating_point
        values = tensor.double()
        finite = values[values.isfinite()].abs()
        self._largest = float(finite.max()) if finite.numel() else 0.0
        nonzero = finite[finite > 0]
        self._smallest = float(nonzero.min()) if nonzero.numel() else 0.0
        self._scientific = self._is_scientific()
        self._width = max((len(self._plain(x)) for x in tensor.flatten().tolist()), default=0)

    def text(self, element: Tensor) -> str:
        """An element, aligned with the others where the layout gives a number of digits."""
        plain = self._plain(element.item())
        return plain.rjust(self._width) if self._layout.digits else plain

    def _is_scientific(self) -> bool:
        if self._layout.float_format != "auto":
            return self._layout.float_format == "scientific"
        too_large = self._largest >= 10.0 ** max(self._layout.digits, 1)
        return too_large or 0 < self._smallest < 1e-4 or self._largest > 1e3 * self._smallest > 0

    def _plain(self, value: float) -> str:
        if not self._is_float:
            return str(int(value))
        digits = self._layout.digits
        if digits == 0 or self._layout.float_format == "none" or not math.isfinite(value):
            return f"{value:g}"
        if self._scientific:
            return f"{value:.{digits - 1}e}"
        return f"{value:.{max(digits - len(str(int(self._largest))), 0)}f}"
