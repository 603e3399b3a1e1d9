"""What the instances of a job do together: reduce gradients, broadcast, wait, compare.

On a pod GCL reduces over the replicas of all instances; here the engine reduces over its own replicas and
then, through MPI, over the instances. The sum is taken in the order of the instances, whatever the message
sizes and the number of hosts, so that every instance gets the same bits and a run can be repeated exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.runtime.heartbeat import Heartbeat

BUCKET_BYTES = 16 << 20
"""Tensors are exchanged in buffers of this size, which bounds the memory it takes."""
SMALL_BYTES = 32 << 10
"""Up to this size everyone gets everything in one exchange, which spares two waits."""
POLL_S = 2e-3
"""Time in which the others usually come: polled without sleep, the core offered to whoever needs it."""
LONGEST_SLEEP_S = 1e-3


class InstanceGroup:
    """Instances that work together; a job's instances, or some of them (`popdist.execute_on_instances`).

    `communicator` is an mpi4py communicator whose ranks are the instances in order.
    """

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator
        self.index: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self._heartbeat = Heartbeat()
        self._agreed: set[tuple[Any, ...]] = set()
        """Shapes and dtypes that the instances have found to be the same."""

    def barrier(self, what: str = "barrier") -> None:
        """Returns once every instance of the group is here."""
        if self.size > 1:
            self._wait(self.communicator.Ibarrier(), what)

    def _wait(self, request: Any, what: str) -> None:
        """Polls until the request is done: MPI's own wait would burn the core a late instance may need."""
        started = time.perf_counter()
        while time.perf_counter() - started < POLL_S:
            if request.Test():
                return
            os.sched_yield()
        with self._heartbeat.waiting(what):
            while not request.Test():
                # A twentieth of the time waited so far: sleeping never adds more than that.
                time.sleep(min((time.perf_counter() - started) / 20, LONGEST_SLEEP_S))

    def all_reduce(self, tensors: Tensor | Sequence[Tensor]) -> None:
        """Sums the tensors over the instances, in place. Every instance passes the same shapes and dtypes.

        Half-precision values are summed in float32 and rounded once, as the device does with float32
        partials. Raises ValueError for a tensor that is not contiguous, and poptorch.Error where instances
        have different tensors to reduce.
        """
        if self.size == 1:
            return
        listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        self._agree_on(tuple((tensor.shape, tensor.dtype) for tensor in listed))
        for dtype in dict.fromkeys(tensor.dtype for tensor in listed):
            for pieces in _buckets([tensor for tensor in listed if tensor.dtype == dtype]):
                # MPI reads the host's memory; what is on a GPU is copied there.
                flat = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).cpu()
                self._sum(flat)
                if flat is not pieces[0]:
                    for piece, total in zip(pieces, torch.split(flat, [piece.numel() for piece in pieces])):
                        piece.copy_(total)

    def _agree_on(self, kinds: tuple[Any, ...]) -> None:
        """Instances that compiled different programs would otherwise add what does not belong together."""
        if kinds not in self._agreed:
            digest = hashlib.sha256(repr(kinds).encode()).hexdigest()[:12]
            self.check_same({"what is reduced": f"{len(kinds)} tensors, {digest}"})
            self._agreed.add(kinds)

    def _sum(self, flat: Tensor) -> None:
        if flat.numel() * flat.element_size() <= SMALL_BYTES:
            everyone = flat.new_empty(self.size, flat.numel())
            self._wait(self.communicator.Iallgather(_bytes(flat), _bytes(everyone)), "all_reduce")
            flat.copy_(_sum_in_order(everyone))
        else:
            self.barrier("all_reduce")
            self._sum_by_shares(flat)

    def _sum_by_shares(self, flat: Tensor) -> None:
        """Each instance adds up its share of the elements, then all shares go to everyone."""
        bounds = [i * flat.numel() // self.size for i in range(self.size + 1)]
        counts = [(end - start) * flat.element_size() for start, end in itertools.pairwise(bounds)]
        offsets = [start * flat.element_size() for start in bounds[:-1]]
        own = counts[self.index]
        shares = flat.new_empty(self.size, own // flat.element_size())
        self.communicator.Alltoallv(
            [_bytes(flat), counts, offsets, _byte_type()],
            [_bytes(shares), [own] * self.size, [i * own for i in range(self.size)], _byte_type()],
        )
        total = _sum_in_order(shares)
        self.communicator.Allgatherv(
            [_bytes(total), own, _byte_type()], [_bytes(flat), counts, offsets, _byte_type()]
        )

    def broadcast(self, tensors: Sequence[Tensor], root: int = 0) -> None:
        """Overwrites the tensors with those of instance `root`."""
        if self.size == 1:
            return
        self.barrier("broadcast")
        for tensor in tensors:
            whole = tensor.detach().cpu().contiguous()
            self.communicator.Bcast(
                [_bytes(whole), whole.numel() * whole.element_size(), _byte_type()], root=root
            )
            if self.index != root:
                tensor.detach().copy_(whole)

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Compares what the instances say of themselves: checksums of code, program, data.

        Raises poptorch.Error on every instance, naming each fact that differs and who says what.
        """
        if self.size == 1:
            return
        self.barrier("check_same")
        said: list[Mapping[str, str]] = self.communicator.allgather(dict(facts))
        problems = [
            f"{name}: {_who_says_what([str(one.get(name, 'nothing')) for one in said])}"
            for name in sorted(set().union(*said))
            if len({one.get(name) for one in said}) > 1
        ]
        if problems:
            raise poptorch_error(
                "The instances do not run the same thing: "
                + "; ".join(problems)
                + ". Give every instance and host "
                "the same files, settings and versions."
            )


def _who_says_what(values: Sequence[str]) -> str:
    """`instances 0, 2 have x, instance 1 has y`."""
    parts = []
    for value in dict.fromkeys(values):
        who = [str(i) for i, other in enumerate(values) if other == value]
        parts.append(f"{'instance' if len(who) == 1 else 'instances'} {', '.join(who)} {value}")
    return ", ".join(parts)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Flat pieces of the tensors, in order, in lists of BUCKET_BYTES at most."""
    bucket: list[Tensor] = []
    free = BUCKET_BYTES
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"all_reduce works in place and needs contiguous tensors, got strides {tensor.stride()}"
            )
        rest = tensor.detach().reshape(-1)
        while rest.numel():
            fits = max(1, free // rest.element_size())
            bucket.append(rest[:fits])
            free -= bucket[-1].numel() * rest.element_size()
            rest = rest[fits:]
            if free < tensor.element_size():
                yield bucket
                bucket, free = [], BUCKET_BYTES
    if bucket:
        yield bucket


def _sum_in_order(shares: Tensor) -> Tensor:
    """The sum of the rows, first to last."""
    wide = shares.float() if shares.dtype in {torch.float16, torch.bfloat16} else shares
    total = wide[0]
    for row in wide[1:]:
        total += row
    return total.to(shares.dtype)


def _bytes(tensor: Tensor) -> Any:
    """The memory of a contiguous tensor, as a buffer that MPI takes (it has no half-precision types)."""
    return tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else bytearray()


def _byte_type() -> Any:
    from mpi4py import MPI

    return MPI.BYTE


_groups: list[InstanceGroup] = []
"""The groups in force, the innermost last. The first is the whole job's."""


def current_group() -> InstanceGroup:
    """The instances that work together now; starts MPI at the first call."""
    if not _groups:
        from mpi4py import MPI

        _groups.append(InstanceGroup(MPI.COMM_WORLD))
        Heartbeat().watch()
    return _groups[-1]


def group_exists() -> bool:
    """True once `current_group` has been called."""
    return bool(_groups)


@contextlib.contextmanager
def restricted_to(instances: Sequence[int]) -> Iterator[None]:
    """Within the block only these instances work together; only they may enter it."""
    whole = current_group()
    ranks = whole.communicator.Get_group().Incl(sorted(instances))
    communicator = whole.communicator.Create_group(ranks)
    _groups.append(InstanceGroup(communicator))
    try:
        yield
    finally:
        _groups.pop()
        communicator.Free()
