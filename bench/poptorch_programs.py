"""Run PopTorch's own programs, unmodified, on the simulator: python bench/poptorch_programs.py --clone CLONE.

CLONE is a clone of graphcore/poptorch, bare or not.  Every program of `docs/user_guide/` and `examples/` runs
with `python -m bert_ipu.simulator` in a folder of its own; the table says how each ended.  Returns 1 where one
fails that downloads nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from clones import unpack

ROOT = Path(__file__).resolve().parents[1]
NEED_DOWNLOADS = {
    "docs/user_guide/inferenceModel.py": "weights of torchvision",
    "docs/user_guide/mnist.py": "MNIST",
    "docs/user_guide/pipeline_simple.py": "weights of the Hugging Face hub",
    "examples/bert_ipu.py": "weights of the Hugging Face hub",
    "examples/mnist.py": "MNIST",
}


@dataclass(frozen=True)
class Ending:
    """How a program ended: its status, its last line, and how long it took."""

    status: int
    last_line: str
    seconds: float


def programs_of(clone: Path, folder: str, target: Path) -> list[Path]:
    """The programs of a folder of the clone, unpacked; relative to `target`."""
    return sorted(path.relative_to(target) for path in unpack(clone, folder, target).glob("*.py"))


def run(program: Path, folder: Path, timeout: float) -> Ending:
    """Run one program from the folder that it expects."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bert_ipu.simulator", str(program)]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ending(124, f"did not end in {timeout:.0f} s", timeout)
    lines = done.stdout.strip().splitlines() or [""]
    return Ending(done.returncode, lines[-1], time.perf_counter() - start)


def main() -> int:
    """Runs the programs, prints the table, and returns 1 where one fails that should run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clone", type=Path, required=True, help="a clone of graphcore/poptorch")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for a program")
    parser.add_argument("names", nargs="*", help="only programs with one of these in their path")
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        programs = [
            path
            for name in ("docs/user_guide", "examples")
            for path in programs_of(arguments.clone, name, folder)
        ]
        # PopTorch's build puts this file where a program of the guide reads it.
        (folder / "tmp").mkdir()
        shutil.copy(folder / "docs/user_guide/poptorch.conf", folder / "tmp")
        for program in programs:
            if arguments.names and not any(name in str(program) for name in arguments.names):
                continue
            need = NEED_DOWNLOADS.get(str(program))
            if need is not None:
                print(f"{program}: not run, downloads {need}", flush=True)
                continue
            ending = run(program, folder, arguments.timeout)
            failed += ending.status != 0
            verdict = "runs" if ending.status == 0 else f"FAILS: {ending.last_line}"
            print(f"{program}: {verdict} ({ending.seconds:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
