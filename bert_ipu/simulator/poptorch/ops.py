"""PopTorch's operators: recorded inside a captured forward, plain torch outside one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch._prims_common import canonicalize_dim

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


def _check(function: str, kind: type, **arguments: Any) -> None:
    """Raise Error for an argument that is of another type."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise poptorch_error(f"poptorch.{function}: {name} must be a {kind.__name__}, not {type(value)}.")


def _check_body(function: str, **bodies: Any) -> None:
    """Raise TypeError for the body of a loop or branch that cannot be called."""
    for name, body in bodies.items():
        if not callable(body):
            raise TypeError(f"poptorch.{function}: {name} must be a function of tensors, not {body!r}.")


def _tensors(function: str, name: str, values: Any) -> list[Tensor]:
    """An argument that holds tensors, as a list. Raises Error for what holds anything else."""
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        raise poptorch_error(f"poptorch.{function}: {name} must be a list or tuple of tensors, not {type(values)}.")
    tensors = list(values)
    for index, each in enumerate(tensors):
        _check(function, Tensor, **{f"{name}[{index}]": each})
    return tensors


def ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> list[Tensor]:
    """The likeliest label sequences under CTC, of log probabilities [T, B, classes] and lengths [B].

    Returns their log probabilities [B, P], lengths [B, P] and labels [B, P, T].
    """
    _check("ctc_beam_search_decoder", Tensor, probs=probs, lengths=lengths)
    if probs.dim() != 3:
        raise poptorch_error(
            f"poptorch.ctc_beam_search_decoder: probs has shape {list(probs.shape)}, and must have [T, B, classes]."
        )
    _check("ctc_beam_search_decoder", int, blank=blank, beam_width=beam_width, top_paths=top_paths)
    _, batch, classes = probs.shape
    if lengths.shape != (batch,):
        raise poptorch_error(
            f"poptorch.ctc_beam_search_decoder: lengths has shape {list(lengths.shape)}, and must have [{batch}], one "
            "for each sequence of probs."
        )
    if not (0 <= blank < classes and 1 <= top_paths <= beam_width):
        raise poptorch_error(
            f"poptorch.ctc_beam_search_decoder: blank is {blank}, and must be one of {classes} classes; top_paths is "
            f"{top_paths}, and must be at least 1 and at most the beam_width, {beam_width}."
        )

    def decode(probs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return beam_search(probs, lengths, blank, beam_width, top_paths)

    if not is_recording():
        return list(decode(probs, lengths))
    steps = probs.shape[0]
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
    _check("ipu_print_tensor", Tensor, tensor=tensor)
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
        raise ValueError(f"poptorch.for_loop: count must be an int, not {count!r}.")
    if not isinstance(inputs, list):
        raise ValueError(
            f"poptorch.for_loop: inputs must be a list, not {type(inputs)}. (Object is not list)"
        )
    for index, each in enumerate(inputs):
        if not isinstance(each, Tensor):
            raise ValueError(
                f"poptorch.for_loop: inputs[{index}] is a {type(each)}. "
                f"(Object contained in list at index {index} is not torch.tensor)"
            )
    _check_body("for_loop", body=body)
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
            f"poptorch.cond: then_inps and else_inps must be lists, not {type(then_inps)} and {type(else_inps)}."
        )
    if not isinstance(condition, Tensor) or condition.numel() != 1:
        raise ValueError(f"poptorch.cond: condition must be a tensor of one element, not {condition!r}.")
    _tensors("cond", "then_inps", then_inps)
    _tensors("cond", "else_inps", else_inps)
    _check_body("cond", then_body=then_body, else_body=else_body)
    then, other = _returning_list(then_body), _returning_list(else_body)
    if is_recording():
        return recording.cond(condition, then, then_inps, other, else_inps)
    return then(*then_inps) if condition else other(*else_inps)


def _returning_list(body: Callable[..., Any]) -> Callable[..., list[Tensor]]:
    def call(*inputs: Tensor) -> list[Tensor]:
        outputs = body(*inputs)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        for output in outputs:
            if not isinstance(output, Tensor):
                raise poptorch_error(f"The body of a loop or branch must return tensors, not {output!r}.")
        return outputs

    return call


def nop(tensor: Tensor) -> Tensor:
    """The tensor itself, as an operator that no pattern removes."""
    _check("nop", Tensor, tensor=tensor)
    return emit(ipu.nop, tensor) if is_recording() else tensor


