"""Runs the patterns of loaded custom-op libraries on a program, and takes their edits over into it.

The program is mirrored operator by operator, as PopART would have it (`graph/pattern_ops.py`). The C++ patterns edit
the mirror, and the difference is applied to the program: identities disappear, inserted operators become `pattern_op`
or, where they change a variable, `pattern_update`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from bert_ipu.simulator.custom_ops import CompiledOp, CustomOpError, registered_patterns
from bert_ipu.simulator.graph import ops
from bert_ipu.simulator.graph.ir import OperatorSummary, Pass, PatternChange, Program, Role, is_outer
from bert_ipu.simulator.graph.pattern_ops import ACCUMULATIONS, VIEWS, appearance, operands
from bert_ipu.simulator.native.patterns import PatternEdit, PatternGraph, PatternOp, TensorKind

aten = torch.ops.aten

_KINDS: dict[Role, TensorKind] = {
    Role.PARAMETER: "variable",
    Role.BUFFER: "variable",
    Role.STATE: "variable",
    Role.CONSTANT: "constant",
    Role.SCALAR: "stream",
}
_LEVELS = {0: False, 1: False, 3: True}
"""Whether a pattern that is not named is on, by PopART's level; level 2 leaves it at its own default."""


@dataclass(frozen=True)
class PatternPass:
    """What `CompileRequest.patterns` calls at PopART's three places."""

    switches: Mapping[str, bool] = field(default_factory=dict)
    """Patterns by name, on or off; those that no library registered are PopART's own, and passed over."""
    level: int = 2

    def __call__(self, program: Program, after: Pass) -> None:
        """Run all enabled patterns to a fixed point; raises CustomOpError for an edit that cannot be made."""
        registered = registered_patterns()
        if not registered:
            return
        settings = dict.fromkeys(registered, _LEVELS[self.level]) if self.level in _LEVELS else {}
        settings |= {name: on for name, on in self.switches.items() if name in registered}
        if not any((registered | settings).values()):
            return
        mirror = _Mirror(program)
        edits = mirror.graph.run_patterns(after, settings)
        if edits:
            program.pattern_changes.extend(_summaries(mirror, edits))
            _Application(mirror, edits).run()


