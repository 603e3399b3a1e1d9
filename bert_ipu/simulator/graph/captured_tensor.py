"""The tensor that a user's forward sees while it is captured, and the errors of what it cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor

from bert_ipu.simulator.errors import Error, poptorch_error
from bert_ipu.simulator.graph.aliases import View
from bert_ipu.simulator.graph.sources import Origin, describe

if TYPE_CHECKING:
    from bert_ipu.simulator.graph.capture import Capture

IPU = torch.device("ipu", 0)
CPU = torch.device("cpu")


class DynamicShapeError(Error, DynamicOutputShapeException):
    """A shape that depends on values: torch's own exception for it, and one of PopTorch's errors."""


class CapturedTensor(torch.Tensor):
    """A tensor of the program being captured: shape and dtype, no data."""

    fake: FakeTensor
    """Shape, strides and dtype as the user's code sees them."""
    shown: View
    """Which part of which storage of the program it shows."""
    capture: Capture
    """The capture that made it, and the only one that may use it."""

    @staticmethod
    def __new__(cls, fake: FakeTensor, view: View, capture: Capture) -> CapturedTensor:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            fake.shape,
            strides=fake.stride(),
            storage_offset=fake.storage_offset(),
            dtype=fake.dtype,
            device=CPU,
        )
        made.fake, made.shown, made.capture = fake, view, capture
        return made  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where PopTorch's tensors are; the wrapper itself is on the CPU, as torch cannot drive an IPU."""
        return IPU

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @property
    def is_ipu(self) -> bool:  # type: ignore[override]
        return True

    def numpy(self, *, force: bool = False) -> Any:
        """A tensor being captured has no values."""
        raise self._without_values("numpy()")

    def tolist(self) -> Any:
        """A tensor being captured has no values."""
        raise self._without_values("tolist()")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self._without_values("NumPy")

    def apply_(self, *_: Any) -> Any:
        """torch would read memory, as for the next two."""
        raise self._without_values("apply_()")

    def map_(self, *_: Any) -> Any:
        raise self._without_values("map_()")

    def share_memory_(self) -> Any:
        raise self._without_values("share_memory_()")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self._without_values("pickle")

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = memo.setdefault(id(self), self.clone())
        return copied

    def backward(self, *_: Any, **__: Any) -> None:
        """Gradients are the compiler's, from the loss that the forward returns."""
        raise poptorch_error(
            f"backward() is called inside a model's forward{self.capture.place()}. Return the loss instead: "
            "poptorch.trainingModel adds the backward pass and the optimizer."
        )

    def _without_values(self, reader: str) -> Error:
        return poptorch_error(
            f"{reader} reads a tensor's values{self.capture.place()}, which are not known while the model is "
            "compiled. Use torch's functions, compute it before the model is called, or in the model on the host "
            "by `poptorch.CPU`."
        )

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"tensor(device={IPU}, shape={list(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Optional[dict[str, Any]] = None
    ) -> Any:
        raise poptorch_error(
            f"{func} was called on a tensor of a model's forward after the model was compiled. Such tensors "
            "exist only while the model is compiled: return them from forward, or keep them in a buffer."
        )

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


# torch's argument errors name an argument by its type, and users (and PopTorch's) tensors are torch.Tensor.
CapturedTensor.__name__ = "Tensor"


_SCALAR_TYPES = {
    torch.float32: "Float",
    torch.float64: "Double",
    torch.float16: "Half",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
}


def left_on_cpu(tensor: torch.Tensor, func: Optional[OpOverload], origin: Origin) -> Error:
    """The error of an operand that is not on the IPU; its first sentence is PopTorch's."""
    dtype = _SCALAR_TYPES.get(tensor.dtype, str(tensor.dtype))
    return poptorch_error(
        f"Expected an IPU tensor but got tensor(device={tensor.device}, shape={list(tensor.shape)}, "
        f"dtype={dtype}).\n"
        f'It is an operand of {describe(func, origin)}, and made on the CPU: say `.to("ipu")` where it is made, or '
        "register it as a buffer of the model."
    )
