"""PopTorch's operators: recorded inside a captured forward, plain torch outside one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..errors import SimulatorUnsupported, poptorch_error
from ..graph import capture
from ..graph import ops as ipu
from ..graph.dtypes import device_dtype
from . import recording
from .ctc import beam_search
from .enums import MatMulSerializationMode, OverlapMode
from .recording import emit, is_recording, mark
from .structure import flattenTensorStructure, reconstructTensorStructure

Tensor = torch.Tensor


def _check_tensor(value: Any, message: str) -> None:
    if not isinstance(value, Tensor):
        raise poptorch_error(f"{message} {type(value)} is not supported.")


def ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> list[Tensor]:
    """The likeliest label sequences under CTC, of log probabilities [T, B, classes] and lengths [B].

    Returns their log probabilities [B, P], lengths [B, P] and labels [B, P, T].
    """
    _check_tensor(probs, "ctc_beam_search_decoder: probs must be a torch.tensor argument.")
    _check_tensor(lengths, "ctc_beam_search_decoder: lengths must be a torch.tensor argument.")
    if probs.dim() != 3:
        raise poptorch_error(
            "Incorrect shape for first input to CTC beam search decoder: it must have 3 dimensions."
        )

    def decode(probs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return beam_search(probs, lengths, blank, beam_width, top_paths)

    if not is_recording():
        return list(decode(probs, lengths))
    steps, batch = probs.shape[:2]
    outputs = (
        ((batch, top_paths), torch.float32),
        ((batch, top_paths), torch.int32),
        ((batch, top_paths, steps), torch.int32),
    )
    return list(emit(ipu.cpu_op, probs, lengths, function=decode, outputs=outputs))


def ipu_print_tensor(
    tensor: Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> Tensor:
    """Print a tensor, and its gradient, each time the program computes them; returns the tensor."""
    _check_tensor(tensor, "ipu print tensor must take a torch.tensor argument.")
    formats = ("auto", "fixed", "scientific", "none")
    if float_format not in formats:
        raise KeyError(f"float_format is {float_format!r}; it must be one of {', '.join(formats)}")
    if not is_recording():
        return tensor
    return emit(  # type: ignore[no-any-return]
        ipu.print_tensor,
        tensor,
        title=title,
        print_gradient=print_gradient,
        summarise_threshold=summarise_threshold,
        edge_items=edge_items,
        max_line_width=max_line_width,
        digits=digits,
        float_format=float_format,
        separator=separator,
        open_bracket=open_bracket,
        close_bracket=close_bracket,
    )


def for_loop(count: int, body: Callable[..., Any], inputs: list[Tensor]) -> list[Tensor]:
    """Run `body` on the inputs, then on its own results, `count` times in all."""
    if not isinstance(count, int):
        raise ValueError(f"poptorch.for_loop expects the number of iterations (count) to be an int, not {count!r}.")
    if not isinstance(inputs, list):
        raise ValueError(
            "poptorch.for_loop expects input tensors (inputs) to be a list of tensors. (Object is not list)"
        )
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                "poptorch.for_loop expects input tensors (inputs) to be a list of tensors. "
                f"(Object contained in list at index {index} is not torch.tensor)"
            )
    if is_recording():
        return recording.for_loop(count, _returning_list(body), inputs)
    for _ in range(count):
        inputs = _returning_list(body)(*inputs)
    return inputs


def cond(
    condition: Tensor,
    then_body: Callable[..., Any],
    then_inps: list[Tensor],
    else_body: Callable[..., Any],
    else_inps: list[Tensor],
) -> list[Tensor]:
    """The results of one of two functions, chosen by a tensor's value."""
    if not isinstance(then_inps, list) or not isinstance(else_inps, list):
        raise ValueError(
            "poptorch.cond expects then_inps and else_inps tensors to be a list of tensors. (Object is "
            "not list)"
        )
    if not isinstance(condition, Tensor) or condition.numel() != 1:
        raise ValueError(f"poptorch.cond expects condition to be a tensor of one element, not {condition!r}.")
    then, other = _returning_list(then_body), _returning_list(else_body)
    if is_recording():
        return recording.cond(condition, then, then_inps, other, else_inps)
    return then(*then_inps) if condition else other(*else_inps)


