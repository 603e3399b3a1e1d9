"""What a run asks of its device: kernels that CUDA has, no values on the way, settings of torch that come back.

GPUs here are pretended ones (`pretended_gpu.py`), which refuse an operator that CUDA has no kernel for.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
import time
import types
import unittest
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import test_graph_autodiff as gradients
import test_poprun_training as poprun
import torch
import torch.nn.functional as F
from poprun_jobs import Job
from pretended_gpu import CUDA, GpuTensor, PretendedGpu, has_cuda_kernel, pretended_gpu
from torch import Tensor, nn
from torch._ops import OpOverload
from training_reference import trains_like_torch

from bert_ipu import simulator
from bert_ipu.config import IpuConfig, ModelConfig, PretrainConfig, SquadConfig
from bert_ipu.pipeline import pretraining_model, squad_model
from bert_ipu.simulator import poptorch
from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime import collectives, numerics
from bert_ipu.simulator.runtime.device import device_code, open_device
from bert_ipu.train import GeneratedRows

HERE = Path(__file__).parent

needs_no_gpu = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a pretended GPU hides the one that is there"
)


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def gpu(request: pytest.FixtureRequest) -> Iterator[PretendedGpu]:
    with pretended_gpu() as pretended:
        simulator.install(SimulatorParams(device="cuda"))
        yield pretended
    if request.node.get_closest_marker("slow"):
        untried = [
            (str(kernel), dtypes)
            for kernel, calls in pretended.calls.items()
            for dtypes in calls
            if not _is_tried_by_torch(kernel, dtypes)
        ]
        assert not untried, "torch does not test these kernels on CUDA with these dtypes"


@functools.cache
def _dtypes_on_cuda() -> dict[str, set[torch.dtype]]:
    """For each operator the dtypes with which torch tests it on CUDA; takes five seconds to load."""
    # The base class of torch's own test cases, which nothing here is one of, comes from a package of this name.
    sys.modules.setdefault("expecttest", types.SimpleNamespace(TestCase=unittest.TestCase))  # type: ignore[arg-type]
    from torch.testing._internal.common_methods_invocations import op_db

    found: dict[str, set[torch.dtype]] = defaultdict(set)
    for operator in op_db:
        aliases = [alias.name for alias in operator.aliases]
        for name in {operator.name.split(".")[-1], operator.aten_name, operator.aten_backward_name, *aliases}:
            found[name] |= set(operator.supported_dtypes("cuda"))
    return found


def _is_tried_by_torch(kernel: OpOverload, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether torch's tables have the dtype of the first operand, or the last where the first chooses."""
    name = kernel._schema.name.removeprefix("aten::").strip("_")
    parts = (name, name.replace("_forward", ""), name.replace("_backward", "").replace("_data", ""))
    listed = next((_dtypes_on_cuda()[part] for part in parts if part in _dtypes_on_cuda()), None)
    if listed is None:  # by another name, or a view
        listed = {torch.float32, torch.int64} | (
            {*dtypes} if name in ("alias", "detach", "unsafe_view") else set()
        )
    return not dtypes or bool({dtypes[0], dtypes[-1]} & listed)


# -- kernels -------------------------------------------------------------------------------------


@needs_no_gpu
def test_a_pretended_gpu_refuses_what_a_gpu_would(gpu: PretendedGpu) -> None:
    aten = torch.ops.aten
    alone_on_cpus = aten._scaled_dot_product_flash_attention_for_cpu.default, aten.mkldnn_rnn_layer.default
    assert [has_cuda_kernel(kernel) for kernel in alone_on_cpus] == [False, False]
    everywhere = aten.mm.default, aten.add.Tensor, aten.zeros_like.default, aten.native_layer_norm.default
    assert all(has_cuda_kernel(kernel) for kernel in everywhere)
    with device_code(CUDA):
        x = torch.ones(3, device="cuda")
        with pytest.raises(AssertionError, match="operands of the host"):
            x + torch.ones(3)
        with pytest.raises(AssertionError, match="a pointer to memory of the GPU"):
            x.data_ptr()
        with pytest.raises(RuntimeError, match="numpy"):
            x.numpy()
        assert float((x + torch.ones(())).sum()) == 6.0 and len(gpu.waits) == 1


class _Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(),
            nn.MaxPool2d(2), nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 3, 2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(12, 3), nn.LogSoftmax(1),
        )  # fmt: skip

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(self.layers(x), y)


