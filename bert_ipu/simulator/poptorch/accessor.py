"""`AsynchronousDataAccessor`: a worker process that keeps a ring of shared tensors filled with batches.

The worker runs `_Loader`. Its reader is the process that made it, and has a `_WorkerHandle`. Between them are the
`_Ring` and two pipes: commands to the worker, replies from it.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
import torch.multiprocessing as multiprocessing

from ..errors import poptorch_error
from ._logging import logger
from .enums import SharingStrategy
from .structure import getCustomParser, reconstructTensorStructure

_ALL_ROWS = -1
_END = 0

_LONGEST_PAUSE_S = 4e-3


def _pauses(first: float) -> Iterator[float]:
    """Seconds to wait between looks at the ring: growing, so that a long wait costs little."""
    pause = first
    while True:
        yield pause
        pause = max(first, min(2 * pause, _LONGEST_PAUSE_S))


class _Command(enum.Enum):
    START = enum.auto()
    RESET = enum.auto()
    STOP = enum.auto()


class _Ring:
    """`size` slots of tensors in shared memory, filled and emptied in turn by two processes.

    `indices_mem` says which slots are full; it has the name by which PopTorch's own tests look at it.
    `rows` of a full slot says how many rows are real (`_ALL_ROWS`), or that an epoch ends here (`_END`).
    """

    def __init__(self, tensors: list[torch.Tensor], indices_mem: torch.Tensor, rows: torch.Tensor) -> None:
        self.tensors = tensors
        self.indices_mem = indices_mem
        self.rows = rows
        self.position = 0

    @staticmethod
    def like(example: list[torch.Tensor], size: int) -> _Ring:
        """An empty ring whose slots hold copies of `example`."""
        tensors = [_shared(tensor.expand(size, *tensor.shape).clone().contiguous()) for tensor in example]
        rows = torch.zeros(size, dtype=torch.int32)
        return _Ring(tensors, _shared(torch.zeros(size, dtype=torch.bool)), _shared(rows))

    @property
    def slot(self) -> list[torch.Tensor]:
        """The tensors at the current position."""
        return [tensor[self.position] for tensor in self.tensors]

    def is_full(self) -> bool:
        """Whether the current slot has been filled."""
        return bool(self.indices_mem[self.position])

    def fill(self, rows: int) -> None:
        """Hand the current slot to the reader and go on."""
        self.rows[self.position] = rows
        self.indices_mem[self.position] = True
        self.advance()

    def advance(self) -> None:
        """Go to the next slot."""
        self.position = (self.position + 1) % len(self.indices_mem)

    def clear(self) -> None:
        """Empty every slot and start over."""
        self.indices_mem.fill_(False)
        self.position = 0


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.share_memory_()  # type: ignore[no-any-return, no-untyped-call]


class _Layout(NamedTuple):
    """How the reader puts a slot's tensors back into the data set's container."""

    kind: str
    keys: tuple[Any, ...]
    example: Any

    def rebuild(self, tensors: list[torch.Tensor]) -> Any:
        if self.kind == "tensor":
            return tensors[0]
        if self.kind == "dict":
            return dict(zip(self.keys, tensors))
        if self.kind == "custom":
            return reconstructTensorStructure(self.example, tensors)
        return tensors


def _layout(data: Any) -> _Layout:
    if isinstance(data, torch.Tensor):
        return _Layout("tensor", (), None)
    if isinstance(data, dict):
        return _Layout("dict", tuple(data), None)
    parser = getCustomParser(data)
    if parser is not None:
        empty = iter([torch.empty(0)] * len(list(parser.yieldTensors(data))))
        return _Layout("custom", (), parser.reconstruct(data, empty))
    return _Layout("list", (), None)


def _elements(data: Any, layout: _Layout) -> list[torch.Tensor]:
    parser = getCustomParser(data)
    if isinstance(data, torch.Tensor):
        elements: list[Any] = [data]
    elif isinstance(data, dict):
        elements = [data[key] for key in layout.keys]
    else:
        elements = list(parser.yieldTensors(data) if parser is not None else data)
    for index, element in enumerate(elements):
        assert isinstance(element, torch.Tensor), (
            f"Element {index} of a batch is a {type(element)}: AsynchronousDataAccessor takes batches that are one "
            "tensor, or a flat tuple, list or dict of tensors."
        )
    return elements


class _Settings(NamedTuple):
    buffer_size: int
    miss_sleep_s: float
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: int | None


class _Loader:
    """The worker process: fetches, re-batches and fills the ring until told to stop."""

    def __init__(self, dataset: Any, settings: _Settings, replies: Connection, commands: Connection) -> None:
        self._dataset = dataset
        self._settings = settings
        self._replies = replies
        self._commands = commands
        self._drop_last = getattr(dataset, "rebatched_drop_last", True)
        self._iterator: Iterator[Any] = iter(dataset)
        self._pending: list[torch.Tensor] | None = None
        self._filled_rows = 0

    def run(self) -> None:
        first = next(self._iterator, None)
        if first is None:
            raise poptorch_error("The data set has no batch to fill the ring with.")
        self._layout = _layout(first)
        self._pending = _elements(first, self._layout)
        self._shapes = self._shapes_of(self._pending)
        self._ring = _Ring.like(self._example(self._pending), self._settings.buffer_size)
        self._replies.send((self._layout, self._ring.tensors, self._ring.indices_mem, self._ring.rows))
        self._load()
        loading = self._settings.early_preload
        while True:
            command = self._commands.recv() if self._is_commanded(0 if loading else None) else None
            if command == _Command.STOP:
                return
            if command == _Command.RESET:
                self._ring.clear()
                self._restart()
                self._replies.send(command)
            loading = loading or command in (_Command.START, _Command.RESET)
            if loading:
                loading = self._load()

    def _example(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        size = self._settings.rebatched_size
        if size is None:
            return tensors
        return [tensor.new_zeros((size, *tensor.shape[1:])) for tensor in tensors]

    def _restart(self) -> None:
        self._iterator = iter(self._dataset)
        self._pending = None
        self._filled_rows = 0

    def _load(self) -> bool:
        """Put one more batch, or the end of the epoch, into the ring; False: wait for a start."""
        if self._pending is None:
            data = next(self._iterator, None)
            if data is None:
                return self._end_epoch()
            self._pending = _elements(data, self._layout)
            self._check_alike(self._pending)
        if self._slot_is_free():
            self._store()
        return True

    def _shapes_of(self, tensors: list[torch.Tensor]) -> list[list[int]]:
        """What all batches must have in common: the shapes, of rows where batches are made anew."""
        first = 0 if self._settings.rebatched_size is None else 1
        return [list(tensor.shape[first:]) for tensor in tensors]

    def _check_alike(self, tensors: list[torch.Tensor]) -> None:
        """Raise Error for a batch that would fill a slot only in part, or be repeated in it."""
        shapes = self._shapes_of(tensors)
        if shapes != self._shapes:
            raise poptorch_error(
                f"AsynchronousDataAccessor: a batch has tensors of shapes {shapes}, and the first of {self._shapes}. "
                "Make batches alike; rebatched_size joins and parts those that differ in their number of rows."
            )

    def _store(self) -> None:
        assert self._pending is not None, "there is something to store"
        if self._settings.rebatched_size is None:
            for slot, tensor in zip(self._ring.slot, self._pending):
                slot.copy_(tensor)
            self._pending = None
            self._ring.fill(_ALL_ROWS)
            return
        start = self._filled_rows
        count = min(len(self._pending[0]), self._settings.rebatched_size - start)
        for slot, tensor in zip(self._ring.slot, self._pending):
            slot[start : start + count].copy_(tensor[:count])
        left = [tensor[count:] for tensor in self._pending]
        self._pending = left if len(left[0]) else None
        self._filled_rows = start + count
        if self._filled_rows == self._settings.rebatched_size:
            self._filled_rows = 0
            self._ring.fill(_ALL_ROWS)

    def _end_epoch(self) -> bool:
        if self._filled_rows and not self._drop_last:
            if not self._slot_is_free():
                return True
            self._ring.fill(self._filled_rows)
            self._filled_rows = 0
        if not self._slot_is_free():
            return True
        self._ring.fill(_END)
        logger.debug("AsynchronousDataAccessor worker: an epoch ends")
        self._restart()
        return self._settings.load_indefinitely

    def _slot_is_free(self) -> bool:
        """Wait for the reader to empty the slot; False if a command came first."""
        pauses = _pauses(self._settings.miss_sleep_s)
        while self._ring.is_full():
            if self._is_commanded(next(pauses)):
                return False
        return True

    def _is_commanded(self, timeout: float | None) -> bool:
        """Wait for a command; raises EOFError when the reader's process has gone."""
        parent = multiprocessing.parent_process()
        assert parent is not None, "the loader has a process of its own"
        ready = wait([self._commands, parent.sentinel], timeout)
        if parent.sentinel in ready:
            raise EOFError("the reader's process has gone")
        return bool(ready)


