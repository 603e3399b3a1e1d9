"""Automatic loss scaling by PopART's rule: the expected factors are worked out by hand.

The model's loss is 3 sum(w x).  Its tracked float16 gradients are 3 s (of w x) and 3 s x (of w), s being the
loss scale: with x = (1000, 1, 1, 1) one of the eight is 3000 s, the others are 3 s.  The upper bin starts at
65504 / 8 = 8188, so s = 4 is the first power of two with a large gradient.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bert_ipu import simulator
from bert_ipu.simulator import poptorch
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.poptorch.options import Options
from bert_ipu.simulator.runtime import numerics

X = torch.tensor([1000.0, 1.0, 1.0, 1.0], dtype=torch.float16)
LR = 2.0**-10


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, dtype=torch.float16))

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(self.weight * x * 3.0, reduction="sum")


OPTIMIZERS = {
    "sgd": lambda p: poptorch.optim.SGD(p, lr=LR, use_combined_accum=False),
    "sgd_separate": lambda p: poptorch.optim.SGD(p, lr=LR, momentum=0.5, use_combined_accum=False),
    "sgd_combined": lambda p: poptorch.optim.SGD(p, lr=LR, momentum=0.5, use_combined_accum=True),
    "adam": lambda p: poptorch.optim.Adam(p, lr=LR),
    "adamw": lambda p: poptorch.optim.AdamW(p, lr=LR, weight_decay=0.0, accum_type=torch.float16),
}
REFERENCES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=LR),
    "sgd_separate": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.5),
    "sgd_combined": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.5),
    "adam": lambda p: torch.optim.Adam(p, lr=LR),
    "adamw": lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.0),
}


def run(options: Options, steps: int, optimizer: str = "sgd", x: Tensor = X) -> tuple[list[float], Tensor]:
    """The loss scale that each step used, and the trained weight."""
    options.Training.setAutomaticLossScaling(True)
    options.anchorTensor("scale", "finalLossScale", poptorch.OutputMode.Final)
    module = Weighted()
    model = poptorch.trainingModel(module, options, OPTIMIZERS[optimizer](module.parameters()))
    micro_batches = options.Training.gradient_accumulation * options.replication_factor
    used = []
    for _ in range(steps):
        model(x.repeat(micro_batches))
        used.append(float(model.getAnchoredTensor("scale").flatten()[0]))
    model.copyWeightsToHost()
    return used, module.weight.detach()


@pytest.mark.parametrize(("accumulation", "replicas"), [(1, 1), (3, 1), (1, 2), (2, 2)])
def test_the_scale_doubles_until_a_gradient_is_large(accumulation: int, replicas: int) -> None:
    options = Options().replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    used, _ = run(options, 6)
    assert used == [1, 2, 4, 2, 4, 2]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_weights_do_not_depend_on_the_scale(optimizer: str, accumulation: int, native: bool) -> None:
    """torch.optim is told of no loss scale. All numbers are exact in float16 but the weights' last bits."""
    simulator.install(SimulatorParams(native_kernels=native))
    options = Options()
    options.Training.gradientAccumulation(accumulation)
    used, weight = run(options, 5, optimizer)
    expected = nn.Parameter(torch.zeros(4))
    reference = REFERENCES[optimizer]([expected])
    for _ in used:
        expected.grad = 3 * X.float()
        reference.step()
    torch.testing.assert_close(weight.float(), expected.detach(), rtol=2e-3, atol=1e-4)


def test_the_share_of_large_gradients_halves_the_scale() -> None:
    """One gradient of eight is large from s = 4 on: not too many for a limit of one in seven."""
    options = Options()
    options._Popart.set("automaticLossScalingSettings.thresholdUpperCountProportion", 1 / 7)
    assert run(options, 5)[0] == [1, 2, 4, 8, 16]
    options = Options()
    options._Popart.set("automaticLossScalingSettings.thresholdUpperCountProportion", 1 / 9)
    assert run(options, 5)[0] == [1, 2, 4, 2, 4]


def test_gradients_are_large_from_the_edge_of_the_bin_on() -> None:
    options = Options()
    options._Popart.set("automaticLossScalingSettings.binEdgeLocation", 4000 / 65504)
    assert run(options, 4)[0] == [1, 2, 1, 2]


def test_gradients_that_overflow_are_large_and_leave_weights_finite() -> None:
    used, weight = run(Options(), 4, x=torch.tensor([65504.0, 1.0, 1.0, 1.0], dtype=torch.float16))
    assert used == [1, 0.5, 0.25, 0.125]
    assert weight.isfinite().all()


