"""Executors compile once, train as torch does, keep host and device in step, refuse what PopTorch refuses."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu import simulator
from bert_ipu.simulator import SimulatorParams
from bert_ipu.simulator.poptorch import wrapping


class Classifier(torch.nn.Module):
    """Two layers and a cross-entropy; counts how often its forward is entered."""

    entered = 0

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(6, 8)
        self.out = torch.nn.Linear(8, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        self.entered += 1
        self.seen.add_(1)
        logits = self.out(torch.relu(self.hidden(x)))
        return logits if labels is None else (logits, torch.nn.functional.cross_entropy(logits, labels))


@pytest.fixture(autouse=True)
def _quiet_and_seeded() -> Iterator[None]:
    torch.manual_seed(3)
    yield


def _data(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 6), torch.randint(0, 3, (rows,))


def test_training_equals_a_torch_loop_and_enters_the_forward_once() -> None:
    model = Classifier()
    reference = copy.deepcopy(model)
    options = poptorch.Options().deviceIterations(2).outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(3)
    trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.3))
    torch_optimizer = torch.optim.SGD(reference.parameters(), lr=0.3)
    for _ in range(3):
        x, labels = _data(2 * 3 * 4)
        logits, losses = trained(x, labels)
        expected = []
        for update in range(2):
            torch_optimizer.zero_grad()
            for micro_batch in range(3):
                rows = slice((update * 3 + micro_batch) * 4, (update * 3 + micro_batch + 1) * 4)
                _, loss = reference(x[rows], labels[rows])
                (loss / 3).backward()
                expected.append(loss.detach())
            torch_optimizer.step()
        torch.testing.assert_close(losses, torch.stack(expected))
        assert logits.shape == (24, 3)
    assert trained._model.entered == 1
    for mine, theirs in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(mine, theirs)
    assert model.seen.item() == reference.seen.item() == 18


def test_reading_a_weight_fetches_it_and_copies_are_plain() -> None:
    model = Classifier()
    before = model.out.weight.detach().clone()
    trained = poptorch.trainingModel(model)
    trained(*_data(4))
    copied = copy.deepcopy(model)
    assert not torch.equal(model.out.weight, before)
    assert wrapping.isWrapped(model) and not wrapping.isWrapped(copied)
    assert type(copied.out.weight) is torch.nn.Parameter
    torch.testing.assert_close(copied.out.weight, model.out.weight.detach())
    trained.destroy()
    assert type(model) is Classifier and type(model.out.weight) is torch.nn.Parameter


def test_a_model_is_unwrapped_for_a_while_as_optimum_graphcore_does() -> None:
    model = Classifier()
    trained = poptorch.trainingModel(model)
    assert isinstance(trained, poptorch._poplar_executor.PoplarExecutor)
    trained(*_data(4))
    poptorch._impl.unwrapModelIfNecessary(model)
    assert type(model) is Classifier and type(model.seen) is torch.Tensor
    poptorch.inferenceModel(model)(_data(4)[0])
    poptorch._impl.rewrapModelIfNecessary(model)
    assert all(map(wrapping.isWrapped, [model, *model.parameters(), *model.buffers()]))
    before = model.out.weight.detach().clone()
    trained(*_data(4))
    assert not torch.equal(model.out.weight, before)


def test_inference_follows_training() -> None:
    model = Classifier()
    trained = poptorch.trainingModel(
        model, poptorch.Options(), poptorch.optim.SGD(model.parameters(), lr=0.5)
    )
    inferred = poptorch.inferenceModel(model)
    x, labels = _data(4)
    first = inferred(x)
    trained(x, labels)
    second = inferred(x)
    assert not torch.equal(first, second)
    with wrapping.unwrapped(model):
        torch.testing.assert_close(second, model(x).detach())


def test_changed_inputs_are_refused_with_what_differs() -> None:
    model = poptorch.inferenceModel(Classifier())
    model(torch.zeros(4, 6))
    with pytest.raises(
        poptorch.Error, match=r"Shape mismatch for x: expected .*\[4, 6\].* but got .*\[5, 6\]"
    ):
        model(torch.zeros(5, 6))
    with pytest.raises(poptorch.Error, match="Data type mismatch for x"):
        model(torch.zeros(4, 6).half())
    with pytest.raises(poptorch.Error, match="Type mismatch for labels"):
        model(torch.zeros(4, 6), torch.zeros(4))
    with pytest.raises(AssertionError, match="too many positional arguments"):
        model(torch.zeros(4, 6), None, None)


def test_a_forward_may_have_keyword_only_arguments() -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor, *, by: torch.Tensor) -> torch.Tensor:
            return x * by

    x, by = torch.rand(2, 3), torch.rand(2, 3)
    model = poptorch.inferenceModel(Scaled())
    torch.testing.assert_close(model(x, by=by), Scaled()(x, by=by))
    with pytest.raises(AssertionError, match="too many positional arguments"):
        model(x, by)
    with pytest.raises(poptorch.Error, match="Mandatory parameter by missing"):
        model(x)


def test_a_batch_that_does_not_divide_is_refused_with_the_arithmetic() -> None:
    model = poptorch.inferenceModel(Classifier(), poptorch.Options().deviceIterations(3))
    with pytest.raises(
        AssertionError, match="has 4 rows, which do not divide among 3 micro-batches: deviceIterations 3 "
    ):
        model(torch.zeros(4, 6))


def test_what_needs_an_executable_says_so() -> None:
    model = poptorch.trainingModel(Classifier())
    for call in (model.copyWeightsToHost, model.copyWeightsToDevice, model.detachFromDevice):
        with pytest.raises(poptorch.Error, match="has not been compiled or has been destroyed"):
            call()
    with pytest.raises(RuntimeError, match="already been wrapped"):
        poptorch.trainingModel(model)
    with pytest.raises(poptorch.Error, match="gradientAccumulation to 1"):
        options = poptorch.Options()
        options.Training.gradientAccumulation(2)
        poptorch.inferenceModel(Classifier(), options)


def test_backward_on_an_output_is_refused() -> None:
    _, loss = poptorch.trainingModel(Classifier())(*_data(4))
    with pytest.raises(poptorch.Error, match=r"backward\(\) cannot be called explicitly"):
        loss.backward()


def test_detaching_keeps_weights_and_optimizer_state() -> None:
    data = [_data(4) for _ in range(4)]
    losses = []
    for detach in (False, True):
        torch.manual_seed(0)
        model = Classifier()
        optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.05)
        trained = poptorch.trainingModel(model, poptorch.Options(), optimizer)
        for x, labels in data:
            loss = trained(x, labels)[1]
            if detach:
                trained.detachFromDevice()
                with pytest.raises(poptorch.Error, match="Device is not attached"):
                    trained.detachFromDevice()
        losses.append(loss)
    torch.testing.assert_close(*losses, rtol=0, atol=0)


@pytest.mark.parametrize("saved", [False, True])
def test_a_rate_that_is_set_after_a_state_was_loaded_counts(saved: bool) -> None:
    """PopTorch copies `ipu_param` of a state to the host's side only; runs go by the optimizer's attributes."""
    model = Classifier()
    reference = copy.deepcopy(model)
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    theirs = torch.optim.Adam(reference.parameters(), lr=0.1)
    trained = poptorch.trainingModel(model, poptorch.Options(), optimizer)
    for rate in (0.1, 0.01):
        for group in (*optimizer.param_groups, *theirs.param_groups):
            group["lr"] = rate
        trained.setOptimizer(optimizer)
        x, labels = _data(4)
        trained(x, labels)
        theirs.zero_grad()
        reference(x, labels)[1].backward()
        theirs.step()
        trained.destroy()
        state = optimizer.state_dict()
        if saved:
            optimizer = poptorch.optim.Adam(model.parameters(), lr=0.5)
            optimizer.load_state_dict(state)
        trained = poptorch.trainingModel(model, poptorch.Options(), optimizer)
    for ours, weight in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(ours.detach(), weight.detach())


def test_an_offline_target_compiles_and_does_not_run() -> None:
    model = poptorch.trainingModel(Classifier(), poptorch.Options().useOfflineIpuTarget())
    # `_executable` is what Graphcore's CNNs and DINO ask before they attach or detach a model.
    assert not model.isCompiled() and model._executable is None
    model.compile(*_data(4))
    assert model.isCompiled() and model._executable and not model.isAttachedToDevice()
    with pytest.raises(AssertionError, match="offline device"):
        model(*_data(4))


def test_one_device_serves_one_model() -> None:
    first = poptorch.inferenceModel(Classifier(), poptorch.Options().useIpuId(3))
    second = poptorch.inferenceModel(Classifier(), poptorch.Options().useIpuId(3))
    first(torch.zeros(1, 6))
    with pytest.raises(poptorch.Error, match="Failed to acquire device Id 3"):
        second(torch.zeros(1, 6))
    first.detachFromDevice()
    second(torch.zeros(1, 6))


class TwoStages(torch.nn.Module):
    def __init__(self, ipus: tuple[int, ...]) -> None:
        super().__init__()
        self.ipus = ipus

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for ipu in self.ipus:
            with poptorch.Block(f"B{ipu}", ipu_id=ipu):
                x = x * 2
        return x


def test_a_pipeline_needs_enough_micro_batches_and_a_power_of_two_of_ipus() -> None:
    with pytest.raises(poptorch.Error, match=r"deviceIterations must be greater: it is 1, .* 2 stages"):
        poptorch.inferenceModel(TwoStages((0, 1)))(torch.zeros(1))
    with pytest.raises(poptorch.Error, match=r"specifies the use of 3 IPUs, .* minimum of 4"):
        poptorch.inferenceModel(TwoStages((0, 1, 2)), poptorch.Options().deviceIterations(3))(torch.zeros(3))
    options = poptorch.Options().deviceIterations(3).autoRoundNumIPUs()
    assert poptorch.inferenceModel(TwoStages((0, 1, 2)), options)(torch.ones(3)).tolist() == [8, 8, 8]


def test_only_a_device_has_a_power_of_two_of_ipus() -> None:
    """PopTorch's `CompilerImpl::createDevice` rounds for neither an offline target nor the IPU Model."""
    options = poptorch.Options().deviceIterations(3)
    poptorch.inferenceModel(TwoStages((0, 1, 2)), options.clone().useOfflineIpuTarget()).compile(
        torch.ones(3)
    )
    emulated = poptorch.inferenceModel(TwoStages((0, 1, 2)), options.clone().useIpuModel(True))
    assert emulated(torch.ones(3)).tolist() == [8, 8, 8]
    for change, said in (
        (lambda o: o.useIpuModel(True), "the IPU Model"),
        (lambda o: o.useIpuId(0), r"useIpuId\(0\)"),
    ):
        offline = change(options.clone().useOfflineIpuTarget())
        with pytest.raises(poptorch.Error, match=f"{said}.* leave"):
            poptorch.inferenceModel(TwoStages((0, 1, 2)), offline).compile(torch.ones(3))