def _worker_main(
    dataset: Any, settings: _Settings, replies: Connection, commands: Connection, start_method: str
) -> None:
    # A DataLoader's own workers start as in the parent; here the default is how this process began.
    multiprocessing.set_start_method(start_method, force=True)
    try:
        logger.debug("AsynchronousDataAccessor worker process: %d", os.getpid())
        if isinstance(dataset, _PickledFile):
            dataset = dataset.load()
        _Loader(dataset, settings, replies, commands).run()
        logger.debug("AsynchronousDataAccessor worker: told to stop")
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass  # the parent is going, or gone


class _PickledFile(NamedTuple):
    path: str

    def load(self) -> Any:
        with open(self.path, "rb") as file:
            return pickle.load(file)


class _WorkerHandle:
    """The worker as its reader has it: the process, its pipes and the ring."""

    def __init__(self, dataset: Any, settings: _Settings, sharing_strategy: SharingStrategy) -> None:
        self._settings = settings
        self._owner = os.getpid()
        self._started = False
        self._used = False
        self._held: int | None = None
        if sharing_strategy == SharingStrategy.FileSystem:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "dataset.pkl")
                with open(path, "wb") as file:
                    pickle.dump(dataset, file, protocol=4)
                self._start(_PickledFile(path), sharing_strategy)
        else:
            self._start(dataset, sharing_strategy)

    def _start(self, dataset: Any, sharing_strategy: SharingStrategy) -> None:
        context: Any = multiprocessing.get_context(_START_METHODS.get(sharing_strategy, "spawn"))
        if sharing_strategy == SharingStrategy.ForkServer:
            # torch and this package are imported once for all workers; in children of the simulator's command
            # "poptorch" finds the package also where the program's folder has a module of its name.
            context.set_forkserver_preload(["poptorch", __name__])
        self._replies, replies = context.Pipe(duplex=False)
        commands, self._commands = context.Pipe(duplex=False)
        arguments = (dataset, self._settings, replies, commands, multiprocessing.get_start_method())
        self._process = context.Process(target=_worker_main, args=arguments)
        self._process.start()
        logger.debug(
            "AsynchronousDataAccessor of process %d starts process %s", os.getpid(), self._process.pid
        )
        replies.close()
        commands.close()
        try:
            self._layout, tensors, indices_mem, rows = self._replies.recv()
        except EOFError:
            raise poptorch_error(
                "AsynchronousDataAccessor: its worker thread failed to start; the error is above."
            ) from None
        self._data_buffers = _Ring(tensors, indices_mem, rows)

    def begin_epoch(self) -> None:
        """Make the next batch the first one of an epoch."""
        if self._started and not self._used:
            return
        self.release()
        if self._used and not self._drop_end_marker():
            self._commands.send(_Command.RESET)
            while self._replies.recv() != _Command.RESET:
                pass
            self._data_buffers.position = 0
        else:
            self._commands.send(_Command.START)
        self._started, self._used = True, False

    def _drop_end_marker(self) -> bool:
        at_end = self._at_end()
        if at_end:
            self._data_buffers.indices_mem[self._data_buffers.position] = False
            self._data_buffers.advance()
        return at_end

    def _at_end(self) -> bool:
        ring = self._data_buffers
        return ring.is_full() and int(ring.rows[ring.position]) == _END

    def next(self) -> Any:
        """The next batch; raises StopIteration at the end of the epoch."""
        self.release()
        ring = self._data_buffers
        pauses = _pauses(1e-5)
        while not ring.is_full():
            assert self._process.exitcode is None, (
                f"AsynchronousDataAccessor: its worker {_ending(self._process.exitcode)}"
            )
            time.sleep(next(pauses))
        self._used = True
        if self._at_end():
            raise StopIteration
        rows = int(ring.rows[ring.position])
        tensors = ring.slot if rows == _ALL_ROWS else [tensor[:rows] for tensor in ring.slot]
        self._held = ring.position
        ring.advance()
        return self._layout.rebuild(tensors)

    def release(self) -> None:
        """Give the slot of the last batch back to the worker."""
        if self._held is not None:
            self._data_buffers.indices_mem[self._held] = False
        self._held = None

    def terminate(self) -> None:
        """Stop the process; it gets ten seconds to finish what it does. A fork of the reader leaves it alone."""
        if self._owner != os.getpid() or self._process.exitcode is not None:
            return
        with contextlib.suppress(OSError):  # it may stop by itself meanwhile
            self._commands.send(_Command.STOP)
        self._process.join(timeout=10)
        if self._process.exitcode is None:
            self._process.terminate()
            self._process.join()


