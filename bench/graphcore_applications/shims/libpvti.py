"""Stands for Graphcore's libpvti, with which programs record what PopVision draws: nothing is recorded."""

from __future__ import annotations

from typing import Any


class Tracepoint:
    """A span of time, or a moment."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> Tracepoint:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @staticmethod
    def event(*_: Any) -> None:
        """Records nothing."""


class Graph:
    """A graph, or one of its series, or a heat map."""

    def __init__(self, *_: Any) -> None:
        pass

    def addSeries(self, *_: Any) -> Graph:
        """A series, to which values are added."""
        return self

    def add(self, *_: Any) -> None:
        """Records nothing."""


HeatmapDouble = Graph


def createTraceChannel(*_: Any) -> None:
    """A channel, of which nothing is kept."""
