"""Runs a compiled program: device iterations x micro-batches x replicas, then the weight update.

Which micro-batch comes when: inputs hold [device iterations, gradient accumulation, replicas, micro-batch]
along dimension 0, as PopART's streams deliver them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bert_ipu.simulator.errors import Error
from bert_ipu.simulator.graph.ir import Program, Role, is_outer
from bert_ipu.simulator.params import SimulatorParams
from bert_ipu.simulator.runtime.allocator import keep_freed_memory
from bert_ipu.simulator.runtime.contexts import crossing_nodes
from bert_ipu.simulator.runtime.device import device_code, open_device
from bert_ipu.simulator.runtime.instructions import place_of
from bert_ipu.simulator.runtime.micro import MicroBatch, lower_micro_batch
from bert_ipu.simulator.runtime.native import Kernels, load_kernels
from bert_ipu.simulator.runtime.numerics import choose_numerics
from bert_ipu.simulator.runtime.outputs import Collector, make_collector
from bert_ipu.simulator.runtime.plan import Slot, make_plan
from bert_ipu.simulator.runtime.random import Draws, make_places, seed_key
from bert_ipu.simulator.runtime.replication import Replication, analyse_replication
from bert_ipu.simulator.runtime.settings import AllReduce, ExecutionSettings
from bert_ipu.simulator.runtime.update import Update, lower_update
from bert_ipu.simulator.runtime.variables import VariableStore


@dataclass
class Run:
    """What generated code is given besides values."""

    draws: Draws
    all_reduce: AllReduce | None
    parts: list[Run] = field(default_factory=list)
    """The same for each micro-batch of a chunk alone."""


class Executable:
    """A program with its settings, its generated code, and its variables on the device."""

    def __init__(self, program: Program, settings: ExecutionSettings, params: SimulatorParams) -> None:
        self.program, self.settings, self.params = program, settings, params
        self.step = 0
        """Weight updates (device iterations, for inference) since the start; part of every random draw."""
        self.seed = settings.seed
        if params.is_null:
            return
        self.device = open_device(params.device, settings.instance, settings.instances)
        if params.threads is not None:
            torch.set_num_threads(params.threads)
        if params.tune_allocator:
            keep_freed_memory()
        native = params.native_kernels and self.device.type == "cpu"
        self.kernels: Kernels | None = load_kernels() if native else None
        self.numerics = choose_numerics(params, settings, self.device, self.kernels)
        self.replication: Replication = analyse_replication(
            program,
            settings.replication_factor,
            settings.global_replicas,
            settings.instance * settings.replication_factor,
        )
        _number(program)
        self.plan = make_plan(program, settings, self.replication, self.numerics, params)
        self.crossing = crossing_nodes(program) + self.plan.bypassed(program, self.replication)
        merges = params.fuse and not self.numerics.traps
        self.micro: MicroBatch = lower_micro_batch(
            program,
            self.numerics,
            self.device,
            self.kernels,
            self.crossing,
            self.plan.batcher(program, self.replication, self.numerics),
            merges,
        )
        self.update: Update | None = None
        if any(is_outer(node) for node in program.operators()):
            self.update = lower_update(
                program,
                self.replication,
                self.numerics,
                self.device,
                self.kernels,
                self.crossing,
                merges,
            )
        self.store = VariableStore(
            program, self.replication, self.numerics, self.device, params.nan_uninitialised
        )
        self._invariants: list[tuple[Any, ...]] | None = None

    def sources(self) -> dict[str, str]:
        """The generated Python code by what it does; nothing on the null device."""
        if self.params.is_null:
            return {}
        update = {} if self.update is None else {"weight update": self.update.source}
        return {"micro-batch": self.micro.source, **update}

    # -- variables -------------------------------------------------------------------------------

    def load_variable(self, name: str, tensor: Tensor) -> None:
        """Copy a host value to the device, for all replicas."""
        self._require_device()
        self._invariants = None
        self.store.load(name, tensor)

    def read_variable(self, name: str) -> Tensor:
        """Copy a value from the device: [groups, ...] where replicas are grouped."""
        self._require_device()
        return self.store.read(name)

    def read_state(self, name: str) -> Tensor:
        """The same with all bits that the run keeps, for one that carries on from there."""
        self._require_device()
        return self.store.read(name, whole=True)

    def master_weights(self) -> list[str]:
        """The trained float16 parameters of which "fast" numerics keep float32 copies."""
        return [
            variable.name
            for variable in self.program.variables.values()
            if variable.role is Role.PARAMETER
            and variable.requires_grad
            and variable.dtype == torch.float16
            and not self.numerics.rounds
        ]

    def set_scalar(self, name: str, value: float) -> None:
        """Set an optimizer scalar for the next run."""
        self._require_device()
        self._invariants = None
        for tensor in self.store.values[name]:
            tensor.fill_(value)

    def reset_states(self) -> None:
        """Give the optimizer's state its first values again."""
        self._require_device()
        self.store.reset_states()

    def state_dict(self) -> dict[str, Any]:
        """Everything a run changes: variables of every replica, the seed and the step."""
        self._require_device()
        values = {
            name: [value.cpu().clone() for value in values] for name, values in self.store.values.items()
        }
        return {"variables": values, "step": self.step, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._require_device()
        self._invariants = None
        for name, values in state["variables"].items():
            for target, source in zip(self.store.values[name], values, strict=True):
                target.copy_(source)
        self.step, self.seed = state["step"], state["seed"]

    def _require_device(self) -> None:
        if self.params.is_null:
            raise Error('This executable was compiled for an offline target (device="null"); it cannot run.')

    # -- running ---------------------------------------------------------------------------------

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run all device iterations and return the flat outputs, in the order of `program.outputs`.

        inputs: one tensor per `program.inputs`, all micro-batches along dimension 0.
        """
        self._require_device()
        with device_code(self.device):
            feeds = self._feeds(inputs)
            collectors = self._collectors()
            try:
                for iterations in self.plan.passes(self.settings):
                    self._iterate(iterations, feeds, collectors)
            except Exception as error:
                place = place_of(error)
                if place and place not in str(error):
                    error.add_note(f"It is raised by an operator of the forward: {place}.")
                raise
            return [collector.result() for collector in collectors]

    def _feeds(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Each input whole, as a carrier on the device."""
        feeds = []
        for spec, tensor in zip(self.program.inputs, inputs, strict=True):
            carrier = tensor.detach().to(device=self.device, dtype=self.numerics.activation(spec.dtype))
            rows = spec.shape[0] * self.settings.micro_batches if spec.batched else None
            if rows is not None and carrier.shape[0] != rows:
                raise Error(
                    f"input {spec.name} has {carrier.shape[0]} rows; "
                    f"{self.settings.micro_batches} micro-batches of {spec.shape[0]} make {rows}"
                )
            feeds.append(carrier)
        return feeds

    def _collectors(self) -> list[Collector]:
        pairs = zip(self.program.outputs, self.program.results())
        return [make_collector(spec, node.meta["val"], self.settings) for spec, node in pairs]

    def _iterate(self, iterations: range, feeds: list[Tensor], collectors: list[Collector]) -> None:
        """All micro-batches of all replicas that share one state of the variables, then one update."""
        invariants = self._prepare()
        crossing: list[list[Tensor]] = [[] for _ in self.crossing]
        normal = [c for c, node in zip(collectors, self.program.results()) if not is_outer(node)]
        outer = [c for c, node in zip(collectors, self.program.results()) if is_outer(node)]
        fetched: dict[int, list[Tensor]] = {}
        for slots in self.plan.chunks(self.settings, iterations):
            replica = slots[0].replica
            values = self.store.of_replica(self.micro.variables, replica)
            kept = invariants[replica if len(invariants) > 1 else 0]
            rows = [slot.row(self.settings) for slot in slots]
            taken = [self._rows(feed, index, rows) for index, feed in enumerate(feeds)]
            results = self.micro.body(self._run_for(slots), (*values, *kept, *taken))
            outputs = results[: len(normal)]
            for position, row in enumerate(rows):
                fetched[row] = [value[position] if self.plan.chunk > 1 else value for value in outputs]
            self._cross(crossing, results[len(normal) :], replica)
        for row in sorted(fetched):
            for collector, value in zip(normal, fetched[row]):
                collector.add([value])
        if self.update is not None:
            self._update(crossing, outer)
        self.step += len(iterations)

    def _rows(self, feed: Tensor, index: int, rows: list[int]) -> Tensor:
        """The micro-batches `rows` of one input, one after the other along dimension 0."""
        spec = self.program.inputs[index]
        if not spec.batched:
            return feed
        size = spec.shape[0]
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return feed[rows[0] * size : (rows[-1] + 1) * size]
        return torch.cat([feed[row * size : (row + 1) * size] for row in rows])

    def _prepare(self) -> list[tuple[Any, ...]]:
        """What the prologue computes from the variables: once, or per replica where any variable differs."""
        if self._invariants is None:
            width = self.settings.replication_factor if self.replication.divergent else 1
            run = self._run_for([Slot(0, 0, 0)])
            self._invariants = [
                self.micro.prologue(run, self.store.of_replica(self.micro.variables, replica))
                for replica in range(width)
            ]
        return self._invariants

    def _run_for(self, slots: Sequence[Slot]) -> Run:
        """The draws of some micro-batches."""
        everyone, first = self.replication.total, self.replication.first
        places = [
            (slot.micro_batch * everyone + first + slot.replica, self.step + slot.offset) for slot in slots
        ]
        whole = make_places(places)
        key = seed_key(self.seed)
        run = Run(Draws(key, whole, self.kernels), self.settings.all_reduce)
        if len(slots) > 1:
            run.parts = [Run(Draws(key, whole[i : i + 1], self.kernels), None) for i in range(len(slots))]
        return run

    def _cross(self, crossing: list[list[Tensor]], values: Sequence[Tensor], replica: int) -> None:
        """Keep what the update reads: the sum over replicas where that is enough, else each replica's last
        value."""
        for held, node, value in zip(crossing, self.crossing, values):
            if node in self.replication.pooled and held:
                held[0] = held[0].float() + value.float() if value.is_floating_point() else held[0] + value
            elif len(held) > replica:
                held[replica] = value
            else:
                held.append(value)

    def _update(self, crossing: list[list[Tensor]], outer: list[Collector]) -> None:
        assert self.update is not None, "only training programs have an update"
        values = [self.store.values[name][replica] for name, replica in self.update.slots]
        values += [value for held in crossing for value in held]
        run = self._run_for([Slot(0, self.settings.gradient_accumulation, 0)])
        results = self.update.function(run, values)
        self._invariants = None
        replicas = self.settings.replication_factor
        for index, collector in enumerate(outer):
            mine = results[index * replicas : (index + 1) * replicas]
            collector.add(list(mine) * self.settings.gradient_accumulation)


def _number(program: Program) -> None:
    """Number the operators, by which stochastic rounding draws: eight apart, so that the further results of one and
    its partial sums (`half_partials.NUMBER`) have numbers of their own."""
    for number, node in enumerate(program.operators()):
        node.meta["number"] = 8 * number
