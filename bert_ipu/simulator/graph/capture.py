"""Capture: the user's forward, entered once with tensors that record what is done to them.

How, and why so: `docs/decisions/001-graph.md`.  A tensor the user sees is a `CapturedTensor`: it has the
dtype and shape their code expects and the device `ipu:0`, but no data.  Tensors on the CPU stay ordinary.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import limits, normalise, ops, value_reads
from bert_ipu.simulator.graph.aliases import View, ViewStep
from bert_ipu.simulator.graph.captured_tensor import CPU, CapturedTensor, left_on_cpu
from bert_ipu.simulator.graph.handlers import HANDLERS
from bert_ipu.simulator.graph.ir import InputSpec, IpuOp, Program, Role, Variable
from bert_ipu.simulator.graph.recorder import NodeRecorder
from bert_ipu.simulator.graph.rewrites import REWRITES
from bert_ipu.simulator.graph.sources import describe

aten = torch.ops.aten

# torch's own book-keeping of views, which refuses a view that is its base (`x[:]`);
# `graph/aliases.py` keeps ours.
_VIEW_TRACKING = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)

_INFERENCE_LOG = logging.getLogger("torch._subclasses.fake_tensor")
"""Where torch writes a traceback of its own insides for every operator whose operands do not fit each other."""

_current: ContextVar[Optional[Capture]] = ContextVar("capture", default=None)


def current() -> Optional[Capture]:
    """The capture in progress in this context; None outside a compile."""
    return _current.get()


@contextmanager
def suspended() -> Iterator[None]:
    """What is called inside runs on the host, on real tensors, as if nothing were being captured."""
    token = _current.set(None)
    try:
        with _disable_current_modes():
            yield
    finally:
        _current.reset(token)


@dataclass
class _Declared:
    """A parameter or buffer of the model; entered into the program when the forward first reaches it."""

    variable: Variable
    captured: Optional[CapturedTensor] = None


class _CaptureMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operator the user's code calls to the capture."""

    def __init__(self, capture: Capture) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capture = capture

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Optional[dict[str, Any]] = None,
    ) -> Any:
        return self.capture.dispatch(func, args, kwargs or {})


