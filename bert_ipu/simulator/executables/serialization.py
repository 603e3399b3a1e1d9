"""A `Program` as a JSON document and named tensors, and back: no pickle, so reading a file runs no code.

What JSON has no word for is an object with one key, which says what it is: {"node": 3}, {"dtype": "float16"}.
Parameters and buffers are not part of a document: they are the model's, which is there when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import (
    ORIGIN,
    InputSpec,
    IpuOp,
    OperatorSummary,
    OutputSpec,
    PatternChange,
    Program,
    Reduction,
    ReplicaGroups,
    Role,
    ScalarSource,
    Subgraph,
    Variable,
)

Document = dict[str, Any]

_IPU_OPS = {op.name: op for op in vars(ops).values() if isinstance(op, IpuOp)}
_RECORDS = {
    cls.__name__: cls
    for cls in (InputSpec, OutputSpec, Reduction, ReplicaGroups, ScalarSource, OperatorSummary, PatternChange)
}
_TORCH_CONSTANTS = {
    torch.dtype: "dtype",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}


class NotSerializable(Exception):
    """A program holds something that cannot be written to a file; the message says what and where."""


def write_program(program: Program) -> tuple[Document, dict[str, torch.Tensor]]:
    """The document of a program, and the values of its constants. Raises NotSerializable."""
    writer = _Writer()
    graph = writer.graph(program.graph)
    constants: dict[str, torch.Tensor] = {}
    for variable in program.variables.values():
        if variable.role is Role.CONSTANT and variable.tensor is not None:
            constants[variable.name] = variable.tensor.detach().cpu().contiguous()
    document = {
        "graph": graph,
        "variables": [writer.variable(variable) for variable in program.variables.values()],
        "inputs": writer.value(program.inputs),
        "outputs": writer.value(program.outputs),
        "training": program.training,
        "module_scopes": program.module_scopes,
        "loss": writer.value(program.loss),
        "tensor_names": writer.value(program.tensor_names),
        "reduction": writer.value(program.reduction),
        "scalars": writer.value(program.scalars),
        "pattern_changes": writer.value(program.pattern_changes),
        "shapes": writer.shapes,
        "origins": writer.origins,
    }
    return document, constants


def read_program(
    document: Document, constants: Mapping[str, torch.Tensor], named: Mapping[str, torch.Tensor]
) -> Program:
    """The program of a document, for a model with the parameters and buffers `named`.

    Raises KeyError or ValueError for a document that is not whole.
    """
    reader = _Reader(FakeTensorMode(allow_non_fake_inputs=True), document)
    graph = fx.Graph()
    reader.graph(graph, document["graph"])
    program = Program(graph, reader.fake_mode, training=document["training"])
    program.module_scopes = document["module_scopes"]
    for entry in document["variables"]:
        variable = reader.variable(entry)
        values = constants if variable.role is Role.CONSTANT else named
        variable.tensor = values.get(variable.name)
        program.variables[variable.name] = variable
    for key in ("inputs", "outputs", "tensor_names", "loss", "reduction", "scalars", "pattern_changes"):
        setattr(program, key, reader.value(document[key]))
    program.index_placeholders()
    return program


class _Writer:
    """Writes graphs node by node; what many nodes share, shapes and origins, it writes once and numbers."""

    def __init__(self) -> None:
        self.shapes: list[Any] = []
        self.origins: list[Any] = []
        self._origin_numbers: dict[str, int] = {}
        self._shape_numbers: dict[Any, int] = {}
        self._numbers: dict[fx.Node, int] = {}

    def graph(self, graph: fx.Graph) -> list[Any]:
        """One entry per node: operation, name, target, arguments, origin (which many share), other metadata."""
        entries = []
        for node in graph.nodes:
            try:
                entry = [node.op, node.name, self._target(node)]
                entry += [self._all(node.args), self._items(node.kwargs), self._origin(node)]
                entry.append(self._items({key: node.meta[key] for key in node.meta if key not in ORIGIN}))
            except NotSerializable as error:
                raise NotSerializable(f"{_where(node)}{error}") from None
            self._numbers[node] = len(self._numbers)
            entries.append(entry)
        return entries

    def _origin(self, node: fx.Node) -> int:
        items = self._items({key: node.meta[key] for key in ORIGIN if key in node.meta})
        text = json.dumps(items)
        if text not in self._origin_numbers:
            self._origin_numbers[text] = len(self.origins)
            self.origins.append(items)
        return self._origin_numbers[text]

    @staticmethod
    def _target(node: fx.Node) -> str:
        if node.op != "call_function":
            return str(node.target)
        if node.target is operator.getitem:
            return "getitem"
        if isinstance(node.target, IpuOp) and _IPU_OPS.get(node.target.name) is node.target:
            return f"ipu.{node.target.name}"
        if isinstance(node.target, OpOverload):
            return str(node.target)
        raise NotSerializable(f"it calls {node.target}")

    def variable(self, variable: Variable) -> Any:
        bare = dataclasses.replace(variable, tensor=None)
        return {f.name: self.value(getattr(bare, f.name)) for f in dataclasses.fields(bare)}

    def value(self, value: Any) -> Any:
        """Anything that nodes and tables hold."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, fx.Node):
            return {"node": self._numbers[value]}
        if isinstance(value, list):
            return self._all(value)
        if isinstance(value, tuple):
            return {"tuple": self._all(value)}
        if isinstance(value, Mapping):
            return {"dict": self._items(value)}
        return self._object(value)

    def _all(self, values: Iterable[Any]) -> list[Any]:
        return [self.value(value) for value in values]

    def _items(self, values: Mapping[Any, Any]) -> list[Any]:
        return [[self.value(key), self.value(value)] for key, value in values.items()]

    def _object(self, value: Any) -> Any:
        kind = _TORCH_CONSTANTS.get(type(value))
        if kind is not None:
            return {kind: str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, Role):
            return {"role": value.value}
        if isinstance(value, FakeTensor):
            return {"val": self._shape(value)}
        if isinstance(value, slice):
            return {"slice": [value.start, value.stop, value.step]}
        if isinstance(value, Subgraph):
            return {"subgraph": [value.name, self.graph(value.graph)]}
        if type(value).__name__ in _RECORDS:
            fields = {f.name: self.value(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return {"record": [type(value).__name__, fields]}
        raise NotSerializable(f"it holds {_describe(value)}")

    def _shape(self, value: FakeTensor) -> int:
        key = (tuple(value.shape), str(value.dtype).removeprefix("torch."), value.stride())
        if key not in self._shape_numbers:
            self._shape_numbers[key] = len(self.shapes)
            self.shapes.append(key)
        return self._shape_numbers[key]


class _Reader:
    """Reads what a `_Writer` wrote."""

    def __init__(self, fake_mode: FakeTensorMode, document: Document) -> None:
        self.fake_mode = fake_mode
        with fake_mode:
            self._vals = [
                torch.empty_strided(shape, stride, dtype=getattr(torch, dtype))
                for shape, dtype, stride in document["shapes"]
            ]
        self._nodes: list[fx.Node] = []
        self._targets: dict[str, Any] = {"getitem": operator.getitem}
        self._makers: dict[str, Callable[[Any], Any]] = {
            "node": self._nodes.__getitem__,
            "val": self._vals.__getitem__,
            "tuple": lambda content: tuple(map(self.value, content)),
            "dict": self._mapping,
            "dtype": _torch_constant,
            "layout": _torch_constant,
            "memory_format": _torch_constant,
            "device": torch.device,
            "role": Role,
            "slice": lambda content: slice(*content),
            "subgraph": self._subgraph,
            "record": self._record,
        }
        self._origins = [self._mapping(origin) for origin in document["origins"]]

    def graph(self, graph: fx.Graph, entries: list[Any]) -> None:
        for op, name, target, args, kwargs, origin, meta in entries:
            called = self._target(target) if op == "call_function" else target
            node = graph.create_node(op, called, tuple(map(self.value, args)), self._mapping(kwargs), name)
            node.meta = {**self._origins[origin], **self._mapping(meta)}
            self._nodes.append(node)

    def _target(self, name: str) -> Any:
        if name not in self._targets:
            namespace, operator_name, *overload = name.split(".")
            if namespace == "ipu":
                self._targets[name] = _IPU_OPS[operator_name]
            else:
                packet = getattr(getattr(torch.ops, namespace), operator_name)
                self._targets[name] = getattr(packet, overload[0])
        return self._targets[name]

    def variable(self, entry: Mapping[str, Any]) -> Variable:
        return Variable(**{name: self.value(value) for name, value in entry.items()})

    def value(self, value: Any) -> Any:
        if isinstance(value, dict):
            ((kind, content),) = value.items()
            return self._makers[kind](content)
        if isinstance(value, list):
            return [self.value(element) for element in value]
        return value

    def _mapping(self, content: Any) -> dict[Any, Any]:
        return {self.value(key): self.value(entry) for key, entry in content}

    def _subgraph(self, content: Any) -> Subgraph:
        name, entries = content
        graph = fx.Graph()
        self.graph(graph, entries)
        return Subgraph(name, graph)

    def _record(self, content: Any) -> Any:
        name, fields = content
        return _RECORDS[name](**{key: self.value(value) for key, value in fields.items()})


def _torch_constant(name: str) -> Any:
    return getattr(torch, name)


def _where(node: fx.Node) -> str:
    name = node.target.name if isinstance(node.target, IpuOp) else str(node.target)
    place = " ".join(str(node.meta[key]) for key in ("module", "source") if node.meta.get(key))
    return f"{name}{f' ({place})' if place else ''}: "


def _describe(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or f"an object of {type(value).__qualname__}"
    return f"{name}, which no file can hold"
