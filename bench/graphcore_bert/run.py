"""Graphcore's own BERT, unmodified, held to its own tests on the simulator.

    python bench/graphcore_bert/run.py --clone CLONE --environment DIR [PYTEST ARGUMENTS]

CLONE is a clone of graphcore/examples, bare or not; DIR a virtual environment, made where it is not there: the
packages of `requirements.txt`, the torch of this interpreter, and stand-ins (`shims/`) for Horovod, wandb and
examples_utils, which have nothing to do with the IPU.  Without arguments for pytest, the tests are those that
train `demo_tiny_128` for 360 steps, with automatic loss scaling, too: the loss must fall, the accuracy rise above 85%.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clones import unpack

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = "nlp/bert/pytorch"
TESTS = ("tests/bert_tiny_test.py", "-k", "loss_down or with_als")


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


def main() -> int:
    """Runs the tests; pytest's status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clone", type=Path, required=True, help="a clone of graphcore/examples")
    parser.add_argument(
        "--environment", type=Path, required=True, help="a folder for the virtual environment"
    )
    arguments, wanted = parser.parse_known_args()
    environment = arguments.environment.resolve()
    make_environment(environment)
    # `importable` makes the facades poptorch, popdist and popart in every process that has it on its path.
    paths = (HERE / "shims", ROOT, ROOT / "bert_ipu" / "simulator" / "importable")
    variables = {
        **os.environ,
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as temporary:
        application = unpack(arguments.clone, FOLDER, Path(temporary))
        command = ["python", "-m", "pytest", "-v", "--durations=0", "-W", "ignore", *(wanted or TESTS)]
        return subprocess.run(command, cwd=application, env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
