"""Arguments, results and calls of a kind that a program of the IPU cannot have end in an error that names them."""

from __future__ import annotations

import collections
import copy
import pickle
import re
import types
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch


class Tensors(nn.Module):
    """Calls a function of itself and its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(3))
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def _data_assigned(m: Tensors, x: Tensor) -> Tensor:
    m.kept.data = x.sum(0)
    return x


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda m, x: x.share_memory_(), "share_memory_() reads a tensor's values"),
        (lambda m, x: x.apply_(float), "apply_() reads a tensor's values"),
        (lambda m, x: x.map_(x, lambda a, _: a), "map_() reads a tensor's values"),
        (lambda m, x: pickle.dumps(x), "pickle reads a tensor's values"),
        (lambda m, x: torch.tensor([x.sum(), x.mean()]), "tensor() of a list reads the values of tensors"),
        (lambda m, x: x.new_tensor([x.sum()]), "use `torch.stack`"),
        (_data_assigned, "use `tensor.copy_(value)`"),
        (lambda m, x: poptorch.identity_loss(3, "sum"), "identity_loss: x must be a Tensor"),
        (lambda m, x: poptorch.for_loop(2, lambda y: None, [x])[0], "must return tensors, not None"),
        (
            lambda m, x: poptorch.CPU(lambda y: "y", "text")(x),
            "The CPU op 'text' must return tensors, not 'y'",
        ),
        (
            lambda m, x: torch.nn.functional.multilabel_margin_loss(x, x.long()),
            "has no counterpart on the IPU",
        ),
    ],
)
def test_what_would_reach_into_memory_is_refused(forward: Any, said: str) -> None:
    """torch's own code reads or moves memory here, which tensors of a forward have not got: it crashed."""
    model = Tensors(forward)
    before = model.kept.data_ptr()
    with pytest.raises(poptorch.Error, match=re.escape(said)):
        poptorch.inferenceModel(model)(torch.ones(2, 3))
    assert model.kept.data_ptr() == before


