"""Jobs of several instances for tests: started through poprun, awaited, and looked for afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKER = "BERT_IPU_TEST_JOB"


class Job:
    """One poprun, run to its end unless `timeout_s` is 0; `arguments` go to this Python.

    `prefix` is a command that runs the one that follows, on another host for example.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        instances: int,
        options: Sequence[str] = (),
        replicas: int | None = None,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        timeout_s: float = 120.0,
    ) -> None:
        self.marker = f"{MARKER}={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self.marker.partition("=")
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_"))}
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                *("-m", "bert_ipu.simulator.poprun"),
                *("--num-instances", str(instances), "--num-replicas", str(replicas or instances)),
                *options,
                sys.executable,
                *arguments,
            ],
            cwd=ROOT,
            env={**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(environment or {}), name: value},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.stdout = self.stderr = ""
        if timeout_s:
            self.wait(timeout_s)

    def wait(self, timeout_s: float) -> None:
        """Waits for the end and takes the output; a job that takes longer is ended, and the test fails."""
        try:
            self.stdout, self.stderr = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            raise
        self.seconds = time.monotonic() - self.started_at

    @property
    def status(self) -> int:
        """poprun's exit status."""
        return int(self.process.returncode)

    def messages(self) -> list[str]:
        """Lines of poprun itself."""
        return [line for line in self.stderr.splitlines() if line.startswith("poprun: ")]

    def running(self) -> list[int]:
        """Processes of the job that are still there."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and self.marker.encode() in (entry / "environ").read_bytes().split(
                    b"\0"
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found
