"""What PopTorch refuses in a forward: operators it lacks, settings of those it has, operands that must be constant.

The settings are those that its handlers test (`poptorch/source/popart_canonicalization/`); each message says what
was given, what may be, and a way out.  Operators of constants only are computed on the host while compiling
(`EvaluateConstexprs.cpp`), so that any of torch's will do for them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from bert_ipu.simulator.errors import poptorch_error
from bert_ipu.simulator.graph import normalise
from bert_ipu.simulator.graph.captured_tensor import CapturedTensor
from bert_ipu.simulator.graph.ir import Program, Role, computed_from
from bert_ipu.simulator.graph.sources import describe
from bert_ipu.simulator.graph.unsupported import way_around

if TYPE_CHECKING:
    from bert_ipu.simulator.graph.capture import Capture

aten = torch.ops.aten

_INT32, _FLOAT32 = torch.iinfo(torch.int32), torch.finfo(torch.float32)

Arguments = dict[str, Any]
Limit = Callable[[Arguments], Optional[str]]


def check(capture: Capture, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise Error, with the operator's place, for a call that PopTorch refuses."""
    instead, limit = way_around(func), _LIMITS.get(func)
    if instead is None and limit is None and func not in _CONSTANT_OPERAND:
        return
    if capture.decomposing in normalise.LOSSES:
        return  # PopTorch takes these losses whole, and does not see what torch makes of them.
    arguments = _arguments(func, args, kwargs)
    place = describe(func, capture.recorder.origin)
    if func is aten.as_strided.default and normalise.only_restrides(*arguments.values()):
        return
    if instead is not None and not _are_constant(capture, arguments.values()):
        raise poptorch_error(f"{place} has no counterpart on the IPU: {instead}.")
    refusal = limit(arguments) if limit is not None else None
    if refusal is None and func in _CONSTANT_OPERAND:
        operand, why = _CONSTANT_OPERAND[func]
        refusal = None if _are_constant(capture, [arguments[operand]]) else why
    if refusal is not None:
        raise poptorch_error(f"{place}: {refusal}")


def check_results(program: Program) -> None:
    """Raise Error where the forward's results depend on the indices that max pooling returns."""
    reached = computed_from(program.results())
    for node in reached:
        if node.target is operator.getitem and node.args[1] == 1:
            pooling: Any = node.args[0]
            if pooling.target in _POOLING_WITH_INDICES:
                raise poptorch_error(
                    f"{pooling.target._schema.name} ({pooling.meta.get('source')}): the indices of max pooling are not "
                    "available on the IPU. Use return_indices=False."
                )


def numbers_lost(program: Program) -> Iterator[str]:
    """The numbers of the user's code that no 32-bit type holds, with their places (`CanonicaliseConstants.cpp`)."""
    for node in program.graph.nodes:
        if not isinstance(node.target, OpOverload) or "source" not in node.meta:
            continue
        operands = tree_leaves([operand.meta["val"] for operand in node.all_input_nodes or [node]])
        of_integers = not any(operand.is_floating_point() for operand in operands)
        given = _arguments(node.target, node.args, node.kwargs)
        for argument in node.target._schema.arguments:
            value = given[argument.name]
            if not str(argument.type).startswith(("number", "Optional[number]", "Tensor")):
                continue  # A size, or the end of a slice.
            too_large = isinstance(value, float) and _FLOAT32.max < abs(value) < math.inf
            too_long = isinstance(value, int) and of_integers and not _INT32.min <= value <= _INT32.max
            if too_large or too_long:
                widest = torch.float32 if too_large else torch.int32
                yield f"{node.target._schema.name} ({node.meta['source']}): {value} does not fit the IPU's {widest}"


