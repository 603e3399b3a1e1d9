"""`ipu_print_tensor` writes what PopTorch documents, in the layout that PopTorch's own test expects of Poplar."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bert_ipu.simulator.poptorch as poptorch


def _printed(capfd: pytest.CaptureFixture[str], x: torch.Tensor, **layout: Any) -> str:
    options = poptorch.Options()
    poptorch.inferenceModel(lambda t: poptorch.ipu_print_tensor(t, "it", **layout) + 1, options)(x)
    return capfd.readouterr().err


MATRIX = torch.tensor([[1.5, 2.25], [3.0, -4.125]])


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (
            {"digits": 8, "separator": " ", "open_bracket": "{", "close_bracket": "}"},
            "it: {\n { 1.5000000  2.2500000}\n { 3.0000000 -4.1250000}\n}\n",
        ),
        (
            {"digits": 4, "float_format": "scientific", "separator": ",", "max_line_width": 12},
            "it: (\n ( 1.500e+00,\n    2.250e+00)\n ( 3.000e+00,\n   -4.125e+00)\n)\n",
        ),
        ({"digits": 0, "separator": ";"}, "it: (\n (1.5;2.25)\n (3;-4.125)\n)\n"),
    ],
)
def test_digits_brackets_and_line_breaks_are_printed_as_asked(
    capfd: pytest.CaptureFixture[str], layout: dict[str, Any], text: str
) -> None:
    assert text in _printed(capfd, MATRIX, **layout)


def test_many_elements_are_summarised(capfd: pytest.CaptureFixture[str]) -> None:
    numbers = torch.arange(100, dtype=torch.int32)
    text = _printed(capfd, numbers, summarise_threshold=50, edge_items=2)
    assert "it: ( 0, 1,...,98,99)" in text
    assert "..." not in _printed(capfd, numbers, summarise_threshold=100)


class _Product(torch.nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0]))
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = poptorch.ipu_print_tensor(x * self.weight, "y", **self.options)
        return poptorch.identity_loss(3 * y, reduction="sum")


@pytest.mark.parametrize("print_gradient", [True, False])
def test_a_gradient_is_printed_under_its_own_title(
    capfd: pytest.CaptureFixture[str], print_gradient: bool
) -> None:
    model = _Product(print_gradient=print_gradient)
    options = poptorch.Options()
    trained = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))
    trained(torch.ones(2))
    text = capfd.readouterr().err
    assert "y: (2.000,2.000)" in text
    assert ("y_gradient: (3.000,3.000)" in text) is print_gradient
    assert model.weight.item() == 2.0 - 6.0
