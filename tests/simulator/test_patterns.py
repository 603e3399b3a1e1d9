"""Our three ops' patterns in compiled models: what they match, what trains with them, what must not change."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.native import abi

sys.path.insert(0, str(Path(__file__).parents[1] / "custom_ops"))
from own_ops import load_own

pytestmark = pytest.mark.cpp

VOCABULARY, WIDTH, LENGTH = 20, 8, 6
OFF = {"SparseSGDPattern": False, "GroupPattern": False, "DisableAttnDropoutBwd": False}


class Words(nn.Module):
    """A table, a layer, and a decoder that may share the table."""

    def __init__(self, tied: bool = False, padding: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.decoder = nn.Linear(WIDTH, VOCABULARY)
        if tied:
            self.decoder.weight = self.table.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        logits = self.decoder(torch.relu(self.layer(self.table(ids))))
        return nn.functional.cross_entropy(logits.view(-1, VOCABULARY), labels.view(-1))


class Run:
    """A model trained for some steps with patterns switched."""

    def __init__(
        self, switches: Mapping[str, bool], *, steps: int = 3, tied: bool = False, half: bool = False,
        accumulation: int = 4, replicas: int = 1, dampening: float | None = None, ids_below: int = VOCABULARY,
        padding: int | None = None, combined: bool = True,
    ) -> None:  # fmt: skip
        for name in ("sparse_sgd", "group_pattern", "dropout_removal"):
            load_own(name)
        options = poptorch.Options()
        options.Training.gradientAccumulation(accumulation)
        options.replicationFactor(replicas)
        options._Popart.setPatterns({**OFF, **switches})
        model = Words(tied, padding)
        model = model.half() if half else model
        optimizer = poptorch.optim.SGD(
            model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, dampening=dampening,
            use_combined_accum=combined,
        )  # fmt: skip
        executor = poptorch.trainingModel(model, options, optimizer)
        generator = torch.Generator().manual_seed(1)
        rows = 2 * accumulation * replicas
        for step in range(steps):
            if dampening is not None:
                optimizer.param_groups[0]["dampening"] = dampening / (step + 1)
                executor.setOptimizer(optimizer)
            ids = torch.randint(0, ids_below, (rows, LENGTH), generator=generator)
            executor(ids, torch.randint(0, VOCABULARY, (rows, LENGTH), generator=generator))
        program = executor._session.program  # type: ignore[union-attr]
        self.changes = executor.pattern_changes()
        self.program = program
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        executor.destroy()


@pytest.mark.parametrize(
    "options", [{}, {"tied": True}, {"half": True}, {"replicas": 2}, {"accumulation": 1}]
)
def test_grouping_changes_no_bit_of_training(options: dict[str, Any]) -> None:
    """Every weight of a product is grouped; a table that is looked up is not, tied to a product or not."""
    plain, grouped = Run({}, **options), Run({"GroupPattern": True}, **options)
    assert plain.changes == []
    assert [c.matched for c in grouped.changes] == ["SGD1VarUpdate"] * (1 if options.get("tied") else 2)
    for name, value in plain.weights.items():
        assert torch.equal(grouped.weights[name], value), name


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-6),
        ({"steps": 20}, 1e-5),
        ({"replicas": 2}, 1e-6),
        ({"accumulation": 1}, 1e-6),
        ({"dampening": 0.5}, 1e-6),
        ({"ids_below": 2}, 1e-6),
        ({"ids_below": 4, "padding": 1}, 1e-6),
        ({"half": True, "steps": 20}, 2e-2),
        ({"half": True, "combined": False}, 2e-2),  # a float32 accumulator
    ],
)
def test_sparse_accumulation_trains_the_weights_of_dense(options: dict[str, Any], tolerance: float) -> None:
    dense, sparse = Run({}, **options), Run({"SparseSGDPattern": True}, **options)
    (change,) = sparse.changes
    gradient = "EmbeddingGrad" if "padding" in options else "GatherGrad"
    assert [op.type for op in change.removed] == [gradient, "Accumulate"]
    assert [op.type for op in change.added] == ["SparseSGD1Accumulate"]
    called = [node.target for node in sparse.program.operators()]
    assert called.count(ops.pattern_update) == 1
    assert torch.ops.aten.embedding_dense_backward.default not in called
    for name, value in dense.weights.items():
        torch.testing.assert_close(sparse.weights[name], value, rtol=tolerance, atol=tolerance)


TIED: list[tuple[dict[str, Any], float]] = [
    ({}, 1e-6),
    ({"steps": 20}, 1e-5),
    ({"replicas": 2}, 1e-6),
    ({"accumulation": 1}, 1e-6),
    ({"half": True, "steps": 20}, 2e-2),
    ({"ids_below": 4, "padding": 1}, 1e-6),
]


@pytest.mark.parametrize(("options", "tolerance"), TIED)
def test_the_lookups_of_a_tied_table_are_accumulated_sparsely(
    options: dict[str, Any], tolerance: float
) -> None:
    """The rows go to the accumulator by themselves, the decoder's gradient as before."""
    dense = Run({}, tied=True, **options)
    sparse = Run({"SparseSGDPattern": True}, tied=True, **options)
    (change,) = sparse.changes
    gradient = "EmbeddingGrad" if "padding" in options else "GatherGrad"
    assert [op.type for op in change.removed] == [gradient, "Add"]
    assert [op.type for op in change.added] == ["SparseSGD1Accumulate"]
    called = [node.target for node in sparse.program.operators()]
    assert torch.ops.aten.embedding_dense_backward.default not in called
    for name, value in dense.weights.items():
        torch.testing.assert_close(sparse.weights[name], value, rtol=tolerance, atol=tolerance)


