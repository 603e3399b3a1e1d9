"""A compiled program with the structure of what its forward returned: what executable files hold."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..compiler import optimizer_scalars
from ..executables import container
from ..executables.container import Contents, UnusableFile
from ..executables.serialization import read_program, write_program
from ..executables.structures import read_structure, write_structure
from ..graph.ir import Program

_CONSTANT, _KEPT = "constant:", "kept:"
"""What the names of a file's tensors begin with: constants of the program, and tensors returned as they were."""


@dataclass(frozen=True)
class CapturedProgram:
    """The program, and what the forward returned, with tensors without data where the program's results go."""

    program: Program
    outputs: Any


def is_placeholder(tensor: torch.Tensor) -> bool:
    """Whether a tensor of `CapturedProgram.outputs` stands for a result of the program."""
    return tensor.device.type == "meta"


def write_captured(captured: CapturedProgram) -> Contents:
    """The contents of a file. Raises NotSerializable."""
    document, constants = write_program(captured.program)
    kept: dict[str, torch.Tensor] = {}
    outputs = write_structure(captured.outputs, is_placeholder, kept)
    return Contents(
        headers={},
        documents={"program": container.as_json(document), "outputs": container.as_json(outputs)},
        tensors={
            **{_CONSTANT + name: tensor for name, tensor in constants.items()},
            **{_KEPT + name: tensor for name, tensor in kept.items()},
        },
    )


def read_captured(
    contents: Contents, named: Mapping[str, torch.Tensor], optimizer: Mapping[str, Any]
) -> CapturedProgram:
    """The program of a file, for a model with the parameters and buffers `named` and an optimizer's description.

    Raises UnusableFile.
    """
    try:
        with _collector_paused():
            document = json.loads(contents.documents["program"])
            program = read_program(document, _tensors(contents, _CONSTANT), named)
        outputs = read_structure(json.loads(contents.documents["outputs"]), _tensors(contents, _KEPT))
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UnusableFile(f"its program cannot be read ({type(error).__name__}: {error})") from error
    if program.scalars:
        for name, value in optimizer_scalars(program, optimizer).items():
            program.variables[name].fill = value
    return CapturedProgram(program, outputs)


def _tensors(contents: Contents, prefix: str) -> dict[str, torch.Tensor]:
    found = contents.tensors.items()
    return {name.removeprefix(prefix): tensor for name, tensor in found if name.startswith(prefix)}


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without garbage collection, which would spend most of the time looking through thousands of new objects."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