def _rows(start: Tensor, size: int, step: int) -> Tensor:
    if size == 0:
        raise poptorch_error("The start and end of a slice must be different.")
    if size < 0:
        raise poptorch_error(
            "Taking a slice of a tensor with the end less than the start is not supported. "
            f"(The size is {size})"
        )
    if step < 1:
        raise poptorch_error(f"poptorch.dynamic_slice: step is {step}, and must be at least 1.")
    if start.dtype not in (torch.int64, torch.int32, torch.int16):
        raise poptorch_error(f"start has {start.dtype}, and must have torch.int32, int64 or int16.")
    return start.reshape(-1)[:1] + torch.arange(0, size, step, dtype=start.dtype, device=start.device)


def dynamic_slice(tensor: Tensor, dim: int, start: Tensor, size: int, step: int) -> Tensor:
    """`size` rows of a dimension, every `step`-th, from a start that the program computes."""
    _check("dynamic_slice", Tensor, tensor=tensor, start=start)
    _check("dynamic_slice", int, dim=dim, size=size, step=step)
    rows = _rows(start, size, step)
    dim = canonicalize_dim(tensor.dim(), int(dim))
    if is_recording() and tensor.shape[dim] % size:
        raise poptorch_error(
            f"The size of the slice ({size}) must be a factor of the slicing dimension ({tensor.shape[dim]})."
        )
    return torch.index_select(tensor, dim, rows)


