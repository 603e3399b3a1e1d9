"""DataLoader and AsynchronousDataAccessor: the right rows, once each, in order, in every mode."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

import bert_ipu.simulator.poptorch as poptorch


class Numbers(torch.utils.data.Dataset[Any]):
    """Row i is [i, i]; with `labels`, a pair of that and i."""

    def __init__(self, count: int, labels: bool = False) -> None:
        self.count = count
        self.labels = labels

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        row = torch.full((2,), float(index))
        return (row, torch.tensor(index)) if self.labels else row


class Broken(Numbers):
    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("this data set cannot be read")


def _rows(loader: Any) -> list[int]:
    return [int(row[0]) for batch in loader for row in batch]


def _options(
    iterations: int = 1, processes: int = 1, process: int = 0, seed: int | None = None
) -> poptorch.Options:
    options = poptorch.Options().deviceIterations(iterations)
    options.Distributed.configureProcessId(process, processes)
    return options if seed is None else options.randomSeed(seed)


def test_a_batch_is_what_one_call_takes() -> None:
    options = poptorch.Options().deviceIterations(2).replicationFactor(4)
    options.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive)
    options.Training.gradientAccumulation(3)
    loader = poptorch.DataLoader(options, Numbers(150), batch_size=5)
    assert loader.combinedBatchSize == 2 * (4 // 2) * 3 * 5
    assert [len(batch) for batch in loader] == [60, 60]
    assert len(loader) == 2


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_the_rows_and_two_epochs_use_all(processes: int) -> None:
    loaders = [
        poptorch.DataLoader(_options(2, processes, each, seed=7), Numbers(101), batch_size=3, shuffle=True)
        for each in range(processes)
    ]
    first = [_rows(loader) for loader in loaders]
    together = [row for rows in first for row in rows]
    assert len(together) == len(set(together)) == processes * (101 // (6 * processes)) * 6
    assert len({len(rows) for rows in first}) == 1
    second = [_rows(loader) for loader in loaders]
    assert second != first


def test_without_shuffling_a_second_epoch_reaches_the_left_over_rows() -> None:
    loaders = [poptorch.DataLoader(_options(1, 2, each), Numbers(10), batch_size=4) for each in range(2)]
    assert [_rows(loader) for loader in loaders] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_kept_remainders_divide_all_rows() -> None:
    loaders = [
        poptorch.DataLoader(_options(1, 3, each), Numbers(10), batch_size=4, drop_last=False)
        for each in range(3)
    ]
    assert [_rows(loader) for loader in loaders] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_asynchronous_epochs_are_whole_and_in_order() -> None:
    loader = poptorch.DataLoader(_options(2), Numbers(20), batch_size=3, mode=poptorch.DataLoaderMode.Async)
    assert _rows(loader) == list(range(18))
    for batch in loader:  # leave an epoch early: the next one starts at the first row
        assert int(batch[0, 0]) == 0
        break
    assert _rows(loader) == list(range(18))
    loader.terminate()


def test_rebatching_keeps_the_last_rows_with_labels() -> None:
    loader = poptorch.DataLoader(
        _options(2),
        Numbers(20, labels=True),
        batch_size=3,
        drop_last=False,
        mode=poptorch.DataLoaderMode.AsyncRebatched,
        rebatched_worker_size=4,
    )
    batches = [(rows.clone(), labels.clone()) for rows, labels in loader]
    assert [len(rows) for rows, _ in batches] == [6, 6, 6, 2] and len(loader) == 4
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(20))
    assert torch.equal(torch.cat([rows for rows, _ in batches])[:, 0].long(), torch.arange(20))
    loader.terminate()


def test_a_data_set_that_cannot_be_read_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(poptorch.Error, match="worker thread failed to start"):
        poptorch.AsynchronousDataAccessor(Broken(3))


def test_two_accessors_on_one_loader_are_refused() -> None:
    loader = poptorch.DataLoader(_options(), Numbers(4), mode=poptorch.DataLoaderMode.Async)
    with pytest.raises(poptorch.Error, match="has an AsynchronousDataAccessor of its own"):
        poptorch.AsynchronousDataAccessor(loader)
    loader.terminate()


def test_a_batch_samplers_batches_are_joined() -> None:
    sampler = torch.utils.data.BatchSampler(range(10), batch_size=2, drop_last=False)
    kept = poptorch.DataLoader(_options(2), Numbers(10), batch_sampler=sampler, drop_last=False)
    assert [[int(row[0]) for row in batch] for batch in kept] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    dropped = poptorch.DataLoader(_options(2), Numbers(10), batch_sampler=sampler)
    assert [len(batch) for batch in dropped] == [4, 4]
    with pytest.raises(poptorch.Error, match="leave batch_size and shuffle out"):
        poptorch.DataLoader(_options(), Numbers(10), batch_sampler=sampler, batch_size=2)


def test_an_unseeded_shuffle_over_processes_is_refused() -> None:
    with pytest.raises(AssertionError, match="randomSeed"):
        poptorch.DataLoader(_options(1, 2, 0), Numbers(8), shuffle=True)


def _abandon_an_accessor(pids: Connection) -> None:
    accessor = poptorch.AsynchronousDataAccessor(Numbers(4), sharing_strategy=poptorch.SharingStrategy.Fork)
    assert accessor._worker is not None
    pids.send(accessor._worker._process.pid)
    os._exit(1)


def _runs(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_worker_ends_when_its_reader_dies() -> None:
    fork = multiprocessing.get_context("fork")
    pids, sender = fork.Pipe(duplex=False)
    reader = fork.Process(target=_abandon_an_accessor, args=(sender,))
    reader.start()
    worker = pids.recv()
    reader.join()
    deadline = time.monotonic() + 10
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(worker)


def test_a_dataset_too_small_for_its_processes_is_refused() -> None:
    """PopTorch divides by the empty share that each process would get."""
    with pytest.raises(poptorch.Error, match="7 elements is too small for 2 processes, which take 4 each"):
        poptorch.DataLoader(_options(iterations=2, processes=2), Numbers(7), batch_size=2)
    options = _options(iterations=2, processes=2)
    assert _rows(poptorch.DataLoader(options, Numbers(7), batch_size=2, drop_last=False)) == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", [poptorch.DataLoaderMode.Sync, poptorch.DataLoaderMode.Async])
def test_a_shuffled_share_shifts_by_what_one_share_leaves_over(mode: poptorch.DataLoaderMode) -> None:
    """`num_elts % per_proc` of PopTorch's `_SubDataset`: 15 rows by steps of 4 for 2 processes leave 15 % 4 = 3."""
    options = _options(processes=2, seed=1)
    loader = poptorch.DataLoader(options, Numbers(15), batch_size=4, shuffle=True, mode=mode)
    generator = torch.Generator().manual_seed(1)
    for start in (3, 0, 3):
        order = torch.randperm(15, generator=generator).tolist()
        assert _rows(loader) == order[start : start + 4]
    loader.terminate()


