"""popdist's functions, with the environment that poprun sets and without."""

from __future__ import annotations

import pytest

from bert_ipu.simulator import popdist
from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.popdist import poptorch as popdist_poptorch
from bert_ipu.simulator.poprun.plan import Plan


@pytest.fixture
def third_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of instance 2 of 4, with two replicas each, second on its host."""
    for name, value in (
        Plan(replicas=8, ipus_per_replica=4, instances=4, hosts=("a", "b")).environment(2, 0).items()
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No poprun, no mpirun."""
    for name in (*Plan(1, 1, 1).environment(0, 0), "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_without_poprun_there_is_one_instance(alone: None) -> None:
    assert not popdist.isPopdistEnvSet()
    assert (
        popdist.getNumTotalReplicas(),
        popdist.getNumLocalReplicas(),
        popdist.getReplicaIndexOffset(),
    ) == (1, 1, 0)
    assert (popdist.getNumInstances(), popdist.getInstanceIndex(), popdist.getLocalInstanceIndex()) == (
        1,
        0,
        0,
    )
    assert (popdist.getNumIpusPerReplica(), popdist.getDeviceId()) == (1, 0)


def test_poprun_tells_the_instance_its_place(third_of_four: None) -> None:
    assert popdist.isPopdistEnvSet()
    assert (
        popdist.getNumTotalReplicas(),
        popdist.getNumLocalReplicas(),
        popdist.getReplicaIndexOffset(),
    ) == (8, 2, 4)
    assert (popdist.getNumInstances(), popdist.getInstanceIndex(), popdist.getLocalInstanceIndex()) == (
        4,
        2,
        0,
    )
    assert popdist.checkNumIpusPerReplica(4) and not popdist.checkNumIpusPerReplica(2)


def test_without_poprun_init_needs_no_mpi(alone: None) -> None:
    popdist.init()
    popdist.synchronize()
    popdist.finalizeBackend()


def test_without_poprun_the_only_instance_executes(alone: None) -> None:
    assert popdist.execute_on_instances({0}, lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(Error, match=r"\[3\] are none of the 1 of this job"):
        popdist.execute_on_instances({0, 3}, int)


def test_an_instance_that_is_not_named_executes_nothing(third_of_four: None) -> None:
    assert popdist.execute_on_instances({0}, pytest.fail, "ran on instance 2") is None


def test_unequal_replicas_have_no_instance_number(
    third_of_four: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POPDIST_NUM_LOCAL_REPLICAS", "3")
    with pytest.raises(Error, match="unequal numbers of replicas"):
        popdist.getNumInstances()


def test_damaged_environment_is_named(third_of_four: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPDIST_NUM_TOTAL_REPLICAS", "eight")
    with pytest.raises(Error, match="POPDIST_NUM_TOTAL_REPLICAS='eight' is not a whole number"):
        popdist.getNumTotalReplicas()


def test_options_follow_poprun(third_of_four: None) -> None:
    options = popdist_poptorch.Options(ipus_per_replica=4)
    assert options.replication_factor == 2
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (2, 4)


def test_without_poprun_options_have_one_replica_of_one_process(alone: None) -> None:
    options = popdist_poptorch.Options()
    assert options.replication_factor == 1
    assert (options.Distributed.processId, options.Distributed.numProcesses) == (0, 1)


def test_options_refuse_another_number_of_ipus(third_of_four: None) -> None:
    with pytest.raises(
        Error, match="2 IPUs per replica were asked for, but poprun was started with --ipus-per-replica 4"
    ):
        popdist_poptorch.Options(ipus_per_replica=2)


def test_options_refuse_what_poprun_decides(alone: None) -> None:
    options = popdist_poptorch.Options()
    refused = {
        "useIpuId": lambda: options.useIpuId(1),
        "replicationFactor": lambda: options.replicationFactor(2),
        "Distributed.disable": options.Distributed.disable,
        "Distributed.setEnvVarNames": lambda: options.Distributed.setEnvVarNames("A", "B"),
        "Distributed.configureProcessId": lambda: options.Distributed.configureProcessId(1, 2),
    }
    for name, call in refused.items():
        with pytest.raises(RuntimeError, match=rf"Cannot call `{name}` with popdist\.poptorch\.Options"):
            call()
