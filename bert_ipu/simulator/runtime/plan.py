"""The order of work: which micro-batches run together, and what shares one state of the variables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import fx

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import Program, is_outer
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime import chunking
from bert_ipu.simulator.runtime.batching import Batcher
from bert_ipu.simulator.runtime.batching_rules import RULES, SUM_RULES
from bert_ipu.simulator.runtime.contexts import crossing_nodes, normal_nodes, outer_nodes, written_variables
from bert_ipu.simulator.runtime.lowering import Emitter
from bert_ipu.simulator.runtime.numerics import Numerics
from bert_ipu.simulator.runtime.replication import Replication
from bert_ipu.simulator.runtime.settings import ExecutionSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """One micro-batch of one replica."""

    iteration: int
    micro_batch: int
    replica: int
    offset: int = 0
    """Iterations since the engine's step was last counted."""

    def row(self, settings: ExecutionSettings) -> int:
        """Its place among all micro-batches of a run."""
        fetch = self.iteration * settings.gradient_accumulation + self.micro_batch
        return fetch * settings.replication_factor + self.replica


@dataclass(frozen=True)
class Plan:
    """How many micro-batches run as one, and over what they may be taken together."""

    chunk: int
    over_replicas: bool
    """All replicas see the same variables."""
    over_iterations: bool
    """Nothing changes between device iterations."""
    whole: bool = False
    """One chunk holds all micro-batches of an update."""

    def passes(self, settings: ExecutionSettings) -> list[range]:
        """Device iterations in groups that see the same variables."""
        if self.over_iterations:
            return [range(settings.device_iterations)]
        return [range(i, i + 1) for i in range(settings.device_iterations)]

    def chunks(self, settings: ExecutionSettings, iterations: range) -> Iterator[list[Slot]]:
        """The micro-batches of some iterations, in the groups that run together."""
        replicas = range(settings.replication_factor)
        slots = [
            Slot(iteration, micro_batch, replica, iteration - iterations[0])
            for iteration in iterations
            for micro_batch in range(settings.gradient_accumulation)
            for replica in replicas
        ]
        queues = (
            [slots]
            if self.over_replicas or self.chunk == 1
            else [slots[r :: len(replicas)] for r in replicas]
        )
        for queue in queues:
            for start in range(0, len(queue), self.chunk):
                yield queue[start : start + self.chunk]

    def bypassed(self, program: Program, replication: Replication) -> list[fx.Node]:
        """Accumulations that need no accumulator: one chunk has the whole sum, and it starts at zero."""
        if not self.whole:
            return []
        results = set(program.results())
        return [
            node
            for node in normal_nodes(program)
            if node.target is ops.accumulate
            and node.args[0].op == "placeholder"  # type: ignore[union-attr]
            and node in replication.pooled
            and node not in results
            and all(is_outer(user) for user in node.users)
        ]

    def batcher(
        self, program: Program, replication: Replication, numerics: Numerics
    ) -> Callable[[Emitter], Batcher] | None:
        """What lowers nodes for a chunk; None where micro-batches run one at a time."""
        if self.chunk == 1:
            return None
        analysis = chunking.analyse(program, replication, numerics)
        return lambda emitter: Batcher(emitter, self.chunk, analysis, RULES, SUM_RULES)


def make_plan(
    program: Program,
    settings: ExecutionSettings,
    replication: Replication,
    numerics: Numerics,
    params: SimulatorParams,
) -> Plan:
    """Choose the chunk: the most micro-batches that are independent and fit `params.chunk_bytes`."""
    separate = [node for node in crossing_nodes(program) if node not in replication.pooled]
    over_replicas = settings.replication_factor == 1 or not (replication.divergent or separate)
    frozen = not outer_nodes(program) and not written_variables(program, normal_nodes(program))
    pool = settings.gradient_accumulation
    pool *= settings.replication_factor if over_replicas else 1
    pool *= settings.device_iterations if frozen else 1
    reason = chunking.why_not(program, replication, numerics)
    if not params.batch_micro_batches or pool == 1 or reason is not None:
        logger.debug("micro-batches run one at a time: %s", reason or "there is one, or batching is off")
        return Plan(1, over_replicas, False)
    chunk = chunking.chunk_size(pool, chunking.peak_bytes(program, numerics), params.chunk_bytes)
    return Plan(chunk, over_replicas, frozen, whole=chunk == pool and over_replicas and not frozen)
