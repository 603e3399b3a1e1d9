"""What the package poptorch_geometric, PopTorch's own, asks of PopTorch: its private modules and its parsers.

The package here is made for the test, and does what that of graphcore/poptorch does when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = """
import importlib.util

import poptorch
import torch
from poptorch._utils import combine_batch_tensors_gen


class Graph:
    def __init__(self, x):
        self.x = x


class Parser(poptorch.ICustomArgParser):
    def yieldTensors(self, struct):
        yield struct.x

    def reconstruct(self, original_structure, tensor_iterator):
        return Graph(next(tensor_iterator))


def scale(x):
    return 2 * x


class Substitution:
    def replace(self):
        globals()["scale"] = lambda x: 3 * x

    def restore(self):
        globals()["scale"] = SCALE


SCALE = scale
executor = importlib.util.find_spec("poptorch._poplar_executor").loader.load_module()
for _ in range(2):
    executor._OverwriteContextManager.registerSubsitutionManager(Substitution)
poptorch.registerCustomArgParser(Graph, Parser())
joined = list(combine_batch_tensors_gen([[torch.ones(2, 1), torch.ones(1)], [torch.zeros(1, 1), torch.zeros(1)]]))
"""

PROGRAM = """
import sys

import poptorch
import torch

assert "poptorch_geometric" in sys.modules, "PopTorch loads it where it is installed"
import poptorch_geometric as geometric


class Model(torch.nn.Module):
    def forward(self, graph):
        if fails:
            raise ValueError("in the forward")
        return geometric.scale(graph.x)


for fails in (True, False):
    try:
        result = poptorch.inferenceModel(Model())(geometric.Graph(torch.ones(2)))
    except ValueError:
        pass
    assert geometric.scale is geometric.SCALE, "what is exchanged for a forward comes back after it"
print(result.tolist(), [tensor.tolist() for tensor in geometric.joined])
"""


def _run(folder: Path, package: str, program: str) -> str:
    (folder / "poptorch_geometric.py").write_text(package)
    (folder / "program.py").write_text(program)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(folder)])
    done = subprocess.run(
        [sys.executable, "-m", "bert_ipu.simulator", "program.py"],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_takes_what_it_wants_of_poptorch(tmp_path: Path) -> None:
    assert "[3.0, 3.0] [[[1.0], [1.0], [0.0]], [1.0, 0.0]]" in _run(tmp_path, PACKAGE, PROGRAM)


def test_a_package_that_does_not_load_harms_nobody(tmp_path: Path) -> None:
    """PopTorch ignores it too: where PyTorch Geometric is not installed."""
    _run(tmp_path, "import a_package_that_is_not_there", "import poptorch; print(poptorch.__version__)")