def _returning_list(body: Callable[..., Any]) -> Callable[..., list[Tensor]]:
    def call(*inputs: Tensor) -> list[Tensor]:
        outputs = body(*inputs)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        for output in outputs:
            _check_tensor(output, "A loop's or branch's body must return tensors.")
        return outputs

    return call


def nop(tensor: Tensor) -> Tensor:
    """The tensor itself, as an operator that no pattern removes."""
    _check_tensor(tensor, "nop must take a torch.tensor argument.")
    return emit(ipu.nop, tensor) if is_recording() else tensor


def _check_int(value: Any, what: str) -> None:
    if not isinstance(value, int):
        raise poptorch_error(f"{what} must be an integer.")


def _rows(start: Tensor, size: int, step: int) -> Tensor:
    if size == 0:
        raise poptorch_error("The start and end of a slice must be different.")
    if size < 0:
        raise poptorch_error(
            "Taking a slice of a tensor with the end less than the start is not supported. "
            f"(The size is {size})"
        )
    if step < 1:
        raise poptorch_error(f"Slicing step must be at least 1. (It is {step})")
    if start.dtype not in (torch.int64, torch.int32, torch.int16):
        raise poptorch_error("Expected integer typed start tensor")
    return start.reshape(-1)[:1] + torch.arange(0, size, step, dtype=start.dtype, device=start.device)


def dynamic_slice(tensor: Tensor, dim: int, start: Tensor, size: int, step: int) -> Tensor:
    """`size` rows of a dimension, every `step`-th, from a start that the program computes."""
    _check_tensor(tensor, "dynamic_slice must take a torch.tensor input.")
    _check_int(dim, "Dimension")
    _check_tensor(start, "Slice start argument to dynamic_slice must be a torch.tensor.")
    _check_int(size, "Size")
    _check_int(step, "Step")
    rows = _rows(start, size, step)
    if is_recording() and tensor.shape[dim] % size:
        raise poptorch_error(
            f"The size of the slice ({size}) must be a factor of the slicing dimension ({tensor.shape[dim]})."
        )
    return torch.index_select(tensor, dim, rows)


def dynamic_update(input: Tensor, src: Tensor, dim: int, start: Tensor, size: int) -> Tensor:
    """`input` with `size` rows of a dimension replaced by `src`, from a start that the program computes."""
    _check_tensor(input, "dynamic_update must take a torch.tensor input.")
    _check_int(dim, "Dimension")
    _check_tensor(start, "Slice start argument to dynamic_update must be a torch.tensor.")
    _check_tensor(src, "Src argument to dynamic_update must be a torch.tensor.")
    _check_int(size, "Size")
    if input.dim() != src.dim():
        raise poptorch_error(
            f"input and src tensors must have same dimensionality. ({input.dim()}) vs ({src.dim()})"
        )
    wanted, given = (device_dtype(t.dtype) if is_recording() else t.dtype for t in (input, src))
    if wanted != given:
        raise poptorch_error(f"input and src tensor must have same dtype. ({wanted} vs {given})")
    operands = (input, dim, _rows(start, size, 1).long(), src.to(input.dtype))
    current = capture.current()
    if current is None:
        return torch.index_copy(*operands)
    # Not by torch's function, which PopTorch lacks.
    return current.record(torch.ops.aten.index_copy.default, operands, {})  # type: ignore[no-any-return]


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Keep these tensors for the backward pass instead of computing them again; changes no result."""
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        kept = recomputationCheckpoint(*tensors[0])
        return type(tensors[0])(kept if isinstance(kept, tuple) else (kept,))
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise ValueError("All inputs must be tensors")
    out = tuple(mark(nop(tensor), "recompute_checkpoint", True) for tensor in tensors)
    return out[0] if len(out) == 1 else out


def _check_serialization(lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int) -> None:
    """PopART's `MatMulOp::setup`."""
    sizes = {
        MatMulSerializationMode.InputChannels: ("input channels", lhs.shape[-2:-1]),
        MatMulSerializationMode.ReducingDim: ("reducing", lhs.shape[-1:]),
        MatMulSerializationMode.OutputChannels: ("output channels", rhs.shape[-1:]),
    }
    if mode not in sizes:
        return
    dimension, size = sizes[mode]
    if factor < 1 or any(rows % factor for rows in size):
        raise poptorch_error(
            f"Invalid serialisation factor {factor} for the {dimension} dimension {list(size)}: it must be a positive "
            "integer of which the dimension is a multiple."
        )


