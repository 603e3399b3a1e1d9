"""Custom ops in C++: load a library, compile one of its ops for given shapes, run it on torch tensors.

A library written against the PopART and Poplar API is compiled with plain g++ against `simulator/csrc` (see
`native/build.py`) and loaded here. What the rest of the simulator calls:

    load_library("libcube.so")              # its static objects register ops and patterns
    registered_ops()                        # [OpId("com.acme", "Cube", 1), ...]
    is_registered("com.acme", "Cube", 1)
    op = CompiledOp("com.acme", "Cube", 1, [TensorSpec((1, 8), torch.float32)] * 2, attributes={})
    op.output_specs                         # what setup() said, before anything runs
    op.updates                              # what it changes in place, e.g. {0: 0}: input -> output
    outputs = op.run([x, bias])             # inputs untouched; new tensors come back
    op.run_in_place([table, rows, ids])     # inputs named by `updates` are changed, not copied
    for grad in op.gradient():              # one CompiledGrad per op of getGradOps()
        grad.sources                        # (GradSource("grad_out", 0), GradSource("out", 1)), ...
        grad.targets                        # {0: 0}: grad output -> forward input
        grad.run([tensor for each source])  # one tensor per entry of grad.output_specs

`gradient(live_outputs={0})` names the outputs on the loss path; a gradient of any other output stays
unconnected, as in PopART. An op without grad ops returns [], which stops the gradient. `op.cost` lists
(step, cycles, bytes) by the formulas of poplibs' estimators.

Dtypes: torch.int64 becomes int32 and torch.float64 becomes float32 at the boundary, as in PopTorch;
attributes are typed by their Python type (int, float, str, or a list of one of these, by its first element).
Everything is compiled once: `run` costs a few tens of microseconds over the op's own work, whatever the op.

The first compile of an op, and the first run of one with vertices, happens in a forked child, so that a
`setup()`, a `grow()` or a vertex that crashes or calls `exit()` becomes an exception here instead of the end
of the process; `isolate=False` switches that off. It is tried once for the same op, shapes, dtypes and
attributes: a fork of a large process takes tens of milliseconds. A later crash ends the process with its
signal, and a later `exit()` with a failure, once stderr has the name of the op and of the vertex.

Patterns are run on a `PatternGraph`: see `bert_ipu.simulator.native.patterns`.

Every failure is a `CustomOpError`. A CompiledOp may be used from several threads, one call at a time.
"""

from __future__ import annotations

import ctypes
import difflib
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from bert_ipu.simulator.native import abi
from bert_ipu.simulator.native.abi import CustomOpError, runtime

__all__ = [
    "CompiledGrad",
    "CompiledOp",
    "CustomOpError",
    "GradSource",
    "OpId",
    "StepCost",
    "TensorSpec",
    "is_registered",
    "load_library",
    "registered_ops",
    "registered_patterns",
    "require_registered",
]

AttributeValue = int | float | str | Sequence[int] | Sequence[float] | Sequence[str]


class OpId(NamedTuple):
    """A registered op."""

    domain: str
    name: str
    version: int


class TensorSpec(NamedTuple):
    """Shape and dtype of one input or output."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class GradSource(NamedTuple):
    """Where an input of a gradient op comes from: a forward input, an output, or an output's gradient."""

    kind: Literal["in", "out", "grad_out"]
    position: int


class StepCost(NamedTuple):
    """Estimated cycles and bytes of one recorded step of an op, over the whole IPU."""

    step: str
    cycles: int
    bytes: int


def load_library(path: str | Path) -> None:
    """Load a library of custom ops; its ops and patterns stay registered for the life of the process.

    Raises CustomOpError when the file cannot be loaded, naming the symbol it misses.
    """
    abi.check(runtime().popemu_load(str(path).encode()))


def registered_ops() -> list[OpId]:
    """Every op that loaded libraries registered with an OpCreator."""
    return [OpId(*entry) for entry in abi.fetch_json(runtime().popemu_registered_ops())]


def registered_patterns() -> dict[str, bool]:
    """Every pattern that loaded libraries registered, with whether it is on by default."""
    return dict(abi.fetch_json(runtime().popemu_registered_patterns()))


