"""What the simulator's tests share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile without a progress bar, by PopTorch's own way of setting defaults."""
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", '{"showCompilationProgressBar": false}')