def test_a_saved_model_goes_on_where_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "model.poptorch")
    model = Classifier()
    trained = poptorch.trainingModel(
        model, poptorch.Options(), poptorch.optim.AdamW(model.parameters(), lr=0.05)
    )
    x, labels = _data(4)
    trained(x, labels)
    trained.save(path)
    expected = trained(x, labels)[1]
    trained.destroy()
    torch.testing.assert_close(poptorch.load(path)(x, labels)[1], expected, rtol=0, atol=0)
    (tmp_path / "other").write_text("something else")
    with pytest.raises(poptorch.Error, match="Invalid file"):
        poptorch.load(str(tmp_path / "other"))


def test_nested_outputs_keep_their_structure() -> None:
    class Nested(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"a": x + 1, "rest": [x * 2, (x.long(), "text")]}

    out = poptorch.inferenceModel(Nested())(torch.tensor([1.5]))
    assert out["a"].tolist() == [2.5] and out["rest"][0].tolist() == [3.0]
    assert out["rest"][1][0].tolist() == [1] and out["rest"][1][1] == "text"
    assert out["rest"][1][0].dtype == torch.int32  # the IPU has no 64-bit integers


class _Quotient(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(y < 0, -torch.inf) / y


@pytest.mark.parametrize(
    ("divisor", "fault"), [(0.0, "division by zero"), (1e-45, "overflow"), (torch.nan, "NaN")]
)
def test_floating_point_exceptions_stop_the_run_where_they_are_enabled(divisor: float, fault: str) -> None:
    def run(enabled: bool, y: float) -> torch.Tensor:
        options = poptorch.Options()
        options.Precision.enableFloatingPointExceptions(enabled)
        return poptorch.inferenceModel(_Quotient(), options)(torch.ones(4), torch.full((4,), y))

    assert not run(False, divisor).isfinite().any()
    assert run(True, -1.0).isinf().all(), "infinity that the program writes itself is no exception"
    with pytest.raises(poptorch.Error, match=fault):
        run(True, divisor)


def _fast_half_training(
    model: torch.nn.Module, state: dict[str, Any] | None = None
) -> tuple[Any, poptorch.optim.AdamW]:
    simulator.install(SimulatorParams(numerics="fast"))
    options = poptorch.Options().randomSeed(2)
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=1e-3, accum_type=torch.float16)
    if state is not None:
        optimizer.load_state_dict(state)
    return poptorch.trainingModel(model, options, optimizer), optimizer