class _Mirror:
    """A program as a `PatternGraph`, and which node is which operator and tensor there."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = PatternGraph(
            training=program.training, gradient_accumulation=program.reduction.accumulation
        )
        self.tensors: dict[fx.Node, str] = {}
        """The tensor that each node's value is there, by its id."""
        self.values: dict[str, fx.Node] = {}
        """The node whose value each tensor is."""
        self.nodes: dict[int, fx.Node] = {}
        """The node that each operator stands for, by the operator's id."""
        self.slots: dict[int, tuple[int, ...]] = {}
        """PopART's input indices of each operator's operands (`Appearance.slots`)."""
        self.roots: dict[fx.Node, fx.Node] = {}
        """What each view is a view of."""
        for node in program.graph.nodes:
            if node.op == "placeholder":
                self._add_placeholder(node)
            elif node.op == "call_function":
                self._add(node)
        read = {*program.results(), *([program.loss] if program.loss is not None else [])}
        unread = [node for node in program.operators() if not node.users]
        self.graph.set_anchors([self.tensors[node] for node in [*read, *unread] if node in self.tensors])

    def inputs_of(self, node: fx.Node, slots: tuple[int, ...]) -> dict[int, str]:
        """The tensors of an operator by PopART's index, a view's taken from where its chain begins."""
        read = (
            [self.roots.get(node, operand) for operand in operands(node)]
            if node in self.roots
            else operands(node)
        )
        return {slot: self.tensors[operand] for slot, operand in zip(slots, read, strict=True) if slot >= 0}

    def _add_placeholder(self, node: fx.Node) -> None:
        variable = self.program.variable_of(node)
        self._add_tensor(node, node.name, "stream" if variable is None else _KINDS[variable.role])

    def _add_tensor(self, node: fx.Node, tensor_id: str, kind: TensorKind = "activation") -> None:
        value = node.meta["val"]
        self.graph.add_tensor(tensor_id, kind, value.shape, value.dtype)
        self.tensors[node] = tensor_id
        self.values[tensor_id] = node

    def _add(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            tensor_id = f"{node.args[0]}:{node.args[1]}"
            self.tensors[node] = tensor_id
            self.values.setdefault(tensor_id, node)
            return
        if node.target in VIEWS:
            source: Any = node.args[0]
            self.roots[node] = self.roots.get(source, source)
        seen = appearance(node)
        inputs = self.inputs_of(node, seen.slots)
        made = self.graph.add_op(
            seen.type, inputs, self._add_outputs(node), seen.attributes,
            domain=seen.domain, version=seen.version, name=node.name,
        )  # fmt: skip
        self.nodes[made] = node
        self.slots[made] = seen.slots

    def _add_outputs(self, node: fx.Node) -> dict[int, str]:
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            self._add_tensor(node, node.name)
            return {0: node.name}
        outputs = {i: f"{node}:{i}" for i, entry in enumerate(value) if isinstance(entry, torch.Tensor)}
        for index, tensor_id in outputs.items():
            self.graph.add_tensor(tensor_id, "activation", value[index].shape, value[index].dtype)
        return outputs


class _Application:
    """Makes a program what its `PatternGraph` has become."""

    def __init__(self, mirror: _Mirror, edits: list[PatternEdit]) -> None:
        self.mirror, self.program = mirror, mirror.program
        self.edits = edits
        self.final = mirror.graph.ops()
        """The operators as the patterns left them, in order."""
        self.values = dict(mirror.values)
        """The node that provides each tensor by now."""
        self.position = {node: index for index, node in enumerate(self.program.graph.nodes)}

    def run(self) -> None:
        """Insert and rewire in the order of execution, then remove."""
        for op in self.final:
            if op.id in self.mirror.nodes:
                self._rewire(op)
            elif op.type == "Identity":
                self._pass_through(op)
            else:
                self._insert(op)
        kept = {op.id for op in self.final}
        removed = [node for op_id, node in self.mirror.nodes.items() if op_id not in kept]
        for node in sorted(removed, key=self.position.__getitem__, reverse=True):
            if node in self.program.graph.nodes:
                self._erase(node)

    def _blame(self) -> str:
        return f"pattern {', '.join(sorted({edit.pattern for edit in self.edits}))}"

    def _rewire(self, op: PatternOp) -> None:
        """Let an operator read what the patterns connected to it."""
        node, slots = self.mirror.nodes[op.id], self.mirror.slots[op.id]
        is_view = node in self.mirror.roots
        if is_view and self.mirror.inputs_of(node, slots)[0] == op.inputs.get(0):
            return  # Its chain of views starts from the same tensor as before.
        changed: list[fx.Node] = []
        for slot, operand in zip(slots, operands(node), strict=True):
            if slot >= 0 and slot not in op.inputs:
                raise CustomOpError(f"{self._blame()} disconnected input {slot} of {op.type} ({node})")
            same = slot < 0 or self.mirror.tensors.get(operand) == op.inputs[slot]
            changed.append(operand if same else self.values[op.inputs[slot]])
        if is_view and self.mirror.roots[node] is not node.args[0]:
            raise CustomOpError(f"{self._blame()} reconnects {op.type} ({node}), a view of a view")
        replacements = iter(changed)
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lambda _: next(replacements))

    def _pass_through(self, op: PatternOp) -> None:
        """An identity needs no operator: its readers read what it reads."""
        value = self.values[op.inputs[0]]
        if self.program.variable_of(value) is not None:  # A later operator may overwrite it.
            place = self._place(op)
            with self.program.before(place):
                value = self.program.emit(aten.clone.default, value, origin=place)
        self._provide(op.outputs[0], value)

    def _insert(self, op: PatternOp) -> None:
        """Enter an operator that the patterns made."""
        compiled = self.mirror.graph.compile(op.id)
        place = self._place(op)
        if op.outer and self.program.training and not is_outer(place):
            self._update_after_micro_batches(op, compiled, place)
            return
        inputs = [self._readable(self.values[op.inputs[slot]], is_outer(place)) for slot in sorted(op.inputs)]
        with self.program.before(place):
            if compiled.updates and self.program.variable_of(inputs[0]) is not None:
                if compiled.updates != {0: 0}:
                    raise CustomOpError(f"{self._blame()}: {op.type} changes other inputs than its first")
                self._provide(op.outputs[0], self._emit_update(op, compiled, inputs, place, {}))
                return
            made = self._emit(compiled, inputs, place)
            for index, tensor_id in op.outputs.items():
                item = self.program.emit(operator.getitem, made, index, origin=place)  # type: ignore[arg-type]
                self._provide(tensor_id, item)

    def _update_after_micro_batches(self, op: PatternOp, compiled: CompiledOp, place: fx.Node) -> None:
        """Insert what changes a variable once per weight update, at the end of all that is there yet."""
        inputs = [self._readable(self.values[op.inputs[slot]], outer=True) for slot in sorted(op.inputs)]
        if compiled.updates != {0: 0} or self.program.variable_of(inputs[0]) is None:
            raise CustomOpError(
                f"{self._blame()}: {op.type} is to run after the micro-batches (AccumulateOuterFragment) and does "
                "not change a variable, its first input, which is all that the simulator runs there"
            )
        meta = {"pass": "optimizer", "context": "outer"}
        with self.program.before(self.program.output):
            made = self._emit_update(op, compiled, inputs, place, meta)
        self._provide(op.outputs[0], made)
        for reader in made.users:
            if not is_outer(reader):
                raise CustomOpError(
                    f"{self._blame()}: {reader} reads the result of {op.type}, which runs after the micro-batches"
                )

    def _emit_update(
        self, op: PatternOp, compiled: CompiledOp, inputs: list[fx.Node], place: fx.Node, meta: dict[str, str]
    ) -> fx.Node:
        """What changes a variable: PopART's own Accumulate, or an operator that brings its code."""
        if op.type != "Accumulate":
            return self.program.emit(ops.pattern_update, *inputs, origin=place, meta=meta, compiled=compiled)
        wanted = op.attributes["accumulation_type"]
        kind = next((kind for kind, name in ACCUMULATIONS.items() if name == wanted), None)
        if kind is None:
            raise CustomOpError(f"{self._blame()}: accumulation of type {wanted} is not built")
        factor = () if len(inputs) > 2 else (float(op.attributes["factor"]),)
        return self.program.emit(ops.accumulate, *inputs, *factor, origin=place, meta=meta, kind=kind)

    def _readable(self, value: fx.Node, outer: bool) -> fx.Node:
        """A value where it is read: the weight update reads what micro-batches computed, not what they read."""
        if not outer or "input" not in value.meta:
            return value
        with self.program.before(self.program.operators()[0]):
            return self.program.emit(aten.clone.default, value, meta={"pass": "forward", "context": "normal"})

    def _emit(self, compiled: CompiledOp, inputs: list[fx.Node], place: fx.Node) -> fx.Node:
        outputs = tuple((tuple(spec.shape), spec.dtype) for spec in compiled.output_specs)
        return self.program.emit(ops.pattern_op, *inputs, origin=place, compiled=compiled, outputs=outputs)

    def _provide(self, tensor_id: str, value: fx.Node) -> None:
        """Let a tensor be computed by `value`, whatever computed it before."""
        old = self.values.get(tensor_id)
        self.values[tensor_id] = value
        if old is not None:
            self.mirror.tensors.setdefault(value, tensor_id)
            self.program.replace(old, value)

    def _place(self, op: PatternOp) -> fx.Node:
        """Where a new operator runs: in place of what made its output, else just before its first reader."""
        replaced = [self.values[tensor] for tensor in op.outputs.values() if tensor in self.values]
        if replaced:
            return replaced[0]
        made = set(op.outputs.values())
        readers = [other for other in self.final if made & set(other.inputs.values())]
        places = [self.mirror.nodes[r.id] if r.id in self.mirror.nodes else self._place(r) for r in readers]
        return min(places, key=lambda node: self.position.get(node, len(self.position)))

    def _erase(self, node: fx.Node) -> None:
        """Remove an operator that no pattern kept, and views of it that nothing reads."""
        for user in list(node.users):
            if user.target in VIEWS or user.target is operator.getitem:
                self._erase(user)
        if node.users:
            readers = ", ".join(str(user) for user in node.users)
            raise CustomOpError(f"{self._blame()} removed {node}, which {readers} read")
        self.program.erase(node)