class _Sequences(nn.Module):
    def __init__(self, read: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.out = nn.Embedding(9, 4, padding_idx=0), nn.Linear(6, 9)
        self.read = read(4, 6, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        return F.cross_entropy(self.out(self.read(self.words(ids))[0]).flatten(0, 1), ids.flatten())


@needs_no_gpu
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, *map(slow, (torch.optim.Adam, torch.optim.RMSprop))])
def test_convolutions_and_their_neighbours_train_as_in_torch(gpu: PretendedGpu, optimizer: Any) -> None:
    x, y = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1)), torch.arange(4) % 3
    trains_like_torch(_Pictures(), x, y, optimizer=lambda p, lr: optimizer(p, lr=lr / 10))
    assert torch.ops.aten.convolution_backward.default in gpu.calls


@needs_no_gpu
@pytest.mark.parametrize("layer", [nn.LSTM, *map(slow, (nn.GRU, nn.RNN))])
def test_recurrent_layers_train_as_in_torch(gpu: PretendedGpu, layer: type[nn.Module]) -> None:
    trains_like_torch(_Sequences(layer), torch.arange(12).view(3, 4) % 9, accumulation=3)


SHAPE = ModelConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


def _bert(task: str, precision: str) -> tuple[Any, list[Tensor]]:
    """A BERT and two rows of its data."""
    ipu = IpuConfig(layers_per_ipu=(1, 1), precision=precision)
    torch.manual_seed(0)
    if task == "pretraining":
        config = PretrainConfig(model=SHAPE, ipu=ipu)
        data = dataclasses.replace(config.data, sequence_length=16, mask_tokens=4)
        return pretraining_model(config), list(GeneratedRows(data, 30, 8, seed=0).batch([0, 1]))
    ids = torch.randint(30, (2, 16), dtype=torch.int32)
    places = torch.tensor([1, 5], dtype=torch.int32)
    batch = [ids, torch.ones_like(ids), torch.zeros_like(ids), places, places + 3]
    return squad_model(SquadConfig(model=SHAPE, ipu=ipu)), batch


@needs_no_gpu
@pytest.mark.parametrize(
    ("task", "optimizer", "mode"),
    [
        ("pretraining", poptorch.optim.LAMB, "ipu"),
        ("squad", poptorch.optim.AdamW, "fast"),
        slow("pretraining", poptorch.optim.AdamW, "fast"),
        slow("squad", poptorch.optim.SGD, "ipu"),
    ],
)
def test_bert_trains(gpu: PretendedGpu, task: str, optimizer: Any, mode: str) -> None:
    """Its first loss is torch's, and the host waits for inputs and results alone."""
    simulator.install(SimulatorParams(device="cuda", numerics=mode))
    model, batch = _bert(task, "float16")
    reference, _ = _bert(task, "float32")
    reference.load_state_dict(model.state_dict())
    expected = reference(*batch)[0]
    options = poptorch.Options().outputMode(poptorch.OutputMode.Final)
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    options.Training.gradientAccumulation(2)
    trained = poptorch.trainingModel(
        model, options, optimizer(model.parameters(), lr=1e-2, loss_scaling=32.0)
    )
    inputs = [torch.cat([value, value]) for value in batch]
    losses = [trained(*inputs)[0].float()]
    gpu.waits.clear()
    results = trained(*inputs)
    assert len(gpu.waits) == len(inputs) + len(results), gpu.waits
    losses.append(results[0].float())
    torch.testing.assert_close(losses[0].reshape(()), expected.detach(), rtol=2e-2, atol=0.0)
    assert losses[1] < losses[0]


class _Normalised(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.layer, self.last = nn.Conv1d(3, 4, 1), layer, nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(self.last(self.layer(self.first(x))).square(), reduction="mean")


@needs_no_gpu
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)])
def test_layers_in_float32_normalise_float16(
    monkeypatch: pytest.MonkeyPatch, layer: nn.Module, device: str, half: bool
) -> None:
    """Also where float16 is carried in bf16, which ATen's operators want no float32 beside."""
    monkeypatch.setattr(numerics, "has_fast_bf16", lambda _: True)
    model = _Normalised(copy.deepcopy(layer))
    reference = copy.deepcopy(model)
    model.half()
    if not half:
        model.layer.float()
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    with pretended_gpu() if device == "cuda" else nullcontext():
        simulator.install(SimulatorParams(device=device, numerics="fast"))
        options = poptorch.Options()
        trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
        losses = [trained(x.half()) for _ in range(3)]
        trained.copyWeightsToHost()
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    for loss in losses:
        theirs.zero_grad()
        expected = reference(x)
        expected.backward()
        theirs.step()
        torch.testing.assert_close(loss.float(), expected.detach(), rtol=2e-2, atol=0.0)
    for ours, value in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.float(), value, rtol=2e-2, atol=5e-3)


