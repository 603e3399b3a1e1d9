"""The project's own ops, built once, and the graphs their patterns are tried on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from bert_ipu.simulator.custom_ops import load_library, registered_patterns
from bert_ipu.simulator.native.build import compile_library
from bert_ipu.simulator.native.patterns import PatternGraph

FOLDER = Path(__file__).resolve().parents[2] / "custom_ops"
STRICT = ("-std=c++14", "-Wall", "-Wextra", "-Werror")


@cache
def load_own(name: str) -> None:
    """Load one of the project's own ops, by the name of its folder.

    It is the very file a run of the program loads: an op of two libraries in one process would be two types.
    """
    load_library(compile_library([FOLDER / name / f"{name}.cpp"]))


def only(pattern: str) -> dict[str, bool]:
    """Switches that leave one pattern as it is and turn off what other tests of this process have loaded."""
    return {name: False for name in registered_patterns() if name != pattern}


class GraphBuilder:
    """Adds ops whose outputs are new tensors, so that a test reads like the graph it builds."""

    def __init__(self, *, training: bool = True) -> None:
        self.graph = PatternGraph(training=training, gradient_accumulation=4)

    def tensor(
        self, name: str, shape: tuple[int, ...], kind: str = "activation", dtype: torch.dtype = torch.float32
    ) -> str:
        self.graph.add_tensor(name, kind, shape, dtype)  # type: ignore[arg-type]
        return name

    def op(
        self, op_type: str, inputs: list[str], output: str, shape: tuple[int, ...], **attributes: object
    ) -> str:
        self.tensor(output, shape)
        self.graph.add_op(op_type, dict(enumerate(inputs)), {0: output}, attributes, name=f"op/{output}")
        return output

    def types(self) -> list[str]:
        return sorted(op.type for op in self.graph.ops())
