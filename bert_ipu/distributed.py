"""The instances of one job: how many there are, which one this is, and what they tell each other.

Gradients are not here: replicas of all instances reduce them on the device.  What instances exchange is
small: the weights to start from, metrics, and what they were started on (code, settings with the seed, data,
checkpoint), which must be the same.  Each of these also waits for all.
"""
from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence

import popdist
import torch

from bert_ipu.errors import ConfigError, DataError

_SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True)
class World:
    """All instances of the job, seen from one of them."""

    rank: int = 0
    size: int = 1
    communicator: Any = None
    """mpi4py's; None for a job of one."""

    @property
    def is_first(self) -> bool:
        """Whether this instance logs and saves."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print a line, once for all instances."""
        if self.is_first:
            print(text, flush=True)

    def gather(self, value: Any) -> List[Any]:
        """Every instance's value, by rank, the same list everywhere."""
        return [value] if self.communicator is None else list(self.communicator.allgather(value))

    def mean(self, metrics: Dict[str, float]) -> Dict[str, float]:
        """The mean of each metric over all instances, the same everywhere."""
        if self.communicator is None:
            return metrics
        gathered = self.gather(metrics)
        return {name: sum(each[name] for each in gathered) / self.size for name in metrics}

    def broadcast_weights(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite contiguous tensors, in place, with the first instance's, which have the same shapes."""
        if self.communicator is None:
            return
        for tensor in tensors:
            # MPI knows no half precision, so bytes are sent.
            self.communicator.Bcast(tensor.detach().view(-1).view(torch.uint8).numpy(), root=0)

    def check_same(self, facts: Dict[str, str]) -> None:
        """Compare what the instances say of their code, settings, data or checkpoint.

        Raises DataError, on all of them: something differs; the message says what, and who has which.
        """
        told = self.gather(facts)
        names = sorted({name for each in told for name in each})
        differing = [name for name in names if len({each.get(name) for each in told}) > 1]
        if differing:
            lines = [f"  {name}: {_who_has_what([each.get(name) for each in told])}" for name in differing]
            raise DataError(
                "The instances were not started on the same thing:\n" + "\n".join(lines) + "\nCopy the code "
                "and the data to every host again, and start all instances with the same settings.")


def _who_has_what(values: Sequence[Any]) -> str:
    groups = []
    for value in sorted(set(values), key=values.index):
        ranks = [str(rank) for rank, other in enumerate(values) if other == value]
        groups.append(f"{value} on instance{'s' * (len(ranks) > 1)} {', '.join(ranks)}")
    return "; ".join(groups)


def code_version() -> str:
    """A checksum of this package's source, and the versions of Python and torch."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return f"{digest.hexdigest()[:12]} (Python {platform.python_version()}, torch {version('torch')})"


def data_version(path: str) -> str:
    """A checksum of a data file, or of the files of a folder or pattern: names, sizes, beginnings and ends.

    A damaged row in between is found when it is read.
    """
    place = Path(path)
    pattern = place.parent.glob(place.name) if "*" in place.name else place.glob("*")
    files = [place] if place.is_file() else sorted(file for file in pattern if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(_SAMPLED_BYTES))
            content.seek(max(0, size - _SAMPLED_BYTES))
            digest.update(content.read())
    return f"{digest.hexdigest()[:12]} ({len(files)} files)"


def join_world(replication_factor: int) -> World:
    """This process's place in the job that poprun started, or a job of one.

    Raises ConfigError where poprun started another number of replicas than `ipu.replication_factor`.
    """
    if not popdist.isPopdistEnvSet():
        return World()
    from mpi4py import MPI

    popdist.init()
    total = popdist.getNumTotalReplicas()
    if total != replication_factor:
        raise ConfigError(
            f"poprun started {total} replicas, but ipu.replication_factor = {replication_factor}, which "
            f"counts those of all instances. Set ipu.replication_factor={total}, or poprun's --num-replicas.")
    return World(popdist.getInstanceIndex(), popdist.getNumInstances(), MPI.COMM_WORLD)