def test_waiting_does_not_decide_whether_bf16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when other instances of a job start at the same time: some would take bf16, and others not."""
    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("this CPU has no bf16 instructions whose speed is measured")
    product, threads = torch.mm, torch.get_num_threads()

    def held_up(left: Tensor, right: Tensor) -> Tensor:
        if left.dtype == torch.float32:
            time.sleep(0.05)
        return product(left, right)

    quiet = numerics._bf16_speed_up.__wrapped__()
    monkeypatch.setattr(torch, "mm", held_up)
    assert numerics._bf16_speed_up.__wrapped__() < 2 * quiet
    assert torch.get_num_threads() == threads


class _Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 4)).half()

    def forward(self, x: Tensor) -> Tensor:
        return poptorch.identity_loss(self.layers(x), reduction="mean")


@needs_no_gpu
def test_what_many_operators_draw_by_is_copied_once(gpu: PretendedGpu) -> None:
    model, options = _Rounded(), poptorch.Options()
    options.Precision.enableStochasticRounding(True)
    trained = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
    trained.compile(x := torch.ones(2, 4).half())
    gpu.waits.clear()
    trained(x)
    assert len(gpu.waits) == 4, "for the input, the loss, and what the micro-batch and the update draw by"


@needs_no_gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", gradients.CASES)
def test_every_operator_has_its_gradient_on_a_gpu(gpu: PretendedGpu, name: str) -> None:
    function, shapes = gradients.CASES[name]
    model, reference = gradients.Operator(function, *shapes), gradients.Operator(function, *shapes)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    options = poptorch.Options()
    trained = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.1))
    theirs = torch.optim.SGD(reference.parameters(), lr=0.1)
    expected = reference(x)
    for ours, value in zip(trained(x), expected, strict=True):
        torch.testing.assert_close(ours, value.detach(), rtol=1e-4, atol=1e-5)
    expected[1].backward()
    theirs.step()
    for (key, weight), value in zip(model.state_dict().items(), reference.parameters(), strict=True):
        torch.testing.assert_close(weight, value.detach(), rtol=1e-4, atol=1e-5, msg=key)


# -- settings ------------------------------------------------------------------------------------


def _precisions() -> list[str]:
    products = [(backend, product) for backend in ("cuda", "mkldnn") for product in ("matmul", "conv", "rnn")]
    return [torch._C._get_fp32_precision_getter(*where) for where in products]


def _choose_for_matrices() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "choose",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        _choose_for_matrices,
    ],
)
@pytest.mark.parametrize("device", [torch.device("cpu"), CUDA])
def test_what_a_program_chose_for_torch_counts_again_afterwards(
    choose: Callable[[], None], device: Any
) -> None:
    """Within a run, float32 is multiplied as float32; a GPU's algorithms are those that repeat."""

    def modes() -> tuple[bool, bool, bool]:
        modes = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        return *modes, torch.backends.cudnn.benchmark

    try:
        choose()
        torch.backends.cudnn.benchmark = True
        before = _precisions(), modes()
        with pytest.raises(ZeroDivisionError), device_code(device):
            within = _precisions()[:3] if device == CUDA else _precisions()[3:]
            assert set(within) <= {"ieee", "none"}
            assert modes() == ((True, True, False) if device == CUDA else (False, False, True))
            if device == CUDA:
                assert torch.backends.cuda.matmul.allow_tf32 is False
            1 / 0  # noqa: B018
        assert (_precisions(), modes()) == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(torch.float32)


class _Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm, self.out = nn.Embedding(9, 64), nn.LayerNorm(64), nn.Linear(64, 9)

    def forward(self, ids: Tensor) -> Tensor:
        words = self.words(ids)
        scores = self.out(F.gelu(self.norm(F.dropout(words, 0.1) + words)))
        return F.cross_entropy(scores.flatten(0, 1), ids.flatten())


