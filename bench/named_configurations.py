"""How long every named configuration takes to compile on the null device, and how much memory.

    python bench/named_configurations.py [--only NAME ...]

Each is a process of its own: `run_pretraining.py` or `run_squad.py --compile-only`, imports included, no device and
no data needed.  Prints seconds and the largest resident memory; ends with status 1 where one fails or is over a limit.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"pretraining": "run_pretraining.py", "squad": "run_squad.py"}
ASKED_SECONDS, ASKED_GIB = 30.0, 4.0


def compile_one(kind: str, name: str) -> tuple[int, float, float, float, str]:
    """Exit status, wall and CPU seconds, GiB, and what the process said."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / SCRIPTS[kind]), "--config", name, "--compile-only"]
        command.append(f"train.output_dir={folder}/run")  # not one that holds checkpoints
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    cpu = usage.ru_utime + usage.ru_stime
    return os.waitstatus_to_exitcode(status), seconds, cpu, usage.ru_maxrss / 2**20, said


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", help="names; without, all of configs/pretraining and configs/squad"
    )
    args = parser.parse_args()
    found = [
        (kind, path.stem) for kind in SCRIPTS for path in sorted((ROOT / "configs" / kind).glob("*.yaml"))
    ]
    chosen = [entry for entry in found if args.only is None or entry[1] in args.only]
    failed = 0
    print(f"asked: {ASKED_SECONDS:.0f} s and {ASKED_GIB:.0f} GiB each")
    print("| configuration | seconds: wall (CPU) | GiB |")
    print("|---|---|---|")
    for kind, name in chosen:
        status, seconds, cpu, gib, said = compile_one(kind, name)
        over = seconds >= ASKED_SECONDS or gib >= ASKED_GIB
        failed += status != 0 or over
        remark = (
            f" exit status {status}: {said.strip()[-200:]}" if status else " over a limit" if over else ""
        )
        print(f"| {kind}/{name} | {seconds:.1f} ({cpu:.1f}) | {gib:.2f}{remark} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
