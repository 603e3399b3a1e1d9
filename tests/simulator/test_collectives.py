"""What instances do together, run by real instances through mpirun; the oracle is torch on one process."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from poprun_jobs import Job

from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.runtime import collectives

PROGRAM = """
import itertools, sys, torch
from bert_ipu.simulator import popdist
from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.runtime import collectives

popdist.init()
group = collectives.current_group()
rank, size = group.index, group.size
generator = torch.Generator().manual_seed(rank)
shapes = [(), (1,), (3, 5), (0,), (9001,), (300, 700)]
dtypes = [torch.float32, torch.float16, torch.int32, torch.float64]
mine = [(torch.randn(s, generator=generator) * 100).to(d) for s, d in itertools.product(shapes, dtypes)]
everyone = group.communicator.allgather(mine)
"""


BODY = """
expected_subset = {0: (0, 2, 2.0), 1: None, 2: (1, 2, 2.0)}

def pair():
    inner = collectives.current_group()
    x = torch.tensor([float(rank)])
    inner.all_reduce(x)
    return inner.index, inner.size, x.item()

subset = popdist.execute_on_instances({0, 2}, pair)
assert subset == expected_subset[rank], subset
assert collectives.current_group() is group and popdist.isBackendInitialized()
print("subset", flush=True)

copies = [tensor.clone() for tensor in mine]
group.broadcast(copies, root=1)
assert all(torch.equal(a, b) for a, b in zip(copies, everyone[1]))
print("broadcast", flush=True)

group.check_same({"code": "1a", "data": "2b"})
try:
    group.check_same({"code": "1a", "data": "2b" if rank != 1 else "3c"})
except Error as error:
    said = str(error)
assert "data: instances 0, 2 2b, instance 1 3c" in said and "code" not in said, said
try:
    group.all_reduce(torch.ones(3 if rank != 2 else 4))
except Error as error:
    said = str(error)
assert "what is reduced: instances 0, 1 1 tensors" in said, said
print("compared", flush=True)

collectives.BUCKET_BYTES = 65536  # so that tensors straddle buckets, and some exchanges are small
group.all_reduce(mine)
for i, tensor in enumerate(mine):
    wide = [one[i].float() if one[i].dtype is torch.float16 else one[i] for one in everyone]
    total = wide[0]
    for one in wide[1:]:
        total = total + one
    assert torch.equal(tensor, total.to(tensor.dtype)), (i, tensor, total)
popdist.synchronize()
print("summed", flush=True)
"""


@pytest.mark.mpi
def test_three_instances_work_together() -> None:
    """Sums in order for every dtype, shape and size; broadcast; subsets; comparison of checksums."""
    job = Job(["-c", PROGRAM + BODY], instances=3)
    assert job.status == 0, job.stderr
    assert sorted(job.stdout.split()) == sorted(["subset", "broadcast", "compared", "summed"] * 3)


class Alone:
    """A communicator of one, which must not be asked to communicate."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 1


def test_one_instance_communicates_nothing() -> None:
    group = collectives.InstanceGroup(Alone())
    x = torch.arange(3.0)
    group.all_reduce(x)
    group.broadcast([x])
    group.check_same({"code": "1"})
    group.barrier()
    assert x.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("bucket_bytes", [4, 40, 1 << 20])
def test_buckets_hold_every_element_once_in_order(bucket_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "BUCKET_BYTES", bucket_bytes)
    tensors = [torch.full((n,), float(n)) for n in (1, 0, 7, 30, 2)]
    buckets = list(collectives._buckets(tensors))
    assert torch.equal(torch.cat(list(itertools.chain(*buckets))), torch.cat(tensors))
    assert all(0 < sum(piece.nbytes for piece in bucket) <= bucket_bytes for bucket in buckets)


def test_tensor_that_cannot_be_reduced_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match="needs contiguous tensors"):
        list(collectives._buckets([torch.ones(3, 4).t()]))


def test_half_precision_sums_are_rounded_once() -> None:
    rows = torch.tensor([[2048.0], [1.0], [1.0]], dtype=torch.float16)
    assert collectives._sum_in_order(rows).item() == 2050.0  # 2048 + 1 rounds back to 2048 in float16


def test_errors_are_poptorch_errors() -> None:
    class Two:
        def Get_rank(self) -> int:
            return 0

        def Get_size(self) -> int:
            return 2

        def Ibarrier(self) -> Any:
            return type("Done", (), {"Test": lambda self: True})()

        def allgather(self, fact: dict[str, str]) -> list[dict[str, str]]:
            return [fact, {"data": "other"}]

    with pytest.raises(Error, match="data: instance 0 mine, instance 1 other"):
        collectives.InstanceGroup(Two()).check_same({"data": "mine"})