def test_fast_training_carries_on_from_its_state_with_all_bits() -> None:
    """Also the float32 copies of float16 weights, unless the weights come from elsewhere."""
    model = Classifier().half()
    batches = [(x.half(), labels) for x, labels in (_data(8) for _ in range(6))]
    trained, optimizer = _fast_half_training(model)
    for batch in batches[:3]:
        trained(*batch)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = [trained(*batch)[1] for batch in batches[3:]]
    resumed = Classifier().half()
    resumed.load_state_dict(weights)
    again, _ = _fast_half_training(resumed, state)
    assert [again(*batch)[1] for batch in batches[3:]] == expected
    other = Classifier().half()
    before = copy.deepcopy(other.state_dict())
    changed, _ = _fast_half_training(other, state)
    changed.compile(*batches[3])
    changed.copyWeightsToHost()
    assert torch.equal(other.hidden.weight, before["hidden.weight"])


class _Squared(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x


def test_float16_saturates_as_on_the_device_and_overflow_can_be_made_to_show() -> None:
    """Poplar's `FloatingPointBehaviour`; PopART sets it only where exceptions are enabled."""
    x = torch.tensor([300.0, -2.0, torch.inf], dtype=torch.float16)

    def run(options: poptorch.Options) -> list[float]:
        return poptorch.inferenceModel(_Squared(), options)(x).tolist()

    assert run(poptorch.Options()) == [65504.0, 4.0, torch.inf]
    stopped = poptorch.Options()
    stopped.Precision.enableFloatingPointExceptions(True)
    with pytest.raises(poptorch.Error, match="overflow"):
        poptorch.inferenceModel(_Squared(), stopped)(x[:2])
    simulator.install(SimulatorParams(half_overflow="infinity"))
    try:
        assert run(poptorch.Options()) == [torch.inf, 4.0, torch.inf]
    finally:
        simulator.install(SimulatorParams())


class _GroupNormed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(3, 12)
        torch.nn.init.normal_(self.norm.weight)
        torch.nn.init.normal_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.norm(x)
        return y, poptorch.identity_loss(y**3, reduction="mean")


def test_strided_groups_of_channels_are_normalised_as_poplibs_documents_them() -> None:
    """`popnn/GroupNorm.hpp`: the channels of group g are channelInGroupIdx * numGroups + g."""
    model = _GroupNormed()
    reference = copy.deepcopy(model)
    options = poptorch.Options()
    options._Popart.set("groupNormStridedChannelGrouping", True)
    trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(2, 12, 5)
    got, _ = trained(x)
    groups = [x[:, g::3] for g in range(3)]
    normed = [torch.nn.functional.layer_norm(group, (4, 5)) for group in groups]
    whitened = torch.stack(normed, 2).reshape(2, 12, 5)  # channel 3 i + g is the i-th of group g
    expected = whitened * reference.norm.weight[:, None] + reference.norm.bias[:, None]
    torch.testing.assert_close(got, expected)
    (expected**3).mean().backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    for name, weight in reference.named_parameters():
        torch.testing.assert_close(model.state_dict()[name], weight.detach())


class _Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.norm(x), self.norm.running_mean


def test_running_statistics_change_after_the_forward_has_read_them() -> None:
    model, x = _Normed(), torch.randn(8, 2)
    expected = copy.deepcopy(model)
    wanted, _ = expected(x)
    executor = poptorch.inferenceModel(model)
    out, seen = executor(x)
    torch.testing.assert_close(out, wanted)
    assert not seen.any(), "PopART copies the new statistics into the buffers at the end"
    torch.testing.assert_close(executor(x)[1], expected.norm.running_mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_products_of_mixed_types_have_the_type_of_their_first_operand(dtype: torch.dtype) -> None:
    layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3).to(dtype)
    out = poptorch.inferenceModel(layer)(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), layer(x.float()), rtol=1e-3, atol=1e-3)


