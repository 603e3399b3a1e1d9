"""Errors raised on request, by which programs test what they do about PopTorch's."""

from __future__ import annotations

import pytest

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu.simulator.poptorch import poptorch_core

Kind = poptorch_core.TestErrorType


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_says_its_type_and_where_it_was_raised(kind: Kind) -> None:
    with pytest.raises(poptorch.Error) as raised:
        poptorch_core._throwTestError(kind)
    error = raised.value
    assert error.type == kind.value[0] and error.type in str(error) and error.message in str(error)
    assert "throwTestError::bottomLevel" in error.location and error.location in str(error)
    assert "throwTestError" not in error.message


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        (Kind.PoplarRecoverableFullReset, poptorch.RecoverableError),
        (Kind.PoplarUnrecoverable, poptorch.UnrecoverableError),
    ],
)
def test_an_error_says_whether_the_device_recovers(kind: Kind, family: type[poptorch.Error]) -> None:
    with pytest.raises(family) as raised:
        poptorch_core._throwTestError(kind)
    assert getattr(raised.value, "recovery_action", None) == (
        "FULL_RESET" if family is poptorch.RecoverableError else None
    )