def _summaries(mirror: _Mirror, edits: list[PatternEdit]) -> list[PatternChange]:
    """What each application of a pattern removed and added."""
    known = {op_id: _of_node(appearance(node).type, node) for op_id, node in mirror.nodes.items()}
    tensors = mirror.graph.tensors()
    for op in mirror.graph.ops():
        if op.id not in known:
            shapes = tuple(tensors[tensor].shape for _, tensor in sorted(op.inputs.items()))
            first = tensors[op.outputs[0]]
            known[op.id] = OperatorSummary(op.type, shapes, first.shape, first.dtype)
    changes = []
    for edit in edits:
        node = mirror.nodes.get(edit.matched)
        where = "" if node is None else str(node.meta.get("module", ""))
        removed = tuple(known[op_id] for op_id in edit.removed if op_id in known)
        added = tuple(known[op_id] for op_id in edit.added if op_id in known)
        changes.append(PatternChange(edit.pattern, edit.matched_type, where, removed, added))
    return changes


def _of_node(op_type: str, node: fx.Node) -> OperatorSummary:
    values = [operand.meta["val"] for operand in operands(node)]
    shapes = tuple(tuple(value.shape) for value in values if isinstance(value, torch.Tensor))
    value = node.meta["val"]
    first = value if isinstance(value, torch.Tensor) else value[0]
    return OperatorSummary(op_type, shapes, tuple(first.shape), first.dtype)