class Capture:
    """Builds the forward of a `Program` from what the user's code calls.

    Inside `recording()` an operator comes in by one of three ways, each of which ends in a node:
    `dispatch` takes torch's operators, and `record` enters those that no handler treats otherwise;
    `emit` takes operators that only the IPU has, from PopTorch's functions;
    `recorder.record_node` takes nodes, where `aliases.py` derives a view or the value that a write leaves.
    """

    def __init__(
        self, program: Program, modules: Mapping[int, str], strided_channel_groups: bool = False
    ) -> None:
        """`modules` names the user's modules by identity, for messages."""
        self.program = program
        self.strided_channel_groups = strided_channel_groups
        """Group normalisation takes its groups of channels with a stride, as PopART can be told to."""
        self.recorder = NodeRecorder(program, modules)
        self._declared: dict[int, _Declared] = {}
        """The model's parameters and buffers, by the identity of their tensors."""
        self._inputs: list[CapturedTensor] = []
        self._updates: dict[str, fx.Node] = {}
        """New values of variables that only the next run sees."""
        self.decomposing: Optional[OpOverload] = None
        """The outermost of the composite operators inside which this is: torch's C++ takes captured tensors for ones on
        the CPU there."""
        self._cpu_means_constant = False
        """Such an operator was given no tensor on the CPU: those that it makes there are constants of the program."""
        self._mode = _CaptureMode(self)

    # -- what is captured ------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Everything called inside is captured."""
        token = _current.set(self)
        logs, _INFERENCE_LOG.disabled = _INFERENCE_LOG.disabled, True
        try:
            with (
                torch._C._AutoDispatchBelowAutograd(),
                torch._C._ExcludeDispatchKeyGuard(_VIEW_TRACKING),
                self._mode,
            ):
                yield
        finally:
            _INFERENCE_LOG.disabled = logs
            _current.reset(token)

    def declare(self, variables: Iterable[Variable]) -> None:
        """Make the model's parameters and buffers known; those that the forward reaches become placeholders."""
        for variable in variables:
            self._declared[id(variable.tensor)] = _Declared(variable)

    def declares(self, tensor: Any) -> bool:
        """Whether a tensor is one of the model's parameters and buffers."""
        return id(tensor) in self._declared

    def as_given(self, tensor: CapturedTensor) -> torch.Tensor:
        """The parameter or buffer that a captured tensor stands for, as modules keep it; else the tensor itself."""
        owner = tensor.shown.storage.owner
        given = self.program.variables[owner].tensor if isinstance(owner, str) else None
        return given if given is not None and self.recognise(given) is tensor else tensor

    def input(self, spec: InputSpec) -> CapturedTensor:
        """A user input as the forward sees it: the host's dtype."""
        node = self.program.add_input(spec)
        made = self._wrap(self._fake(spec.shape, spec.host_dtype), View.whole(node, len(self._inputs)))
        self._inputs.append(made)
        return made

    # -- torch's operators -----------------------------------------------------------------------

    def dispatch(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run or record one operator the user's code calls."""
        args, kwargs = _map(args, self.recognise), _map(kwargs, self.recognise)
        if not self._concerns_ipu(args, kwargs):
            return func(*args, **kwargs)
        self.recorder.begin_operator()
        result = self._dispatch(func, args, kwargs)
        if func in normalise.LOSSES:
            self.node_of(result).meta["loss"] = True  # type: ignore[union-attr]
        return result

    def _dispatch(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first that applies: a handler, a rewrite by hand, a write, a composite's parts; else it is recorded."""
        limits.check(self, func, args, kwargs)
        handler = HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs)
        rewrite = REWRITES.get(func)
        if rewrite is not None:
            with self._mode:
                return rewrite(*args, **kwargs)
        if normalise.written_argument(func) is not None:
            return self._write(func, args, kwargs)
        if normalise.is_composite(func):
            return self.decompose(func, args, kwargs)
        return self.record(func, args, kwargs)

    def decompose(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a composite operator's parts instead of it."""
        outer = self.decomposing, self._cpu_means_constant
        self.decomposing = self.decomposing or func
        self._cpu_means_constant |= not any(_is_on_cpu(leaf) for leaf in _leaves((args, kwargs)))
        try:
            with self._mode:
                return func.decompose(*args, **kwargs)
        finally:
            self.decomposing, self._cpu_means_constant = outer

    def record(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Enter one functional operator; its results as the user's tensors."""
        args, kwargs = _map((args, kwargs), lambda leaf: self._operand(leaf, func))
        # `fakes` have the dtypes that the user's code sees, `value` those of the device.
        fakes = self._infer(func, _map(args, _to_fake), _map(kwargs, _to_fake))
        value = _map(fakes, self._device_value)
        nodes, options = _map(args, self._read), self._device_options(func, _map(kwargs, self._read), value)
        node = self.recorder.node(func, nodes, options)
        node.meta["val"] = value
        if normalise.is_random(func):
            self.recorder.number(node)
        return self._wrap_results(func, args, kwargs, node, fakes)

    def _infer(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        try:
            with self.program.fake_mode:
                return func(*args, **kwargs)
        except DynamicOutputShapeException as error:
            raise value_reads.dynamic_shape(func, self.recorder.origin) from error

    def _device_value(self, leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor):
            return leaf
        dtype = self.recorder.device_dtype(leaf.dtype)
        return leaf if dtype == leaf.dtype else self._fake(tuple(leaf.shape), dtype)

    def _device_options(self, func: OpOverload, kwargs: dict[str, Any], result: Any) -> dict[str, Any]:
        """Keyword arguments without those of the host; the dtype of what is made from nothing is explicit."""
        options = {key: value for key, value in kwargs.items() if key not in _HOST_OPTIONS}
        if "device" in kwargs and isinstance(result, torch.Tensor) and normalise.takes_dtype(func):
            options["dtype"] = result.dtype
        return options

    def _wrap_results(self, func: OpOverload, args: Any, kwargs: Any, node: fx.Node, fakes: Any) -> Any:
        if isinstance(fakes, FakeTensor):
            return self._wrap_result(func, args, kwargs, node, fakes, None)
        if not isinstance(fakes, (tuple, list)):
            return fakes
        made = []
        for index, fake in enumerate(fakes):
            item = self.recorder.node(operator.getitem, (node, index), {})
            item.meta["val"] = node.meta["val"][index]
            wrapped = (
                self._wrap_result(func, args, kwargs, item, fake, index)
                if isinstance(fake, FakeTensor)
                else fake
            )
            made.append(wrapped)
        return type(fakes)(made) if type(fakes) in (tuple, list) else tuple(made)

    def _wrap_result(
        self, func: OpOverload, args: Any, kwargs: Any, node: fx.Node, fake: FakeTensor, item: Optional[int]
    ) -> CapturedTensor:
        """One result; it shows the memory of the first operand where torch made it a view of that."""
        if 0 in fake.shape and item is None:  # Batch norm's unused statistics are empty.
            raise poptorch_error(
                f"Zero-sized tensors are unsupported (Got shape {list(fake.shape)}). It is the result of "
                f"{describe(func, self.recorder.origin)}."
            )
        parent = args[0] if args and isinstance(args[0], CapturedTensor) else None
        if parent is None or fake.untyped_storage()._cdata != parent.fake.untyped_storage()._cdata:
            return self._wrap(fake, View.whole(node))
        step = ViewStep(func, tuple(args[1:]), kwargs, tuple(parent.shape), item)
        return self._wrap(fake, parent.shown.derive(step, node))

    def _write(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An in-place or `out=` operator: its functional form, then the new value written back."""
        name = normalise.written_argument(func)
        if func._schema.name.removeprefix("aten::") in normalise.RESIZING:
            raise poptorch_error(
                f"{describe(func, self.recorder.origin)} changes a tensor's shape in place. Use its result instead."
            )
        functional = normalise.functional_form(func)
        if functional is None:
            raise poptorch_error(
                f"{describe(func, self.recorder.origin)} writes in place and has no functional form."
            )
        position = next(i for i, a in enumerate(func._schema.arguments) if a.name == name)
        target = kwargs.pop(name) if name in kwargs else args[position]
        if not isinstance(target, CapturedTensor):
            raise left_on_cpu(target, func, self.recorder.origin)
        if name == "out" and any(argument.name == "dtype" for argument in functional._schema.arguments):
            kwargs = {"dtype": target.dtype, **kwargs}  # As torch: it computes in the type of `out`.
        with self._mode:
            self.write(target, functional(*args, **kwargs))
        return target

    def write(self, target: CapturedTensor, value: CapturedTensor) -> None:
        """Make `value` the contents of `target`, as `copy_` does."""
        if value.dtype != target.dtype:
            value = self.record(aten._to_copy.default, (value,), {"dtype": target.dtype})
        if value.shape != target.shape:
            value = self.record(aten.expand.default, (value, list(target.shape)), {})
        gradients = torch.is_grad_enabled() or self.recorder.origin.in_function
        unrecorded = self.program.training and (target.shown.detached or not gradients)
        target.shown.write(self.recorder, self._read(value), unrecorded)

    def _concerns_ipu(self, args: Any, kwargs: Any) -> bool:
        return any(
            isinstance(leaf, CapturedTensor) or (isinstance(leaf, torch.device) and leaf.type == "ipu")
            for leaf in _leaves((args, kwargs))
        )

    # -- the IPU's own operators -----------------------------------------------------------------

    def emit(self, op: IpuOp, *args: Any, host_dtypes: tuple[torch.dtype, ...] = (), **kwargs: Any) -> Any:
        """Record one of the IPU's own operators on the user's tensors; its results as the user sees them.

        `host_dtypes`: the results' dtypes in the user's eyes, where the device's are narrower.
        """
        self.recorder.begin_operator()
        with torch._C.DisableTorchFunction():
            args = tuple(self._operand(argument) for argument in args)
            node = self.recorder.record_node(op, *_map(args, self._read), **_map(kwargs, self._read))
            if op is ops.custom_op:  # Its C++ may draw.
                self.recorder.number(node)
            return self._results(node, host_dtypes)

    def _results(self, node: fx.Node, host_dtypes: tuple[torch.dtype, ...]) -> Any:
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            dtype = host_dtypes[0] if host_dtypes else value.dtype
            return self._wrap(self._fake(tuple(value.shape), dtype), View.whole(node))
        items = [self.recorder.record_node(operator.getitem, node, index) for index in range(len(value))]
        return tuple(self._results(item, host_dtypes[i : i + 1]) for i, item in enumerate(items))

    def mark(self, tensor: Any, key: str, value: Any) -> None:
        """Attach a note to the operator that made a tensor: an entry of its `attrs`."""
        tensor = self.recognise(tensor)
        if isinstance(tensor, CapturedTensor):
            attributes = tensor.shown.read(self.recorder).meta.setdefault("attrs", {})
            attributes[key] = value

    # -- tensors ---------------------------------------------------------------------------------

    def recognise(self, leaf: Any) -> Any:
        """A parameter or buffer as the captured tensor it is; anything else as it came."""
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, CapturedTensor):
            return leaf
        declared = self._declared.get(id(leaf))
        if declared is None:
            return leaf
        if declared.captured is None:
            with torch._C.DisableTorchFunction():
                declared.captured = self._enter(leaf, declared.variable)
        return declared.captured

    def _enter(self, tensor: torch.Tensor, variable: Variable) -> CapturedTensor:
        node = self.program.add_variable(variable)
        return self._wrap(self._fake(variable.shape, tensor.dtype), View.whole(node, variable.name))

    def lift(self, tensor: torch.Tensor, dtype: Optional[torch.dtype] = None) -> CapturedTensor:
        """A tensor of the host as a constant of the program."""
        tensor = tensor if dtype is None else tensor.to(dtype)
        return self._wrap(
            self._fake(tuple(tensor.shape), tensor.dtype), View.whole(self.recorder.constant(tensor))
        )

    def _operand(self, leaf: Any, func: Optional[OpOverload] = None) -> Any:
        """An operand as a tensor of the program; raises Error for one that the user left on the CPU."""
        leaf = self.recognise(leaf)
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, CapturedTensor):
            return leaf
        is_number = leaf.dim() == 0 and func in normalise.ASSIGNMENTS  # `x[...] = 1`
        if self._cpu_means_constant or is_number:
            return self.lift(leaf)
        raise left_on_cpu(leaf, func, self.recorder.origin)

    def _read(self, leaf: Any) -> Any:
        """A captured tensor's node with its current value; dtypes as the device has them."""
        if isinstance(leaf, CapturedTensor):
            if leaf.capture is not self:
                raise poptorch_error(
                    "A tensor of an earlier compilation is used in this one: the model keeps it."
                )
            return leaf.shown.read(self.recorder)
        return self.recorder.device_dtype(leaf) if isinstance(leaf, torch.dtype) else leaf

    def new_tensor(self, node: fx.Node, dtype: torch.dtype) -> CapturedTensor:
        """A node's value as a tensor of the user, with memory of its own."""
        return self._wrap(self._fake(tuple(node.meta["val"].shape), dtype), View.whole(node))

    def copy_of(self, tensor: CapturedTensor) -> CapturedTensor:
        """A new tensor, with memory of its own, of the same value: values never change, so this takes no operator."""
        with self.program.fake_mode:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        return self._wrap(fake, View.whole(self._read(tensor)))  # type: ignore[arg-type]

    def _wrap(self, fake: FakeTensor, view: View) -> CapturedTensor:
        return CapturedTensor(fake, view, self)

    def _fake(self, shape: tuple[int, ...], dtype: torch.dtype) -> FakeTensor:
        with self.program.fake_mode:
            return torch.empty(shape, dtype=dtype, device="cpu")  # type: ignore[return-value]

    # -- what has been captured ------------------------------------------------------------------

    def node_of(self, tensor: Any) -> Optional[fx.Node]:
        """The node of a tensor's current value; None for what is not on the IPU."""
        tensor = self.recognise(tensor)
        return tensor.shown.read(self.recorder) if isinstance(tensor, CapturedTensor) else None

    def inputs_written(self) -> Iterator[tuple[int, fx.Node]]:
        """Which inputs the forward wrote in place, and their new values."""
        for index, tensor in enumerate(self._inputs):
            if tensor.shown.storage.version:
                yield index, tensor.shown.storage.node

    def variables_written(self) -> Iterator[tuple[str, fx.Node]]:
        """Which variables the forward wrote, and their new values."""
        yield from self.variables_written_in_place()
        yield from self._updates.items()

    def variables_written_in_place(self) -> Iterator[tuple[str, fx.Node]]:
        """Those that the forward's own code wrote; what it writes to a constant, the next run does not see."""
        for declared in self._declared.values():
            if declared.variable.role is Role.CONSTANT or declared.captured is None:
                continue
            if declared.captured.shown.storage.version:
                yield declared.variable.name, declared.captured.shown.storage.node

    def update_at_end(self, variable: CapturedTensor, value: CapturedTensor) -> None:
        """Give a variable a value that only the next run sees; nothing, for a tensor that is no variable.

        So PopART updates running statistics (`VariableUpdateType::Copy`).
        """
        owner = variable.shown.storage.owner
        if isinstance(owner, str):
            self._updates[owner] = self._read(value)

    def place(self) -> str:
        """Where the user's code is now, as messages have it."""
        return self.recorder.locate().place

    def module_depth(self) -> int:
        """How many modules the user's code is in now, the root not counted."""
        path = self.recorder.locate().module
        return len(path.split(".")) if path else 0


_HOST_OPTIONS = ("device", "pin_memory", "layout", "memory_format", "non_blocking")


def _map(tree: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of every leaf of tuples, lists and dicts; faster than a general pytree map."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([_map(leaf, function) for leaf in tree])
    if kind is dict:
        return {key: _map(leaf, function) for key, leaf in tree.items()}
    return function(tree)


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (tuple, list)):
        for leaf in tree:
            yield from _leaves(leaf)
    elif isinstance(tree, dict):
        yield from _leaves(list(tree.values()))
    else:
        yield tree


def _is_on_cpu(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and not isinstance(leaf, CapturedTensor)


def _to_fake(leaf: Any) -> Any:
    if isinstance(leaf, CapturedTensor):
        return leaf.fake
    return CPU if isinstance(leaf, torch.device) else leaf
