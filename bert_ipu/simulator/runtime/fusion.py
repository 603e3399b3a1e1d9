"""Merges neighbouring instructions into one kernel: fewer passes over memory, fewer calls.

It looks at the instructions of one micro-batch (or chunk) after lowering.  A value is swallowed only where nothing else
reads it, so what a program returns or anchors stays.  Under "ipu" numerics the rounding that stands between operators
keeps most of them apart, which is what keeps the results the device's.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bert_ipu.simulator.runtime import heads, losses, operators, products, row_kernels
from bert_ipu.simulator.runtime.instructions import Code, Instruction, Name, remove_unused
from bert_ipu.simulator.runtime.native import Kernels
from bert_ipu.simulator.runtime.row_kernels import Dropping

aten = torch.ops.aten

DROPOUT = operators.DRAWING["dropout"]
FRESH = (torch.mm, torch.matmul, products.matmul, products.product_and_row_sums)
"""Products, whose results are nobody else's memory."""
PRODUCTS = (*FRESH, products.linear, torch.nn.functional.linear)
KEEPING = (losses.cross_entropy_rows, losses.argmax_rows)
"""What reads scores and keeps no part of them."""


def fuse(code: Code, results: list[Name], kernels: Kernels) -> list[Name]:
    """Rewrite the code's instructions; returns the names its results have afterwards."""
    renamed = _forward_items(code)
    results = [renamed.get(name, name) for name in results]
    for rules in (RULES, LATER_RULES):
        matcher = _Matcher(remove_unused(code.instructions, results), set(results), kernels, code.fresh)
        for instruction in matcher.instructions:
            rule = rules.get(instruction.function)
            if rule is not None and matcher.stands(instruction):
                rule(matcher, instruction)
        code.instructions[:] = [instruction for instruction in matcher.standing if instruction is not None]
    return results


def _forward_items(code: Code) -> dict[Name, Name]:
    """Drop `getitem` of tuples that were just made; returns what their results are called now."""
    renamed: dict[Name, Name] = {}
    kept = []
    for instruction in code.instructions:
        instruction.args = _rename(instruction.args, renamed)
        instruction.kwargs = _rename(instruction.kwargs, renamed)
        if instruction.function is operator.getitem and isinstance(instruction.args[0], tuple):
            item = instruction.args[0][instruction.args[1]]
            if isinstance(item, Name):
                renamed[instruction.results[0]] = item
                continue
        kept.append(instruction)
    code.instructions[:] = kept
    return renamed


def _rename(value: Any, renamed: dict[Name, Name]) -> Any:
    if isinstance(value, Name):
        return renamed.get(value, value)
    if isinstance(value, dict):
        return {key: _rename(item, renamed) for key, item in value.items()}
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return type(value)(_rename(item, renamed) for item in value)
    return value


@dataclass
class _Matcher:
    """The instructions with who makes and who reads each value, while rules replace some of them."""

    instructions: list[Instruction]
    results: set[Name]
    kernels: Kernels
    fresh: Callable[[], Name]
    producers: dict[Name, Instruction] = field(default_factory=dict)
    users: dict[Name, list[Instruction]] = field(default_factory=dict)
    place: dict[int, int] = field(default_factory=dict)
    """Where an instruction, by its identity, stands."""
    standing: list[Instruction | None] = field(default_factory=list)
    """What stands there now."""

    def __post_init__(self) -> None:
        self.standing = list(self.instructions)
        for position, instruction in enumerate(self.instructions):
            self._note(instruction, position)

    def _note(self, instruction: Instruction, position: int) -> None:
        self.place[id(instruction)] = position
        for result in instruction.results:
            self.producers[result] = instruction
        for name in instruction.reads():
            self.users.setdefault(name, []).append(instruction)

    def stands(self, instruction: Instruction) -> bool:
        """Whether no rule has replaced it yet."""
        return self.standing[self.place[id(instruction)]] is instruction

    def swallowed(self, value: Any, *functions: Callable[..., Any]) -> Instruction | None:
        """The instruction that makes a value nothing else reads, if it calls one of `functions`."""
        made = self.maker(value, *functions)
        return made if made is not None and self._is_read_once(value) else None

    def maker(self, value: Any, *functions: Callable[..., Any]) -> Instruction | None:
        """The instruction that makes a value, if it calls one of `functions`."""
        made = self.producers.get(value) if isinstance(value, Name) else None
        return made if made is not None and made.function in functions else None

    def only_user(self, value: Name, *functions: Callable[..., Any]) -> Instruction | None:
        """The only instruction that reads a value, if it calls one of `functions`."""
        users = self.users.get(value, [])
        return users[0] if self._is_read_once(value) and users[0].function in functions else None

    def _is_read_once(self, value: Name) -> bool:
        return value not in self.results and len(self.users.get(value, ())) == 1

    def readers(self, value: Name) -> Iterator[Instruction | None]:
        """What reads a value as it is or in another shape; None for the caller."""
        if value in self.results:
            yield None
        for user in self.users.get(value, ()):
            if user.function is torch.reshape:
                yield from self.readers(user.results[0])
            else:
                yield user

    def is_before(self, first: Instruction, second: Instruction) -> bool:
        return self.place[id(first)] < self.place[id(second)]

    def is_read_after(self, value: Name, instruction: Instruction) -> bool:
        """Whether everything that reads a value, `instruction` apart, stands behind it."""
        position = self.place[id(instruction)]
        return all(
            user is instruction or self.place[id(user)] > position for user in self.users.get(value, ())
        )

    def replace(
        self, at: Instruction, old: Sequence[Instruction | None], results: Sequence[Name], function: Callable[..., Any],
        *args: Any,
    ) -> None:  # fmt: skip
        """Put one call in the place of `at`, and drop it and the other old instructions."""
        merged = [at, *filter(None, old)]
        hoistable = all(instruction.hoistable for instruction in merged)
        call = Instruction(
            function, args, {}, tuple(results), len(results) > 1, label=at.label, hoistable=hoistable
        )
        position = self.place[id(at)]
        for instruction in merged:
            self.standing[self.place[id(instruction)]] = None
            for name in instruction.reads():
                self.users[name] = [user for user in self.users[name] if user is not instruction]
        self.standing[position] = call
        self._note(call, position)