def _ending(status: int) -> str:
    """How a process ended, by its exit status."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}, as the system does where memory runs out"
    return f"ended with status {status}; the error is above"


_START_METHODS = {SharingStrategy.Fork: "fork", SharingStrategy.ForkServer: "forkserver"}


class AsynchronousDataAccessor:
    """Fetches the batches of a data set or `DataLoader` in another process.

    A batch stays valid until the next one is asked for. Raises Error where the worker cannot start.
    """

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: int | None = None,
    ) -> None:
        self._worker: _WorkerHandle | None = None
        if getattr(dataset, "_accessor", None) is not None:
            raise poptorch_error(
                "This DataLoader has an AsynchronousDataAccessor of its own: iterate over it as it is, or give it "
                "mode=poptorch.DataLoaderMode.Sync."
            )
        if getattr(dataset, "leaves_incomplete_batch", False) and rebatched_size is None:
            raise AssertionError(
                "A DataLoader with drop_last=False leaves a smaller last batch: give rebatched_size, too."
            )
        assert buffer_size > 0, f"buffer_size is {buffer_size}; take at least 1"
        assert rebatched_size is None or rebatched_size > 1, (
            f"rebatched_size is {rebatched_size}; take at least 2, or None"
        )
        self._dataset = dataset
        self.rebatched_size = rebatched_size
        settings = _Settings(
            buffer_size, miss_sleep_time_in_ms / 1000, load_indefinitely, early_preload, rebatched_size
        )
        self._worker = _WorkerHandle(dataset, settings, SharingStrategy(sharing_strategy))
        atexit.register(self._worker.terminate)  # not our own method, which would keep us alive until then

    def terminate(self) -> None:
        """Stop the worker process."""
        if self._worker is not None:
            atexit.unregister(self._worker.terminate)
            self._worker.terminate()
            self._worker = None

    def __del__(self) -> None:
        self.terminate()

    def __len__(self) -> int:
        batches: int = len(self._dataset)
        is_its_loaders = getattr(self._dataset, "_accessor", None) is self  # that counts joined batches
        if self.rebatched_size is None or is_its_loaders:
            return batches
        rows: int = batches * self._dataset.batch_size
        return rows // self.rebatched_size

    def __iter__(self) -> AsynchronousDataAccessor:
        assert self._worker is not None, "terminate() has stopped this accessor's worker"
        self._worker.begin_epoch()
        return self

    def __next__(self) -> Any:
        assert self._worker is not None, "terminate() has stopped this accessor's worker"
        return self._worker.next()
