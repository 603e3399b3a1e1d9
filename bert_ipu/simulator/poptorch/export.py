"""Files of compiled models: `save`, `loadExecutable`, `load`.

A file holds what a model was compiled from, so that the same program is compiled again without the inputs at
hand; with `export_model`, also the model, its optimizer and the state of the random numbers.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import poptorch_error
from . import wrapping
from ._logging import logger
from .arguments import Arguments
from .enums import ConnectionType
from .options import Options

if TYPE_CHECKING:
    from .executor import PoplarExecutor

_MAGIC = b"bert_ipu simulator executable\n"


@dataclass
class SavedModel:
    """The contents of a file."""

    version: str
    options: Options
    names: list[str]
    args: list[Any]
    kwargs: dict[str, Any]
    training: bool | None = None
    model: Any = None
    optimizer: torch.optim.Optimizer | None = None
    optimizer_state: dict[str, Any] | None = None
    rng_state: list[int] | None = None

    def inputs(self) -> Arguments:
        """The inputs the model was compiled for."""
        inputs = Arguments()
        inputs.names, inputs.args, inputs.kwargs = self.names, self.args, self.kwargs
        return inputs


def save(executor: PoplarExecutor, filename: str, export_model: bool, save_rng_state: bool) -> None:
    """Write an executor's executable; a folder gets a file `model.poptorch`."""
    if os.path.isdir(filename):
        folder, filename = filename, os.path.join(filename, "model.poptorch")
        logger.warning("save(): %s is a directory, saving model to %s", folder, filename)
    folder = os.path.dirname(os.path.abspath(filename))
    assert not os.path.exists(folder) or os.path.isdir(folder), (
        f"Destination folder {folder} is not a directory"
    )
    os.makedirs(folder, exist_ok=True)
    inputs = executor._executable_inputs
    assert inputs is not None, "a compiled model knows its inputs"
    saved = SavedModel(
        executor._poptorch_version, executor._options, inputs.names, inputs.args, inputs.kwargs
    )
    if export_model:
        saved.training = executor._training
        saved.model = executor.model
        saved.optimizer = executor._optimizer
        if saved.optimizer is not None:
            saved.optimizer_state = saved.optimizer.state_dict()
    if save_rng_state:
        saved.rng_state = executor.rng_state
    _write(filename, saved)


def _write(filename: str, saved: SavedModel) -> None:
    folder = os.path.dirname(os.path.abspath(filename))
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        try:
            file.write(_MAGIC)
            pickle.dump(saved, file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, filename)
        except BaseException:
            os.unlink(file.name)
            raise


def read(filename: str, version: str) -> SavedModel:
    """The contents of a file. Raises Error for a file of another kind or version."""
    with open(filename, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise poptorch_error(
                f"Invalid file {filename}: it was not written by save() or compileAndExport()"
            )
        saved = pickle.load(file)
    if saved.version != version:
        raise poptorch_error(
            f"Invalid file {filename}: PopTorch version mismatch: File was created with version: "
            f"{saved.version} "
            f"and this is version {version}"
        )
    saved.options._unfreeze()
    saved.options.deleteIfExists("ipu_version")
    if saved.options.connection_type == ConnectionType.Never:
        saved.options.connectionType(ConnectionType.Always)
    return saved  # type: ignore[no-any-return]


def restore(saved: SavedModel, filename: str) -> tuple[Any, torch.optim.Optimizer | None]:
    """The model and optimizer of a file. Raises AssertionError where it was saved without them."""
    assert saved.model is not None and saved.training is not None, (
        f"{filename} is a valid PopTorch file but was created with 'export_model=False' which means you "
        "need to "
        "re-create the PopTorch model using poptorch.inferenceModel or poptorch.trainingModel then call "
        f'poptorch_model.loadExecutable("{filename}").'
    )
    if saved.optimizer is not None and saved.optimizer_state is not None:
        saved.optimizer.load_state_dict(saved.optimizer_state)
    return wrapping.unwrap(saved.model), saved.optimizer