def dynamic_update(input: Tensor, src: Tensor, dim: int, start: Tensor, size: int) -> Tensor:
    """`input` with `size` rows of a dimension replaced by `src`, from a start that the program computes."""
    _check("dynamic_update", Tensor, input=input, src=src, start=start)
    _check("dynamic_update", int, dim=dim, size=size)
    if input.dim() != src.dim():
        raise poptorch_error(
            f"input and src tensors must have same dimensionality. ({input.dim()}) vs ({src.dim()})"
        )
    wanted, given = (device_dtype(t.dtype) if is_recording() else t.dtype for t in (input, src))
    if wanted != given:
        raise poptorch_error(f"input and src tensor must have same dtype. ({wanted} vs {given})")
    rows = _rows(start, size, 1).long()
    dim = canonicalize_dim(input.dim(), int(dim))
    replaced = [*input.shape[:dim], size, *input.shape[dim + 1 :]]
    if list(src.shape) != replaced:
        raise poptorch_error(
            f"poptorch.dynamic_update: src has shape {list(src.shape)}, and must have {replaced}, as what it replaces."
        )
    operands = (input, dim, rows, src.to(input.dtype))
    current = capture.current()
    if current is None:
        return torch.index_copy(*operands)
    # Not by torch's function, which PopTorch lacks.
    return current.record(torch.ops.aten.index_copy.default, operands, {})  # type: ignore[no-any-return]


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Keep these tensors for the backward pass instead of computing them again; changes no result."""
    group = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else tensors
    for each in group:
        if not isinstance(each, Tensor):
            raise ValueError(
                f"poptorch.recomputationCheckpoint takes tensors, or a list of them, not {each!r}."
            )
    kept = type(group)(mark(nop(tensor), "recompute_checkpoint", True) for tensor in group)
    return kept[0] if group is tensors and len(kept) == 1 else kept


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
    _check("serializedMatMul", Tensor, lhs=lhs, rhs=rhs)
    assert isinstance(keep_precision, bool), f"keep_precision must be True or False, not {keep_precision!r}"
    assert isinstance(factor, int), f"factor must be an int, not {factor!r}"
    assert isinstance(mode, MatMulSerializationMode), (
        f"mode must be a poptorch.MatMulSerializationMode, not {mode!r}"
    )
    if is_recording():
        _check_serialization(lhs, rhs, mode, factor)
    serialization = {"mode": mode.value, "factor": factor, "keep_precision": keep_precision}
    return mark(torch.matmul(lhs, rhs), "serialization", serialization)  # type: ignore[no-any-return]


def set_available_memory(tensor: Tensor, available_memory_proportion: float) -> Tensor:
    """Limit the temporary memory of the operator that made the tensor; changes no result."""
    _check("set_available_memory", Tensor, tensor=tensor)
    if not isinstance(available_memory_proportion, (int, float)) or (
        is_recording() and not 0 < available_memory_proportion <= 1
    ):
        raise poptorch_error(
            f"available_memory_proportion is {available_memory_proportion!r}, and must be above 0 and at most 1."
        )
    return mark(tensor, "available_memory_proportion", available_memory_proportion)  # type: ignore[no-any-return]


def _set_overlap(tensors: Any, mode: OverlapMode, direction: str) -> Any:
    _check(f"set_overlap_for_{direction}", OverlapMode, mode=mode)
    if not is_recording():
        return tensors
    marked = (
        mark(emit(ipu.nop, each), f"overlap_{direction}", mode.value)
        for each in flattenTensorStructure(tensors)
    )
    return reconstructTensorStructure(tensors, marked)


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Overlap the transfer of inputs with compute; changes no result."""
    return _set_overlap(input_tensors, mode, "input")


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Overlap the transfer of outputs with compute; changes no result."""
    return _set_overlap(output_tensors, mode, "output")


def identity_loss(x: Tensor, reduction: str) -> Tensor:
    """Mark a tensor as the loss to start the backward pass from, reduced by "sum", "mean" or "none"."""
    assert reduction in ("sum", "mean", "none"), (
        f"poptorch.identity_loss: reduction is {reduction!r}, and must be sum, mean or none"
    )
    _check("identity_loss", Tensor, x=x)
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
    operands = _tensors("custom_op", "inputs", inputs)
    examples = _tensors("custom_op", "example_outputs", example_outputs)
    _check("custom_op", str, name=name, domain=domain)
    _check("custom_op", int, domain_version=domain_version)
    _check("custom_op", dict, attributes={} if attributes is None else attributes)
    _check_attributes(attributes or {})
    if not is_recording():
        return [torch.zeros_like(example) for example in examples]
    if (domain, name) == ("poptorch.custom_ops", "FastGatherLastDim"):
        return [_fast_gather_last_dim(*operands)]
    outputs = emit(
        ipu.custom_op,
        *operands,
        name=name,
        domain=domain,
        version=domain_version,
        attributes=dict(attributes or {}),
        outputs=tuple((tuple(example.shape), device_dtype(example.dtype)) for example in examples),
        host_dtypes=tuple(example.dtype for example in examples),
    )
    return list(outputs)


def _fast_gather_last_dim(*operands: Tensor) -> Tensor:
    """The custom operator inside PopTorch's library: `gather` along the last dimension of tensors that fit."""
    if len(operands) != 2:
        raise poptorch_error(f"FastGatherLastDim takes two inputs, data and an index, not {len(operands)}.")
    data, index = operands
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
            raise ValueError(f"An attribute's name must be a string, not {key!r}.")
        if not isinstance(value, (float, int, str, list, tuple)):
            raise ValueError(
                f"Attribute {key} is {value!r}, and must be a float, an int, a string, or a list or tuple of these."
            )
        elements = value if isinstance(value, (list, tuple)) else [value]
        if any(not isinstance(element, type(elements[0])) for element in elements):
            raise ValueError(f"Attribute {key} is {value!r}, of several types: convert its elements to one.")
        for text in (key, *elements):
            if isinstance(text, str) and not text.isascii():
                raise ValueError(f"{text} contains non-ASCII characters.")


def fps(src: Tensor, ptr: list[int], ratio: float = 0.5, random_start: bool = False) -> Tensor:
    """Farthest point sampling of torch_cluster, which the simulator does not have: SimulatorUnsupported."""
    _check("fps", Tensor, src=src)
    _check("fps", list, ptr=ptr)
    _check("fps", float, ratio=ratio)
    _check("fps", bool, random_start=random_start)
    if len(ptr) < 2:
        raise poptorch_error(
            f"poptorch.fps: ptr is {ptr}: give the first row of each sample, and the number of rows."
        )
    raise SimulatorUnsupported("poptorch.fps", "operators of graph networks are not simulated.")


def nearest(
    x: Tensor, y: Tensor, batch_x: list[int] | Tensor | None = None, batch_y: list[int] | Tensor | None = None
) -> Tensor:
    """For each row of `x`, the index of the nearest row of `y` in the same batch."""
    _check("nearest", Tensor, x=x, y=y)
    for batch in (batch_x, batch_y):
        if not isinstance(batch, (list, Tensor, type(None))):
            raise poptorch_error(
                f"poptorch.nearest: a batch must be a list or a tensor of rows, not {batch!r}."
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
