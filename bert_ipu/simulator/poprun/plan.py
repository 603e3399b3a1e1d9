"""Which instance runs where: replicas over instances, instances over hosts, cores over instances."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from bert_ipu.simulator.poprun.options import PoprunError

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Plan:
    """The layout of a job; instance i runs on `hosts[i // instances_per_host]`."""

    replicas: int
    ipus_per_replica: int
    instances: int
    hosts: tuple[str, ...] = ()
    """Empty where the job runs on this machine alone."""
    link_domains: int = 1

    def __post_init__(self) -> None:
        if self.replicas % self.instances:
            raise PoprunError(
                f"{self.replicas} replicas do not divide evenly over {self.instances} instances "
                f"({self.replicas} / {self.instances} = {self.replicas / self.instances:g}). --num-replicas "
                f"is the total over all instances; make it a multiple of --num-instances, for example "
                f"--num-replicas {-(-self.replicas // self.instances) * self.instances}."
            )
        if self.hosts and self.instances % len(self.hosts):
            raise PoprunError(
                f"{self.instances} instances do not divide evenly over {len(self.hosts)} hosts "
                f"({', '.join(self.hosts)}). Make --num-instances a multiple of {len(self.hosts)}, or name "
                f"other hosts."
            )

    @property
    def local_replicas(self) -> int:
        """Replicas of one instance."""
        return self.replicas // self.instances

    @property
    def instances_per_host(self) -> int:
        """Instances that share a machine."""
        return self.instances // max(1, len(self.hosts))

    def environment(self, instance: int, local_instance: int) -> dict[str, str]:
        """The variables popdist reads (names as poprun sets them for mpirun)."""
        return {
            "POPDIST_NUM_TOTAL_REPLICAS": str(self.replicas),
            "POPDIST_NUM_IPUS_PER_REPLICA": str(self.ipus_per_replica),
            "POPDIST_NUM_LOCAL_REPLICAS": str(self.local_replicas),
            "POPDIST_UNIFORM_REPLICAS_PER_INSTANCE": "1",
            "POPDIST_REPLICA_INDEX_OFFSET": str(instance * self.local_replicas),
            "POPDIST_LOCAL_INSTANCE_INDEX": str(local_instance),
        }

    def topology(self) -> str:
        """The table of --print-topology: hosts, IPU-Link domains, instances, replicas."""
        hosts = self.hosts or ("localhost",)
        rows = [
            ("hosts", list(hosts)),
            ("ILDs", [str(i) for i in range(self.link_domains)]),
            ("instances", [str(i) for i in range(self.instances)]),
            ("replicas", [str(i) for i in range(self.replicas)]),
        ]
        width = _least_width([cells for _, cells in rows])
        lines = [f"| {name:<9} |" + "|".join(_spread(cells, width)) + "|" for name, cells in rows]
        rule = "|" + "-" * 11 + "|" + "-" * width + "|"
        title = "|" + "poprun topology".center(width + 12) + "|"
        edge = "=" * (width + 12)
        body = [line for pair in zip(lines, [rule] * len(lines)) for line in pair][:-1]
        return "\n".join([f" {edge} ", title, f"|{edge}|", *body, f" {'-' * (width + 12)} "])


def _least_width(rows: list[list[str]]) -> int:
    """Characters a row needs so that the cells of each row can share it."""
    return max(len(cells) * (max(map(len, cells)) + 3) - 1 for cells in rows)


def _spread(cells: list[str], width: int) -> list[str]:
    """The cells, centred in shares of `width` that differ by one character at most."""
    bounds = [round(i * (width + 1) / len(cells)) for i in range(len(cells) + 1)]
    return [cell.center(end - start - 1) for cell, start, end in zip(cells, bounds, bounds[1:])]


def expand_hosts(text: str) -> list[str]:
    """Host names of `a,b[0-2,4]`, brackets expanded.

    Raises PoprunError where the brackets cannot be read or a host is named twice.
    """
    hosts: list[str] = []
    if not re.fullmatch(r"(?:[^\[\],]|\[[^\[\]]*\])+(?:,(?:[^\[\],]|\[[^\[\]]*\])+)*", text):
        raise PoprunError(f"{text!r} names no hosts; write host0,host1 or host[0-2,4]")
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        pieces = re.split(r"\[([^\]]*)\]", part.strip())
        choices = [_numbers(p, text) if i % 2 else [p] for i, p in enumerate(pieces)]
        hosts.extend("".join(choice) for choice in itertools.product(*choices))
    return _distinct(hosts)


def _numbers(text: str, whole: str) -> list[str]:
    """Numbers of `0-2,4`, with the leading zeros of the first."""
    numbers: list[str] = []
    for entry in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", entry.strip())
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise PoprunError(f"[{text}] in {whole!r} is no list of numbers such as [0-2,4]")
        last = int(match[2] if match[2] is not None else match[1])
        numbers += [str(n).zfill(len(match[1])) for n in range(int(match[1]), last + 1)]
    return numbers


def read_hostfile(path: str) -> list[str]:
    """Hosts of a file with one per line; `#` starts a comment.

    Raises PoprunError where the file cannot be read or names no host.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PoprunError(f"--hostfile {path} cannot be read: {error}") from error
    hosts = [line.split("#")[0].strip() for line in lines]
    hosts = [host for host in hosts if host]
    if not hosts:
        raise PoprunError(f"--hostfile {path} names no host; write one host per line")
    spaced = [host for host in hosts if len(host.split()) > 1]
    if spaced:
        raise PoprunError(
            f"--hostfile {path} says {spaced[0]!r}; write one bare host per line; instances divide evenly"
        )
    return _distinct(hosts)


def _distinct(hosts: list[str]) -> list[str]:
    twice = {host for host in hosts if hosts.count(host) > 1}
    if twice:
        raise PoprunError(
            f"{', '.join(sorted(twice))} is named twice; name each host once, instances divide evenly"
        )
    return hosts


def share_of_cores(instances: int, cores: int | None = None) -> int:
    """Threads each of `instances` on one machine may use."""
    return max(1, (cores or len(os.sched_getaffinity(0))) // instances)


def numa_cores(local_instance: int, root: Path = Path("/sys/devices/system/node")) -> set[int]:
    """Cores of the NUMA node an instance is bound to, nodes taken in turn; empty where there are none."""
    folders = sorted(root.glob("node[0-9]*"), key=lambda node: int(node.name[4:]))
    lists = [(folder / "cpulist").read_text().strip() for folder in folders if (folder / "cpulist").is_file()]
    with_cores = [text for text in lists if text]
    if not with_cores:
        return set()
    cores: set[int] = set()
    for entry in with_cores[local_instance % len(with_cores)].split(","):
        first, _, last = entry.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores
