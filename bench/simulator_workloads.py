"""The training steps that the benchmarks of the simulator time, and how they are timed."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VOCABULARY = 30522

Step = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """A pretraining step of BERT."""

    layers: int
    hidden: int
    heads: int
    sequences: int
    length: int
    masked: int
    micro_batches: int
    """Of the simulator; Hugging Face takes all sequences at once, or one by one if that is quicker."""
    steps: int
    """Steps of one turn."""
    vocabulary: int = VOCABULARY

    @property
    def flops(self) -> float:
        """Useful floating-point operations of a step: products only, the word scores at masked positions only.

        Backward takes twice the forward's.
        """
        tokens = self.sequences * self.length
        weights = 12 * self.hidden**2 * self.layers
        attention = 2 * self.length * self.hidden * self.layers
        scores = self.sequences * self.masked * (self.hidden**2 + self.hidden * self.vocabulary)
        return 3.0 * 2.0 * (tokens * (weights + attention) + scores)


WORKLOADS = {
    "tiny": Workload(3, 64, 2, 16, 128, 20, 16, 4),
    "mini": Workload(4, 256, 4, 16, 128, 20, 1, 2),
    "base-128": Workload(12, 768, 12, 8, 128, 20, 1, 1),
    "base-512": Workload(12, 768, 12, 2, 512, 76, 1, 1),
}


def simulator_step(
    work: Workload, *, numerics: str = "fast", half: bool = True, half_partials: bool = False,
    dropout: float = 0.1, tune_allocator: bool = True,
) -> Step:  # fmt: skip
    """A training step of the application's model through PopTorch's API, with its SGD update.

    Attention dropout is 0.  `half`: float16 weights and activations, stochastic rounding on; `half_partials`: float16
    sums in products.
    """
    from bert_ipu import simulator

    simulator.install(simulator.SimulatorParams(numerics=numerics, tune_allocator=tune_allocator))
    import poptorch
    import torch

    from bert_ipu.batch import PretrainBatch
    from bert_ipu.config import ModelConfig
    from bert_ipu.model import BertForPreTraining

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = ModelConfig(
                vocab_size=work.vocabulary, hidden_size=work.hidden, num_hidden_layers=work.layers,
                num_attention_heads=work.heads, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0,
            )  # fmt: skip
            model = BertForPreTraining(config)
            self.model = model.half() if half else model

        def forward(self, *batch: torch.Tensor) -> torch.Tensor:
            return poptorch.identity_loss(self.model(PretrainBatch(*batch)).loss, reduction="none")

    model = Loss()
    options = poptorch.Options()
    options.showCompilationProgressBar(False)
    options.Precision.enableStochasticRounding(half)
    options.Precision.setPartialsType(torch.half if half_partials else torch.float)
    options.Training.gradientAccumulation(work.micro_batches)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.0, use_combined_accum=False)
    optimizer.variable_attrs.markAsConstant("momentum")
    trainer = poptorch.trainingModel(model, options, optimizer)
    batch = _batch(work)
    return lambda: trainer(*batch)


def _batch(work: Workload) -> tuple[Any, ...]:
    import torch

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, dtype=torch.int32)

    rows, length, masked = work.sequences, work.length, work.masked
    positions = torch.arange(length, dtype=torch.int32).expand(rows, length).contiguous()
    ones = torch.ones(rows, length, dtype=torch.int32)
    return (
        draw(work.vocabulary, rows, length), ones, draw(2, rows, length), positions, draw(length, rows, masked),
        draw(work.vocabulary, rows, masked), torch.zeros(rows, 1, dtype=torch.int32), draw(2, rows, 1),
    )  # fmt: skip


@dataclass(frozen=True)
class Seconds:
    """What something took, by the wall's clock and by the processor's."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.3f} s ({self.cpu:.3f})"


def interleaved(steps: Sequence[Step], rounds: int, warm_up: int = 2) -> list[Seconds]:
    """The median seconds of each step, taken in turns, so that what else runs on the machine meets all alike."""
    taken: list[list[Seconds]] = [[] for _ in steps]
    for step in steps:
        for _ in range(warm_up):
            step()
    for _ in range(rounds):
        for step, mine in zip(steps, taken):
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            mine.append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
    return [medians(mine) for mine in taken]


def medians(taken: Sequence[Seconds]) -> Seconds:
    """The median of each clock."""
    return Seconds(statistics.median(t.wall for t in taken), statistics.median(t.cpu for t in taken))
