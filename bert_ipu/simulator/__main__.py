"""`python -m bert_ipu.simulator SCRIPT ARGS`, or `bert-ipu-simulator`: run a PopTorch program on the simulator."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from .installation import install

_USAGE = """usage: bert-ipu-simulator SCRIPT [ARGS]
       bert-ipu-simulator -m MODULE [ARGS]

`python -m bert_ipu.simulator` is the same, where the current folder has no bert_ipu.py of its own."""


def _reach_child_processes() -> None:
    """Let processes the program starts find the facades too, after anything else of these names."""
    importable = str(Path(__file__).parent / "importable")
    project = str(Path(__file__).parents[2])
    sys.path += [importable, project]
    known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    os.environ["PYTHONPATH"] = os.pathsep.join([*known, importable, project])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script, or the module after -m, with its own arguments; it sees itself as `__main__`."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return 0
    if argv in ([], ["-m"]):
        print(_USAGE, file=sys.stderr)
        return 2
    is_module = argv[0] == "-m"
    if not is_module and not os.path.exists(argv[0]):
        print(
            f"{argv[0]} does not exist: give the path of a Python script, or -m and a module", file=sys.stderr
        )
        return 2
    install()
    _reach_child_processes()
    if is_module:
        sys.argv = argv[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        sys.path.insert(0, os.path.dirname(os.path.abspath(argv[0])))
        runpy.run_path(argv[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