def test_a_tied_accumulator_is_grouped_before_the_accumulation() -> None:
    """Where rows are added sparsely, the accumulator lies as lookups want it, and the product's gradient moves."""
    sparse = Run({"SparseSGDPattern": True}, tied=True)
    both = Run({"SparseSGDPattern": True, "GroupPattern": True}, tied=True)
    matched = sorted((change.pattern, change.matched) for change in both.changes)
    assert matched == [
        ("GroupPattern", "Accumulate"),
        ("GroupPattern", "SGD1VarUpdate"),
        ("SparseSGDPattern", "GatherGrad"),
    ]
    for name, value in sparse.weights.items():
        assert torch.equal(both.weights[name], value), name


class Attention(nn.Module):
    """One head of attention with dropout, and a hidden dropout after it."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, 3)
        self.in_training = training

    def probabilities(self, x: Tensor) -> Tensor:
        return torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)

    def forward(self, x: Tensor) -> Any:
        dropped = nn.functional.dropout(self.probabilities(x), 0.5, True)
        hidden = nn.functional.dropout(dropped @ self.v(x), HIDDEN, True)
        out = self.out(hidden)
        if not self.in_training:
            return out
        return dropped, hidden, out, poptorch.identity_loss(out.square(), reduction="mean")


HIDDEN = 0.3
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(3))


def quiet_options(switches: Mapping[str, bool]) -> poptorch.Options:
    load_own("dropout_removal")
    options = poptorch.Options()
    options.randomSeed(3)
    options._Popart.setPatterns({**OFF, **switches})
    return options


def test_inference_has_no_dropout_and_the_same_outputs() -> None:
    outputs, changes = [], []
    for on in (False, True):
        executor = poptorch.inferenceModel(Attention(False), quiet_options({"RemoveInferenceDropout": on}))
        outputs.append(executor(X))
        changes.append(executor.pattern_changes())
    assert [len(each) for each in changes] == [0, 2]
    assert torch.equal(*outputs)


def test_attention_gradients_pass_without_mask_and_scale() -> None:
    """Against torch's autograd with the attention dropout's backward left out, and the hidden one's in."""
    options = quiet_options({"DisableAttnDropoutBwd": True})
    reference = Attention(True)
    names = [name for name, _ in reference.named_parameters()]
    for name in names:
        options.anchorTensor(name, f"Gradient___{name}")
    model = Attention(True)
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.0))
    dropped, hidden, out, _ = executor(X)
    assert [change.pattern for change in executor.pattern_changes()] == ["DisableAttnDropoutBwd"]
    probabilities = reference.probabilities(X)
    kept = (
        probabilities + (dropped - probabilities).detach()
    )  # forward: what was dropped; backward: all of it
    mixed = (kept @ reference.v(X)) * (hidden != 0) / (1 - HIDDEN)
    expected = reference.out(mixed)
    torch.testing.assert_close(out, expected.detach())
    expected.square().mean().backward()
    for name, weight in reference.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(executor.getAnchoredTensor(name), weight.grad, rtol=1e-4, atol=1e-6)


def test_without_a_library_a_compile_asks_for_no_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abi, "RUNTIME_NAME", "libno_such_runtime.so")
    monkeypatch.setattr(abi, "runtime", lambda: pytest.fail("the C++ runtime was asked for"))
    assert not abi.runtime_is_loaded()
    options = poptorch.Options()
    executor = poptorch.inferenceModel(nn.Linear(WIDTH, 2), options)
    executor(X)
    assert executor.pattern_changes() == []
