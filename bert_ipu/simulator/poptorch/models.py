"""Making executors: `trainingModel`, `inferenceModel`, `load`; and what devices there are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from . import export, wrapping
from .devices import MAX_IPUS, model_is_asked_for
from .executor import PoplarExecutor
from .options import Options

VERSION = "3.4.0"
"""The release of PopTorch whose interface this is."""


def trainingModel(
    model: Any, options: Options | None = None, optimizer: torch.optim.Optimizer | None = None
) -> PoplarExecutor:
    """A model that computes its loss, the gradients and the update when called; SGD with lr 0.01 by default.

    Raises RuntimeError for a model that another training model has wrapped.
    """
    if isinstance(model, PoplarExecutor):
        model = model.model
    if not isinstance(model, torch.nn.Module):
        raise TypeError(
            f"trainingModel takes a torch.nn.Module, whose parameters it trains, not {type(model)}"
        )
    if wrapping.isWrapped(model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. "
            "Call model.destroy() on the model to unwrap before wrapping again."
        )
    return PoplarExecutor(
        model=copy.copy(model),
        options=options,
        training=True,
        poptorch_version=VERSION,
        optimizer=optimizer,
        user_model=model,
    )


def inferenceModel(model: Any, options: Options | None = None) -> PoplarExecutor:
    """A model whose forward runs on the IPU when called."""
    if isinstance(model, PoplarExecutor):
        model = model.model
    return PoplarExecutor(model=copy.copy(model), options=options, training=False, poptorch_version=VERSION)


def load(filename: str, edit_opts_fn: Callable[[Options], None] | None = None) -> PoplarExecutor:
    """The model that `save` wrote, compiled; `edit_opts_fn` may change its options first."""
    contents = export.read(filename, VERSION, AssertionError)
    saved = export.saved_model(contents, filename)
    if edit_opts_fn is not None:
        edit_opts_fn(saved.options)
    of_both = {"model": saved.model, "options": saved.options}
    executor = (
        trainingModel(**of_both, optimizer=saved.optimizer) if saved.training else inferenceModel(**of_both)
    )
    executor.loadExecutable(filename)
    rng_state = export.saved_rng_state(contents)
    if rng_state is not None:
        executor.rng_state = rng_state
    return executor


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether so many IPUs can be had: the simulator stands for a Pod64, unless POPTORCH_IPU_MODEL is set."""
    return num_ipus <= MAX_IPUS and not model_is_asked_for()


def ipuHardwareVersion() -> int:
    """The version of the simulated IPU: 2, a Mk2. Raises AssertionError where POPTORCH_IPU_MODEL is set."""
    assert not model_is_asked_for(), "There is no IPU here: POPTORCH_IPU_MODEL asks for the IPU Model"
    return 2
