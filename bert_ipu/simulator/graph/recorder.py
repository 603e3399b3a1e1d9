"""Enters operators into the graph of a program, or of the loop or branch inside it that is being captured.

Each gets what the user has said of its place, and the line of their code that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph.annotations import Annotations
from bert_ipu.simulator.graph.dtypes import device_dtype
from bert_ipu.simulator.graph.ir import Program, Role, Variable
from bert_ipu.simulator.graph.sources import Origin, locate


class GraphBeingBuilt:
    """A graph, and for a body the placeholders of what it reads of the graph around it."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.imports: dict[fx.Node, fx.Node] = {}

    def placeholder(self, outer: fx.Node) -> fx.Node:
        """A new placeholder for a value of the graph around, after the last one."""
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), self.graph._root)
        with self.graph.inserting_before(first):
            made = self.graph.placeholder(outer.name)
        made.meta["val"] = outer.meta["val"]
        return made

    def imported(self, outer: fx.Node) -> fx.Node:
        if outer not in self.imports:
            self.imports[outer] = self.placeholder(outer)
        return self.imports[outer]


class NodeRecorder:
    """Makes the nodes of a forward, from nodes; what tensors they stand for is `Capture`'s to know."""

    def __init__(self, program: Program, modules: Mapping[int, str]) -> None:
        """`modules` names the user's modules by identity."""
        self.program = program
        self.annotations = Annotations()
        self.graphs = [GraphBeingBuilt(program.graph)]
        """The program's graph, and inside a loop or branch the bodies' up to the innermost."""
        self.origin = Origin("", None, False)
        """Where the operator that is being recorded was called."""
        self._modules = modules
        self._draws = 0
        """Operators so far that draw random numbers."""

    def locate(self) -> Origin:
        """Where the user's code is now."""
        return locate(self._modules)

    def begin_operator(self) -> None:
        """What is recorded from here on comes from where the user's code is now."""
        self.origin = self.locate()

    def record_node(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Record one operator on nodes; its value is inferred."""
        node = self.node(target, args, kwargs)
        node.meta["val"] = self.program.infer(node)
        return node

    def node(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """The same, of which the value is left to the caller."""
        args, kwargs = fx.map_arg((args, kwargs), self.visible)  # type: ignore[assignment]
        node = self.graphs[-1].graph.call_function(target, args, kwargs)
        node.meta.update(self.annotations.meta())
        node.meta.update({"module": self.origin.module, "source": self.origin.source})
        node.meta.update({"pass": "forward", "context": "normal"})
        if not torch.is_grad_enabled() and not self.origin.in_function:
            node.meta["no_grad"] = True
        return node

    def constant(self, tensor: torch.Tensor) -> fx.Node:
        """Enter a tensor of the host as a constant of the program."""
        dtype = self.device_dtype(tensor.dtype)
        count = sum(v.role is Role.CONSTANT for v in self.program.variables.values())
        value = tensor.detach().to(dtype).clone()
        return self.program.add_variable(
            Variable(f"constant_{count}", Role.CONSTANT, tuple(tensor.shape), dtype, value)
        )

    def number(self, node: fx.Node) -> None:
        """Give an operator that draws the number that its draws go by."""
        node.meta["random"] = self._draws
        self._draws += 1

    def visible(self, node: fx.Node) -> fx.Node:
        """A node of an outer graph as the innermost body's placeholder for it; its own nodes as they are."""
        level = next((i for i, built in enumerate(self.graphs) if built.graph is node.graph), None)
        if level is None:
            raise poptorch_error(
                "A tensor made or written inside the body of a loop or branch is used outside it "
                f"({self.origin.source}). Return it from the body."
            )
        for built in self.graphs[level + 1 :]:
            node = built.imported(node)
        return node

    def device_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that the device has for one of the host's. Raises Error, with the place, where it has none."""
        try:
            return device_dtype(dtype)
        except TypeError as error:
            raise poptorch_error(f"{error} ({self.origin.source}).") from error