@dataclass(frozen=True)
class _Drop:
    """A dropout next to a kernel; without an instruction there is none."""

    instruction: Instruction | None = None

    @property
    def draws(self) -> Any:
        return None if self.instruction is None else self.instruction.args[0]

    @property
    def dropping(self) -> Dropping | None:
        return (
            None if self.instruction is None else Dropping(self.instruction.args[1], self.instruction.args[3])
        )

    @property
    def x(self) -> Any:
        return None if self.instruction is None else self.instruction.args[2]


def _drop(instruction: Instruction | None) -> _Drop:
    """What an instruction found beside a kernel drops: nothing outside training."""
    trains = instruction is not None and (len(instruction.args) < 5 or instruction.args[4] is True)
    return _Drop(instruction if trains else None)


def _addition(found: Instruction | None) -> Instruction | None:
    """An addition of two tensors; None where it is anything else."""
    plain = found is not None and not found.kwargs and len(found.args) == 2
    return found if plain and all(isinstance(value, Name) for value in found.args) else None  # type: ignore[union-attr]


def _scaling(found: Instruction | None) -> Instruction | None:
    """A multiplication of a tensor by a number; None where it is anything else."""
    return found if found is not None and isinstance(found.args[1], float) else None


# -- rules: each looks at one instruction, and replaces it and its neighbours where they fit ----------------


def _softmax(m: _Matcher, found: Instruction) -> None:
    """[mul by a number] [add a mask] softmax [dropout]"""
    scores, dim, widens = found.args
    if widens:
        return
    added = _addition(m.swallowed(scores, torch.add))
    bias = None
    if added is not None:
        scores, bias = added.args
    scaled = _scaling(m.swallowed(scores, torch.mul))
    scale = 1.0
    if scaled is not None:
        scores, scale = scaled.args
    out = found.results[0]
    drop = _drop(next((user for user in m.users.get(out, ()) if user.function is DROPOUT), None))
    dropped = m.fresh() if drop.instruction is None else drop.instruction.results[0]
    m.replace(
        found, [added, scaled, drop.instruction], [out, dropped],
        row_kernels.softmax, scores, dim, scale, bias, drop.dropping, drop.draws, m.kernels,
    )  # fmt: skip


def _softmax_grad(m: _Matcher, found: Instruction) -> None:
    """[dropout_grad] softmax_backward [mul by a number]"""
    gradient, probabilities, dim, _ = found.args
    drop = _drop(m.swallowed(gradient, DROPOUT))
    gradient = gradient if drop.instruction is None else drop.x
    scaled = _scaling(m.only_user(found.results[0], torch.mul))
    scale, result = (1.0, found.results[0]) if scaled is None else (scaled.args[1], scaled.results[0])
    m.replace(
        found, [drop.instruction, scaled], [result],
        row_kernels.softmax_grad, gradient, probabilities, dim, scale, drop.dropping, drop.draws, m.kernels,
    )  # fmt: skip


def _add_norm(m: _Matcher, found: Instruction) -> None:
    """[dropout] add layer_norm"""
    total, shape, weight, bias, eps = found.args
    added = _addition(m.maker(total, torch.add))
    if added is None or weight is None or bias is None or len(shape) != 1:
        return
    if not m.is_read_after(total, found):
        return
    x, residual = added.args
    if m.swallowed(x, DROPOUT) is None and m.swallowed(residual, DROPOUT) is not None:
        x, residual = residual, x
    drop = _drop(m.swallowed(x, DROPOUT))
    x = x if drop.instruction is None else drop.x
    m.replace(
        found, [added, drop.instruction], [total, *found.results],
        row_kernels.add_norm, x, residual, weight, bias, eps, drop.dropping, drop.draws, m.kernels,
    )  # fmt: skip


