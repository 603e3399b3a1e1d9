"""The instances of one job: how many there are, which one this is, and what they tell each other.

Gradients are not here: replicas of all instances reduce them on the device.  What instances exchange is
small: the weights and seed to start from, metrics, and that everybody has come this far.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List

import popdist

from bert_ipu.errors import ConfigError


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

    def broadcast(self, value: Any) -> Any:
        """The first instance's value, which must be the same kind of thing everywhere."""
        return value if self.communicator is None else self.communicator.bcast(value, root=0)

    def gather(self, value: Any) -> List[Any]:
        """Every instance's value, by rank, the same list everywhere."""
        return [value] if self.communicator is None else list(self.communicator.allgather(value))

    def mean(self, metrics: Dict[str, float]) -> Dict[str, float]:
        """The mean of each metric over all instances, the same everywhere."""
        if self.communicator is None:
            return metrics
        gathered = self.gather(metrics)
        return {name: sum(each[name] for each in gathered) / self.size for name in metrics}

    def barrier(self) -> None:
        """Wait until every instance is here."""
        if self.communicator is not None:
            self.communicator.barrier()


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
