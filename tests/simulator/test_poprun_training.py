"""An unmodified PopTorch program on several instances, against torch.optim on all of their data at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from poprun_jobs import Job

PROGRAM = """
import sys
import popdist
import popdist.poptorch
import poptorch
import torch

assert popdist.isPopdistEnvSet()
popdist.init()
options = popdist.poptorch.Options(ipus_per_replica=1)
options.Training.gradientAccumulation(2)
options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
options.outputMode(poptorch.OutputMode.All)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))

    def forward(self, x, y):
        return torch.nn.functional.cross_entropy(self.layers(x), y)


start = torch.load(sys.argv[1])
model = Model()
model.load_state_dict(start["weights"])
optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
training = poptorch.trainingModel(model, options=options, optimizer=optimizer)
rank, size = popdist.getInstanceIndex(), popdist.getNumInstances()
for x, y in zip(start["x"], start["y"]):
    share = len(x) // size
    training(x[rank * share : (rank + 1) * share], y[rank * share : (rank + 1) * share])
training.copyWeightsToHost()
weights = torch.cat([p.detach().flatten() for p in model.parameters()])
popdist.synchronize()
popdist.execute_on_instances({0}, torch.save, model.state_dict(), sys.argv[2])
# Every instance must hold the same bits.
print(weights.double().sum().item().hex())
"""
STEPS, ROWS = 5, 16  # of micro-batch 2, accumulated twice, on 4 replicas


@pytest.mark.mpi
def test_training_equals_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    x, y = torch.randn(STEPS, ROWS, 6), torch.randint(3, (STEPS, ROWS))
    weights = {f"layers.{name}": value.clone() for name, value in model.state_dict().items()}
    torch.save({"weights": weights, "x": x, "y": y}, tmp_path / "start.pt")
    (tmp_path / "program.py").write_text(PROGRAM)

    files = [str(tmp_path / name) for name in ("program.py", "start.pt", "end.pt")]
    job = Job(files, instances=2, replicas=4)
    assert job.status == 0, job.stderr
    sums = job.stdout.split()
    assert len(sums) == 2 and sums[0] == sums[1]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch, labels in zip(x, y):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()
    trained = torch.load(tmp_path / "end.pt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[f"layers.{name}"], value, rtol=1e-5, atol=1e-6)
