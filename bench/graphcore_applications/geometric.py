"""PopTorch's own tests of PyTorch Geometric on the simulator, with its package poptorch_geometric, unmodified.

    python bench/graphcore_applications/geometric.py --clone CLONE --environment DIR [PYTEST ARGUMENTS]

CLONE is a clone of graphcore/poptorch, bare or not; DIR the virtual environment of `run.py`, to which PyTorch Geometric
is added in the version that poptorch_geometric asks for.  Its C++ extensions, torch_scatter, torch_sparse and
torch_cluster, are not: tests that want one fail or are skipped.  Arguments that follow go to pytest, such as
`gnn/nn/conv`; without any, every test runs that wants no data set.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clones import unpack
from environment import SHIMS, install_beside, make_environment, parser_of_places, variables

PACKAGES = ("pyg-nightly==2.4.0.dev20230613", "pytest-benchmark==4.0.0", "py-cpuinfo==9.0.0")
TESTS = ("gnn/nn", "gnn/ops", "gnn/test_fixed_size_options.py", "gnn/test_masker.py", "gnn/test_encoding.py")


def main() -> int:
    """Runs the tests; pytest's status."""
    parser = parser_of_places(__doc__, "graphcore/poptorch")
    arguments, wanted = parser.parse_known_args()
    environment = arguments.environment.resolve()
    make_environment(environment)
    beside = install_beside(environment / "beside" / "geometric", PACKAGES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packages = folder / "packages"
        packages.mkdir()
        (packages / "poptorch_geometric").symlink_to(
            unpack(arguments.clone, "poptorch_geometric/python", folder)
        )
        command = ["python", "-m", "pytest", "-q", "-p", "samplers_of_torch_2_0", "-W", "ignore"]
        return subprocess.run(
            [*command, "--continue-on-collection-errors", *(wanted or TESTS)],
            cwd=unpack(arguments.clone, "tests", folder),
            env=variables(environment, [SHIMS / "geometric", packages, *beside]),
            check=False,
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
