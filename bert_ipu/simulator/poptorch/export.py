"""Files of compiled models: `save`, `loadExecutable`, `load`.

A file holds the compiled program and the inputs it was compiled for (`executables/container.py`).  With
`export_model` it also holds the model, its optimizer and its options as a pickle, which only `load` opens.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import poptorch_error
from ..executables import container
from ..executables.container import Contents, UnusableFile
from ..executables.fingerprint import NoFingerprint
from ..executables.serialization import NotSerializable
from ..executables.structures import read_structure, write_structure
from . import compilation, wrapping
from ._logging import logger
from .arguments import Arguments
from .captured_program import CapturedProgram, write_captured
from .compile_request import Subject
from .enums import ConnectionType
from .options import Options


@dataclass
class SavedModel:
    """The pickled part of a file: what `load` makes an executor of."""

    training: bool
    options: Options
    model: Any
    optimizer: torch.optim.Optimizer | None
    optimizer_state: dict[str, Any] | None


@dataclass(frozen=True)
class Saved:
    """All that goes into a file."""

    version: str
    captured: CapturedProgram
    subject: Subject
    """What the program was compiled from; a file is only loaded for a model that fits it."""
    inputs: Arguments
    """Those of the call that compiled the program."""
    model: SavedModel | None
    rng_state: list[int] | None


def save(filename: str, saved: Saved) -> None:
    """Write a file; a folder gets a file `model.poptorch`. Raises Error where it cannot be written, or pickled."""
    if os.path.isdir(filename):
        folder, filename = filename, os.path.join(filename, "model.poptorch")
        logger.warning("save(): %s is a folder; the model goes to %s", folder, filename)
    folder = os.path.dirname(os.path.abspath(filename))
    assert not os.path.exists(folder) or os.path.isdir(folder), f"save(): {folder} is a file, not a folder"
    contents = _program(saved)
    contents.headers["version"] = saved.version
    contents.documents.update(_inputs_document(saved.inputs))
    if saved.model is not None:
        contents.documents["model"] = _pickled(saved.model)
    if saved.rng_state is not None:
        contents.headers["rng_state"] = json.dumps(saved.rng_state)
    try:
        os.makedirs(folder, exist_ok=True)
        container.write(Path(filename), contents)
    except OSError as error:
        raise poptorch_error(f"save(): {filename} cannot be written: {error.strerror}.") from error


def _pickled(model: SavedModel) -> bytes:
    try:
        return pickle.dumps(model, protocol=4)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise poptorch_error(
            f"save(): the model cannot be pickled: {error}. export_model=False writes its executable alone, for "
            "loadExecutable()."
        ) from error


def _program(saved: Saved) -> Contents:
    """The compiled program and what it fits; neither, where it holds what no file can."""
    try:
        contents = write_captured(saved.captured)
        key = compilation.key_for_loading(saved.subject)
    except (NotSerializable, NoFingerprint) as error:
        logger.warning("save(): the model will be compiled again when it is loaded: %s", error)
        return Contents({}, {})
    contents.headers["key"] = json.dumps(key)
    return contents


def _inputs_document(inputs: Arguments) -> dict[str, bytes]:
    """The inputs' structure, pickled where it has classes of the user's own."""
    parts = (list(inputs.names), list(inputs.args), dict(inputs.kwargs))
    try:
        return {"inputs": container.as_json(write_structure(parts, lambda tensor: True, {}))}
    except NotSerializable:
        return {"pickled inputs": pickle.dumps(parts, protocol=4)}


def read(filename: str, version: str, wrong_version: Callable[[str], Exception] = poptorch_error) -> Contents:
    """The contents of a file.

    Raises Error for a file of another kind, or a damaged one, and `wrong_version` for one of another version.
    """
    try:
        contents = container.read(Path(filename))
    except UnusableFile as error:
        raise poptorch_error(f"Invalid file {filename}: {error}") from error
    if contents.headers.get("version") != version:
        raise wrong_version(
            f"Invalid file {filename}: version {contents.headers.get('version')} of PopTorch wrote it, and this is "
            f"version {version}. Save the model again."
        )
    return contents


def inputs_of(contents: Contents) -> Arguments:
    """The inputs a model was compiled for; their tensors have no data."""
    pickled = contents.documents.get("pickled inputs")
    inputs = Arguments()
    inputs.names, inputs.args, inputs.kwargs = (
        read_structure(json.loads(contents.documents["inputs"]), {})
        if pickled is None
        else pickle.loads(pickled)
    )
    return inputs


def saved_model(contents: Contents, filename: str) -> SavedModel:
    """What `load` needs, ready for a device. Raises AssertionError where a file was saved without the model."""
    assert "model" in contents.documents, (
        f"{filename} has the executable without its model, as export_model=False leaves it: make the model, give it "
        "to inferenceModel() or trainingModel(), and call loadExecutable() of that"
    )
    saved: SavedModel = pickle.loads(contents.documents["model"])
    saved.options._unfreeze()
    saved.options.deleteIfExists("ipu_version")
    if saved.options.connection_type == ConnectionType.Never:
        saved.options.connectionType(ConnectionType.Always)
    if saved.optimizer is not None and saved.optimizer_state is not None:
        saved.optimizer.load_state_dict(saved.optimizer_state)
    saved.model = wrapping.unwrap(saved.model)
    return saved


def saved_rng_state(contents: Contents) -> list[int] | None:
    """The state of the random numbers, where it was saved."""
    state = contents.headers.get("rng_state")
    return None if state is None else json.loads(state)