def test_the_scale_changes_once_in_an_update_period() -> None:
    options = Options()
    options.Training.gradientAccumulation(2)
    options._Popart.set("automaticLossScalingSettings.updatePeriod", 3)
    assert run(options, 8)[0] == [1, 2, 2, 2, 4, 4, 4, 2]


def test_tracking_matrix_products_alone_needs_one() -> None:
    """The model has none."""
    options = Options()
    options._Popart.set("automaticLossScalingSettings.gradientTensorTrackingMethod", 1)
    with pytest.raises(poptorch.Error, match="watches float16 gradients, and this model computes none"):
        run(options, 1)


def test_gradients_of_matrix_products_are_tracked() -> None:
    """d loss / d weight = s x, a product of matrices; the gradient of the bias, a sum, is not tracked."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2).half()

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss(self.linear(x), reduction="sum")

    options = Options()
    options.Training.setAutomaticLossScaling(True)
    options._Popart.set("automaticLossScalingSettings.gradientTensorTrackingMethod", 1)
    options.anchorTensor("scale", "finalLossScale")
    module = Linear()
    optimizer = poptorch.optim.AdamW(module.parameters(), lr=0.0)
    model = poptorch.trainingModel(module, options, optimizer)
    used = []
    for _ in range(6):
        model(4 * X[None])
        used.append(float(model.getAnchoredTensor("scale")))
    assert used == [1, 2, 4, 2, 4, 2]
    assert float(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"]) == 4


def test_automatic_loss_scaling_needs_float16_gradients() -> None:
    class Single(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.float()

    options = Options()
    options.Training.setAutomaticLossScaling(True)
    module = Single()
    model = poptorch.trainingModel(module, options, poptorch.optim.SGD(module.parameters(), lr=LR))
    with pytest.raises(poptorch.Error, match="watches float16 gradients, and this model computes none"):
        model(X.float())


def test_gradients_of_scalar_weights_of_a_float32_loss_are_watched() -> None:
    """PopART counts the cast of a gradient to float16, whatever its shape.

    The gradient of w in the sum of w x, for x of 1000, is 1000 s: s = 16 is the first that passes 8188.
    """

    class Scalar(Weighted):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.0, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return poptorch.identity_loss(self.weight * x, reduction="sum")

    options = Options()
    options.Training.setAutomaticLossScaling(True)
    options.anchorTensor("scale", "finalLossScale")
    module = Scalar()
    model = poptorch.trainingModel(module, options, poptorch.optim.SGD(module.parameters(), lr=LR))
    used = []
    for _ in range(6):
        model(torch.tensor([1000.0]))
        used.append(float(model.getAnchoredTensor("scale")))
    assert used == [1, 2, 4, 8, 16, 8]


@pytest.mark.parametrize(
    ("name", "value"), [("binEdgeLocation", 1.5), ("thresholdUpperCountProportion", -0.1)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    options = Options()
    options._Popart.set(f"automaticLossScalingSettings.{name}", value)
    with pytest.raises(poptorch.Error, match=f"{name} is {value}, but it must be between 0 and 1"):
        run(options, 1)


class Classifier(nn.Module):
    """Two losses, as BERT has; their gradients are small, so the loss scale outgrows float16."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8, bias=False)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        scores = self.layer(x)
        first = nn.functional.cross_entropy(scores, labels)
        second = nn.functional.nll_loss(nn.functional.log_softmax(scores, -1), labels)
        return poptorch.identity_loss(first + 0.5 * second, reduction="none")


@pytest.mark.parametrize("carrier", ["float32", "bfloat16"])
def test_a_loss_scale_beyond_float16_is_carried_in_float32(
    carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PopART's `EnsureFp32LossScale`, which automatic loss scaling switches on (`willow/src/ir.cpp`)."""
    if carrier == "bfloat16":
        simulator.install(SimulatorParams(numerics="fast"))
        monkeypatch.setattr(numerics, "has_fast_bf16", lambda _: True)
    torch.manual_seed(1)
    model = Classifier().half()
    options = Options()
    options.Training.setAutomaticLossScaling(True)
    options.anchorTensor("scale", "finalLossScale", poptorch.OutputMode.Final)
    trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.0))
    x, labels = 0.01 * torch.randn(512, 4).half(), torch.randint(0, 8, (512,))
    for _ in range(24):
        loss = trained(x, labels)
    assert float(trained.getAnchoredTensor("scale").max()) > 65504
    assert loss.isfinite() and trained.layer.weight.isfinite().all()
