"""The compiled program: an fx graph, the tables that go with it, and the only ways to edit it.

The contract between the compiler's passes, the custom-op patterns, the runtime and the facade;
`docs/decisions/001-graph.md` explains it.  Nodes call either a functional ATen operator or an
`IpuOp` (`graph/ops.py`).  Node order is execution order.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Union

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from bert_ipu.simulator.graph.dtypes import INT64_INDEX, device_dtype

Pass = Literal["forward", "backward", "optimizer"]
Target = Union["IpuOp", torch._ops.OpOverload]

PLACEMENT = ("ipu", "stage", "phase")
"""Keys of `node.meta` that say where a node runs; a derived node takes them from its origin."""

ORIGIN = (*PLACEMENT, "module", "source", "pass", "context")
"""Keys of `node.meta` that a node emitted for another one inherits."""


class Role(enum.Enum):
    """What a variable is to the program."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"
    STATE = "state"
    """Optimizer state: lives on the device, zero or derived from a parameter at the start."""
    SCALAR = "scalar"
    """A number the host may change between runs: a learning rate, the loss scaling."""


@dataclass(frozen=True)
class ReplicaGroups:
    """Which replicas share one value of a variable (PopTorch's `replicaGrouping`)."""

    arrangement: Literal["consecutive", "orthogonal"]
    size: int
    """Replicas in a group; 1 gives every replica its own value."""
    retrieve_all: bool = False
    """Reading returns every replica's value, not one per group."""


@dataclass(frozen=True)
class Reduction:
    """How gradients are reduced over accumulation steps and replicas."""

    accumulation: int = 1
    replicas: int = 1
    """Over all instances."""
    mean: bool = True
    running: bool = False
    """Divide while accumulating (mean only), not after; float16 accumulators need it."""

    @property
    def divisor(self) -> float:
        """What the update divides the summed gradients by."""
        return float(self.accumulation * self.replicas) if self.mean and not self.running else 1.0

    @property
    def of_replicas(self) -> Literal["mean", "sum"]:
        return "mean" if self.mean and self.running else "sum"


@dataclass(frozen=True)
class ScalarSource:
    """What a SCALAR variable is computed from: a formula of `graph/optimizer_spec.py` and a parameter group."""

    formula: str
    group: int


@dataclass
class Variable:
    """A value that outlives a micro-batch: parameter, buffer, constant, state or scalar."""

    name: str
    role: Role
    shape: tuple[int, ...]
    dtype: torch.dtype
    """The device's dtype; the host's `tensor` may be wider (float64, int64)."""
    tensor: Optional[torch.Tensor] = None
    """The host's value. None for states, and for everything on the null device.
    With `groups`, its first dimension counts the groups and is not part of `shape`."""
    requires_grad: bool = False
    groups: Optional[ReplicaGroups] = None
    fill: float = 0.0
    """First value of a state, or the value of a scalar."""
    initial: Optional[tuple[str, float]] = None
    """A state that starts as (parameter's name, factor) x that parameter, plus `fill`."""


@dataclass(frozen=True)
class IpuOp:
    """An operator that ATen lacks: the target of a `call_function` node.

    `infer` computes fake outputs from fake inputs.  `mutates` lists the arguments (variables, or
    earlier new values of one) that the operator overwrites; the node's value is the first one's new value.
    `effect` marks operators that must stay though nothing reads their result.
    """

    name: str
    infer: Callable[..., Any] = field(repr=False, compare=False)
    mutates: tuple[int, ...] = ()
    effect: bool = False

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"{self.name} is executed by the runtime, not called")


@dataclass(frozen=True)
class InputSpec:
    """One tensor the user passes in: its micro-batch shape and the dtypes on host and device."""

    name: str
    shape: tuple[int, ...]
    host_dtype: torch.dtype
    dtype: torch.dtype
    batched: bool = True
    """False where the tensor is the same for all micro-batches (a 0-dimensional one)."""


