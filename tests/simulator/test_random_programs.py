"""Programs put together at random train through PopTorch's API as in a plain torch loop.

A program is a chain of steps, each of which keeps the shape [B, ROWS, WIDTH], and a loss.  How its rows are dealt out
to device iterations, accumulation and replicas, the optimizer, the output mode and how the simulator runs are drawn,
too, from the seed, which is the test's name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bert_ipu.simulator.poptorch as poptorch
from bert_ipu import simulator
from bert_ipu.simulator import SimulatorParams

ROWS, WIDTH, CALLS = 4, 6, 2


class Step(nn.Module):
    """What a step may use beside its input: weights, a table, layers, a buffer that it may write."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.w, self.v = nn.Parameter(torch.randn(WIDTH, WIDTH) / 3), nn.Parameter(torch.randn(WIDTH))
        self.table = nn.Parameter(torch.randn(ROWS, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.recurrent = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.convolution = nn.Conv1d(ROWS, ROWS, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, WIDTH, eps=1e-2)
        self.register_buffer("kept", torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(STEPS[self.name](self, x))


def _places(x: Tensor) -> Tensor:
    """[B, ROWS] of 0 ... ROWS - 1, by the values of x."""
    return (x[..., 0].detach() * 9).long().remainder(ROWS)


def _column_written(s: Step, x: Tensor) -> Tensor:
    written = x.clone()
    written[..., 0] = x[..., -1] * s.v[0]
    written[:, 1:3].mul_(2).add_(s.v)
    return written


def _view_written(s: Step, x: Tensor) -> Tensor:
    copied = (x * 1).contiguous()
    view = copied.view(x.size(0), -1)
    copied.add_(s.v)
    view[:, :3] = 0.5
    return copied + view.sum(1).reshape(-1, 1, 1) / 9


def _running_mean(s: Step, x: Tensor) -> Tensor:
    with torch.no_grad():
        s.kept.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
    return x * s.kept


def _scattered(s: Step, x: Tensor) -> Tensor:
    index = _places(x).unsqueeze(-1).expand_as(x)
    return torch.zeros_like(x).scatter_add(1, index, x * s.v) + x.gather(1, index)


def _rows_of_losses(s: Step, x: Tensor) -> Tensor:
    losses = F.cross_entropy((x @ s.w)[..., :ROWS].flatten(0, 1), _places(x).flatten(), reduction="none")
    return x * losses.view(-1, ROWS, 1)


STEPS: dict[str, Callable[[Step, Tensor], Tensor]] = {
    "attention": lambda s, x: s.attention(x, x, x, need_weights=False)[0],
    "branches": lambda s, x: torch.where(x > 0, x * s.v, s.v.exp().clamp(max=2)),
    "column written": _column_written,
    "convolution": lambda s, x: s.convolution(x) * F.softplus(x),
    "embedding": lambda s, x: F.embedding(_places(x), s.table) + x,
    "group norm": lambda s, x: s.norm(x.transpose(1, 2)).transpose(1, 2),
    "joined": lambda s, x: torch.cat([x[:, 2:] * s.v, x[:, :2].flip(1)], 1),
    "layer norm": lambda s, x: F.layer_norm(x @ s.w, (WIDTH,), s.v, eps=1e-2) + x,
    "log sigmoid": lambda s, x: F.logsigmoid(x * s.v).masked_fill(x > 0.5, 0.1),
    "masked by a mean": lambda s, x: x.masked_fill(x > 0.3, x.mean()) * s.v,
    "picked": lambda s, x: x[:, [1, 0, -1, 2]] + s.table[_places(x)],
    "product": lambda s, x: torch.einsum("bri,ij->brj", x, s.w).softmax(-1) * x,
    "recurrent": lambda s, x: s.recurrent(x)[0] + x,
    "reduced": lambda s, x: x * x.std((1, 2), correction=0, keepdim=True) + x.amax(1, keepdim=True),
    "rows against rows": lambda s, x: F.gelu((x @ x.mT).softmax(1) @ (x * s.v)),
    "rows of losses": _rows_of_losses,
    "running mean": _running_mean,
    "scattered": _scattered,
    "sorted": lambda s, x: x.sort(-1).values.cumsum(1) * s.v / 3,
    "split": lambda s, x: torch.stack([part * s.v for part in x.unbind(1)][::-1], 1),
    "turned": lambda s, x: x.reshape(x.size(0), WIDTH, ROWS).mT.roll(1, 2) @ s.w,
    "view written": _view_written,
}


class Program(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.steps, self.last = nn.ModuleList(Step(name) for name in names), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        for step in self.steps:
            x = step(x)
        return x, F.mse_loss(self.last(x), target)


Optimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Optimizer, Optimizer, dict[str, float]]] = {
    "SGD": (poptorch.optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "Adam": (poptorch.optim.Adam, torch.optim.Adam, {"lr": 0.02, "eps": 1e-2, "weight_decay": 0.01}),
    "AdamW": (poptorch.optim.AdamW, torch.optim.AdamW, {"lr": 0.02, "eps": 1e-2, "weight_decay": 0.1}),
    "RMSprop": (poptorch.optim.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "eps": 1e-2, "momentum": 0.5}),
}


@dataclass(frozen=True)
class Drawn:
    """All that is drawn for one test."""

    steps: list[str]
    optimizer: str
    micro_batch: int
    iterations: int
    accumulation: int
    replicas: int
    mean: bool
    mode: poptorch.OutputMode
    params: SimulatorParams

    @property
    def rows(self) -> int:
        return self.micro_batch * self.iterations * self.accumulation * self.replicas


def draw(seed: int) -> Drawn:
    rng = random.Random(seed)
    steps = rng.choices(sorted(STEPS), k=rng.randint(1, 5))
    writes = "running mean" in steps  # PopTorch refuses to broadcast what replicas write differently.
    return Drawn(
        steps=steps,
        optimizer=rng.choice(sorted(OPTIMIZERS)),
        micro_batch=rng.randint(1, 3),
        iterations=rng.randint(1, 2),
        accumulation=rng.randint(1, 3),
        replicas=1 if writes else rng.randint(1, 2),
        mean=rng.random() < 0.7,
        mode=rng.choice([poptorch.OutputMode.All, poptorch.OutputMode.Final]),
        params=SimulatorParams(
            batch_micro_batches=rng.random() < 0.8,
            fuse=rng.random() < 0.8,
            native_kernels=rng.random() < 0.8,
            chunk_bytes=rng.choice([2 << 30, 20_000]),
        ),
    )


def batches(drawn: Drawn) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of all calls."""
    generator = torch.Generator().manual_seed(drawn.rows)
    for _ in range(CALLS):
        x, target = (torch.randn(drawn.rows, ROWS, WIDTH, generator=generator) for _ in range(2))
        yield x, target.tanh()


def torch_loop(drawn: Drawn, program: Program) -> Iterator[tuple[Tensor, Tensor]]:
    """Trains the program; each call's results and losses, one of each micro-batch."""
    _, make, settings = OPTIMIZERS[drawn.optimizer]
    optimizer = make(program.parameters(), **settings)
    share = drawn.accumulation * drawn.replicas
    for inputs in batches(drawn):
        made = []
        for update in zip(*(part.split(drawn.rows // drawn.iterations) for part in inputs)):
            optimizer.zero_grad()
            for rows in zip(*(part.split(drawn.micro_batch) for part in update)):
                made.append(program(*rows))
                (made[-1][1] / (share if drawn.mean else 1)).backward()
            optimizer.step()
        made = made if drawn.mode == poptorch.OutputMode.All else made[-drawn.replicas :]
        yield torch.cat([result for result, _ in made]), torch.stack([loss for _, loss in made])


def simulated(drawn: Drawn, program: Program) -> Iterator[tuple[Tensor, Tensor]]:
    """The same by a PopTorch program."""
    simulator.install(drawn.params)
    make, _, settings = OPTIMIZERS[drawn.optimizer]
    options = poptorch.Options().outputMode(drawn.mode)
    options.deviceIterations(drawn.iterations).replicationFactor(drawn.replicas)
    reduction = poptorch.ReductionType.Mean if drawn.mean else poptorch.ReductionType.Sum
    options.Training.gradientAccumulation(drawn.accumulation)
    options.Training.accumulationAndReplicationReductionType(reduction)
    optimizer = make(program.parameters(), loss_scaling=16.0, **settings)
    training = poptorch.trainingModel(program, options, optimizer)
    for inputs in batches(drawn):
        result, loss = training(*inputs)
        yield result, loss.reshape(-1)


QUICK = 16
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= QUICK else []) for seed in range(400)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_program_drawn_from_a_seed_trains_as_in_torch(seed: int) -> None:
    """`draw(seed)` says what was drawn."""
    drawn = draw(seed)
    torch.manual_seed(seed)
    program = Program(drawn.steps)
    reference = Program(drawn.steps)
    reference.load_state_dict(program.state_dict())
    try:
        pairs = list(zip(simulated(drawn, program), torch_loop(drawn, reference), strict=True))
    finally:
        simulator.install()
    for (result, loss), (expected, expected_loss) in pairs:
        torch.testing.assert_close(result, expected.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-4, atol=1e-5)
    for name, value in reference.state_dict().items():
        trained = program.state_dict()[name]
        torch.testing.assert_close(
            trained, value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
