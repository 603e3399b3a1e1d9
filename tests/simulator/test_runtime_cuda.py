"""Programs on a GPU against plain torch on the CPU; where there is no GPU, on a pretended one.

`make test-cuda` wants a real one.  What holds on the pretended one as a matter of course, as it computes on the CPU,
is there for the real one: TF32, sums in another order, and whether they come out the same twice.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_equals_torch as training
import torch
import torch.nn.functional as F
from pretended_gpu import PretendedGpu, pretended_gpu
from torch import Tensor, nn

from bert_ipu import simulator
from bert_ipu.simulator import poptorch
from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.params import SimulatorParams

REAL = torch.cuda.is_available()
LONG = [] if REAL else pytest.mark.slow


@pytest.fixture(autouse=True)
def gpu() -> Iterator[PretendedGpu | None]:
    assert REAL or os.environ.get("BERT_IPU_TEST_GPU") != "real", "torch finds no GPU"
    with contextlib.nullcontext() if REAL else pretended_gpu() as pretended:
        simulator.install(SimulatorParams(device="cuda"))
        yield pretended


def _options(accumulation: int = 1) -> poptorch.Options:
    options = poptorch.Options().outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(accumulation)
    return options.randomSeed(7)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        pytest.param("SGD", training.Split(4, 2, 3, "pipelined"), marks=LONG),
        pytest.param("AdamW", training.Split(1, 2, 3, "pipelined"), marks=LONG),
        ("LAMB", training.Split(4, 1, 3, "sharded")),
    ],
)
def test_training_equals_torch(name: str, split: training.Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "UPDATES", 21 if REAL else 6)  # pretending takes its time
    losses, weights = training.simulated(name, split)
    expected_losses, expected = training.torch_loop.__wrapped__(name, split.micro_batches)
    ratios = {key: float((weights[key] - value).norm() / value.norm()) for key, value in expected.items()}
    ratios["the losses"] = float((losses - expected_losses).norm() / expected_losses.norm())
    assert max(ratios.values()) <= training.OPTIMIZERS[name].bound, ratios


@pytest.mark.parametrize(
    ("numerics", "stochastic", "bound"),
    [
        ("ipu", False, 2e-3),
        pytest.param("ipu", True, 2e-3, marks=LONG),
        ("fast", False, 3e-2),
    ],
)
def test_half_precision_is_near_float32(numerics: str, stochastic: bool, bound: float) -> None:
    """In 20 updates losses err by 5e-4 with float16's 11 bits and by 1e-2 with bf16's 8, and weights by 3e-3."""
    simulator.install(SimulatorParams(device="cuda", numerics=numerics))
    trained, reference = training.model().half(), training.model().half().float()
    options = training.Split(2, 1, 1, "sharded").options()
    options.Precision.enableStochasticRounding(stochastic)
    ours = poptorch.trainingModel(
        trained, options, poptorch.optim.SGD(trained.parameters(), lr=0.1, loss_scaling=64.0)
    )
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    for ids, labels in list(zip(*training.batches(2)))[: 20 if REAL else 3]:
        losses = ours(ids, labels)
        theirs.zero_grad()
        expected = torch.stack([reference(*rows) for rows in zip(ids.chunk(2), labels.chunk(2))])
        expected.mean().backward()
        theirs.step()
        assert (losses.float() - expected).norm() <= bound * expected.norm()
    ours.copyWeightsToHost()
    for key, value in reference.named_parameters():
        found = dict(trained.named_parameters())[key].float()
        assert (found - value).norm() <= 8e-3 * value.norm(), key


class _Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(130))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        dropped, rounded = F.dropout(self.weight * x, 0.3), x.half() * 0.3
        made = torch.rand(130, device=x.device), torch.randint(0, 9, (130,), device=x.device)
        return dropped, rounded, *made, poptorch.identity_loss(dropped, reduction="sum")


def test_random_numbers_are_those_of_the_cpu() -> None:
    """Dropout, stochastic rounding and draws, in every micro-batch of every replica and step."""
    found = []
    for device in ("cpu", "cuda"):
        simulator.install(SimulatorParams(device=device))
        options, model = _options(accumulation=2).replicationFactor(2), _Draws()
        options.Precision.enableStochasticRounding(True)
        trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.0))
        x = torch.linspace(0.1, 5.0, 4 * 130).view(4, 130)
        found.append([value for _ in range(2) for value in trained(x)[:-1]])
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert torch.equal(on_cpu, on_gpu)
        assert not torch.equal(on_cpu[0], on_cpu[1]), "each micro-batch draws for itself"


class _Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.layers(x), y)


def test_what_a_gpu_wrote_a_cpu_carries_on_from(tmp_path: Path) -> None:
    """The executable, the weights and the optimizer's state."""
    x, y = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(32).view(4, 8) % 3
    reference = _Classifier()
    theirs = torch.optim.AdamW(reference.parameters(), lr=0.01)
    for rows, labels in zip(x, y):
        theirs.zero_grad()
        reference(rows, labels).backward()
        theirs.step()

    file, weights, state = str(tmp_path / "executable"), None, None
    for device, batches in (("cuda", slice(0, 2)), ("cpu", slice(2, 4))):
        simulator.install(SimulatorParams(device=device))
        model = _Classifier()
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.01)
        if weights is not None:
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
        trained = poptorch.trainingModel(model, _options(), optimizer)
        if weights is not None:
            trained.loadExecutable(file)
        for rows, labels in zip(x[batches], y[batches]):
            trained(rows, labels)
        trained.save(file)
        weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6, msg=name)