def _norm_grad(m: _Matcher, found: Instruction) -> None:
    """[add] layer_norm_backward [dropout_grad]"""
    gradient, x, shape, mean, rstd, weight, bias, mask = found.args
    if weight is None or bias is None or len(shape) != 1 or not all(mask):
        return
    added = _addition(m.swallowed(gradient, torch.add))
    other = None
    if added is not None:
        gradient, other = added.args
    out, *sums = found.results
    drop = _drop(next((user for user in m.users.get(out, ()) if user.function is DROPOUT), None))
    dropped = m.fresh() if drop.instruction is None else drop.instruction.results[0]
    m.replace(
        found, [added, drop.instruction], [out, *sums, dropped], row_kernels.norm_grad,
        gradient, other, x, mean, rstd, weight, bias, drop.dropping, drop.draws, m.kernels,
    )  # fmt: skip


def _gelu(m: _Matcher, found: Instruction) -> None:
    if found.kwargs.get("approximate", "none") == "none":
        m.replace(found, [], found.results, row_kernels.gelu, found.args[0], m.kernels)


def _gelu_grad(m: _Matcher, found: Instruction) -> None:
    if found.kwargs.get("approximate", "none") == "none":
        m.replace(found, [], found.results, row_kernels.gelu_grad, *found.args[:2], m.kernels)


def _weight_and_bias_grad(m: _Matcher, found: Instruction) -> None:
    """The product of a transposed gradient, and the gradient's sum over rows"""
    left, right, _ = found.args
    turned = m.maker(left, torch.t, aten.t.default)
    if turned is None:
        return
    sums = [user for user in m.users[turned.args[0]] if user.function is aten.sum.dim_IntList]
    if len(sums) != 1 or list(sums[0].args[1]) != [0] or len(sums[0].args) > 2 or sums[0].kwargs:
        return
    if m.is_read_after(sums[0].results[0], found):
        m.replace(
            found, sums, [found.results[0], sums[0].results[0]],
            products.product_and_row_sums, left, right, m.kernels,
        )  # fmt: skip


def _merge_heads(m: _Matcher, found: Instruction) -> None:
    """A product of batches of heads whose result is only read with heads beside each other"""
    turned = m.only_user(found.results[0], torch.transpose)
    if turned is not None and turned.args[1:] == (1, 2):
        m.replace(found, [turned], turned.results, products.merged_heads, *found.args)


def _join_heads(m: _Matcher, found: Instruction) -> None:
    """The sum of the gradients of all slices of a dimension: the slices, joined"""
    joined = heads.find_joined_slices(found, m.swallowed)
    rounded = m.only_user(found.results[0], *heads.ROUNDINGS)
    total = found.results[0] if rounded is None else rounded.results[0]
    permuted = m.only_user(total, torch.permute)
    if joined is not None and permuted is not None:
        order = [dim % len(permuted.args[1]) for dim in permuted.args[1]]
        swallowed = [found, rounded, *joined.swallowed]
        m.replace(permuted, swallowed, permuted.results, heads.join_slices, joined.slices, joined.dim, order)


def _embedding_grad(m: _Matcher, found: Instruction) -> None:
    """embedding_dense_backward [add to what the same table's decoder gives]"""
    gradient, index, rows, padding, by_frequency = found.args
    if by_frequency:
        return
    added = _addition(m.only_user(found.results[0], torch.add))
    table = next((x for x in added.args if x != found.results[0]), None) if added is not None else None
    if added is not None and m.swallowed(table, *FRESH):
        m.replace(
            added, [found], added.results,
            row_kernels.add_embedding_grad, table, gradient, index, padding, m.kernels,
        )  # fmt: skip
        return
    m.replace(found, [], found.results, row_kernels.embedding_grad, gradient, index, rows, padding, m.kernels)


def _loss_grad(m: _Matcher, found: Instruction) -> None:
    """The gradient of a product's scores, which nothing else reads from then on: it is written over them."""
    viewed = m.maker(found.args[1], torch.reshape)
    scores = found.args[1] if viewed is None else viewed.args[0]
    rounded = m.maker(scores, *heads.ROUNDINGS)
    product = m.swallowed(rounded.args[0], *PRODUCTS) if rounded is not None else m.maker(scores, *PRODUCTS)
    if product is None or not all(
        user is found or (user is not None and user.function in KEEPING and m.is_before(user, found))
        for user in m.readers(scores)
    ):
        return
    for instruction in filter(None, (viewed, rounded, product)):
        instruction.hoistable = False  # what they make changes
    m.replace(found, [], found.results, losses.cross_entropy_rows_grad, *found.args, True)


RULES: dict[Callable[..., Any], Callable[[_Matcher, Instruction], None]] = {
    aten._softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_grad,
    aten.native_layer_norm.default: _add_norm,
    aten.native_layer_norm_backward.default: _norm_grad,
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_grad,
    products.matmul: _weight_and_bias_grad,
    torch.add: _join_heads,
    aten.embedding_dense_backward.default: _embedding_grad,
    losses.cross_entropy_rows_grad: _loss_grad,
}
"""By the function that the instruction in the middle calls."""

LATER_RULES: dict[Callable[..., Any], Callable[[_Matcher, Instruction], None]] = {
    products.matmul: _merge_heads,
}
"""Rules for what the first ones leave."""
