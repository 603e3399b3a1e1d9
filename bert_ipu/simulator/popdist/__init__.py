"""popdist: which replicas this process has, as poprun told it in the environment.

Functions and their meaning: PopDist and PopRun user guide, "PopDist Python API reference". Without poprun a
process is the only instance, with one replica.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.runtime import collectives

Result = TypeVar("Result")

TOTAL = "POPDIST_NUM_TOTAL_REPLICAS"
LOCAL = "POPDIST_NUM_LOCAL_REPLICAS"
OFFSET = "POPDIST_REPLICA_INDEX_OFFSET"
IPUS = "POPDIST_NUM_IPUS_PER_REPLICA"
LOCAL_INSTANCE = "POPDIST_LOCAL_INSTANCE_INDEX"
UNIFORM = "POPDIST_UNIFORM_REPLICAS_PER_INSTANCE"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal():
        raise poptorch_error(f"{name}={text!r} is not a whole number; poprun sets it, do not set it by hand")
    return int(text)


def _uniform(total: int) -> int:
    """Replicas per instance, which must divide `total`."""
    local = getNumLocalReplicas()
    if os.environ.get(UNIFORM, "1") != "1" or local < 1 or total % local:
        raise poptorch_error(f"The instances have unequal numbers of replicas: {local} here, of {total}")
    return local


def isPopdistEnvSet() -> bool:
    """True where poprun started this process."""
    return TOTAL in os.environ


def getNumTotalReplicas() -> int:
    """Replicas of all instances together; 1 without poprun."""
    return _number(TOTAL, 1)


def getNumLocalReplicas() -> int:
    """Replicas of this instance; 1 without poprun."""
    return _number(LOCAL, 1)


def getReplicaIndexOffset() -> int:
    """Index of this instance's first replica among all; 0 without poprun."""
    return _number(OFFSET, 0)


def getNumIpusPerReplica() -> int:
    """IPUs of one replica; 1 without poprun."""
    return _number(IPUS, 1)


def checkNumIpusPerReplica(ipus_per_replica: int) -> bool:
    """True where poprun's number of IPUs per replica, if it gave one, is this one."""
    return getNumIpusPerReplica() == ipus_per_replica


def getNumInstances() -> int:
    """Instances of the job. Raises poptorch.Error where they have unequal numbers of replicas."""
    total = getNumTotalReplicas()
    return total // _uniform(total)


def getInstanceIndex() -> int:
    """This instance, in [0, getNumInstances()). Raises poptorch.Error where replicas are unequal."""
    return getReplicaIndexOffset() // _uniform(getNumTotalReplicas())


def getLocalInstanceIndex() -> int:
    """This instance among those of its host; 0 without poprun."""
    return _number(LOCAL_INSTANCE, 0)


def getDeviceId(ipusPerReplica: int = 0) -> int:
    """The device of this instance: the simulator gives every instance of a host its own.

    Raises poptorch.Error where `ipusPerReplica` is given and not poprun's.
    """
    if ipusPerReplica and not checkNumIpusPerReplica(ipusPerReplica):
        raise poptorch_error(
            f"{ipusPerReplica} IPUs per replica were asked for, but poprun was started with "
            f"--ipus-per-replica {getNumIpusPerReplica()}"
        )
    return getLocalInstanceIndex()


def init() -> None:
    """Joins the other instances; does nothing when done already."""
    initializeBackend()


def initializeBackend() -> None:
    """Joins the other instances. Raises poptorch.Error where MPI has another number of them than poprun."""
    if getNumInstances() == 1:
        return
    group = collectives.current_group()
    if group.size != getNumInstances():
        raise poptorch_error(
            f"MPI connects {group.size} processes, but poprun started {getNumInstances()} instances"
        )


def isBackendInitialized() -> bool:
    """True once this process has joined the others."""
    return collectives.group_exists()


def finalizeBackend() -> None:
    """Waits for the other instances. MPI itself stays: a process that leaves it cannot come back."""
    synchronize()


def synchronize() -> None:
    """Waits for the other instances."""
    if getNumInstances() > 1:
        collectives.current_group().barrier("popdist.synchronize")


def execute_on_instances(
    instances: set[int], func: Callable[..., Result], *args: Any, **kwargs: Any
) -> Result | None:
    """`func(*args, **kwargs)` on the given instances, which alone take part in what it does together.

    Returns its result there, and None at once on the others. Raises poptorch.Error for instances that do not
    exist.
    """
    strangers = sorted(set(instances) - set(range(getNumInstances())))
    if strangers or not instances:
        raise poptorch_error(
            f"Instances {strangers or 'of an empty set'} are none of the {getNumInstances()} of this job"
        )
    if getInstanceIndex() not in instances:
        return None
    if getNumInstances() == 1:
        return func(*args, **kwargs)
    with collectives.restricted_to(sorted(instances)):
        return func(*args, **kwargs)
