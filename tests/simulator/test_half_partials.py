"""Partial sums of fp16: against the device's codelet in NumPy, against torch where sums are exact, and in programs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bert_ipu import simulator
from bert_ipu.simulator import poptorch
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime.depth_division import PRODUCTS, TILES, tiles_for
from bert_ipu.simulator.runtime.half_convolutions import convolution, convolution_backward
from bert_ipu.simulator.runtime.half_partials import HalfPartials
from bert_ipu.simulator.runtime.native import Kernels, load_kernels
from bert_ipu.simulator.runtime.random import Draws, make_places, seed_key

aten = torch.ops.aten
HALF_MAX = 65504.0


@pytest.fixture(scope="module", params=["kernel", "torch"])
def kernels(request: pytest.FixtureRequest) -> Kernels | None:
    return load_kernels() if request.param == "kernel" else None


def halves(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).half().float()


def by_codelet(a: Tensor, b: Tensor, tiles: int) -> Tensor:
    """What Poplar's codelet computes, `out += sum` of 16 products each, and the sum over tiles, in NumPy."""
    share = math.ceil(math.ceil(a.shape[1] / 16) / tiles) * 16
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for start in range(0, a.shape[1], share):
        out = np.zeros_like(total, np.float16)
        for k in range(start, min(start + share, a.shape[1]), 16):
            end = min(k + 16, start + share)
            products = a[:, k:end].numpy().astype(np.float32) @ b[k:end].numpy().astype(np.float32)
            out = (out.astype(np.float32) + products).astype(np.float16)
        total += out
    return torch.from_numpy(total.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("tiles", [1, 3])
@pytest.mark.parametrize(
    "rows, depth, columns", [(1, 1, 1), (4, 16, 32), (7, 50, 33), (130, 300, 70), (5, 1000, 3)]
)
def test_sums_are_rounded_where_the_codelet_writes_them(
    kernels: Kernels | None, rows: int, depth: int, columns: int, tiles: int
) -> None:
    a, b = halves(3, rows, depth), halves(3, columns, depth, scale=depth**-0.5).transpose(1, 2)
    found = HalfPartials(kernels, 8, HALF_MAX).multiply(a, b, tiles, None)
    expected = torch.stack([by_codelet(*pair, tiles) for pair in zip(a, b)])
    # The 16 products are added up in another order, which now and then decides a rounding.
    assert (found != expected).float().mean() < 0.01
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("tiles", [1, 4])
def test_rounding_at_random_is_right_in_the_mean(kernels: Kernels | None, tiles: int) -> None:
    a, b = halves(1, 5, 200), halves(1, 200, 40, scale=0.1)
    draws = Draws(seed_key(3), make_places([(stream, 0) for stream in range(400)]), kernels)
    found = HalfPartials(kernels, 8, HALF_MAX).multiply(
        a.expand(400, -1, -1), b.expand(400, -1, -1), tiles, draws
    )
    assert torch.equal(found, found.half().float())
    deviation, apart = found.double().std(0), found.double().mean(0) - (a.double() @ b.double())[0]
    assert (deviation > 0).all()
    assert float((apart / (deviation / 400**0.5)).abs().max()) < 5.0, "200 means, each normally distributed"


def test_the_kernel_draws_what_torch_draws() -> None:
    kernels = load_kernels()
    assert kernels is not None, "no compiler"
    a, b = halves(6, 9, 70), halves(6, 70, 37)
    draws = Draws(seed_key(5), make_places([(4, 2), (9, 2), (1, 7)]), kernels)
    one = HalfPartials(kernels, 16, HALF_MAX).multiply(a, b, 2, draws)
    other = HalfPartials(None, 16, HALF_MAX).multiply(a, b, 2, draws)
    assert (one != other).float().mean() < 0.01


def test_sums_saturate_one_after_the_other(kernels: Kernels | None) -> None:
    a, b = torch.ones(1, 1, 48), torch.full((1, 48, 1), 4000.0)
    b[0, 16:] = -4000.0
    # 64,000 - 64,000 - 64,000, and in the other order the first two sums reach the end of the range.
    assert HalfPartials(kernels, 8, HALF_MAX).multiply(a, b, 1, None).item() == -64000.0
    assert HalfPartials(kernels, 8, HALF_MAX).multiply(a, b.flip(1), 1, None).item() == -HALF_MAX + 64000.0
    assert HalfPartials(kernels, 8, math.inf).multiply(a, b.flip(1), 1, None).item() == -math.inf


def test_the_depth_is_divided_over_the_tiles_there_are() -> None:
    assert tiles_for(torch.Size([512, 16]), torch.Size([16, 512])) == 1
    assert tiles_for(torch.Size([16384, 1024]), torch.Size([1024, 1024])) < 8, "the rows fill the tiles"
    deep = tiles_for(torch.Size([64, 30528]), torch.Size([30528, 768]))
    assert 30528 / PRODUCTS / 100 < deep <= TILES
    assert tiles_for(torch.Size([5000, 8, 64]), torch.Size([64, 8])) == tiles_for(
        torch.Size([40000, 64]), torch.Size([64, 8])
    )


def small_integers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).float()


