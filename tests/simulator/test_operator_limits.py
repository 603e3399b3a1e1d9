"""Settings of operators that PopTorch's handlers refuse (poptorch/source/popart_canonicalization), and constants."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import Calls
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch

HERE = r"test_operator_limits\.py:\d+"
ROWS = torch.rand(4, 4)
SEQUENCE = torch.rand(2, 3, 4)
IMAGE = torch.rand(1, 3, 8, 8)
LABELS = torch.tensor([0, 3, 1, 2])
WEIGHTS = torch.ones(4)


def _run(model: Any, *inputs: Tensor) -> Any:
    return poptorch.inferenceModel(model)(*inputs)


def _ctc(scores: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    return F.ctc_loss(scores.log_softmax(-1), labels, lengths, lengths, reduction="none")


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.LSTM(4, 4, num_layers=2), "num_layers is 2, and must be 1"),
        (nn.LSTM(4, 4, bias=False), "bias must be True"),
        (nn.LSTM(4, 4, bidirectional=True), "bidirectional must be False: run a second LSTM"),
        (nn.GRU(4, 4, num_layers=2), "call one GRU after the other"),
        (nn.GRU(4, 4, bidirectional=True), "bidirectional must be False: run a second GRU"),
        (nn.RNN(4, 4, num_layers=2), "call one RNN after the other"),
        (nn.RNN(4, 4, bias=False), "bias must be True"),
    ],
)
def test_a_recurrent_layer_has_one_layer_and_one_direction(layer: nn.Module, said: str) -> None:
    with pytest.raises(poptorch.Error, match=f"aten::.*{HERE}.*{said}"):
        _run(Calls(lambda layer, x: layer(x)[0], layer), SEQUENCE)


def test_recurrent_layers_that_poptorch_has_run() -> None:
    for layer in (nn.LSTM(4, 4), nn.GRU(4, 4, bias=False), nn.RNN(4, 4, batch_first=True)):
        torch.testing.assert_close(_run(layer, SEQUENCE)[0], layer(SEQUENCE)[0].detach())


@pytest.mark.parametrize(
    ("function", "inputs", "said"),
    [
        (lambda x, y: F.cross_entropy(x, y, WEIGHTS.to(x.device)), (ROWS, LABELS), "takes no class weights"),
        (lambda x, y: F.nll_loss(x, y, WEIGHTS.to(x.device)), (ROWS, LABELS), "takes no class weights"),
        (_ctc, (SEQUENCE, torch.ones(3, 2).int(), torch.full((3,), 2)), 'reduction must be "sum" or "mean"'),
        (
            lambda w, y: F.embedding(y, w, sparse=True),
            (ROWS, LABELS),
            "aten::embedding.*scale_grad_by_freq and sparse must be False",
        ),
        (lambda w, y: F.embedding_bag(y, w, y[:1] * 0), (ROWS, LABELS), "offsets must be a constant"),
        (lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear"), (IMAGE,), "must be the same"),
        (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), (IMAGE,), "must be a whole number"),
        (
            lambda x: F.interpolate(x, (4, 4), mode="bicubic", align_corners=True),
            (IMAGE,),
            "align_corners must be False",
        ),
        (lambda x: F.interpolate(x[0], 4, mode="linear"), (IMAGE,), "only 'nearest' is supported"),
        (lambda x: F.interpolate(x, 4, mode="nearest-exact"), (IMAGE,), r"_upsample_nearest_exact2d"),
        (lambda x: F.adaptive_avg_pool2d(x, 3), (IMAGE,), "8 values of dim -2 do not make 3 windows"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True), (IMAGE,), "return_indices=False"),
        (lambda x: F.conv_transpose2d(x, x[0][:, None], dilation=2), (IMAGE,), r"dilation is \[2, 2\]"),
        (lambda x: x.triu(), (ROWS,), "must be a constant that the forward makes"),
        (lambda x: x.tril(), (ROWS,), "must be a constant that the forward makes"),
        (lambda x: x & x, (torch.ones(4, dtype=torch.uint8),), "no bitwise operators of torch.uint8"),
        (lambda x: torch.bitwise_and(x, x), (ROWS,), "must be of bool or integers"),
        (lambda x: F.dropout2d(x[0], training=True), (ROWS,), r"shape \[\d\], and no channels to drop"),
        (lambda x: torch.lerp(x, x, 0.5), (ROWS,), "aten::lerp.*a \\+ weight"),
        (lambda x: poptorch.dynamic_slice(x, 0, x[0, 0].int(), 2, 0), (ROWS,), "step is 0, and must be at least 1"),
    ],
)
def test_a_setting_that_poptorch_refuses_is_named(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], said: str
) -> None:
    with pytest.raises(poptorch.Error, match=said):
        _run(Calls(function), *inputs)


def test_constants_are_computed_while_compiling() -> None:
    """By EvaluateConstexprs.cpp: any of torch's operators will do."""

    def masked(x: Tensor) -> Tensor:
        mask = torch.ones(4, 4, device=x.device).triu(1)
        return x * mask + torch.lgamma(torch.arange(1.0, 5.0, device=x.device))

    torch.testing.assert_close(_run(Calls(masked), ROWS), masked(ROWS))


