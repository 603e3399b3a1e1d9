"""Performance counters: when inputs and outputs moved, and the latencies that follow."""

from __future__ import annotations

from collections.abc import Callable

from .session import Session

Counters = dict[str, list[list[float]]]
Reduction = Callable[[list[float]], float]

_EVENTS = ("input", "input_complete", "output", "output_complete")


def counters(session: Session | None) -> Counters:
    """Per event, a list of times for each input or output; [[]] before the first call."""
    if session is None:
        return {event: [[]] for event in _EVENTS}
    return {event: times or [[]] for event, times in zip(_EVENTS, session.timestamps())}


def between(
    found: Counters, start: tuple[str, Reduction], end: tuple[str, Reduction]
) -> tuple[float, float, float]:
    """Least, greatest and mean seconds from one event to another.

    Each of `start` and `end` is an event and how to choose among its times for all tensors of a micro-batch. Several
    starts may belong to one end: the first of them counts.
    """
    starts = [start[1](list(each)) for each in zip(*found[start[0]])]
    ends = [end[1](list(each)) for each in zip(*found[end[0]])]
    if not ends:
        return (0.0, 0.0, 0.0)
    assert len(starts) % len(ends) == 0, "every output belongs to the same number of inputs"
    group = len(starts) // len(ends)
    durations = [last - min(starts[i * group : (i + 1) * group]) for i, last in enumerate(ends)]
    return min(durations), max(durations), sum(durations) / len(durations)
