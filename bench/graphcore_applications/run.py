"""Graphcore's own applications, unmodified, held to their own tests on the simulator.

    python bench/graphcore_applications/run.py --clone CLONE --environment DIR [--application NAME] [PYTEST ARGUMENTS]

CLONE is a clone of graphcore/examples, bare or not; DIR a virtual environment, made where it is not there: the
packages of `requirements.txt`, the torch of this interpreter, and stand-ins (`shims/`) for packages that have nothing
to do with the IPU: Horovod, wandb, examples_utils, librosa, torch_scatter.  NAME is one of those below, or another
folder of the clone with the tests to run as arguments for pytest.  The tutorials have a command of their own,
`tutorials.py`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clones import unpack
from environment import SHIMS, install_beside, make_environment, parser_of_places, variables


@dataclass(frozen=True)
class Application:
    """A folder of the clone, and what is run there."""

    folder: str
    tests: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    """Packages of other versions than `requirements.txt` has, or that it has not."""
    stand_ins: tuple[Path, ...] = ()
    """Folders with stand-ins for this one only."""


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
    # A buffer that a training step writes; the layers against PyTorch Geometric's own.
    "tgn": Application(
        "gnn/tgn/pytorch",
        ("test/test_buffer.py", "test/test_tgn.py"),
        ("torch_geometric==2.3.1", "multiprocess==0.70.15", "dill==0.3.7"),
        (SHIMS / "tgn",),
    ),
}


def main() -> int:
    """Runs the tests; pytest's status."""
    parser = parser_of_places(__doc__, "graphcore/examples")
    parser.add_argument(
        "--application", default="bert", help=f"{', '.join(APPLICATIONS)} or a folder of the clone"
    )
    arguments, wanted = parser.parse_known_args()
    application = APPLICATIONS.get(arguments.application) or Application(arguments.application, ())
    environment = arguments.environment.resolve()
    make_environment(environment)
    beside = install_beside(environment / "beside" / arguments.application, application.requirements)
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(arguments.clone, application.folder, Path(temporary))
        command = ["python", "-m", "pytest", "-v", "--durations=0", "-W", "ignore"]
        return subprocess.run(
            [*command, *(wanted or application.tests)],
            cwd=folder,
            env=variables(environment, [*application.stand_ins, *beside]),
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
