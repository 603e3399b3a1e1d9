"""`python -m bert_ipu.simulator SCRIPT ARGS`, or `bert-ipu-simulator`: run a PopTorch program on the simulator."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, TracebackType

from .installation import install
from .params import params_from_environment

_USAGE = """usage: bert-ipu-simulator SCRIPT [ARGS]         (- is standard input)
       bert-ipu-simulator -m MODULE [ARGS]
       bert-ipu-simulator -c CODE [ARGS]

`python -m bert_ipu.simulator` is the same, where the current folder has no bert_ipu.py of its own. Python's own options
stand before its -m."""


def _reach_child_processes() -> None:
    """Let processes the program starts find the facades too, after anything else of these names."""
    importable = str(Path(__file__).parent / "importable")
    project = str(Path(__file__).parents[2])
    sys.path += [importable, project]
    known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    os.environ["PYTHONPATH"] = os.pathsep.join([*known, importable, project])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script, the module after -m or the code after -c, with its own arguments; it is `__main__`.

    Returns 2, with a message, where there is nothing to run.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv[:1] in (["-h"], ["--help"]):
        print(_USAGE)
        return 0
    if argv in ([], ["-m"], ["-c"]):
        return _refuse(_USAGE)
    what, is_module, is_code = argv[0], argv[0] == "-m", argv[0] == "-c"
    if not is_module and not is_code and what != "-":
        refusal = _no_script(what)
        if refusal:
            return _refuse(refusal)
    try:
        install()
        params_from_environment()
    except ValueError as error:  # Of a variable of the environment.
        return _refuse(str(error))
    _reach_child_processes()
    sys.argv = argv[1:] if is_module else [what, *argv[2:]] if is_code else argv
    in_folder = is_module or is_code or what == "-"
    sys.path.insert(0, os.getcwd() if in_folder else os.path.dirname(os.path.abspath(what)))
    if is_module:
        refusal = _no_module(argv[1])
        if refusal:
            return _refuse(refusal)
    sys.excepthook = _show_error
    if is_module:
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    elif is_code:
        _run_source(argv[1], "<string>")
    elif what == "-":
        _run_source(sys.stdin.read(), "<stdin>")
    elif os.path.isfile(what) or os.path.isdir(what):
        runpy.run_path(what, run_name="__main__")
    else:  # A pipe, which runpy would read twice.
        _run_source(Path(what).read_bytes(), what)
    return 0


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _no_script(path: str) -> str:
    """Why a path names no program; empty where it does."""
    if not os.path.exists(path):
        hint = "options of Python stand before its -m" if path.startswith("-") else "or -m and a module"
        return f"{path!r} does not exist: give the path of a Python script ({hint})."
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, "__main__.py")):
        return f"{path!r} is a folder without a __main__.py: give the path of a Python script."
    return "" if os.access(path, os.R_OK) else f"{path!r} cannot be read: its permissions forbid it."


def _no_module(name: str) -> str:
    """Why a name after -m is no module's; empty where it is. Raises what the packages around it raise."""
    try:
        spec = None if name.startswith(".") else importlib.util.find_spec(name)
        is_package = spec is not None and spec.submodule_search_locations is not None
        if is_package and importlib.util.find_spec(f"{name}.__main__") is None:
            return f"{name!r} is a package without a __main__ module: name one of its modules."
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
        spec = None
    return (
        ""
        if spec is not None
        else f"There is no module {name!r}: give its dotted name, as in -m package.module."
    )


def _run_source(source: str | bytes, name: str) -> None:
    """Run what is in no file that could be read again."""
    module = ModuleType("__main__")
    if not name.startswith("<"):
        module.__file__ = name
    sys.modules["__main__"] = module
    exec(compile(source, name, "exec"), module.__dict__)


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's report of an error, from the program's first line on: what comes before is how we started it."""
    while trace is not None and trace.tb_frame.f_code.co_filename != __file__:
        trace = trace.tb_next
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    sys.exit(main())
