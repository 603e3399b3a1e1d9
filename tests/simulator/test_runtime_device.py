"""Where there is no GPU: a run whose tensors pretend to be on one mixes no devices and reads none of its values.

torch's fake tensors have a device, of which torch needs no driver, and refuse operands of two devices.  What a
build of torch for the CPU cannot pretend, copies between devices and Python's indexing, is replaced here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu import simulator
from bert_ipu.simulator.custom_ops import registered_patterns
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime.engine import Executable
from bert_ipu.simulator.runtime.variables import VariableStore

CUDA = torch.device("cuda", 0)


class _Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies between devices without values; a value may only be read of a tensor on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((argument.name for argument in func._schema.arguments), args)) | (kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        if name == "copy_":
            return given["self"]
        if name in ("item", "_local_scalar_dense"):
            assert given["self"].device.type == "cpu", "a value of the device is read"
            return 1
        if name in ("to", "_to_copy"):
            x, like = given["self"], given.get("other")
            device = torch.device(given.get("device") or (x if like is None else like).device)
            dtype = given.get("dtype") or (x if like is None else like).dtype
            same = device == x.device and dtype == x.dtype and name == "to" and not given.get("copy")
            return x if same else torch.empty(x.shape, dtype=dtype, device=device)
        return func(*args, **(kwargs or {}))


class _Indexing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.Tensor.__getitem__ or isinstance(args[1], Tensor):
            return func(*args, **(kwargs or {}))
        x, dim = args[0], 0
        for index in args[1] if isinstance(args[1], tuple) else (args[1],):
            if isinstance(index, slice):
                start, stop, _ = index.indices(x.shape[dim])
                x, dim = torch.narrow(x, dim, start, stop - start), dim + 1
            else:
                x = torch.select(x, dim, index)
        return x


class _Words(nn.Module):
    """Makes tensors of nothing, looks some up, draws, and takes a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 11)

    def forward(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(ids) + self.places(torch.arange(6, device=ids.device))
        x = nn.functional.dropout(self.norm(x), 0.1, True) + torch.rand(8, device=ids.device).to(x.dtype)
        x = x * torch.full((8,), 0.5, device=ids.device).to(x.dtype)
        scores = self.out(x + torch.randint(0, 2, (8,), device=ids.device).to(x.dtype))
        return scores, nn.functional.cross_entropy(scores.view(-1, 11), labels.view(-1))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("optimizer", [poptorch.optim.SGD, poptorch.optim.AdamW, poptorch.optim.LAMB])
@pytest.mark.parametrize(
    ("numerics", "half", "stochastic", "accumulation", "replicas", "batched"),
    [
        ("ipu", False, False, 1, 1, True),
        ("ipu", True, True, 3, 1, True),
        ("ipu", True, False, 2, 2, False),
        ("fast", True, False, 2, 2, True),
    ],
)
def test_everything_of_a_run_is_on_the_device(
    monkeypatch: pytest.MonkeyPatch, numerics: str, half: bool, stochastic: bool, accumulation: int,
    replicas: int, batched: bool, optimizer: Any,
) -> None:  # fmt: skip
    simulator.install(SimulatorParams(device="null"))
    model = _Words().half() if half else _Words()
    options = poptorch.Options().showCompilationProgressBar(False).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    options.Precision.enableStochasticRounding(stochastic)
    # Libraries that other tests of this process have loaded would change the program.
    options._Popart.setPatterns(dict.fromkeys(registered_patterns(), False))
    trained = poptorch.trainingModel(model, options, optimizer(model.parameters(), lr=0.1))
    rows = 2 * accumulation * replicas
    trained.compile(torch.zeros(rows, 6, dtype=torch.int32), torch.zeros(rows, 6, dtype=torch.int32))
    session = trained._session
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(VariableStore, "load", lambda *_: None)
    params = SimulatorParams(numerics=numerics, device="cuda:0", batch_micro_batches=batched)
    with FakeTensorMode(allow_non_fake_inputs=True), _Copies(), _Indexing():
        executable = Executable(session.program, session.executable.settings, params)
        inputs = [torch.empty(rows, 6, dtype=torch.int32, device=CUDA) for _ in range(2)]
        results = [executable.run(inputs) for _ in range(2)][-1]
        assert all(value.device == CUDA for values in executable.store.values.values() for value in values)
    assert [tuple(result.shape)[1:] for result in results] == [(6, 11), ()]