ROWS = [torch.zeros(2)] * 12


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"dataset": None}, TypeError, "a sequence, not None"),
        ({"dataset": 5}, TypeError, "a sequence, not 5"),
        ({"dataset": iter(ROWS)}, TypeError, "torch.utils.data.Dataset or a sequence"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": -1}, ValueError, "batch_size is -1"),
        ({"batch_size": 1.5}, TypeError, "an int or None, not 1.5"),
        ({"mode": "async"}, ValueError, "'async' is not a valid DataLoaderMode"),
        ({"mode": poptorch.DataLoaderMode.AsyncRebatched, "rebatched_worker_size": 0}, AssertionError, "must be 1"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_loader_says_what_it_cannot_load(
    arguments: dict[str, Any], kind: type[Exception], said: str, processes: int
) -> None:
    """By torch's own kinds of errors, and with the numbers that were given: torch sees those of several batches."""
    options = poptorch.Options().deviceIterations(3)
    options.Distributed.configureProcessId(0, processes)
    with pytest.raises(kind, match=said):
        poptorch.DataLoader(options, **{"dataset": ROWS, **arguments})


@pytest.mark.parametrize(
    "batches",
    [
        [torch.zeros(3, 2), torch.zeros(1, 2)],  # was repeated three times
        [(torch.zeros(2), torch.zeros(2)), (torch.ones(2),)],  # kept the second of the batch before
    ],
)
def test_batches_that_differ_do_not_fill_a_slot_in_part(batches: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    accessor = poptorch.AsynchronousDataAccessor(batches, sharing_strategy=poptorch.SharingStrategy.Fork)
    with pytest.raises(AssertionError, match="the error is above"):
        list(accessor)
    assert "Make batches alike" in capfd.readouterr().err


def test_an_accessor_has_at_least_one_slot() -> None:
    with pytest.raises(AssertionError, match="buffer_size is 0"):
        poptorch.AsynchronousDataAccessor(ROWS, buffer_size=0)


class Killed(Numbers):
    def __getitem__(self, index: int) -> Any:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_worker_that_was_killed_is_said_to_be() -> None:
    with pytest.raises(AssertionError, match="was killed by SIGKILL"):
        list(poptorch.AsynchronousDataAccessor(Killed(8), sharing_strategy=poptorch.SharingStrategy.Fork))
