"""What an operator's operands and results hold, as torch.isnan and torch.isinf say."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from bert_ipu.simulator.runtime import exceptions

_VALUES = (1.0, -65504.0, torch.inf, -torch.inf, torch.nan)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nan_and_infinity_are_seen_wherever_they_stand(dtype: torch.dtype) -> None:
    for first, last in itertools.product(_VALUES, _VALUES):
        value = torch.zeros(7, 5, dtype=dtype)
        value[0, 0], value[6, 4] = first, last
        for shaped in (value, value.t(), value[::2, ::2], value[6, 4]):
            expected = exceptions.Seen(bool(shaped.isnan().any()), bool(shaped.isinf().any()))
            assert exceptions.look(torch.ones(2, dtype=dtype), [shaped]) == expected
    empty, integers = torch.zeros(0, dtype=dtype), torch.zeros(3, dtype=torch.int32)
    assert exceptions.look(empty, integers, None) == exceptions.Seen(False, False)


def test_looking_costs_less_than_torchs_own_questions() -> None:
    """Every operand and result is looked at: with isnan and isinf that was four fifths of a training step."""
    value = torch.randn(2048, 768)

    def seconds(seen: object) -> float:
        def once() -> float:
            start = time.perf_counter()
            seen()  # type: ignore[operator]
            return time.perf_counter() - start

        return min(once() for _ in range(5))

    assert 2 * seconds(lambda: exceptions.look(value)) < seconds(
        lambda: (value.isnan().any(), value.isinf().any())
    )
