"""`poptorch.DataLoader`: batches as large as one call of a model takes, from this process's data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from ..errors import poptorch_error
from . import profiling
from ._logging import logger
from .accessor import AsynchronousDataAccessor
from .enums import DataLoaderMode
from .options import Options, micro_batches_of_a_call
from .options_dict import require
from .structure import combined_batches

BatchSampler = torch.utils.data.Sampler[Any] | Iterable[Sequence[int]]


class _ProcessShare:
    """The contiguous part of a data set that one of several processes reads.

    With dropped remainders all parts are equally long, and every second epoch shifts by what is left over.
    """

    def __init__(self, dataset: Any, options: Options, step: int, drop_last: bool, shuffle: bool) -> None:
        count, processes, process = (
            len(dataset),
            options.Distributed.numProcesses,
            options.Distributed.processId,
        )
        self._dataset = dataset
        self._shift = self._left_over = 0
        if drop_last:
            self._length = step * (count // (step * processes))
            if not self._length:
                raise poptorch_error(
                    f"A dataset of {count} elements is too small for {processes} processes, which take {step} each at "
                    "every step: use fewer processes or drop_last=False."
                )
            self._start = process * self._length
            self._left_over = count % self._length
        else:
            lengths = [count // processes + (each < count % processes) for each in range(processes)]
            self._length = lengths[process]
            self._start = sum(lengths[:process])
        self._order: torch.Tensor | None = None
        if shuffle:
            # In shared memory, where workers that live on see the orders of later epochs.
            self._order = torch.arange(count).share_memory_()  # type: ignore[no-untyped-call]
            self._random_state = torch.Generator().manual_seed(options.random_seed).get_state()

    def begin_epoch(self) -> None:
        """Draw the next order of the whole data set, the same in every process; leave out its other end."""
        self._shift = self._left_over - self._shift
        if self._order is not None:
            generator = torch.Generator().set_state(self._random_state)
            self._order.copy_(torch.randperm(len(self._order), generator=generator))
            self._random_state = generator.get_state()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        position = index + self._start + self._shift
        return self._dataset[position if self._order is None else int(self._order[position])]


def _length_or_none(batch_sampler: Any) -> int | None:
    try:
        length = len(batch_sampler)
    except (TypeError, NotImplementedError):
        return None
    return None if length is NotImplemented else length


class DataLoader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader, with as many batches joined as one call of a model with these options takes.

    `batch_size` is the micro-batch; `combinedBatchSize` is what comes out. With several processes, a
    map-style data set is divided among them unless `auto_distributed_partitioning` is False.
    """

    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        num_workers: int = 0,
        drop_last: bool | None = True,
        persistent_workers: bool | None = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: dict[str, Any] | None = None,
        rebatched_worker_size: int | None = None,
        batch_sampler: BatchSampler | None = None,
        **kwargs: Any,
    ) -> None:
        self._accessor: AsynchronousDataAccessor | None = None
        require(options, Options)
        _check_data(dataset, batch_size)
        mode = DataLoaderMode(mode)
        self._is_user_batch_sampler_set = batch_sampler is not None
        if batch_sampler is not None:
            _check_batch_sampler(options, batch_size, shuffle, auto_distributed_partitioning)
            batch_size = getattr(batch_sampler, "batch_size", batch_size)
        options._freeze()
        self._options = options
        self._batches_to_combine = micro_batches_of_a_call(options)
        self._combined_batch_size = None if batch_size is None else batch_size * self._batches_to_combine
        drop_remainder = bool(drop_last)
        self.rebatched_drop_last = self.batch_sampler_drop_last = drop_remainder
        if isinstance(dataset, torch.utils.data.IterableDataset):
            self._check_iterable(auto_distributed_partitioning, num_workers, kwargs)
            shuffled_share = False
        else:
            if not drop_remainder:
                self._warn_of_remainder(len(dataset), batch_size, batch_sampler)
            dataset, shuffled_share = self._share(
                dataset, shuffle, drop_remainder, auto_distributed_partitioning
            )
        self._shuffle_share = shuffled_share

        rebatched_size = self._rebatched_size(mode, drop_remainder)
        size = self._loaded_size(rebatched_size, rebatched_worker_size)
        by_batch = batch_sampler is None and size is not None
        super().__init__(
            dataset,
            batch_size=size,
            shuffle=None if batch_sampler is not None else bool(shuffle) and not shuffled_share,
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            num_workers=num_workers,
            drop_last=by_batch and rebatched_size is None and drop_remainder,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            **kwargs,
        )
        if mode != DataLoaderMode.Sync:
            self._accessor = self._start_accessor(async_options or {}, rebatched_size)

    def _start_accessor(
        self, async_options: dict[str, Any], rebatched_size: int | None
    ) -> AsynchronousDataAccessor:
        assert "rebatched_size" not in async_options, (
            "async_options has a rebatched_size, which the DataLoader works out from batch_size and its options"
        )
        return AsynchronousDataAccessor(self, **async_options, rebatched_size=rebatched_size)

    def _check_iterable(
        self, auto_distributed_partitioning: bool, num_workers: int, kwargs: dict[str, Any]
    ) -> None:
        assert not auto_distributed_partitioning or self._options.Distributed.numProcesses == 1, (
            "An IterableDataset cannot be divided among processes: let it yield what this one is to read, and give "
            "auto_distributed_partitioning=False"
        )
        if num_workers > 1 and "worker_init_fn" not in kwargs:
            logger.warning(
                "Each of %d workers reads the whole IterableDataset, so that every element comes as often: divide it "
                "by a worker_init_fn",
                num_workers,
            )

    def _warn_of_remainder(self, count: int, batch_size: int | None, batch_sampler: Any) -> None:
        smaller = (
            "The last batch will have %d rows, fewer than the others: %d %s, of which a call takes %d. %s"
        )
        advice = "drop_last=True leaves it out."
        if batch_sampler is not None:
            batches, step = _length_or_none(batch_sampler), self._batches_to_combine
            if batches is None:
                logger.warning(
                    "The last batch may be smaller: the batch_sampler does not say its length. %s", advice
                )
            elif batches % step:
                rows = batches % step * (batch_size or 1)
                logger.warning(smaller, rows, batches, "batches come from the batch_sampler", step, advice)
        elif self._combined_batch_size is not None:
            step = self._combined_batch_size * self._options.Distributed.numProcesses
            if count % step:
                logger.warning(smaller, count % step, count, "elements are in the data set", step, advice)

    def _share(
        self, dataset: Any, shuffle: bool | None, drop_last: bool, auto_distributed_partitioning: bool
    ) -> tuple[Any, bool]:
        """This process's part of the data set, and whether that part does the shuffling."""
        if self._options.Distributed.numProcesses == 1 or not auto_distributed_partitioning:
            return dataset, False
        assert not shuffle or self._options.exists("random_seed"), (
            "All processes must draw the same order, to divide the data: call Options.randomSeed() in each"
        )
        assert self._combined_batch_size is not None, (
            "Without a batch_size the data cannot be divided among processes: give one, or "
            "auto_distributed_partitioning=False"
        )
        share = _ProcessShare(dataset, self._options, self._combined_batch_size, drop_last, bool(shuffle))
        return share, bool(shuffle)

    def _rebatched_size(self, mode: DataLoaderMode, drop_last: bool) -> int | None:
        """The batch that the worker makes of smaller or incomplete ones; None if it passes them on."""
        joins = self._combined_batch_size is not None and self._combined_batch_size > 1
        if mode == DataLoaderMode.AsyncRebatched or (
            mode == DataLoaderMode.Async and not drop_last and joins
        ):
            return self._combined_batch_size
        return None

    def _loaded_size(self, rebatched_size: int | None, rebatched_worker_size: int | None) -> int | None:
        """Rows that torch's DataLoader puts together: a call's, or what a worker makes calls of."""
        if rebatched_size is None or rebatched_worker_size is None:
            return 1 if self._is_user_batch_sampler_set else self._combined_batch_size
        assert 1 <= rebatched_worker_size <= rebatched_size, (
            f"rebatched_worker_size is {rebatched_worker_size}; it must be 1 or more, and a call takes "
            f"{rebatched_size}, which is the most"
        )
        return rebatched_worker_size

    @property
    def leaves_incomplete_batch(self) -> bool:
        """Whether the last batch can be smaller than the others."""
        joins = self._combined_batch_size is not None and self._combined_batch_size != 1
        return not self._is_user_batch_sampler_set and not self.drop_last and joins

    def __len__(self) -> int:
        size = self._accessor.rebatched_size if self._accessor is not None else None
        if not size:
            return super().__len__()
        batches, rest = divmod(len(self.dataset), size)  # type: ignore[arg-type]
        return batches + (rest > 0 and not self.rebatched_drop_last)

    @property
    def _profiling(self) -> profiling.Channel:
        return profiling.Channel("poptorch.DataLoader")

    @property
    def combinedBatchSize(self) -> int | None:
        """Rows of one batch: micro-batch x device iterations x input groups x gradient accumulation."""
        return self._combined_batch_size

    @property
    def options(self) -> Options:
        """The options the batches are made for."""
        return self._options

    def terminate(self) -> None:
        """Stop the worker process of the asynchronous modes."""
        if getattr(self, "_accessor", None) is not None:
            self._accessor.terminate()  # type: ignore[union-attr]

    def __del__(self) -> None:
        self.terminate()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self._accessor is not None:
            return iter(self._accessor)  # Its process has this loader without one, and begins epochs there.
        if self._shuffle_share:
            self.dataset.begin_epoch()  # type: ignore[attr-defined]
        if self._is_user_batch_sampler_set and self._batches_to_combine != 1:
            return combined_batches(
                super().__iter__(), self._batches_to_combine, self.batch_sampler_drop_last
            )
        return super().__iter__()


def _check_data(dataset: Any, batch_size: Any) -> None:
    """Raise what torch's DataLoader raises, in the user's own numbers."""
    if not isinstance(dataset, torch.utils.data.IterableDataset) and not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"poptorch.DataLoader: dataset must be a torch.utils.data.Dataset or a sequence, not {dataset!r}."
        )
    if batch_size is None:
        return
    if not isinstance(batch_size, int):
        raise TypeError(f"poptorch.DataLoader: batch_size must be an int or None, not {batch_size!r}.")
    if batch_size < 1:
        raise ValueError(f"poptorch.DataLoader: batch_size is {batch_size}, and must be 1 or more.")


def _check_batch_sampler(
    options: Options, batch_size: int | None, shuffle: bool | None, auto_distributed_partitioning: bool
) -> None:
    if batch_size != 1 or shuffle:
        raise poptorch_error(
            "A batch_sampler makes batches and their order: leave batch_size and shuffle out."
        )
    if options.Distributed.numProcesses > 1 and auto_distributed_partitioning:
        raise poptorch_error(
            "A batch_sampler says what this process reads: give auto_distributed_partitioning=False."
        )