def serializedMatMul(
    lhs: Tensor, rhs: Tensor, mode: MatMulSerializationMode, factor: int = 0, keep_precision: bool = False
) -> Tensor:
    """A matrix product computed in `factor` pieces, to need less memory at once."""
    assert isinstance(keep_precision, bool)
    assert isinstance(factor, int)
    assert isinstance(mode, MatMulSerializationMode)
    if is_recording():
        _check_serialization(lhs, rhs, mode, factor)
    serialization = {"mode": mode.value, "factor": factor, "keep_precision": keep_precision}
    return mark(torch.matmul(lhs, rhs), "serialization", serialization)  # type: ignore[no-any-return]


def set_available_memory(tensor: Tensor, available_memory_proportion: float) -> Tensor:
    """Limit the temporary memory of the operator that made the tensor; changes no result."""
    _check_tensor(tensor, "You may only set available memory for torch.tensor values.")
    if is_recording() and not 0 < available_memory_proportion <= 1:
        raise poptorch_error(
            f"availableMemoryProportion must be in (0,1], not {available_memory_proportion}."
        )
    return mark(tensor, "available_memory_proportion", available_memory_proportion)  # type: ignore[no-any-return]


def _set_overlap(tensors: Any, mode: OverlapMode, direction: str) -> Any:
    def set_one(tensor: Any) -> Any:
        _check_tensor(tensor, f"You may only set overlap for torch.tensor {direction}s.")
        if not is_recording():
            return tensor
        return mark(emit(ipu.nop, tensor), f"overlap_{direction}", mode.value)

    return reconstructTensorStructure(tensors, map(set_one, flattenTensorStructure(tensors)))


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Overlap the transfer of inputs with compute; changes no result."""
    return _set_overlap(input_tensors, mode, "input")


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Overlap the transfer of outputs with compute; changes no result."""
    return _set_overlap(output_tensors, mode, "output")


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """Mark a tensor as the loss to start the backward pass from, reduced by "sum", "mean" or "none"."""
    assert reduction in ("sum", "mean", "none"), (
        f"Unsupported reduction type {reduction!r}: use sum, mean or none"
    )
    _check_tensor(x, "identity_loss must take a torch.tensor argument.")
    if is_recording():
        return emit(ipu.identity_loss, x, reduction=reduction)  # type: ignore[no-any-return]
    reductions: dict[str, Callable[[Tensor], Tensor]] = {
        "sum": torch.sum,
        "mean": torch.mean,
        "none": torch.clone,
    }
    return reductions[reduction](x)