def _arguments(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """All arguments of a call by name."""
    defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
    return {**defaults, **normalise.named(func, args, kwargs)}


def _are_constant(capture: Capture, operands: Iterable[Any]) -> bool:
    """Whether tensors are computed from constants only: from no input, parameter or buffer, and not drawn."""
    leaves = [leaf for leaf in tree_leaves(list(operands)) if isinstance(leaf, CapturedTensor)]
    roots = [node for node in map(capture.node_of, leaves) if node is not None]
    return all(_is_constant(capture.program, node) for node in computed_from(roots))


def _is_constant(program: Program, node: fx.Node) -> bool:
    if node.op != "placeholder":
        return "random" not in node.meta
    name = node.meta.get("variable")
    return name is not None and program.variables[name].role is Role.CONSTANT


# -- settings ----------------------------------------------------------------------------------


def _recurrent(layer: str, needs_bias: bool = True) -> Limit:
    def limit(given: Arguments) -> Optional[str]:
        if given["num_layers"] != 1:
            return f"num_layers is {given['num_layers']}, and must be 1: call one {layer} after the other."
        if given["bidirectional"]:
            return (
                f"bidirectional must be False: run a second {layer} on the sequence flipped by `torch.flip`, "
                "flip its output back and concatenate."
            )
        if given["dropout"]:
            return f"dropout is {given['dropout']}, and must be 0: use `torch.nn.Dropout` on the {layer}'s output."
        if needs_bias and not given["has_biases"]:
            return "bias must be True: use biases that are zero and have no gradient."
        return None

    return limit


def _embedding(given: Arguments) -> Optional[str]:
    if given["scale_grad_by_freq"] or given["sparse"]:
        return "scale_grad_by_freq and sparse must be False."
    return None


def _weighted_likelihood(given: Arguments) -> Optional[str]:
    if given["weight"] is None or given["target"].dtype.is_floating_point:
        return None
    return (
        'it takes no class weights: take the loss with reduction="none", multiply it by `weight[target]`, and give '
        "the sum or mean to `poptorch.identity_loss`."
    )


def _ctc_loss(given: Arguments) -> Optional[str]:
    if given["reduction"] == 0:
        return 'reduction must be "sum" or "mean", not "none".'
    return None


def _bicubic(given: Arguments) -> Optional[str]:
    return "align_corners must be False." if given["align_corners"] else None


def _bilinear(given: Arguments) -> Optional[str]:
    factors = given["scale_factors"]
    if not factors:
        return None
    if len(set(factors)) > 1:
        return f"the scale factors are {factors}, and must be the same for height and width."
    if factors[0] != int(factors[0]):
        return f"the scale factor is {factors[0]}, and must be a whole number."
    return None


def _linear(given: Arguments) -> Optional[str]:
    return "in one or three dimensions only 'nearest' is supported."


def _adaptive_average(given: Arguments) -> Optional[str]:
    wanted = given["output_size"]
    sizes = given["self"].shape[-len(wanted) :]
    for index, (size, part) in enumerate(zip(sizes, wanted)):
        if size % part:
            return (
                f"{size} values of dim {index - len(wanted)} do not make {part} windows of one size: choose an "
                "output_size that divides the input's, or pad the input."
            )
    return None


def _bitwise(given: Arguments) -> Optional[str]:
    dtypes = {leaf.dtype for leaf in given.values() if isinstance(leaf, torch.Tensor)}
    if any(dtype.is_floating_point for dtype in dtypes):
        return "its operands must be of bool or integers."
    if dtypes in ({torch.uint8}, {torch.int8}):
        return f"the IPU has no bitwise operators of {dtypes.pop()}: convert the operands to torch.int32."
    return None


def _product(given: Arguments) -> Optional[str]:
    """torch's kernels look at the dtypes; what says a result's shape does not."""
    dtypes = [leaf.dtype for leaf in tree_leaves(list(given.values())) if isinstance(leaf, torch.Tensor)]
    if len({dtype.is_floating_point for dtype in dtypes}) == 1:
        return None
    return f"operands must have the same dtype, but have {' and '.join(map(str, dtypes))}: convert one with `to`."


def _convolution(given: Arguments) -> Optional[str]:
    refusal = _product(given)
    if refusal is not None:
        return refusal
    if given["transposed"] and any(dilation != 1 for dilation in given["dilation"]):
        return f"dilation is {given['dilation']}, and must be 1 where a convolution is transposed."
    return None


def _dropout(given: Arguments) -> Optional[str]:
    """PopART's `DropoutBaseOp::validateRatioAttribute`."""
    if given["train"] and not 0 <= given["p"] < 1:
        return f"the probability of dropout must be at least 0 and less than 1, not {given['p']}."
    return None


def _feature_dropout(given: Arguments) -> Optional[str]:
    if given["train"] and given["input"].dim() < 2:
        return f"the input has shape {list(given['input'].shape)}, and no channels to drop: use `torch.nn.Dropout`."
    return _dropout(given)


_PRODUCTS = (
    *(
        aten.linear.default,
        aten.matmul.default,
        aten.mm.default,
        aten.bmm.default,
        aten.mv.default,
        aten.dot.default,
    ),
    *(aten.addmm.default, aten.baddbmm.default, aten.addmv.default, aten.addbmm.default),
)
_LIKELIHOODS = (
    *(aten.cross_entropy_loss.default, aten.nll_loss_nd.default, aten.nll_loss.default),
    *(aten.nll_loss2d.default, aten.nll_loss_forward.default, aten.nll_loss2d_forward.default),
)
_BITWISE = (aten.bitwise_and, aten.bitwise_or, aten.bitwise_xor)
_LIMITS: dict[OpOverload, Limit] = {
    aten.lstm.input: _recurrent("LSTM"),
    aten.gru.input: _recurrent("GRU", needs_bias=False),
    aten.rnn_tanh.input: _recurrent("RNN"),
    aten.rnn_relu.input: _recurrent("RNN"),
    aten.embedding.default: _embedding,
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_LIKELIHOODS, _weighted_likelihood),
    aten.ctc_loss.IntList: _ctc_loss,
    aten.ctc_loss.Tensor: _ctc_loss,
    aten.upsample_bicubic2d.default: _bicubic,
    aten.upsample_bicubic2d.vec: _bicubic,
    aten.upsample_bilinear2d.vec: _bilinear,
    aten.upsample_linear1d.default: _linear,
    aten.upsample_linear1d.vec: _linear,
    aten.upsample_trilinear3d.default: _linear,
    aten.upsample_trilinear3d.vec: _linear,
    aten.adaptive_avg_pool1d.default: _adaptive_average,
    aten.adaptive_avg_pool2d.default: _adaptive_average,
    aten.adaptive_avg_pool3d.default: _adaptive_average,
    **{getattr(packet, overload): _bitwise for packet in _BITWISE for overload in ("Tensor", "Scalar")},
    aten.bitwise_not.default: _bitwise,
    aten.convolution.default: _convolution,
    **dict.fromkeys((aten.dropout.default, aten.native_dropout.default), _dropout),
    aten.feature_dropout.default: _feature_dropout,
}

_TRIANGLE = (
    "its operand must be a constant that the forward makes: multiply by `torch.ones(n, n).triu()`, or choose with "
    "`torch.where`."
)
_OFFSETS = "offsets must be a constant that the forward makes."
_CONSTANT_OPERAND: dict[OpOverload, tuple[str, str]] = {
    aten.triu.default: ("self", _TRIANGLE),
    aten.tril.default: ("self", _TRIANGLE),
    aten.embedding_bag.default: ("offsets", _OFFSETS),
    aten.embedding_bag.padding_idx: ("offsets", _OFFSETS),
}
"""Operators with an operand that must be constant: which, and what to say."""

_POOLING_WITH_INDICES = frozenset(
    {aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default}
)
