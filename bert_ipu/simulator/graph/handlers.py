"""Operators that the capture treats in a way of their own, by table; all others are recorded as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverload
from torch._prims_common import canonicalize_dim
from torch.utils._mode_utils import no_dispatch

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import normalise, value_reads
from bert_ipu.simulator.graph.captured_tensor import CapturedTensor
from bert_ipu.simulator.graph.sources import describe

if TYPE_CHECKING:
    from bert_ipu.simulator.graph.capture import Capture

aten = torch.ops.aten

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Handler = Callable[["Capture", OpOverload, Args, Kwargs], Any]


def _to(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """`Tensor.to` and its kin: a constant enters, a dtype changes, nothing leaves."""
    tensor, bound = args[0], normalise.named(func, args, kwargs)
    dtype, device = bound.get("dtype"), bound.get("device")
    if isinstance(bound.get("other"), torch.Tensor):
        dtype, device = bound["other"].dtype, bound["other"].device
    if not isinstance(tensor, CapturedTensor):
        return capture.lift(tensor, dtype)
    if device is not None and torch.device(device).type != "ipu" and not capture.decomposing:
        raise poptorch_error(
            f"A forward's tensors stay on the IPU, but {capture.recorder.origin.source} moves one to {device}. "
            "Return it as a result: the call gives it back on the CPU."
        )
    if dtype is None or dtype == tensor.dtype:
        copies = bound.get("copy") or func is aten._to_copy.default
        return capture.copy_of(tensor) if copies else capture.as_given(tensor)
    return capture.record(aten._to_copy.default, (tensor,), {"dtype": dtype})


def _copy(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    target, source = args[:2]
    if not isinstance(target, CapturedTensor):
        raise poptorch_error(
            f"{describe(func, capture.recorder.origin)} writes to a tensor on the CPU; return the value instead."
        )
    capture.write(target, source if isinstance(source, CapturedTensor) else capture.lift(source))
    return target


def _reshape(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """Also `view` of any tensor: those of PopTorch have no strides of their own (`Tensor.cpp`)."""
    shape = kwargs.get("size", kwargs.get("shape", args[1] if len(args) > 1 else None))
    with capture.program.fake_mode:
        sizes = list(args[0].fake.reshape(shape).shape)
    return capture.record(aten.reshape.default, (args[0], sizes), {})


def _clone(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    return capture.copy_of(args[0])


def _contiguous(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    return args[0] if args[0].fake.is_contiguous() else capture.copy_of(args[0])


def _same(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    return args[0]


_RESHAPED_IN_PLACE: dict[OpOverload, OpOverload] = {
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.t_.default: aten.t.default,
    aten.transpose_.default: aten.transpose.int,
}


def _reshape_in_place(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """The tensor becomes a view of itself: its memory is not written."""
    target, view = args[0], capture.record(_RESHAPED_IN_PLACE[func], args, kwargs)
    target.shown, target.fake = view.shown, view.fake
    with no_dispatch():
        func(*args, **kwargs)  # torch's own record of shape and strides
    return target


def _slice(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """A slice of everything, which indexing makes of every `:`, is no operator."""
    bound = normalise.named(func, args, kwargs)
    size = args[0].size(bound.get("dim", 0))
    start, end, step = bound.get("start") or 0, bound.get("end"), bound.get("step", 1)
    whole = start in (0, -size) and (end is None or end >= size) and step == 1
    return args[0] if whole else capture.record(func, args, kwargs)


def _as_strided(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    bound = normalise.named(func, args, kwargs)
    same = normalise.only_restrides(args[0], bound["size"], bound["stride"], bound.get("storage_offset"))
    return args[0] if same else capture.record(func, args, kwargs)


def _dropout(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    bound = normalise.named(func, args, kwargs)
    if not bound["train"] or bound["p"] == 0:
        return capture.copy_of(bound["input"])
    return capture.record(aten.dropout.default, (bound["input"], bound["p"], True), {})


def _group_norm(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """With strided groups, group g of n has the channels g, g + n, g + 2n, ... (`popnn/GroupNorm.hpp`)."""
    if not capture.strided_channel_groups:
        return capture.record(func, args, kwargs)
    bound = normalise.named(func, args, kwargs)
    groups, size = bound["group"], bound["C"] // bound["group"]

    def transposed(tensor: Any, dim: int, rows: int, columns: int) -> Any:
        """The channels, a matrix of these sizes, in the order of its transpose."""
        shape = list(tensor.shape)
        matrix = [*shape[:dim], rows, columns, *shape[dim + 1 :]]
        split = capture.record(aten.reshape.default, (tensor, matrix), {})
        turned = capture.record(aten.transpose.int, (split, dim, dim + 1), {})
        return capture.record(aten.reshape.default, (turned, shape), {})

    bound["input"] = transposed(bound["input"], 1, size, groups)
    for name in ("weight", "bias"):
        if bound[name] is not None:
            bound[name] = transposed(bound[name], 0, size, groups)
    out, *statistics = capture.record(func, tuple(bound.values()), {})
    return transposed(out, 1, groups, size), *statistics


_UNCHECKED_DIMS = (
    *(aten._softmax.default, aten._log_softmax.default, aten.index_select.default),
    *(aten.sort.default, aten.sort.stable, aten.select_scatter.default, aten.slice_scatter.default),
)


def _along_dim(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """What says the shapes of these operators' results does not look whether the operand has the dimension."""
    tensor, dim = args[0], normalise.named(func, args, kwargs).get("dim", -1)
    canonicalize_dim(tensor.dim(), dim)  # Raises IndexError, as torch does when they are computed.
    return capture.record(func, args, kwargs)


