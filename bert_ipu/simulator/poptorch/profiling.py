"""Named trace points of the host's side of a run, as Python's own profilers and logs see them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._logging import logger


class Channel:
    """A source of trace points.

    PopTorch writes them for PopVision through `libpvti`, which comes with the SDK only; here their
    durations are logged at debug level.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def instrument(self, obj: Any, *methods: str) -> Any:
        """Return `obj`: its methods need no change to be timed by Python's profilers."""
        return obj

    @contextmanager
    def tracepoint(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            logger.debug("%s.%s took %.3f s", self._name, name, time.perf_counter() - start)