def custom_op(
    inputs: Iterable[Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Iterable[Tensor],
    attributes: dict[str, Any] | None = None,
) -> list[Tensor]:
    """Call an operator that a loaded library registers, or one of PopTorch's own; outputs look like the examples.

    Outside a captured forward the outputs are zeros, as the operator exists on the IPU only.
    Raises ValueError for attributes that are not floats, ints, ASCII strings, or lists of one of them.
    """
    examples = list(example_outputs)
    _check_attributes(attributes or {})
    if not is_recording():
        return [torch.zeros_like(example) for example in examples]
    if (domain, name) == ("poptorch.custom_ops", "FastGatherLastDim"):
        return [_fast_gather_last_dim(*inputs)]
    outputs = emit(
        ipu.custom_op,
        *inputs,
        name=name,
        domain=domain,
        version=domain_version,
        attributes=dict(attributes or {}),
        outputs=tuple((tuple(example.shape), device_dtype(example.dtype)) for example in examples),
        host_dtypes=tuple(example.dtype for example in examples),
    )
    return list(outputs)


def _fast_gather_last_dim(data: Tensor, index: Tensor) -> Tensor:
    """The custom operator inside PopTorch's library: `gather` along the last dimension of tensors that fit."""
    if not data.dtype.is_floating_point or device_dtype(index.dtype) not in (torch.int32, torch.int16):
        raise poptorch_error(
            f"FastGatherLastDim takes float data and an int32 index, not {data.dtype} and {index.dtype}."
        )
    if data.dim() != index.dim() or data.shape[:-1] != index.shape[:-1]:
        raise poptorch_error(
            "FastGatherLastDim: the index must have the dimensions of the data except for the last, but the data "
            f"has {list(data.shape)} and the index {list(index.shape)}."
        )
    return torch.gather(data, -1, index.long())


def _check_attributes(attributes: dict[str, Any]) -> None:
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise ValueError(f"All attribute keys must be strings. {key!r} is not.")
        if not isinstance(value, (float, int, str, list, tuple)):
            raise ValueError(
                "Attribute values must be floats, ints, strings or a list/tuple of float, ints or strings. "
                f"{key} is a {type(value).__name__}."
            )
        if isinstance(value, (list, tuple)) and any(
            not isinstance(element, type(value[0])) for element in value
        ):
            raise ValueError(
                f"The types in a list/tuple attribute must all be the same. Those of {key} are not."
            )
        for text in (key, *(value if isinstance(value, (list, tuple)) else [value])):
            if isinstance(text, str) and not text.isascii():
                raise ValueError(f"{text} contains non-ASCII characters.")


def fps(src: Tensor, ptr: list[int], ratio: float = 0.5, random_start: bool = False) -> Tensor:
    """Farthest point sampling of torch_cluster, which the simulator does not have: SimulatorUnsupported."""
    _check_tensor(src, "`fps` must take a torch.tensor input.")
    if not isinstance(ptr, list):
        raise poptorch_error("`ptr` must be a list of integers.")
    if len(ptr) < 2:
        raise poptorch_error("`ptr` must contain at least 2 elements.")
    if not isinstance(ratio, float):
        raise poptorch_error(f"`ratio` must be of float type. {type(ratio)} is not supported.")
    if not isinstance(random_start, bool):
        raise poptorch_error(f"`random_start` must be of bool type. {type(random_start)} is not supported.")
    raise SimulatorUnsupported("poptorch.fps", "operators of graph networks are not simulated.")


def nearest(
    x: Tensor, y: Tensor, batch_x: list[int] | Tensor | None = None, batch_y: list[int] | Tensor | None = None
) -> Tensor:
    """For each row of `x`, the index of the nearest row of `y` in the same batch."""
    _check_tensor(x, "`nearest` must take a torch.tensor `x` input.")
    _check_tensor(y, "`nearest` must take a torch.tensor `y` input.")
    if not all(isinstance(batch, (list, Tensor, type(None))) for batch in (batch_x, batch_y)):
        raise poptorch_error(
            f"`batch_x` and `batch_y` must be torch.Tensors or lists while `batch_x` is of type {type(batch_x)} and "
            f"`batch_y` is of type {type(batch_y)}."
        )
    distance = torch.cdist(x, y)
    batches = [
        torch.as_tensor([] if batch is None else batch, device=distance.device)
        for batch in (batch_x, batch_y)
    ]
    if all(len(batch) for batch in batches):
        other_batch = batches[0][:, None] != batches[1][None, :]
        distance = distance.masked_fill(other_batch, torch.inf)
    return torch.argmin(distance, dim=-1)
