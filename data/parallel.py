"""Work shared among the processes of one machine, and among the ranks that mpirun starts on several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from bert_ipu.errors import DataError

Result = TypeVar("Result")
_CALLS_PER_WORKER = 3


class Ranks:
    """This process among those of mpirun; alone without it."""

    def __init__(self) -> None:
        self._communicator = None
        if any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")):
            from mpi4py import MPI

            self._communicator = MPI.COMM_WORLD
        self.rank = self._communicator.rank if self._communicator else 0
        self.size = self._communicator.size if self._communicator else 1

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._communicator:
            self._communicator.barrier()

    def abort(self, status: int) -> None:
        """End all ranks: the others may be waiting for this one."""
        if self._communicator and self.size > 1:
            sys.stdout.flush()
            self._communicator.Abort(status)


def mapped(
    function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], workers: int
) -> Iterator[Result]:
    """Results of calls in order, by `workers` processes; few calls are read ahead, to bound the memory."""
    if workers == 1:
        yield from (function(*call) for call in calls)
        return
    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, initializer=_follow_parent) as pool:
        try:
            for call in calls:
                waiting.append(pool.submit(function, *call))
                if len(waiting) >= workers * _CALLS_PER_WORKER:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "A worker process was killed, most often because memory ran out. Run the same command again, "
                "with fewer --workers: it carries on where it stopped."
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _follow_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and end when the parent has been killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
