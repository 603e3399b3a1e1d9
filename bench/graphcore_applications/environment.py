"""The virtual environment in which Graphcore's programs run, and the variables they run with."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHIMS = HERE / "shims"


def parser_of_places(description: str | None, repository: str) -> argparse.ArgumentParser:
    """A parser of where a repository's clone is, and where the virtual environment goes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clone", type=Path, required=True, help=f"a clone of {repository}")
    parser.add_argument(
        "--environment", type=Path, required=True, help="a folder for the virtual environment"
    )
    return parser


def make_environment(environment: Path, requirements: Path = HERE / "requirements.txt") -> None:
    """Create the virtual environment, with this interpreter's packages after its own."""
    if (environment / "ready").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages"
    (packages / "zz_checkout.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (environment / "ready").touch()


def install_beside(folder: Path, packages: tuple[str, ...]) -> list[Path]:
    """A folder for PYTHONPATH with packages that stand before the environment's; none where none are asked for."""
    if packages and not (folder / "ready").exists():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", str(folder), *packages], check=True)
        (folder / "ready").touch()
    return [folder] if packages else []


def variables(
    environment: Path, beside: list[Path], stand_ins: Path | None = HERE / "shims"
) -> dict[str, str]:
    """The environment variables of a program: stand-ins first, then packages of its own, then the simulator."""
    # `importable` makes the facades poptorch, popdist and popart in every process that has it on its path.
    paths = (
        *([stand_ins] if stand_ins else []),
        *beside,
        ROOT,
        ROOT / "bert_ipu" / "simulator" / "importable",
    )
    return {
        **os.environ,
        "PATH": os.pathsep.join(
            (str(environment / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
        ),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