class _Layers(nn.Module):
    """A convolution, a recurrent layer and a product, whose gradients add up what one index names twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.mixed = nn.Embedding(9, 32), nn.Conv1d(32, 64, 3, padding=1)
        self.read, self.out = nn.LSTM(64, 48, batch_first=True), nn.Linear(48, 9)

    def scores(self, ids: Tensor) -> Tensor:
        mixed = self.mixed(self.words(ids).transpose(1, 2)).transpose(1, 2)
        read = self.read(mixed)[0]
        return self.out(read.gather(1, (ids % 4).unsqueeze(-1).expand_as(read)))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(ids)
        return scores, F.cross_entropy(scores.flatten(0, 1), ids.flatten())


@pytest.fixture
def lowered_precision() -> Iterator[None]:
    """What programs for GPUs choose: TF32, and whatever algorithm is quickest."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    yield
    assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.benchmark = before[1]


def test_float32_is_float32_and_every_run_the_same(lowered_precision: None) -> None:
    """TF32 would err by 3e-4; torch's warning of an operator that repeats nothing exactly is an error here."""
    ids = torch.randint(0, 9, (4, 12), generator=torch.Generator().manual_seed(2))
    expected = _Layers().double().scores(ids)
    runs = []
    for _ in range(2 if REAL else 1):
        model = _Layers()
        trained = poptorch.trainingModel(model, _options(), poptorch.optim.SGD(model.parameters(), lr=0.5))
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*determinis.*")
            results = [trained(ids)[0] for _ in range(3 if REAL else 1)]
        runs.append([*results, *model.state_dict().values()])
        assert (results[0].double() - expected).norm() < 2e-6 * expected.norm()
    assert all(torch.equal(first, second) for first, second in zip(runs[0], runs[-1], strict=True))


class _Hosted(nn.Module):
    """Calls the host in the middle: with and without operands."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(3, 3)
        self.on_host = poptorch.CPU(layer, "layer")
        self.constant = poptorch.CPU(lambda: torch.tensor([1.0, 2.0, 3.0]), "constant")

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        x = poptorch.ipu_print_tensor(self.on_host(x * 2), "x") + self.constant()
        return x, *poptorch.ctc_beam_search_decoder(F.log_softmax(x.unsqueeze(1), -1), lengths)


def test_what_runs_on_the_host_gets_the_hosts_tensors(capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    model, x, lengths = _Hosted(), torch.randn(4, 3), torch.tensor([4])
    found = poptorch.inferenceModel(model)(x, lengths)
    expected = model.on_host._layer_to_call(x * 2) + torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(found[0], expected)
    decoded = poptorch.ctc_beam_search_decoder(F.log_softmax(expected.unsqueeze(1), -1), lengths)
    for ours, theirs in zip(found[1:], decoded, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert "x: (" in capfd.readouterr().err


def test_a_gpu_is_chosen_by_its_number() -> None:
    count = torch.cuda.device_count()
    simulator.install(SimulatorParams(device=f"cuda:{count - 1}"))
    x = torch.randn(3, 4)
    run = poptorch.inferenceModel(nn.Softmax(-1))
    torch.testing.assert_close(run(x), x.softmax(-1))
    simulator.install(SimulatorParams(device=f"cuda:{count}"))
    run = poptorch.inferenceModel(nn.Softmax(-1))
    with pytest.raises(Error, match=f"has {count} of them"):
        run(x)