def is_registered(domain: str, name: str, version: int) -> bool:
    """True if some version of the op, at most `version`, can be created."""
    return any(op.domain == domain and op.name == name and op.version <= version for op in registered_ops())


def require_registered(domain: str, name: str, version: int) -> None:
    """Raise CustomOpError, with the nearest names, unless the op can be created."""
    if is_registered(domain, name, version):
        return
    known = {f"{op.domain}.{op.name}:{op.version}": op for op in registered_ops()}
    nearest = difflib.get_close_matches(f"{domain}.{name}:{version}", known, n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(nearest)}" if nearest else f"{len(known)} ops are registered"
    raise CustomOpError(
        f"no custom op {domain}.{name}:{version} is registered ({hint}); "
        "load the library that defines it before the model is compiled"
    )


class _Rehearsals:
    """Which calls of the user's C++ are still to be tried in a forked child."""

    _survived: set[Hashable] = set()
    """What was tried, in this process, and went well."""

    def __init__(self, isolate: bool, key: Hashable) -> None:
        self._isolate, self._key = isolate, key

    def within(self, part: str) -> _Rehearsals:
        """The same, for an op that this one made."""
        return _Rehearsals(self._isolate, (self._key, part))

    @contextmanager
    def of(self, call: str) -> Iterator[bool]:
        """Whether to try a call first; one that raises is tried again next time."""
        key = (self._key, call)
        yield self._isolate and key not in self._survived
        self._survived.add(key)


def _hashable(attributes: Mapping[str, AttributeValue]) -> tuple[tuple[str, str], ...]:
    """Attributes with their types told apart, as the device tells 1 from 1.0."""
    return tuple((name, repr(value)) for name, value in sorted(attributes.items()))


