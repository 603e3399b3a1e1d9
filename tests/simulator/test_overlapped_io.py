"""Overlapped input and output: what may be marked, and under which options (PopTorch's overlapped_io_test.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_models import Calls
from torch import Tensor

import bert_ipu.simulator.poptorch as poptorch

LOOP = poptorch.OverlapMode.OverlapAccumulationLoop
X = torch.rand(2, 3)


def _options() -> poptorch.Options:
    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.ShardedExecution())
    options.TensorLocations.numIOTiles(32)
    return options


def _in(x: Tensor) -> Tensor:
    return poptorch.set_overlap_for_input(x, LOOP)  # type: ignore[no-any-return]


def _out(x: Tensor) -> Tensor:
    return poptorch.set_overlap_for_output(x, LOOP)  # type: ignore[no-any-return]


def _both(x: Tensor) -> tuple[Tensor, Tensor]:
    y = _in(x) + 1
    marked = _out(y)
    return marked, marked * 2


def test_marked_tensors_are_what_they_were() -> None:
    """A marked result may be read on, and the marks themselves are no operators."""
    executor = poptorch.inferenceModel(Calls(_both), _options())
    torch.testing.assert_close(executor(X), (X + 1, (X + 1) * 2))
    assert "nop" not in executor._debugGetPopartIR()
    torch.testing.assert_close(_both(X), (X + 1, (X + 1) * 2))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: (x + 1, _in(x)), "must be the only op applied to an input.*input 0 to the model"),
        (lambda x: _in(x + 1), "set_overlap_for_input applied on a node which is not a tensor input"),
        (lambda x: _out(x + 1) * 2, "set_overlap_for_output applied on a node which is not a tensor output"),
        (lambda x: (lambda y: (y, _out(y)))(x + 1), "cannot be used with a tensor that is returned twice"),
    ],
)
def test_a_mark_in_the_wrong_place_is_refused(function: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(poptorch.Error, match=said):
        poptorch.inferenceModel(Calls(function), _options())(X)


def test_the_options_must_allow_it() -> None:
    with pytest.raises(poptorch.Error, match=r"not supported with poptorch\.PipelinedExecution"):
        poptorch.inferenceModel(Calls(_both), _options().setExecutionStrategy(poptorch.PipelinedExecution()))(
            X
        )
    without_tiles = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    with pytest.raises(poptorch.Error, match="No IO tiles allocated"):
        poptorch.inferenceModel(Calls(_both), without_tiles)(X)
    with pytest.raises(poptorch.Error, match=r"outputMode is OutputMode\.Final"):
        poptorch.inferenceModel(Calls(_both), _options().outputMode(poptorch.OutputMode.Final))(X)


def test_no_overlap_needs_nothing() -> None:
    model = Calls(lambda x: poptorch.set_overlap_for_input(x, poptorch.OverlapMode.NoOverlap) + 1)
    options = poptorch.Options()
    torch.testing.assert_close(poptorch.inferenceModel(model, options)(X), X + 1)