def test_one_and_the_values_of_max_pooling_run() -> None:
    def pooled(x: Tensor) -> Tensor:
        return F.max_pool2d_with_indices(x, 2)[0] + F.adaptive_avg_pool2d(x, 4)

    torch.testing.assert_close(_run(Calls(pooled), IMAGE), pooled(IMAGE))


class Scored(nn.Module):
    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.loss = nn.Linear(4, 4), loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.layer(x), y)


def _trained(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor) -> nn.Module:
    model = Scored(loss)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0)
    options = poptorch.Options()
    poptorch.trainingModel(model, options, optimizer)(ROWS, target)
    return model


def test_the_final_loss_must_be_a_scalar() -> None:
    """PopART's Ir::setFinalLoss: the mean outside is no loss to PopTorch."""
    with pytest.raises(poptorch.Error, match=rf"loss must be a scalar.*{HERE} has shape \[4\]"):
        _trained(lambda scores, y: F.cross_entropy(scores, y, reduction="none").mean(), LABELS)


def test_cross_entropy_of_probabilities_is_no_loss_until_it_is_wrapped() -> None:
    """torch composes it of arithmetic, which PopTorch records (its dispatcher takes no cross_entropy_loss)."""
    probabilities = torch.softmax(torch.rand(4, 4), -1)
    with pytest.raises(poptorch.Error, match=r"Couldn't find a loss.*class probabilities"):
        _trained(F.cross_entropy, probabilities)

    def wrapped(scores: Tensor, y: Tensor) -> Tensor:
        return poptorch.identity_loss(F.cross_entropy(scores, y), "none")

    expected = _by_torch(F.cross_entropy, probabilities)
    torch.testing.assert_close(_trained(wrapped, probabilities).layer.weight, expected)


def _by_torch(loss: Callable[[Tensor, Tensor], Tensor], target: Tensor) -> Tensor:
    model = Scored(loss)
    model(ROWS, target).backward()
    return (model.layer.weight - model.layer.weight.grad).detach()


def test_label_smoothing_trains_the_likelihood_alone_unless_it_is_wrapped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Inside, torch calls nll_loss, which PopTorch takes for the loss."""

    def smoothed(scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores, y, label_smoothing=0.5)

    with caplog.at_level(logging.WARNING, "poptorch::python"):
        model = _trained(smoothed, LABELS)
    assert "is minimised" in caplog.text
    torch.testing.assert_close(model.layer.weight, _by_torch(F.cross_entropy, LABELS))
    wrapped = _trained(lambda scores, y: poptorch.identity_loss(smoothed(scores, y), "none"), LABELS)
    torch.testing.assert_close(wrapped.layer.weight, _by_torch(smoothed, LABELS))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda x: x @ x[:3], "torch.Tensor.matmul"),  # found by the operator's shape function
        (lambda x: torch.roll(x, (1, 2), (0,)), "torch.roll"),
        (lambda x: torch.roll(x, 1, 7), "torch.roll"),
        (lambda x: F.glu(x[:, :3]), "torch.nn.functional.glu"),
        (lambda x: F.gelu(x, approximate="x"), "torch.nn.functional.gelu"),
        (lambda x: x[:, 9], "torch.Tensor.__getitem__"),
        (lambda x: nn.LSTM(7, 2)(x), ""),  # by Python code of torch
    ],
)
def test_an_error_of_torchs_own_stays_as_it_is_and_has_a_note_of_its_place(
    wrong: Callable[[Tensor], Any], name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """PopTorch's tests compare type and text with torch's. Nothing of torch's own insides is on the screen."""
    with pytest.raises(Exception) as by_torch:
        wrong(ROWS)
    with pytest.raises(by_torch.type) as error:
        _run(nn.Sequential(nn.Identity(), Calls(wrong)), ROWS)
    by = f" by {re.escape(name)}" if name else ""
    assert re.fullmatch(rf"It is raised{by} in module '1' \(.*{HERE}\)\.", error.value.__notes__[0])
    assert "fake_tensor" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.softmax(2),
        lambda x: x.log_softmax(-3),
        lambda x: x.sort(2)[0],
        lambda x: x.sort(stable=True, dim=2)[0],
        lambda x: x.select_scatter(x[0], 2, 0),
        lambda x: x.slice_scatter(x, 2),
        lambda x: x.sum().index_select(1, torch.zeros(1, dtype=torch.long, device=x.device)),
    ],
)
def test_a_dimension_that_is_not_there_is_found_before_a_run(wrong: Callable[[Tensor], Any]) -> None:
    with pytest.raises(IndexError, match="Dimension out of range") as by_torch:
        wrong(ROWS)
    model = poptorch.inferenceModel(Calls(wrong))
    with pytest.raises(IndexError, match=re.escape(str(by_torch.value))):
        model.compile(ROWS)