class _Made(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (
            x.new(2, 3).fill_(1),
            x.new([1, 2]),
            x.new(x.shape).zero_(),
            x.new_tensor(5),
            x.new_tensor([x.dim()]),
        )


def test_tensors_made_like_another_are_on_the_ipu() -> None:
    x = torch.randn(4)
    for made, expected in zip(poptorch.inferenceModel(_Made())(x), _Made()(x)):
        assert torch.equal(made, expected)
        assert made.dtype == expected.dtype


def test_distributions_draw_on_the_ipu() -> None:
    class Draw(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.distributions.Exponential(10.0).sample(x.size())

    drawn = poptorch.inferenceModel(Draw(), poptorch.Options().randomSeed(1))(torch.zeros(20000))
    assert drawn.mean() == pytest.approx(0.1, rel=0.05)
    assert torch.distributions.Distribution._validate_args, (
        "validation is off only while the model is captured"
    )


def _gathered(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    example = torch.zeros(index.shape)
    return poptorch.custom_op([x, index], "FastGatherLastDim", "poptorch.custom_ops", 1, [example])[0]


def test_poptorchs_own_gather_can_be_called_by_name() -> None:
    x, index = torch.randn(3, 4, 6), torch.randint(0, 6, (3, 4, 2))
    assert torch.equal(poptorch.inferenceModel(_gathered)(x, index), x.gather(-1, index))
    for bad in (index[:, :1], index[0]):
        with pytest.raises(poptorch.Error, match="dimensions of the data except for the last"):
            poptorch.inferenceModel(_gathered)(x, bad)


def test_a_model_is_pickled_until_it_is_compiled() -> None:
    """PopTorch's `pipelining_test.py` saves one before; what is compiled, Python cannot pickle."""
    x = torch.rand(2, 4)
    executor = poptorch.inferenceModel(torch.nn.Linear(4, 4))
    loaded = pickle.loads(pickle.dumps(executor))
    assert torch.equal(loaded(x), executor(x))
    with pytest.raises(poptorch.Error, match="neither pickled nor copied"):
        pickle.dumps(executor)


def test_the_progress_bar_and_the_time_that_it_measured(capfd: pytest.CaptureFixture[str]) -> None:
    options = poptorch.Options().showCompilationProgressBar()
    shown = poptorch.inferenceModel(torch.nn.Linear(6, 3), options)
    with pytest.raises(poptorch.Error):
        shown.compilationTime()
    started = time.perf_counter()
    shown.compile(_data(4)[0])
    elapsed = time.perf_counter() - started
    assert 0 < shown.compilationTime().total_seconds() <= elapsed
    assert "Graph compilation: 100%" in capfd.readouterr().err
    hidden = poptorch.inferenceModel(torch.nn.Linear(6, 3), options.clone().showCompilationProgressBar(False))
    hidden.compile(_data(4)[0])
    assert capfd.readouterr().err == ""
    with pytest.raises(poptorch.Error, match="showCompilationProgressBar"):
        hidden.compilationTime()
