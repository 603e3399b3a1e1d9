"""The optimizer of a training model, on the host and on the device: which of the two has the newer values.

Attributes go to the device only. States come from there, when the host asks for them or another optimizer takes over,
and go there where the host's have been loaded since; optimizers of torch's own have none that the host sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ._logging import logger
from .optim import Optimizer
from .optimizer_attributes import AttributeTracker, describe
from .optimizer_description import Description, check_replacement
from .options import Options
from .session import Session


class DeviceOptimizer:
    """What a training model does with the optimizer that the user gave it."""

    def __init__(
        self, options: Options, session: Callable[[], Session], bring_weights: Callable[[], object]
    ) -> None:
        """`session` is that of the compiled model; `bring_weights` copies the weights to the host if they are older."""
        self._options = options
        self._session = session
        self._bring_weights = bring_weights
        self._tracker = AttributeTracker(options)
        self.given: Any = None
        """The user's optimizer."""
        self.description: Description = {}
        """What it says, as the compiler needs it."""
        self._attributes_are_newer = False
        """Whether they have changed since the device got them."""

    @property
    def _stateful(self) -> Optimizer | None:
        """The optimizer, if it is one of PopTorch's, which show the device's states."""
        return self.given if isinstance(self.given, Optimizer) else None

    def replace(self, optimizer: torch.optim.Optimizer, is_compiled: bool) -> None:
        """Use another optimizer, or the same one with other attributes. Raises Error where the program cannot."""
        description = describe(optimizer, self._tracker, self._options, is_compiled)
        if is_compiled:
            check_replacement(self.description, description)
        if is_compiled and optimizer is not self.given:
            self._release()
            if isinstance(optimizer, Optimizer):
                optimizer.ipu_state_is_dirty = True
        self.given = optimizer
        if isinstance(optimizer, Optimizer):
            optimizer.read_from_ipu = self.read_state
        if description != self.description:
            self.description, self._attributes_are_newer = description, True

    def _release(self) -> None:
        """Let the optimizer go, with the states that the device has."""
        if self._stateful is not None:
            self.read_state()
            self._stateful.read_from_ipu = None

    def write_attributes(self) -> None:
        """Give the device new values of variable attributes, if there are any."""
        if self._attributes_are_newer:
            self._session().update_optimizer(self.description)
            self._attributes_are_newer = False

    def fetch_state(self) -> None:
        """Bring the states to the host as its reader of `state_dict()` does, from whichever model has the newest."""
        self.given.state_dict()

    def read_state(self) -> None:
        """Bring the states to the host, if the device has newer ones."""
        optimizer = self._stateful
        if optimizer is None:
            return
        if not optimizer.host_state_is_dirty:
            logger.debug("Using cached optimiser state dict")
            return
        optimizer.take_from_ipu(self._session().read_optimizer_state())

    def write_state(self) -> None:
        """Give the device the states that the host has loaded, if there are any."""
        optimizer = self._stateful
        if optimizer is None or not optimizer.ipu_state_is_dirty:
            return
        if optimizer.has_state():
            self._bring_weights()
            self._session().write_optimizer_state(optimizer.get_state_dict())
        optimizer.ipu_state_is_dirty = False

    def attach(self) -> None:
        """Give a device that was just taken everything."""
        self.write_attributes()
        optimizer = self._stateful
        if optimizer is None:
            return
        if optimizer.has_state():
            optimizer.ipu_state_is_dirty = True
            self.write_state()
        else:
            optimizer.host_state_is_dirty = True
            optimizer.ipu_state_is_dirty = False

    def has_run(self) -> None:
        """The device has made a weight update."""
        if self._stateful is not None:
            self._stateful.host_state_is_dirty = True