def test_an_error_of_the_users_own_stays_as_it_is() -> None:
    """PopTorch's tests (`tensor_ops_test.py`, test_exact_match) compare it with what the model raises on the CPU."""

    def forward(x: Tensor) -> Tensor:
        raise ValueError("my own")

    with pytest.raises(ValueError, match=r"^my own$") as error:
        _run(Calls(forward), ROWS)
    assert not hasattr(error.value, "__notes__")


@pytest.mark.parametrize("iterations", [1, 2])
@pytest.mark.parametrize(
    ("function", "module"),
    [
        (lambda layer, index: layer(index + 1), "1.layers.0 "),  # an index that the table has not
        (lambda layer, index: F.cross_entropy(layer(index), index), "1 "),  # a label that the scores have not
    ],
)
def test_a_value_that_an_operator_cannot_take_is_an_error_with_its_place(
    function: Callable[..., Tensor], module: str, iterations: int
) -> None:
    options = poptorch.Options().deviceIterations(iterations)
    layer, index = nn.Embedding(4, 3), torch.arange(4)
    with pytest.raises(IndexError) as by_torch:
        function(layer, index)
    run = poptorch.inferenceModel(nn.Sequential(nn.Identity(), Calls(function, layer)), options)
    with pytest.raises(IndexError, match=str(by_torch.value)) as error:
        run(index)
    assert re.fullmatch(rf"It is raised by .*: {module}.*{HERE}\.", error.value.__notes__[0])


@pytest.mark.parametrize("drop", [torch.dropout, torch.feature_dropout])
@pytest.mark.parametrize("probability", [1.0, 1.5, -0.5])
def test_popart_drops_less_than_everything(drop: Callable[..., Tensor], probability: float) -> None:
    """PopART's `dropoutbase.cpp`; torch takes 1, and PopTorch passes any number on."""
    assert torch.equal(_run(Calls(lambda x: drop(x, probability, False)), ROWS), ROWS)
    with pytest.raises(poptorch.Error, match=f"{HERE}.*less than 1, not {probability}"):
        _run(Calls(lambda x: drop(x, probability, True)), ROWS)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 4, 3, bias=False), (1, 2, 6)),
        (nn.Conv2d(2, 4, 3, padding="same"), (1, 2, 6, 6)),
        (nn.ConvTranspose2d(2, 4, 3), (1, 2, 6, 6)),
    ],
)
def test_convolutions_run_in_the_inputs_type(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """PopTorch casts weight and bias (`ConvolutionOps.cpp`)."""
    x = torch.rand(shape)
    out = _run(layer, x.half())
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), layer(x), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("function", "x", "warned"),
    [
        (lambda x: x + 2**40, torch.arange(4), "aten::add .*1099511627776 does not fit .*torch.int32"),
        (lambda x: x < -(2**40), torch.arange(4), "aten::lt .*does not fit .*torch.int32"),
        (lambda x: x * 1e300, ROWS, r"aten::mul .*1e\+300 does not fit .*torch.float32"),
        (lambda x: x * 2**40, ROWS, None),
        (lambda x: x.clamp(max=math.inf), ROWS, None),
        (lambda x: x[1:] + 2**31 - 1, torch.arange(4), "2147483648"),
        (lambda x: x[1:] + (2**31 - 4), torch.arange(4), None),
    ],
)
def test_numbers_that_no_32_bit_type_holds_are_said(
    function: Callable[[Tensor], Tensor], x: Tensor, warned: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warnings of PopTorch's `CanonicaliseConstants.cpp`, but for infinity, which float32 has."""
    _run(Calls(function), x)
    said = capsys.readouterr().err
    assert re.search(warned, said) if warned else "does not fit" not in said