GEOMETRIES = [
    geometry
    for geometry in itertools.product((1, 2, 3), (1, 2, 3), (0, 1), (1, 2), (1, 2), (False, True), (0, 1))
    if geometry[-1] == 0 or (geometry[-2] and max(geometry[1], geometry[3]) > 1)
]
"""Dimensions, stride, padding, dilation, groups, whether transposed, output padding."""


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_are_torchs_where_every_sum_is_exact(kernels: Kernels | None, dimensions: int) -> None:
    """Integers up to 2,048 are fp16 values, so nothing is rounded."""
    size, kernel = [7, 8, 6][:dimensions], [3, 2, 1][:dimensions]
    partials = HalfPartials(kernels, 8, HALF_MAX)
    for _, stride, padding, dilation, groups, transposed, more in filter(
        lambda geometry: geometry[0] == dimensions, GEOMETRIES
    ):
        x, bias = small_integers(2, 4, *size), small_integers(6)
        weight = small_integers(*((4, 6 // groups) if transposed else (6, 4 // groups)), *kernel)
        numbers: tuple[Any, ...] = ([stride] * dimensions, [padding] * dimensions, [dilation] * dimensions)
        numbers += (transposed, [more] * dimensions, groups)
        expected = aten.convolution(x, weight, bias, *numbers)
        assert torch.equal(convolution(partials, None, x, weight, bias, *numbers), expected)
        gradient = small_integers(*expected.shape)
        args = (gradient, x, weight, [6], *numbers, [True] * 3)
        for found, right in zip(
            convolution_backward(partials, None, *args), aten.convolution_backward(*args)
        ):
            assert torch.equal(found, right), numbers


def options_with(partials: torch.dtype) -> poptorch.Options:
    options = poptorch.Options()
    options.Precision.setPartialsType(partials)
    return options


def test_a_program_sums_as_its_options_say() -> None:
    simulator.install(SimulatorParams())
    torch.manual_seed(0)
    model = nn.Linear(768, 30, bias=False).half()
    x = torch.randn(20, 768).half()
    tiles = tiles_for(x.shape, model.weight.t().shape)
    found = poptorch.inferenceModel(model, options_with(torch.half))(x).float()
    expected = by_codelet(x.float(), model.weight.detach().float().t(), tiles)
    assert (found != expected).float().mean() < 0.01
    plain = poptorch.inferenceModel(model, options_with(torch.float))(x).float()
    assert torch.equal(plain, (x.float() @ model.weight.detach().float().t()).half().float())
    assert (plain != expected).float().mean() > 0.1


def test_training_sums_gradients_in_half_too() -> None:
    """With partial sums that differ in nothing else, the weights after a step differ, and only by roundings."""
    simulator.install(SimulatorParams())
    weights = {}
    for partials in (torch.half, torch.float):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(40, 24, 3), nn.Flatten(), nn.Linear(24 * 6, 1)).half()
        optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0)
        loss = nn.Sequential(model, Squares())
        training = poptorch.trainingModel(loss, options_with(partials), optimizer)
        training(torch.randn(32, 40, 8).half())
        weights[partials] = [weight.detach().float() for weight in model.parameters()]
    for half, full in zip(weights[torch.half], weights[torch.float]):
        torch.testing.assert_close(half, full, rtol=1e-2, atol=5e-3)
    assert not torch.equal(weights[torch.half][0], weights[torch.float][0])


class Squares(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(x * x, reduction="mean")


class TwoConvolutions(nn.Module):
    def __init__(self, context: poptorch.MultiConv) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.context, self.one, self.other = context, nn.Conv1d(96, 4, 3).half(), nn.Conv1d(96, 4, 3).half()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with self.context:
            return self.one(x), self.other(x)


def test_each_convolution_of_a_multi_convolution_has_its_own_partials() -> None:
    simulator.install(SimulatorParams())
    x = torch.randn(8, 96, 30).half()

    def results(context: poptorch.MultiConv, partials: torch.dtype) -> tuple[Tensor, Tensor]:
        model = poptorch.inferenceModel(TwoConvolutions(context), options_with(partials))
        return tuple(model(x))  # type: ignore[return-value]

    full, half = (results(poptorch.MultiConv(), partials) for partials in (torch.float, torch.half))
    mixed = results(poptorch.MultiConv().partialsTypes([torch.half, torch.float]), torch.float)
    assert not torch.equal(full[0], half[0]) and not torch.equal(full[1], half[1])
    assert torch.equal(mixed[0], half[0]) and torch.equal(mixed[1], full[1])


def test_a_multi_convolution_needs_one_setting_for_all_or_one_for_each() -> None:
    simulator.install(SimulatorParams())
    context = poptorch.MultiConv().partialsTypes([torch.half] * 3)
    with pytest.raises(poptorch.Error, match="2 convolutions and 3 values of partials_types"):
        poptorch.inferenceModel(TwoConvolutions(context))(torch.randn(8, 96, 30).half())


def test_recurrent_layers_with_half_partials_are_refused() -> None:
    simulator.install(SimulatorParams())
    options = poptorch.Options()
    options._Popart.set("lstmOptions", {"partialsType": "half"})
    model = poptorch.inferenceModel(nn.LSTM(4, 4), options)
    with pytest.raises(poptorch.SimulatorUnsupported, match="recurrent layers are simulated with float32 sums"):
        model(torch.randn(3, 2, 4))
