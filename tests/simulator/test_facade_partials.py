"""Half partials are not built, and a program that asks for them is told so."""

from __future__ import annotations

import poptorch
import pytest
import torch


def test_half_partials_are_said_not_to_be_built(capfd: pytest.CaptureFixture[str]) -> None:
    poptorch.Options().Precision.setPartialsType(torch.float32)
    assert "setPartialsType" not in capfd.readouterr().err
    poptorch.Options().Precision.setPartialsType(torch.float16)
    assert "sums in float32" in capfd.readouterr().err