@pytest.mark.parametrize(
    ("forward", "error", "said"),
    [
        (lambda m, x: poptorch.for_loop(1.5, lambda y: y, [x]), ValueError, "count must be an int, not 1.5"),
        (
            lambda m, x: poptorch.cond(x, lambda y: y, [x], lambda y: y, [x]),
            ValueError,
            "tensor of one element",
        ),
        (lambda m, x: poptorch.Block("a", ipu_id="b").__enter__(), TypeError, "must be an int, not 'b'"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(forward: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        poptorch.inferenceModel(Tensors(forward))(torch.ones(2, 3))


def test_a_wrapped_model_is_neither_pickled_nor_deeply_copied() -> None:
    run = poptorch.inferenceModel(nn.Linear(3, 2))
    run(torch.ones(1, 3))
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(poptorch.Error, match=re.escape("take the user's, `executor.model`")):
            copied(run)
    assert isinstance(pickle.loads(pickle.dumps(run.model)), nn.Linear)


def test_only_training_models_take_optimizers_and_only_modules_train() -> None:
    run = poptorch.inferenceModel(nn.Linear(3, 2))
    with pytest.raises(poptorch.Error, match=re.escape("this model only infers")):
        run.setOptimizer(torch.optim.SGD(run.model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=re.escape("trainingModel takes a torch.nn.Module")):
        poptorch.trainingModel(torch.sin)


def test_arguments_that_are_no_tensors_are_compared_by_all_their_elements() -> None:
    run = poptorch.inferenceModel(lambda x, scale: x * float(scale.sum()))
    for _ in range(2):
        assert run(torch.ones(2), numpy.array([1, 2])).tolist() == [3, 3]
    with pytest.raises(poptorch.Error, match="Value mismatch for scale"):
        run(torch.ones(2), numpy.array([1, 3]))
    with pytest.raises(poptorch.Error, match="Inputs must be dense tensors"):
        run(torch.ones(2, 2).to_sparse(), numpy.array([1, 2]))


def test_results_in_containers_that_nobody_looks_into_are_said(caplog: pytest.LogCaptureFixture) -> None:
    run = poptorch.inferenceModel(Tensors(lambda m, x: (x, types.SimpleNamespace(hidden=x))))
    run(torch.ones(2, 3))
    assert "returns a SimpleNamespace, which holds tensors" in caplog.text


def test_a_dict_with_defaults_comes_back() -> None:
    run = poptorch.inferenceModel(
        Tensors(lambda m, x: collections.defaultdict(list, {"y": x + 1})), poptorch.Options()
    )
    assert run(torch.zeros(1, 2))["y"].tolist() == [[1, 1]]


def test_a_tensor_of_a_forward_is_copied_as_deeply_as_any() -> None:
    def forward(m: Tensors, x: Tensor) -> Tensor:
        copied = copy.deepcopy({"x": x})["x"]
        copied.mul_(2)
        return copied + x

    run = poptorch.inferenceModel(Tensors(forward))
    assert run(torch.ones(1, 2)).tolist() == [[3, 3]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.bool])
@pytest.mark.parametrize(
    "product",
    [
        lambda x: nn.functional.linear(x, torch.ones(2, 4, device=x.device)),
        lambda x: torch.ones(2, 4, device=x.device) @ x,
        lambda x: nn.functional.conv1d(x[None], torch.ones(1, 4, 1, device=x.device)),
    ],
    ids=["linear", "matmul", "conv1d"],
)
def test_products_of_integers_and_numbers_are_refused_as_by_torch(product: Any, dtype: torch.dtype) -> None:
    operand = torch.ones(4, 4, dtype=dtype)
    with pytest.raises(RuntimeError):
        product(operand)
    with pytest.raises(poptorch.Error, match=f"operands must have the same dtype.*{dtype}"):
        poptorch.inferenceModel(product)(operand)


X = torch.ones(2, 3)
START = torch.tensor([0])
SERIALIZED = poptorch.MatMulSerializationMode.ReducingDim
PROBS = torch.ones(4, 2, 5)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda x: poptorch.serializedMatMul(3, x, SERIALIZED, 1), poptorch.Error, "lhs must be a Tensor"),
        (lambda x: poptorch.serializedMatMul(x, x, "m", 1), AssertionError, "MatMulSerializationMode, not 'm'"),
        (lambda x: poptorch.serializedMatMul(x, x, SERIALIZED, 1.5), AssertionError, "factor must be an int"),
        (lambda x: poptorch.set_overlap_for_input(x, None), poptorch.Error, "must be a OverlapMode"),
        (lambda x: poptorch.set_overlap_for_output(x, 1), poptorch.Error, "must be a OverlapMode"),
        (lambda x: poptorch.set_available_memory(x, "half"), poptorch.Error, "is 'half', and must be"),
        (lambda x: poptorch.custom_op(None, "Cube", "d", 1, [x]), poptorch.Error, "inputs must be a list"),
        (lambda x: poptorch.custom_op(x, "Cube", "d", 1, [x]), poptorch.Error, "inputs must be a list"),
        (lambda x: poptorch.custom_op([x], "Cube", "d", 1, [3]), poptorch.Error, "example_outputs[0] must be"),
        (lambda x: poptorch.custom_op([x], "Cube", "d", "1", [x]), poptorch.Error, "domain_version must be a int"),
        (lambda x: poptorch.custom_op([x], 3, "d", 1, [x]), poptorch.Error, "name must be a str"),
        (lambda x: poptorch.custom_op([x], "Cube", "d", 1, [x], 5), poptorch.Error, "attributes must be a dict"),
        (lambda x: poptorch.for_loop(2, None, [x]), TypeError, "body must be a function of tensors, not None"),
        (lambda x: poptorch.cond(x[:1, 0], abs, [x], 3, [x]), TypeError, "else_body must be a function"),
        (lambda x: poptorch.cond(x[:1, 0], abs, [3], abs, [x]), poptorch.Error, "then_inps[0] must be a Tensor"),
        (lambda x: poptorch.CPU(3, "cpu")(x), TypeError, "calls a function or a module, not 3"),
        (lambda x: poptorch.dynamic_slice(x, 2, START.to(x.device), 1, 1), IndexError, "out of range"),
        (lambda x: poptorch.dynamic_update(x, x, 0, START.to(x.device), 1), poptorch.Error, "must have [1, 3]"),
        (lambda x: poptorch.ctc_beam_search_decoder(PROBS, START), poptorch.Error, "must have [2]"),
        (lambda x: poptorch.ctc_beam_search_decoder(PROBS, PROBS[0, :, 0], 5), poptorch.Error, "one of 5 classes"),
        (lambda x: poptorch.ctc_beam_search_decoder(PROBS, PROBS[0, :, 0], 0, 2, 3), poptorch.Error, "most the beam"),
    ],
)
def test_an_argument_of_another_kind_is_named(call: Any, kind: type[Exception], said: str, captured: bool) -> None:
    run = poptorch.inferenceModel(Tensors(lambda m, x: call(x))) if captured else call
    with pytest.raises(kind, match=re.escape(said)):
        run(X)


def test_a_parser_is_for_a_class() -> None:
    with pytest.raises(poptorch.Error, match="registered for a class, not for 3"):
        poptorch.registerCustomArgParser(3, None)
