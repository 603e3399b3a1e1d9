"""Graphcore's own applications, unmodified, held to their own tests on the simulator.

    python bench/graphcore_applications/run.py --clone CLONE --environment DIR [--application NAME] [PYTEST ARGUMENTS]

CLONE is a clone of graphcore/examples, bare or not; DIR a virtual environment, made where it is not there: the
packages of `requirements.txt`, the torch of this interpreter, and stand-ins (`shims/`) for packages that have nothing
to do with the IPU: Horovod, wandb, examples_utils, librosa.  NAME is one of those below, or another folder of the clone
with the tests to run as arguments for pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clones import unpack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Application:
    """A folder of the clone, and what is run there."""

    folder: str
    tests: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    """Packages of other versions than `requirements.txt` has."""


APPLICATIONS = {
    # Trains demo_tiny_128 for 360 steps, with automatic loss scaling, too: the loss must fall, the accuracy rise
    # above 85%.
    "bert": Application("nlp/bert/pytorch", ("tests/bert_tiny_test.py", "-k", "loss_down or with_als")),
    # Training steps on the IPU and on the CPU; the loss of serialised logits.
    "gpt2": Application(
        "nlp/gpt2/pytorch",
        ("tests/cpu_ipu_test.py", "tests/loss_seralize_test.py"),
        ("transformers==4.26.1",),
    ),
    # Layers and their gradients on the IPU and on the CPU.
    "conformer": Application("speech/conformer/pytorch", ("tests",)),
    "fastpitch": Application("speech/fastpitch/pytorch", ("tests",)),
}


def make_environment(environment: Path) -> None:
    """Create the virtual environment, with this interpreter's packages after its own."""
    if (environment / "ready").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", str(HERE / "requirements.txt")], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages"
    (packages / "zz_checkout.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (environment / "ready").touch()


def install_beside(folder: Path, packages: tuple[str, ...]) -> list[Path]:
    """A folder for PYTHONPATH with packages that stand before the environment's; none where none are asked for."""
    if packages and not folder.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            *packages,
        ]
        subprocess.run(command, check=True)
    return [folder] if packages else []


def main() -> int:
    """Runs the tests; pytest's status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clone", type=Path, required=True, help="a clone of graphcore/examples")
    parser.add_argument(
        "--environment", type=Path, required=True, help="a folder for the virtual environment"
    )
    parser.add_argument(
        "--application", default="bert", help=f"{', '.join(APPLICATIONS)} or a folder of the clone"
    )
    arguments, wanted = parser.parse_known_args()
    application = APPLICATIONS.get(arguments.application) or Application(arguments.application, ())
    environment = arguments.environment.resolve()
    make_environment(environment)
    beside = install_beside(environment / "beside" / arguments.application, application.requirements)
    # `importable` makes the facades poptorch, popdist and popart in every process that has it on its path.
    paths = (*beside, HERE / "shims", ROOT, ROOT / "bert_ipu" / "simulator" / "importable")
    variables = {
        **os.environ,
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(arguments.clone, application.folder, Path(temporary))
        command = [
            "python",
            "-m",
            "pytest",
            "-v",
            "--durations=0",
            "-W",
            "ignore",
            *(wanted or application.tests),
        ]
        return subprocess.run(command, cwd=folder, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
