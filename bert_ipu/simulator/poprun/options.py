"""poprun's command line: the documented options with their meaning, and nothing else.

Names, defaults and meaning: PopDist and PopRun user guide, "PopRun features".
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "poprun"
WITHOUT_EFFECT = {
    "vipu_server_host": "localhost",
    "vipu_server_port": "8090",
    "vipu_server_timeout": "120",
    "vipu_partition": None,
    "vipu_partition_attempts": "1",
    "vipu_cluster": None,
    "vipu_allocation": None,
    "update_partition": "0",
    "reset_partition": None,
    "remove_partition": "1",
    "sync_type": "ST_POD_NATIVE_DEFAULT",
}
"""Options about the V-IPU controller and the device: accepted, and said to do nothing."""


class PoprunError(Exception):
    """A mistake in how poprun was called; poprun prints it and exits with status 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PoprunError(f"{message}. `poprun --help` lists the options.")


def truth(text: str) -> bool:
    """A truth value as poprun writes it: yes, true, on, 1 and their opposites."""
    word = text.lower()
    if word in {"1", "yes", "true", "on", "y", "t"}:
        return True
    if word in {"0", "no", "false", "off", "n", "f"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a truth value; write yes or no")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def index(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def seconds(text: str) -> float:
    """A number of seconds; 0 means never."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of at least 0")
    return value


def _add_layout(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("layout")
    hosts = group.add_mutually_exclusive_group()
    hosts.add_argument(
        "-H", "--host", help="hosts to launch on: host0,host1 or host[0-2,4]; instances divide evenly"
    )
    hosts.add_argument("--hostfile", help="a file with one host per line")
    group.add_argument(
        "--num-replicas", type=positive, default=1, help="replicas of all instances together (1)"
    )
    group.add_argument("--ipus-per-replica", type=positive, default=1, help="IPUs of one replica (1)")
    group.add_argument(
        "--num-instances", type=positive, default=1, help="processes; they share the replicas evenly (1)"
    )
    group.add_argument(
        "--num-ilds", type=positive, default=1, help="IPU-Link domains, shown in the topology (1)"
    )
    group.add_argument(
        "--numa-aware", type=truth, default=False, help="bind instances to NUMA nodes in turn (no)"
    )
    group.add_argument("--print-topology", type=truth, default=False, help="print the topology table (no)")


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    group.add_argument("--mpi-global-args", type=shlex.split, default=[], help="options of mpirun as a whole")
    group.add_argument(
        "--mpi-local-args", type=shlex.split, default=[], help="options of each instance, e.g. '-x VAR'"
    )
    group.add_argument(
        "--only-output-from-instance", type=index, help="show the output of this instance alone"
    )
    group.add_argument(
        "--offline-mode", type=truth, default=False, help="compile without a device; running is refused"
    )
    group.add_argument("--executable-cache-path", help="folder that keeps compiled executables")
    group.add_argument(
        "--heartbeat-timeout",
        type=seconds,
        default=15.0,
        help="of the simulator: seconds without a sign of life after which an instance hangs; 0 never (15)",
    )


def build_parser() -> argparse.ArgumentParser:
    """The options of poprun; the program and its arguments are cut off before (`split`)."""
    parser = _Parser(
        PROGRAM, usage=f"{PROGRAM} [options] program [arguments]", allow_abbrev=False, add_help=False
    )
    parser.add_argument("-h", "--help", action="store_true", help="print this and leave")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.add_argument(
        "--version-format", choices=("text", "json", "full-text", "full-json"), default="text"
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=0, help="print mpirun's command; -vv also what it says"
    )
    parser.add_argument("--vv", action="store_const", const=2, dest="verbose", help=argparse.SUPPRESS)
    parser.add_argument("--import-config", help="read options from this file; the command line wins")
    parser.add_argument("--export-config", help="write the given options to this file")
    parser.add_argument("--overwrite-config", type=truth, default=False, help="replace an existing file (no)")
    _add_layout(parser)
    _add_running(parser)
    group = parser.add_argument_group("accepted, without effect in the simulator")
    for name, default in WITHOUT_EFFECT.items():
        group.add_argument("--" + name.replace("_", "-"), default=default)
    return parser


def _long_names(parser: argparse.ArgumentParser) -> list[str]:
    return [o for a in parser._actions for o in a.option_strings if o.startswith("--")]


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs is None


def split(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """poprun's own options, values joined to them by "=", and the program with its arguments.

    Joined, a value may begin with a dash, as those of --mpi-global-args do. Raises PoprunError for an option
    poprun does not have, with the nearest one.
    """
    actions = {o: a for a in parser._actions for o in a.option_strings}
    actions["-vv"] = actions["-v"]
    own: list[str] = []
    at = 0
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "--":
        name, has_value, _ = argv[at].partition("=")
        action = actions.get(name)
        if action is None:
            near = difflib.get_close_matches(name, _long_names(parser), n=1, cutoff=0.5)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise PoprunError(f"{name} is not an option of poprun{hint}. `poprun --help` lists them.")
        value_follows = _takes_value(action) and not has_value
        if value_follows and at + 1 == len(argv):
            raise PoprunError(f"{name} needs a value")
        own.append(f"{name}={argv[at + 1]}" if value_follows else argv[at])
        at += 1 + value_follows
    program = list(argv[at:])
    return own, program[1:] if program[:1] == ["--"] else program


def _defaults_from(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """Options of an exported configuration, as if they stood at the front of the command line."""
    try:
        stored = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise PoprunError(f"--import-config {path} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise PoprunError(f"--import-config {path} holds no object of option names and values")
    known = _long_names(parser)
    for name in stored:
        if f"--{name}" not in known:
            near = difflib.get_close_matches(f"--{name}", known, n=1, cutoff=0.5)
            raise PoprunError(
                f"{path} names {name!r}, not an option of poprun{f'; nearest {near[0]}' if near else ''}"
            )
    return [f"--{name}={value}" for name, value in stored.items()]


def export(options: argparse.Namespace, given: Sequence[str]) -> None:
    """Writes the options that were given to the file of --export-config."""
    target = Path(options.export_config)
    if target.exists() and not options.overwrite_config:
        raise PoprunError(f"--export-config {target} exists; pass --overwrite-config=yes to replace it")
    stored = {}
    for name, value in vars(options).items():
        flag = "--" + name.replace("_", "-")
        about_config = name in {
            "import_config",
            "export_config",
            "overwrite_config",
            "help",
            "version",
            "verbose",
        }
        if not about_config and any(g.partition("=")[0] == flag for g in given):
            stored[flag[2:]] = shlex.join(value) if isinstance(value, list) else _as_text(value)
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=target.name, delete=False) as file:
        json.dump(stored, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, target)


def _as_text(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the program with its arguments.

    Raises PoprunError for an unknown option, a value that cannot be or a missing program.
    """
    parser = build_parser()
    own, program = split(parser, argv)
    options = parser.parse_args(own)
    if options.import_config:
        stored = _defaults_from(options.import_config, parser)
        own = [*stored, *own]
        options = parser.parse_args(own)
    if options.export_config:
        export(options, own)
    if not program and not (options.help or options.version or options.export_config):
        raise PoprunError("no program was given. Write `poprun [options] program [arguments]`.")
    return options, program


def without_effect(options: argparse.Namespace) -> list[str]:
    """Flags that were set and that the simulator has no use for."""
    return [
        "--" + name.replace("_", "-")
        for name, default in WITHOUT_EFFECT.items()
        if getattr(options, name) != default
    ]
