"""poprun's command line and layout: what is accepted, what is refused and with which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_ipu.simulator import installation
from bert_ipu.simulator.poprun import launch, options
from bert_ipu.simulator.poprun.options import PoprunError, parse
from bert_ipu.simulator.poprun.plan import Plan, expand_hosts, numa_cores, read_hostfile, share_of_cores

# Options of the PopDist and PopRun user guide.
DOCUMENTED = """
--host --num-replicas --ipus-per-replica --num-instances --num-ilds --vipu-server-host --vipu-server-port
--vipu-server-timeout --vipu-partition --vipu-partition-attempts --update-partition --reset-partition
--remove-partition --vipu-cluster --vipu-allocation --executable-cache-path --mpi-global-args
--mpi-local-args --numa-aware --print-topology --only-output-from-instance --offline-mode --sync-type
--verbose --help --version --version-format --import-config --export-config --overwrite-config
"""


def test_every_documented_option_is_there() -> None:
    assert set(DOCUMENTED.split()) <= set(options._long_names(options.build_parser()))


def test_program_and_its_options_are_left_alone() -> None:
    own, program = parse(
        ["-vv", "--num-instances=2", "--num-replicas", "4", "python", "train.py", "--num-replicas", "9"]
    )
    assert (own.num_instances, own.num_replicas, own.verbose) == (2, 4, 2)
    assert program == ["python", "train.py", "--num-replicas", "9"]


def test_mpi_arguments_are_split_as_a_shell_does() -> None:
    own, _ = parse(
        [
            "-H",
            "a",
            "--mpi-global-args",
            "--tag-output --mca btl_tcp_if_include eth0",
            "--mpi-local-args=-x 'A B'",
            "p",
        ]
    )
    assert own.mpi_global_args == ["--tag-output", "--mca", "btl_tcp_if_include", "eth0"]
    assert own.mpi_local_args == ["-x", "A B"] and own.host == "a"
    own, program = parse(["--mpi-global-args", "--tag-output", "--mpi-local-args", "-x A", "p"])
    assert own.mpi_global_args == ["--tag-output"] and own.mpi_local_args == ["-x", "A"] and program == ["p"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--num-instance", "2", "p"],
            "--num-instance is not an option of poprun; the nearest is --num-instances",
        ),
        (["--num-local-replicas=2", "p"], "the nearest is --num-replicas"),
        (["--num-instances", "0", "p"], "'0' is not a whole number of at least 1"),
        (["--num-replicas", "two", "p"], "'two' is not a whole number of at least 1"),
        (["--print-topology", "perhaps", "p"], "'perhaps' is not a truth value; write yes or no"),
        (["--host", "a", "--hostfile", "b", "p"], "not allowed with argument"),
        (["--num-instances"], "--num-instances needs a value"),
        (["--num-instances", "2"], "no program was given"),
        (["--heartbeat-timeout", "-1", "p"], "is not a number of seconds"),
        (["--import-config", "/nowhere/x", "p"], "--import-config /nowhere/x cannot be read"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(PoprunError) as raised:
        parse(argv)
    assert message in str(raised.value)


def test_options_without_effect_are_found() -> None:
    own, _ = parse(["--vipu-partition=p", "--vipu-server-timeout", "600", "--update-partition=no", "p"])
    assert options.without_effect(own) == ["--vipu-server-timeout", "--vipu-partition", "--update-partition"]


def test_configuration_is_exported_and_imported(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    parse(["--num-instances=2", "--num-replicas", "4", "--numa-aware", "yes", "--export-config", str(file)])
    assert json.loads(file.read_text()) == {"num-instances": "2", "num-replicas": "4", "numa-aware": "yes"}
    own, _ = parse(["--import-config", str(file), "--num-replicas=8", "p"])
    assert (own.num_instances, own.num_replicas, own.numa_aware) == (2, 8, True)
    with pytest.raises(PoprunError, match="exists; pass --overwrite-config=yes"):
        parse(["--num-instances=3", "--export-config", str(file)])
    parse(["--num-instances=3", "--export-config", str(file), "--overwrite-config=yes"])
    assert json.loads(file.read_text()) == {"num-instances": "3"}


def test_imported_configuration_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"num-instnces": "2"}')
    with pytest.raises(PoprunError, match="'num-instnces', not an option of poprun; nearest --num-instances"):
        parse(["--import-config", str(file), "p"])


@given(st.integers(1, 64), st.integers(1, 16))
def test_replicas_divide_or_are_refused(replicas: int, instances: int) -> None:
    if replicas % instances:
        with pytest.raises(
            PoprunError, match=f"{replicas} replicas do not divide evenly over {instances} instances"
        ):
            Plan(replicas, 1, instances)
        return
    plan = Plan(replicas, 1, instances)
    offsets = [int(plan.environment(i, 0)["POPDIST_REPLICA_INDEX_OFFSET"]) for i in range(instances)]
    assert [r for o in offsets for r in range(o, o + plan.local_replicas)] == list(range(replicas))


def test_instances_divide_over_hosts_or_are_refused() -> None:
    assert Plan(8, 1, 4, ("a", "b")).instances_per_host == 2
    with pytest.raises(PoprunError, match=r"3 instances do not divide evenly over 2 hosts \(a, b\)"):
        Plan(3, 1, 3, ("a", "b"))


def test_hosts_are_expanded() -> None:
    assert expand_hosts("host0,host1") == ["host0", "host1"]
    assert expand_hosts("host[0-2,4]") == ["host0", "host1", "host2", "host4"]
    assert expand_hosts("a[08-10].lan, b") == ["a08.lan", "a09.lan", "a10.lan", "b"]


@pytest.mark.parametrize("text", ["", ",", "a,", "host[2-1]", "host[a]", "host[1", "a,a"])
def test_bad_hosts_are_refused(text: str) -> None:
    with pytest.raises(PoprunError):
        expand_hosts(text)


def test_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("one # first\n\n# none\ntwo\n")
    assert read_hostfile(str(file)) == ["one", "two"]
    file.write_text("one slots=2\n")
    with pytest.raises(PoprunError, match="one bare host per line"):
        read_hostfile(str(file))
    with pytest.raises(PoprunError, match="cannot be read"):
        read_hostfile(str(tmp_path / "none"))


def test_topology_table() -> None:
    """The table of the popxl documentation, one host with two instances, widths aside."""
    table = Plan(2, 1, 2, ("[0]",)).topology().splitlines()
    assert [line.replace(" ", "") for line in table if "--" not in line and "==" not in line] == [
        "|popruntopology|",
        "|hosts|[0]|",
        "|ILDs|0|",
        "|instances|0|1|",
        "|replicas|0|1|",
    ]
    assert len({len(line) for line in table}) == 1


@given(st.integers(1, 16), st.integers(1, 4), st.integers(1, 3))
def test_topology_is_a_rectangle(instances: int, local: int, hosts: int) -> None:
    plan = Plan(instances * hosts * local, 1, instances * hosts, tuple(f"host{i}" for i in range(hosts)))
    assert len({len(line) for line in plan.topology().splitlines()}) == 1


def test_cores_are_shared() -> None:
    assert [share_of_cores(n, 8) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]


def test_numa_nodes_are_taken_in_turn(tmp_path: Path) -> None:
    for node, cores in (("node0", "0-1,4"), ("node1", "2-3"), ("node10", "")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(cores + "\n")
    assert [numa_cores(i, tmp_path) for i in range(3)] == [{0, 1, 4}, {2, 3}, {0, 1, 4}]
    assert numa_cores(0, tmp_path / "none") == set()


def test_mpirun_gets_hosts_and_arguments() -> None:
    own, program = parse(
        [
            "--host=a,b",
            "--num-instances=4",
            "--num-replicas=4",
            "--mpi-global-args=--tag-output",
            "--mpi-local-args=-x Q",
            "p",
        ]
    )
    command = launch.mpirun_command(launch.make_plan(own), own, program, ["PATH"])
    assert command[command.index("--host") + 1] == "a:2,b:2"
    assert command.index("--tag-output") < command.index("-np") < command.index("Q") < command.index("p")
    assert command[command.index("-np") + 1] == "4"


def test_start_orders_carry_cache_and_offline_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    argv = [
        "--num-instances=2",
        "--num-replicas=2",
        "--offline-mode=1",
        f"--executable-cache-path={tmp_path}",
    ]
    own, _ = parse([*argv, "--only-output-from-instance=1", "p"])
    first, second = launch.start_orders(launch.make_plan(own), own)
    assert first["environment"]["POPTORCH_CACHE_DIR"] == str(tmp_path)  # type: ignore[index]
    monkeypatch.setenv(installation.OFFLINE, first["environment"][installation.OFFLINE])  # type: ignore[index]
    assert installation.current_params().is_null
    assert (first["silent"], second["silent"]) == (True, False)


def test_output_of_an_instance_that_does_not_exist() -> None:
    own, _ = parse(["--num-instances=2", "--num-replicas=2", "--only-output-from-instance=2", "p"])
    with pytest.raises(PoprunError, match="numbered 0 to 1"):
        launch.make_plan(own)


def test_unreachable_host_is_named() -> None:
    with pytest.raises(PoprunError, match=r"host 127\.0\.0\.9 cannot be reached with `false 127\.0\.0\.9`"):
        launch.check_hosts(["127.0.0.9"], ["false"])
    with pytest.raises(PoprunError, match=r"host no-such-host\.invalid cannot be reached"):
        launch.check_hosts(["no-such-host.invalid"], ["true"])


def test_remote_shell_is_the_one_of_mpirun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRTE_MCA_plm_ssh_agent", raising=False)
    assert launch.remote_shell(["--prtemca", "plm_ssh_agent", "rsh -q"]) == ["rsh", "-q"]
    assert launch.remote_shell([])[0] == "ssh"
    monkeypatch.setenv("PRTE_MCA_plm_ssh_agent", "other")
    assert launch.remote_shell([]) == ["other"]