_CONVOLUTIONS = (
    *(aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding),
    *(aten.conv3d.default, aten.conv3d.padding),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
)


def _convolution(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """In the input's floating-point type, as PopTorch casts weight and bias (`castWeightAndBias`)."""
    bound = normalise.named(func, args, kwargs)
    dtype = bound["input"].dtype
    for name in ("weight", "bias"):
        operand = bound.get(name)
        if dtype.is_floating_point and operand is not None and operand.dtype != dtype:
            bound[name] = capture.record(aten._to_copy.default, (operand,), {"dtype": dtype})
    return capture.decompose(func, (), bound)


def _cross_entropy(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """One loss, where classes are numbers; otherwise what torch makes of it, of which only `nll_loss` is a loss."""
    bound = normalise.named(func, args, kwargs)
    if bound.get("label_smoothing") or bound["target"].dtype.is_floating_point:
        return capture.decompose(func, args, kwargs)
    loss = capture.record(func, args, kwargs)
    capture.node_of(loss).meta["loss"] = True  # type: ignore[union-attr]
    return loss


def _product(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    """Operands of several types meet in the widest one; the result has the first one's, as in PopTorch."""
    operands = list(normalise.named(func, args, kwargs).values())
    tensors = [operand for operand in operands if isinstance(operand, torch.Tensor)]
    widest = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    if all(tensor.dtype == widest for tensor in tensors):
        return capture.record(func, args, kwargs)
    cast = aten._to_copy.default

    def widened(operand: Any) -> Any:
        narrow = isinstance(operand, torch.Tensor) and operand.dtype != widest
        return capture.record(cast, (operand,), {"dtype": widest}) if narrow else operand

    wide = map(widened, operands)
    return capture.record(cast, (capture.record(func, tuple(wide), {}),), {"dtype": tensors[0].dtype})


def _unchecked(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> None:
    """A check of values that torch's own code makes: the IPU makes none."""


def _to_host(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    raise value_reads.no_value(func, capture.recorder.origin)


def _is_nonzero(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> bool:
    if value_reads.is_check():
        return False
    raise value_reads.no_value(func, capture.recorder.origin)


def _tensor_split(capture: Capture, func: OpOverload, args: Args, kwargs: Kwargs) -> Any:
    if isinstance(args[1], CapturedTensor):
        raise value_reads.no_value(func, capture.recorder.origin)
    return capture.decompose(func, args, kwargs)


HANDLERS: dict[OpOverload, Handler] = {
    aten.to.device: _to,
    aten.to.dtype: _to,
    aten.to.dtype_layout: _to,
    aten.to.other: _to,
    aten.type_as.default: _to,
    aten._to_copy.default: _to,
    aten.copy_.default: _copy,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten._reshape_alias.default: _reshape,
    aten.clone.default: _clone,
    aten.lift_fresh.default: _same,
    aten.alias.default: _same,
    aten.contiguous.default: _contiguous,
    **dict.fromkeys(_RESHAPED_IN_PLACE, _reshape_in_place),
    aten.slice.Tensor: _slice,
    aten.as_strided.default: _as_strided,
    **dict.fromkeys(_UNCHECKED_DIMS, _along_dim),
    aten.dropout.default: _dropout,
    aten.native_group_norm.default: _group_norm,
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    aten.cross_entropy_loss.default: _cross_entropy,
    **dict.fromkeys((aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default), _product),
    aten._assert_async.default: _unchecked,
    aten._assert_async.msg: _unchecked,
    aten._local_scalar_dense.default: _to_host,
    aten.item.default: _to_host,
    aten.is_nonzero.default: _is_nonzero,
    aten.tensor_split.tensor_indices_or_sections: _tensor_split,
    aten.equal.default: _to_host,
    aten.allclose.default: _to_host,
}