@dataclass(frozen=True)
class OutputSpec:
    """What one entry of the output tuple is, in the output node's order."""

    name: str
    kind: Literal["result", "anchor", "input_update"]
    """`input_update`: the new value of user input `index`, which the program wrote in place."""
    index: int = 0
    """`result`: position among the user's flat outputs."""
    mode: Optional[str] = None
    """`anchor`: its own output mode ("all", "final", "sum", "every_n")."""
    period: int = 1


@dataclass(frozen=True)
class OperatorSummary:
    """An operator that a pattern removed or added, as PopART has it."""

    type: str
    inputs: tuple[tuple[int, ...], ...]
    """Shapes of its inputs."""
    output: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class PatternChange:
    """One application of a custom-op pattern."""

    pattern: str
    matched: str
    """PopART's type of the operator it matched."""
    module: str
    removed: tuple[OperatorSummary, ...]
    added: tuple[OperatorSummary, ...]


@dataclass
class Subgraph:
    """The body of a loop or a branch: placeholders are the call's tensor arguments, in order."""

    name: str
    graph: fx.Graph

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def results(self) -> tuple[fx.Node, ...]:
        return output_node(self.graph).args[0]  # type: ignore[return-value]


@dataclass
class Program:
    """A graph with its tables.  Passes and patterns edit it through these methods only."""

    graph: fx.Graph
    fake_mode: FakeTensorMode
    variables: dict[str, Variable] = field(default_factory=dict)
    inputs: list[InputSpec] = field(default_factory=list)
    outputs: list[OutputSpec] = field(default_factory=list)
    training: bool = False
    module_scopes: bool = True
    """Whether tensors have the modules that made them in their names."""
    loss: Optional[fx.Node] = None
    tensor_names: dict[str, fx.Node] = field(default_factory=dict)
    """PopTorch's tensor names (`Gradient___...` included), for anchors and `getTensorNames`."""
    reduction: Reduction = field(default_factory=Reduction)
    scalars: dict[str, ScalarSource] = field(default_factory=dict)
    """What each SCALAR variable is computed from."""
    pattern_changes: list[PatternChange] = field(default_factory=list)
    """What the patterns of loaded custom-op libraries did."""
    _successors: dict[fx.Node, fx.Node] = field(default_factory=dict, repr=False)
    _variable_nodes: dict[str, fx.Node] = field(default_factory=dict, repr=False)
    _last_placeholder: Optional[fx.Node] = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._inference = ShapeInference(self.fake_mode)

    # -- reading -------------------------------------------------------------------------------

    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def operators(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "call_function"]

    @property
    def output(self) -> fx.Node:
        return output_node(self.graph)

    def results(self) -> tuple[fx.Node, ...]:
        """The output tuple's nodes, one per entry of `outputs`."""
        return self.output.args[0]  # type: ignore[return-value]

    def variable_of(self, node: fx.Node) -> Optional[Variable]:
        """The variable a node is a value of: a placeholder, or an in-place operator's result."""
        while node.op == "call_function":
            if not mutated(node):
                return None
            node = node.args[mutated(node)[0]]  # type: ignore[assignment]
        name = node.meta.get("variable")
        return self.variables[name] if name is not None else None

    def placeholder_of(self, variable: str) -> Optional[fx.Node]:
        """The placeholder of a variable, None where the program does not use it."""
        return self._variable_nodes.get(variable)

    # -- editing -------------------------------------------------------------------------------

    def add_variable(self, variable: Variable) -> fx.Node:
        """Enter a variable with its placeholder, after the last placeholder of the graph."""
        if variable.name in self.variables:
            raise ValueError(f"variable {variable.name} is already in the program")
        self.variables[variable.name] = variable
        node = self._placeholder(variable.name, variable.shape, variable.dtype)
        node.meta["variable"] = variable.name
        self._variable_nodes[variable.name] = node
        return node

    def add_input(self, spec: InputSpec) -> fx.Node:
        """Enter one user input with its placeholder."""
        self.inputs.append(spec)
        node = self._placeholder(spec.name, spec.shape, spec.dtype)
        node.meta["input"] = len(self.inputs) - 1
        return node

    def index_placeholders(self) -> None:
        """Take note of the placeholders of a graph that was not built by these methods."""
        for node in self.placeholders():
            self._last_placeholder = node
            if "variable" in node.meta:
                self._variable_nodes[node.meta["variable"]] = node

    def _placeholder(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
        last = self._last_placeholder or self.graph._root
        with self.graph.inserting_after(last):
            node = self.graph.placeholder(name)
        node.meta["val"] = self._inference.empty(shape, dtype)
        self._last_placeholder = node
        return node

    @contextmanager
    def before(self, node: Optional[fx.Node]) -> Iterator[None]:
        """Emit nodes before `node`; at the graph's end where it is None."""
        with self.graph.inserting_before(node or self.graph._root):
            yield

    @contextmanager
    def after(self, node: fx.Node) -> Iterator[None]:
        """Emit nodes, in the order they are written, right after `node`."""
        with self.before(node.next):
            yield

    def emit(
        self,
        target: Target,
        *args: Any,
        origin: Optional[fx.Node] = None,
        meta: Optional[Mapping[str, Any]] = None,
        **kwargs: Any,
    ) -> fx.Node:
        """Append an operator at the current place, its fake value inferred.

        `origin` gives placement, module, source, pass and context; `meta` adds to them and wins.
        """
        node = self.graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
        if origin is not None:
            node.meta.update({key: origin.meta[key] for key in ORIGIN if key in origin.meta})
        node.meta.update(meta or {})
        if "val" not in node.meta:
            node.meta["val"] = self._inference.of(node)
        return node

    def infer(self, node: fx.Node) -> Any:
        """The fake value of a node that was emitted by other means than `emit`."""
        return self._inference.of(node)

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let every reader of `old`, the tables included, read `new`; `old` is erased."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        for name, node in self.tensor_names.items():
            if node is old:
                self.tensor_names[name] = new
        if self.loss is old:
            self.loss = new
        self._successors[old] = new
        self.erase(old)

    def latest(self, node: fx.Node) -> fx.Node:
        """What took the place of a node, if anything did."""
        while node in self._successors:
            node = self._successors[node]
        return node

    def move_to_end(self, node: fx.Node) -> None:
        """Let a node run after all others that are there."""
        self.output.prepend(node)

    def set_results(self, nodes: Sequence[fx.Node]) -> None:
        """Change the output tuple; `outputs` must fit it again when editing is done."""
        self.output.args = (tuple(nodes),)

    def erase(self, node: fx.Node) -> None:
        """Remove a node nothing reads."""
        for name in [name for name, named in self.tensor_names.items() if named is node]:
            del self.tensor_names[name]
        self.graph.erase_node(node)

    def prune(self) -> None:
        """Remove operators whose result nothing reads, as PopART's Prune transform does."""
        for node in reversed(self.operators()):
            if not node.users and not has_effect(node):
                self.erase(node)

    # -- checking ------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check the contract; a failure is a pass's mistake, not the user's."""
        self.graph.lint()
        for node in self.placeholders():
            name = node.meta.get("variable")
            assert (name in self.variables) != ("input" in node.meta), f"{node} is neither input nor variable"
        overwritten: dict[fx.Node, fx.Node] = {}
        for node in self.operators():
            assert "val" in node.meta, f"{node} has no inferred value"
            _check_functional(node)
            for read in node.all_input_nodes:
                assert read not in overwritten, f"{node} reads {read}, which {overwritten[read]} overwrote"
            for position in mutated(node):
                written = node.args[position]
                assert isinstance(written, fx.Node), f"{node} must write to a node"
                assert self.variable_of(written) is not None, f"{node} writes to {written}, no variable"
                overwritten[written] = node
        assert len(self.results()) == len(self.outputs), "one OutputSpec per output"


def output_node(graph: fx.Graph) -> fx.Node:
    """The graph's output node, which is its last."""
    node = graph._root.prev
    assert node.op == "output", "the graph has no output yet"
    return node


def is_outer(node: fx.Node) -> bool:
    """Whether a node runs once per weight update, after the last micro-batch."""
    return node.meta.get("context") == "outer"


def mutated(node: fx.Node) -> tuple[int, ...]:
    """Positions of the arguments that a node overwrites."""
    return node.target.mutates if isinstance(node.target, IpuOp) else ()


def has_effect(node: fx.Node) -> bool:
    """Whether a node must stay though nothing reads it."""
    return isinstance(node.target, IpuOp) and (bool(node.target.mutates) or node.target.effect)


def computed_from(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Everything that the nodes are computed from, and the nodes."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def fake_arguments(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments with every node replaced by its fake value."""
    args = fx.map_arg(node.args, lambda n: n.meta["val"])
    kwargs = fx.map_arg(node.kwargs, lambda n: n.meta["val"])
    return args, kwargs  # type: ignore[return-value]


class ShapeInference:
    """Shapes and dtypes of nodes, as fake tensors. It remembers: the layers of a model repeat each other's shapes."""

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        self._fake_mode = fake_mode
        self._known: dict[Any, Any] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        key = (tuple(shape), dtype)
        if key not in self._known:
            with self._fake_mode:
                self._known[key] = torch.empty(shape, dtype=dtype, device="cpu")
        return self._known[key]  # type: ignore[no-any-return]

    def of(self, node: fx.Node) -> Any:
        """The fake value of a node, by its target and its arguments' shapes, dtypes and constants."""
        try:
            key = (node.target, _signature(node.args), _signature(node.kwargs))
            hash(key)
        except TypeError:
            return infer(node, self._fake_mode)
        if key not in self._known:
            self._known[key] = infer(node, self._fake_mode)
        return self._known[key]


def _signature(argument: Any) -> Any:
    """An argument as a key: equal for arguments that infer the same."""
    if isinstance(argument, fx.Node):
        return _signature(argument.meta["val"])
    if isinstance(argument, torch.Tensor):
        return (argument.shape, argument.dtype)
    if isinstance(argument, (tuple, list)):
        return tuple(_signature(element) for element in argument)
    if isinstance(argument, dict):
        return tuple((key, _signature(value)) for key, value in argument.items())
    return (type(argument), argument)


def infer(node: fx.Node, fake_mode: FakeTensorMode) -> Any:
    """The fake value of a node, computed from its arguments' fake values."""
    args, kwargs = fake_arguments(node)
    target = node.target.infer if isinstance(node.target, IpuOp) else node.target
    with fake_mode, torch.no_grad():
        if target in INT64_INDEX:
            args = tuple(widen(argument) for argument in args)
        return tree_map_only(torch.Tensor, _narrowed, target(*args, **kwargs))  # type: ignore[operator]


def widen(argument: Any) -> Any:
    """An index as ATen's indexing operators want it."""
    is_index = isinstance(argument, torch.Tensor) and argument.dtype == torch.int32
    return argument.to(torch.int64) if is_index else argument


def _narrowed(value: torch.Tensor) -> torch.Tensor:
    """A fake value in the dtype that the device has for it."""
    dtype = device_dtype(value.dtype)
    return value if dtype == value.dtype else value.to(dtype)


def _check_functional(node: fx.Node) -> None:
    if isinstance(node.target, IpuOp):
        return
    if node.target is operator.getitem:
        return
    assert isinstance(node.target, torch._ops.OpOverload), f"{node} calls {node.target}"
    assert not node.target._schema.is_mutable, f"{node} calls {node.target}, which writes in place"
