"""Optimum Graphcore, unmodified, on the simulator.

    python bench/optimum_graphcore/run.py --clone CLONE --environment DIR [--tests] [--only MODEL ...]

CLONE is a clone of huggingface/optimum-graphcore, bare or not; DIR a virtual environment, made where it is not there:
the packages of `requirements.txt` and the torch of this interpreter.  Runs every pipelined model (`models.py`), or with
--tests the library's own tests that download nothing: those of its trainers, its configuration and its modelling.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graphcore_applications"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clones import unpack
from environment import install_beside, make_environment, parser_of_places, variables

HERE = Path(__file__).resolve().parent
WITHOUT_TORCH = (
    "optimum==1.6.1",
    "diffusers==0.12.1",
    "accelerate==0.20.3",
    "peft==0.3.0",
    "cppimport==22.8.2",
)
"""Packages that name a torch which they shall not bring along."""

TESTS = ("test_trainer.py", "test_trainer_seq2seq.py", "test_ipu_configuration.py", "test_modeling_utils.py")


def main() -> int:
    """The status of the models' table, or pytest's."""
    parser = parser_of_places(__doc__, "huggingface/optimum-graphcore")
    parser.add_argument("--tests", action="store_true", help="run the library's own tests")
    arguments, others = parser.parse_known_args()
    environment = arguments.environment.resolve()
    make_environment(environment, HERE / "requirements.txt")
    beside = install_beside(environment / "beside", WITHOUT_TORCH)
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(arguments.clone, ".", Path(temporary))
        command = ["python", "-W", "ignore", str(HERE / "models.py")]
        if arguments.tests:
            command = ["python", "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS)]
        surroundings = {
            **variables(environment, [folder, *beside], stand_ins=None),
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",  # its checkpoints hold the state of NumPy's generator
        }
        return subprocess.run([*command, *others], cwd=folder, env=surroundings, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