@pytest.mark.parametrize(
    "block",
    [
        lambda: torch.device("meta"),
        lambda: _default_dtype(torch.float64),
        lambda: _default_dtype(torch.float16),
        torch.inference_mode,
    ],
)
@pytest.mark.parametrize("native", [pytest.param(True, marks=pytest.mark.cpp), False])
def test_a_call_does_not_follow_the_defaults_around_it(block: Callable[[], Any], native: bool) -> None:
    """Kernels wrote float32 into memory of another dtype or device, and crashed."""
    simulator.install(SimulatorParams(native_kernels=native))
    found = []
    for around in (nullcontext, block):
        options, model = poptorch.Options().randomSeed(1), _Words()
        trained = poptorch.trainingModel(model, options, poptorch.optim.AdamW(model.parameters(), lr=0.1))
        trained.compile(ids := torch.arange(12).view(3, 4) % 9)
        with around():
            losses = [trained(ids) for _ in range(2)]
        found.append([*losses, *model.state_dict().values()])
    for alone, within in zip(*found, strict=True):
        assert within.dtype == torch.float32 and torch.equal(alone, within)


def test_what_was_compiled_for_inference_alone_can_get_new_weights() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    run = poptorch.inferenceModel(layer)
    with torch.inference_mode():
        run(x)
    nn.init.ones_(layer.weight)
    run.copyWeightsToDevice()
    torch.testing.assert_close(run(x), layer(x))


@pytest.mark.parametrize("mode", ["ipu", "fast"])
def test_autocast_around_a_call_casts_nothing(mode: str) -> None:
    simulator.install(SimulatorParams(numerics=mode))
    layer, x = nn.Linear(64, 64), torch.randn(8, 64)
    run = poptorch.inferenceModel(layer)
    expected = run(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(x), expected)
        assert layer(x).dtype == torch.bfloat16, "for what the program calls itself, it counts again"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    simulator.install(SimulatorParams(device=name))
    run = poptorch.inferenceModel(nn.Linear(2, 2))
    with pytest.raises(Error, match=rf'device="{name}"\) asks for a GPU.*finds none.*device="cpu"'):
        run(torch.zeros(1, 2))


def test_instances_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert open_device("cuda") == torch.device("cuda", 1), "the current one"
    assert [open_device("cuda", i, 3).index for i in range(3)] == [0, 1, 0]
    assert open_device("cuda:1", 0, 3).index == 1, "as it was named"
    with pytest.raises(Error, match="has 2 of them, numbered from 0"):
        open_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "null:1", "cuda:-1"])
def test_devices_are_named_as_documented(device: str) -> None:
    with pytest.raises(ValueError, match="choose cpu, cuda, cuda:N or null"):
        SimulatorParams(device=device)


# -- instances -----------------------------------------------------------------------------------


class _Echo:
    """A communicator of two instances, of which the other has the same values."""

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 2

    def allgather(self, value: Any) -> list[Any]:
        return [value, value]

    def Ibarrier(self) -> Any:
        return types.SimpleNamespace(Test=lambda: True)

    def Iallgather(self, mine: Any, everyone: Any) -> Any:
        everyone.reshape(2, -1)[:] = mine
        return self.Ibarrier()

    def Bcast(self, buffer: Any, root: int) -> None:
        buffer[0][:] = 0


@needs_no_gpu
def test_instances_exchange_what_is_on_a_gpu(gpu: PretendedGpu) -> None:
    group = collectives.InstanceGroup(_Echo())
    with device_code(CUDA):
        tensors = [torch.full((3, 2), 1.5, device="cuda"), torch.full((4,), 2.0, device="cuda")]
        group.all_reduce(tensors)
        group.all_reduce(alone := torch.full((5,), 4.0, device="cuda"))
        group.broadcast(tensors[1:], root=1)
        found = [value.cpu() for value in (*tensors, alone)]
    assert all(isinstance(value, GpuTensor) for value in tensors)
    for value, expected in zip(
        found, [torch.full((3, 2), 3.0), torch.zeros(4), torch.full((5,), 8.0)], strict=True
    ):
        assert torch.equal(value, expected)


@needs_no_gpu
@pytest.mark.mpi
@pytest.mark.slow
def test_instances_train_on_gpus_as_torch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretending = (
        "import runpy, sys\nfrom pretended_gpu import pretended_gpu\n"
        "del sys.argv[0]\n"
        "with pretended_gpu(): runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    (tmp_path / "pretending.py").write_text(pretending)

    def job(arguments: list[str], **options: Any) -> Job:
        environment = {"BERT_IPU_SIMULATOR": "device=cuda", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
        return Job([str(tmp_path / "pretending.py"), *arguments], environment=environment, **options)

    monkeypatch.setattr(poprun, "Job", job)
    poprun.test_training_equals_torch(tmp_path)