class CompiledOp:
    """One op, created, shaped and recorded for fixed input shapes; run it as often as you like."""

    def __init__(
        self,
        domain: str,
        name: str,
        version: int,
        inputs: Sequence[TensorSpec | tuple[tuple[int, ...], torch.dtype]],
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        isolate: bool = True,
    ) -> None:
        require_registered(domain, name, version)
        self._rehearsals = _Rehearsals(
            isolate, (domain, name, version, *map(tuple, inputs), *_hashable(attributes or {}))
        )
        self._graph = abi.IrHandle(training=True)
        ids = [f"in{i}" for i in range(len(inputs))]
        for tensor_id, (shape, dtype) in zip(ids, inputs, strict=True):
            self._graph.add_tensor(tensor_id, "activation", shape, abi.boundary_dtype(dtype))
        with self._rehearsals.of("setup") as rehearse:
            self._op = self._graph.add_op(
                domain, name, version, dict(enumerate(ids)), attributes=attributes or {}, isolate=rehearse
            )
        self._adopt()

    @classmethod
    def from_graph(cls, graph: abi.IrHandle, op: int, *, isolate: bool = True) -> CompiledOp:
        """Compile an op that already exists in `graph`, such as one a pattern inserted."""
        compiled = cls.__new__(cls)
        compiled._graph, compiled._op = graph, op
        compiled._adopt()
        compiled._rehearsals = _Rehearsals(isolate, (compiled.title, *_hashable(compiled.attributes)))
        return compiled

    def _adopt(self) -> None:
        info = self._graph.describe_op(self._op)
        self.title: str = info["title"]
        self.input_specs: tuple[TensorSpec, ...] = tuple(_spec(entry) for entry in info["inputs"])
        self.output_specs: tuple[TensorSpec, ...] = tuple(_spec(entry) for entry in info["outputs"])
        self.requires_random_seed: bool = info["requires_random_seed"]
        self.attributes: dict[str, str] = info["attributes"]
        self.updates: dict[int, int] = {int(k): v for k, v in info["updates"].items()}
        self._engine: abi.EngineHandle | None = None

    @property
    def engine(self) -> abi.EngineHandle:
        """The recorded program; the op's grow() runs on first use."""
        if self._engine is None:
            with self._rehearsals.of("grow") as rehearse:
                self._engine = self._graph.compile(self._op, isolate=rehearse)
            slots = len(self.input_specs), len(self.output_specs)
            self._input_pointers = (ctypes.c_void_p * slots[0])()
            self._output_pointers = (ctypes.c_void_p * slots[1])()
            self._call = runtime().popemu_run
        return self._engine

    def record(self) -> None:
        """Run the op's grow() now, as a compile does, so that what it refuses is met then."""
        _ = self.engine

    @property
    def cost(self) -> list[StepCost]:
        """Estimated cycles and bytes, step by step."""
        return [StepCost(*entry) for entry in self.engine.cost()]

    def run(self, inputs: Sequence[torch.Tensor], *, seed: int = 0) -> list[torch.Tensor]:
        """Run the op on contiguous copies where needed; the inputs are never changed.

        Raises CustomOpError for a wrong number, shape or dtype of inputs, or when the op fails.
        """
        return self._run(inputs, in_place=False, seed=seed)

    def run_in_place(self, inputs: Sequence[torch.Tensor], *, seed: int = 0) -> list[torch.Tensor]:
        """Run the op and let it change the inputs named by `updates`; these inputs come back as outputs."""
        return self._run(inputs, in_place=True, seed=seed)

    def _run(self, inputs: Sequence[torch.Tensor], *, in_place: bool, seed: int) -> list[torch.Tensor]:
        engine = self.engine
        if len(inputs) != len(self.input_specs):
            raise CustomOpError(f"{self.title} takes {len(self.input_specs)} inputs, was given {len(inputs)}")
        held = [self._admit(i, tensor, in_place) for i, tensor in enumerate(inputs)]
        outputs = [torch.empty(spec.shape, dtype=spec.dtype) for spec in self.output_specs]
        if in_place:
            for source, result in self.updates.items():
                outputs[result] = held[source]
        for i, tensor in enumerate(held):
            self._input_pointers[i] = tensor.data_ptr()
        for i, tensor in enumerate(outputs):
            self._output_pointers[i] = tensor.data_ptr()
        if self._call(engine.address, self._input_pointers, self._output_pointers, int(in_place), seed):
            raise CustomOpError(f"running {self.title}: {abi.last_error()}")
        return outputs

    def _admit(self, index: int, tensor: torch.Tensor, in_place: bool) -> torch.Tensor:
        shape, dtype = self.input_specs[index]
        if tensor.dtype != dtype:
            if abi.boundary_dtype(tensor.dtype) != dtype:
                raise CustomOpError(f"{self.title}: input {index} is {tensor.dtype}, compiled for {dtype}")
            tensor = tensor.to(dtype)
        if tensor.shape != shape:
            raise CustomOpError(
                f"{self.title}: input {index} has shape {tuple(tensor.shape)}, compiled for {shape}"
            )
        if not tensor.is_contiguous():
            if in_place and index in self.updates:
                raise CustomOpError(f"{self.title}: input {index} is updated in place and must be contiguous")
            tensor = tensor.contiguous()
        return tensor.detach()

    def gradient(self, live_outputs: Collection[int] | None = None) -> list[CompiledGrad]:
        """The ops of getGradOps(), wired by gradInputInfo() and gradOutToNonGradIn().

        `live_outputs`: the outputs on a path to the loss, default all of them.
        """
        live = sorted(range(len(self.output_specs)) if live_outputs is None else live_outputs)
        with self._rehearsals.of(f"gradients of {live}") as rehearse:
            entries = self._graph.grow_gradients(self._op, live, isolate=rehearse)
        return [
            CompiledGrad._from(self._graph, entry, self._rehearsals.within(f"gradient {index} of {live}"))
            for index, entry in enumerate(entries)
        ]


class CompiledGrad(CompiledOp):
    """One gradient op of a CompiledOp, with its wiring."""

    sources: tuple[GradSource, ...]
    targets: dict[int, int]

    @classmethod
    def _from(cls, graph: abi.IrHandle, entry: dict[str, Any], rehearsals: _Rehearsals) -> CompiledGrad:
        grad = cls.__new__(cls)
        grad._graph, grad._op, grad._rehearsals = graph, entry["op"], rehearsals
        grad._adopt()
        grad.sources = tuple(GradSource(kind, position) for kind, position in entry["sources"])
        grad.targets = {int(k): v for k, v in entry["targets"].items()}
        return grad


def _spec(entry: dict[str, Any]) -> TensorSpec:
    return TensorSpec(tuple(entry["shape"]), abi.DTYPES[entry["dtype"]])
