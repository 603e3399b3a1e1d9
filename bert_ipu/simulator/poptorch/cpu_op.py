"""`poptorch.CPU`: a part of the forward that runs on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import poptorch_error
from ..graph import capture
from ..graph import ops as ipu
from ..graph.dtypes import device_dtype
from . import recording


class CPU:
    """Calls a function or module on the host, with the values it has at that point of every micro-batch.

    Its shapes and dtypes are found by one call on zeros while the model is compiled. No gradient passes.
    """

    _entered = False
    """One is asked for its shapes now, while a model is compiled."""

    def __init__(self, layer_to_call: Callable[..., Any], ID: str) -> None:
        if not callable(layer_to_call):
            raise TypeError(f"poptorch.CPU calls a function or a module, not {layer_to_call!r}.")
        self._layer_to_call = layer_to_call
        if isinstance(layer_to_call, torch.nn.Module):
            layer_to_call.requires_grad_(False)
        self._ID = ID
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []

    def execute(self) -> None:
        """Compute `outputs` from `inputs`."""
        outputs = self._layer_to_call(*self.inputs)
        self.outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]

    def registerPersistentData(self) -> None:
        """Here values are handed over call by call: there is nothing to register."""

    def _run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.inputs = list(inputs)
        self.execute()
        return tuple(self.outputs)

    def __call__(self, *input: torch.Tensor, **kwargs: Any) -> Any:
        if CPU._entered:
            raise poptorch_error(f"CPU ops must not overlap: '{self._ID}' is called inside another one.")
        if not recording.is_recording():
            return self._layer_to_call(*input)
        CPU._entered = True
        try:
            with capture.suspended():
                examples = self._layer_to_call(*(torch.zeros(each.shape, dtype=each.dtype) for each in input))
        finally:
            CPU._entered = False
        single = not isinstance(examples, (list, tuple))
        examples = [examples] if single else list(examples)
        for each in examples:
            if not isinstance(each, torch.Tensor):
                raise poptorch_error(f"The CPU op '{self._ID}' must return tensors, not {each!r}.")
        outputs = recording.emit(
            ipu.cpu_op,
            *input,
            function=self._run,
            outputs=tuple((tuple(each.shape), device_dtype(each.dtype)) for each in examples),
            host_dtypes=tuple(each.dtype for each in examples),
        )
        return outputs[0] if single else list(outputs)
