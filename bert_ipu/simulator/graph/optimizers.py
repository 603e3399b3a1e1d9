"""The weight update as named operators: accumulate, reduce over replicas, then SGD, Adam, LAMB or RMSprop.

Operators and state names are PopART's (`willow/src/patterns/*decompose.cpp`); what the numbers in them are computed
from is in `optimizer_spec.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
from torch import fx

from bert_ipu.simulator.graph import loss_scaling, ops
from bert_ipu.simulator.graph.ir import PLACEMENT, Program, Reduction, Role, ScalarSource, Variable
from bert_ipu.simulator.graph.optimizer_spec import OptimizerSpec, check_supported, scalar

aten = torch.ops.aten

Scalar = Union[float, fx.Node]

_ADAM_MODES = {
    "ADAM": "adam",
    "ADAMW": "adam",
    "ADAMW_NO_BIAS": "adam",  # PopTorch hands AdamW to PopART with bias correction either way.
    "LAMB": "lamb",
    "LAMB_NO_BIAS": "lamb_no_bias",
}
_COUNTER = "Counter___"
"""The state that counts the micro-batches of a running mean."""


def add_updates(program: Program, spec: OptimizerSpec, gradients: Mapping[str, fx.Node]) -> None:
    """Append the optimizer to a program that has its backward pass; weights outside its groups stay as they are.

    Raises Error for an optimizer that PopART does not have.
    """
    check_supported(spec)
    weights = {
        program.placeholder_of(name): node for name, node in gradients.items() if name in spec.group_of
    }
    with program.before(program.output):
        _Updates(program, spec).add({w: gradient for w, gradient in weights.items() if w is not None})


@dataclass
class _Updates:
    """Emits the optimizer's part of one program."""

    program: Program
    spec: OptimizerSpec
    _accumulated: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """The accumulators of this micro-batch loop, and their values after it."""
    _adapted: dict[str, fx.Node] = field(default_factory=dict)
    """Scalars divided by the factor of automatic loss scaling."""

    @property
    def reduction(self) -> Reduction:
        return self.program.reduction

    def scalar(self, formula: str, weight: fx.Node) -> Scalar:
        """One of PopART's scalars for a weight: a number where it is constant, else a SCALAR variable of its own."""
        source = ScalarSource(formula, self._group(weight))
        found = scalar(self.spec, self.reduction, source)
        if found.constant:
            return found.value
        name = f"{formula}___specific___{weight.meta['variable']}"
        if name not in self.program.scalars:
            self.program.scalars[name] = source
            self.program.add_variable(Variable(name, Role.SCALAR, (), torch.float32, fill=found.value))
        node = self.program.placeholder_of(name)
        assert node is not None, f"{name} was just entered"
        return self._adapt(name, formula, node)

    def _adapt(self, name: str, formula: str, node: fx.Node) -> fx.Node:
        """A scalar that undoes the loss scaling undoes the device's own part of it too."""
        factor = self.program.placeholder_of(loss_scaling.FACTOR)
        if factor is None or formula not in loss_scaling.SCALED_INVERSELY:
            return node
        if name not in self._adapted:
            outer = formula != "dampeningScaleFactor1" or self.reduction.accumulation == 1
            self._adapted[name] = self.emit(aten.div.Tensor, node, factor, like=node, outer=outer)
        return self._adapted[name]

    def state(self, prefix: str, weight: fx.Node, dtype: torch.dtype, **options: Any) -> fx.Node:
        """A new optimizer state of a weight's shape (or `shape`), under PopART's name for it."""
        variable = self.program.variable_of(weight)
        assert variable is not None, f"{weight} is a weight"
        shape = options.pop("shape", variable.shape)
        return self.program.add_variable(
            Variable(
                f"{prefix}___{variable.name}", Role.STATE, shape, dtype, groups=variable.groups, **options
            )
        )

    def emit(self, target: Any, *args: Any, like: fx.Node, outer: bool = True, **kwargs: Any) -> fx.Node:
        """Append an operator of the update, placed where `like` is."""
        meta: dict[str, Any] = {key: like.meta[key] for key in (*PLACEMENT, "block") if key in like.meta}
        meta.update({"pass": "optimizer", "context": "outer" if outer else "normal"})
        return self.program.emit(target, *args, meta=meta, **kwargs)

    def scaled(self, x: fx.Node, factor: Scalar) -> fx.Node:
        is_one = isinstance(factor, float) and factor == 1.0
        return x if is_one else self.emit(aten.mul.Tensor, x, factor, like=x)

    def reduced(self, x: fx.Node, weight: fx.Node) -> fx.Node:
        """`x` summed (or averaged) over the replicas that share the weight."""
        if self.reduction.replicas == 1:
            return x
        variable = self.program.variable_of(weight)
        groups = None if variable is None else variable.groups
        return self.emit(ops.replica_reduce, x, like=x, reduction=self.reduction.of_replicas, groups=groups)

    # -- the passes over all weights -----------------------------------------------------------

    def add(self, gradients: Mapping[fx.Node, fx.Node]) -> None:
        """Update every weight of the optimizer from its gradient of one micro-batch."""
        combined = {w: g for w, g in gradients.items() if self._is_combined(w)}
        sums = {w: self._accumulate(w, g) for w, g in gradients.items() if w not in combined}
        velocities = {w: self._accumulate_velocity(w, g) for w, g in combined.items()}
        self._count_accumulations()
        final = {w: self.reduced(total, w) for w, total in sums.items()}
        if math.isfinite(self.spec.max_grad_norm):
            final = self._clipped(final)
        for weight in gradients:
            if weight in combined:
                self._sgd_combined(weight, *velocities[weight])
            else:
                self._rule(weight)(weight, final[weight])
        self._reset()

    def _group(self, weight: fx.Node) -> int:
        return self.spec.group_of[weight.meta["variable"]]

    def _has_momentum(self, weight: fx.Node) -> bool:
        return self.spec.has_momentum(self._group(weight))

    def _is_combined(self, weight: fx.Node) -> bool:
        return self.spec.kind == "SGD1" and self._has_momentum(weight)

    def _accumulate(self, weight: fx.Node, gradient: fx.Node) -> fx.Node:
        if self.reduction.accumulation == 1:
            return gradient
        accumulator = self.state("Accum", weight, self._accum_type(weight))
        running = self.reduction.mean and self.reduction.running
        factor, kind = (self._counter(), "mean") if running else (1.0, "add")
        made = self.emit(ops.accumulate, accumulator, gradient, factor, like=gradient, outer=False, kind=kind)
        self._accumulated[accumulator] = made
        return made

    def _accum_type(self, weight: fx.Node) -> torch.dtype:
        return self.spec.accum_type if self.spec.kind != "SGD1" else weight.meta["val"].dtype  # type: ignore[no-any-return]

    def _counter(self) -> fx.Node:
        if _COUNTER not in self.program.variables:
            self.program.add_variable(Variable(_COUNTER, Role.STATE, (), torch.float32))
        node = self.program.placeholder_of(_COUNTER)
        assert node is not None, "the counter was just entered"
        return node

    def _count_accumulations(self) -> None:
        if _COUNTER in self.program.variables:
            counter = self._counter()
            self._accumulated[counter] = self.emit(ops.increment, counter, like=counter, outer=False)

    def _reset(self) -> None:
        """Accumulators, or the running mean's counter, back to 0 after the update."""
        running = self.reduction.mean and self.reduction.running
        for state, value in self._accumulated.items():
            if not running or state.meta["variable"] == _COUNTER:
                self.emit(ops.accumulator_zero, value, like=state)

    def _clipped(self, gradients: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
        """Gradients scaled so that their common norm is at most `max_grad_norm`."""
        squares = [self.emit(ops.lamb_square, g, like=g) for g in gradients.values()]
        total = squares[0]
        for square in squares[1:]:
            total = self.emit(aten.add.Tensor, total, square, like=square)
        norm = self.emit(aten.sqrt.default, total, like=total)
        norm = self.scaled(norm, self.scalar("gradientScaling", next(iter(gradients))))
        bound = self.emit(aten.clamp.default, norm, self.spec.max_grad_norm, like=norm)
        inverse = self.emit(aten.reciprocal.default, bound, like=norm)
        factor = self.emit(aten.mul.Tensor, inverse, self.spec.max_grad_norm, like=norm)
        return {w: self.emit(aten.mul.Tensor, g, factor, like=g) for w, g in gradients.items()}

    # -- one weight ----------------------------------------------------------------------------

    def _rule(self, weight: fx.Node) -> Callable[[fx.Node, fx.Node], None]:
        """What updates a weight from its reduced gradient."""
        if self.spec.kind in ("SGD1", "SGD2"):
            return self._sgd_separate if self._has_momentum(weight) else self._sgd0
        return self._rmsprop if self.spec.kind.startswith("RMSPROP") else self._adam

    def _sgd0(self, weight: fx.Node, gradient: fx.Node) -> None:
        rate = self.scalar("scaledLearningRate0", weight)
        decay = self.scalar("weightDecayScaleFactor0", weight)
        self.emit(ops.sgd0_var_update, weight, gradient, rate, decay, like=gradient)

    def _nesterov(self, weight: fx.Node) -> bool:
        return bool(self.spec.hyper_parameter(self._group(weight), "nesterov").value)

    def _sgd_separate(self, weight: fx.Node, gradient: fx.Node) -> None:
        velocity = self.state("Accl1", weight, self.spec.accl1_type)
        momentum, decay = self.scalar("scaledMomentum2", weight), self.scalar("scaledWeightDecay1", weight)
        moved = self.emit(ops.sgd1_accl_update, velocity, weight, momentum, decay, like=gradient)
        factor = self.scalar("dampeningScaleFactor2", weight)
        moved = self.emit(ops.accumulate, moved, gradient, factor, like=gradient, kind="dampened_add")
        if self._nesterov(weight):
            moved = self._look_ahead(weight, gradient, moved, "nesterovGradScaleFactor2")
        rate = self.scalar("scaledLearningRate2", weight)
        self.emit(ops.sgd1_var_update, weight, moved, rate, like=gradient)

    def _look_ahead(self, weight: fx.Node, gradient: fx.Node, velocity: fx.Node, scale: str) -> fx.Node:
        return self.emit(
            ops.sgd1_nesterov,
            gradient,
            weight,
            velocity,
            self.scalar("gradientScaling", weight),
            self.scalar("weightDecay", weight),
            self.scalar(scale, weight),
            self.scalar("sgdMomentum", weight),
            like=gradient,
        )

    def _accumulate_velocity(self, weight: fx.Node, gradient: fx.Node) -> tuple[fx.Node, Optional[fx.Node]]:
        """Combined SGD: the velocity is the accumulator; with Nesterov, the gradients' sum too."""
        decay = scalar(self.spec, self.reduction, ScalarSource("scaledWeightDecay1", self._group(weight)))
        initial = (weight.meta["variable"], decay.value)
        velocity = self.state("Accl", weight, weight.meta["val"].dtype, initial=initial)
        factor = self.scalar("dampeningScaleFactor1", weight)
        once = self.reduction.accumulation == 1
        reduced = self.reduced(gradient, weight) if once else gradient
        moved = self.emit(
            ops.accumulate, velocity, reduced, factor, like=gradient, outer=once, kind="dampened_add"
        )
        if not self._nesterov(weight):
            return moved, None
        return moved, self._accumulate(weight, gradient)

    def _sgd_combined(self, weight: fx.Node, moved: fx.Node, gradient: Optional[fx.Node]) -> None:
        if self.reduction.accumulation > 1 and self.reduction.replicas > 1:
            moved = self.emit(ops.assign, moved, self.reduced(moved, weight), like=moved)
        step = moved
        if gradient is not None:
            step = self._look_ahead(weight, self.reduced(gradient, weight), moved, "nesterovGradScaleFactor1")
        rate = self.scalar("scaledLearningRate1", weight)
        updated = self.emit(ops.sgd1_var_update, weight, step, rate, like=moved)
        momentum, decay = self.scalar("scaledMomentum1", weight), self.scalar("scaledWeightDecay1", weight)
        self.emit(ops.sgd1_accl_update, moved, updated, momentum, decay, like=moved)

    def _unscaled(self, weight: fx.Node, gradient: fx.Node, decayed: bool) -> fx.Node:
        """The gradient without loss scaling and reduction factors, plus L2 regularisation where asked."""
        if gradient.meta["val"].dtype == torch.float16 and self.spec.accl1_type == torch.float32:
            gradient = self.emit(aten._to_copy.default, gradient, like=gradient, dtype=torch.float32)
        gradient = self.scaled(gradient, self.scalar("gradientScaling", weight))
        decay = self.scalar("weightDecay", weight)
        if decayed and decay != 0.0:
            penalty = self.emit(aten.mul.Tensor, weight, decay, like=gradient)
            gradient = self.emit(aten.add.Tensor, gradient, penalty, like=gradient)
        return gradient

    def _adam(self, weight: fx.Node, gradient: fx.Node) -> None:
        kind = self.spec.kind
        mode = _ADAM_MODES[kind]
        gradient = self._unscaled(weight, gradient, decayed=kind == "ADAM")
        b1, b2 = self.scalar("adamBeta1", weight), self.scalar("adamBeta2", weight)
        accl1 = self.state("Accl1", weight, self.spec.accl1_type)
        accl2 = self.state("Accl2", weight, self.spec.accl2_type)
        first = self.emit(ops.accumulate, accl1, gradient, b1, like=gradient, kind="moving_average")
        second = self.emit(ops.accumulate, accl2, gradient, b2, like=gradient, kind="moving_average_square")
        step = None
        if not mode.endswith("no_bias"):
            counter = self.state("Step", weight, torch.float32, shape=())
            step = self.emit(ops.increment, counter, like=gradient)
        decay: Scalar = 0.0 if kind == "ADAM" else self.scalar("weightDecay", weight)
        decayed = weight if decay != 0.0 else None
        eps = self.scalar("adamEps", weight)
        updater = self.emit(
            ops.adam_updater, decayed, first, second, step, decay, b1, b2, eps, like=gradient, mode=mode
        )
        trust = self._trust(weight, updater) if mode.startswith("lamb") else ()
        rate = self.scalar("learningRate", weight)
        self.emit(ops.adam_var_update, weight, updater, rate, *trust, like=gradient)

    def _trust(self, weight: fx.Node, updater: fx.Node) -> tuple[Any, ...]:
        bound = self.scalar("maxWeightNorm", weight)
        if bound == 0.0:
            return ()
        norms = [self.emit(ops.lamb_square, x, like=updater) for x in (weight, updater)]
        return (*norms, bound)

    def _rmsprop(self, weight: fx.Node, gradient: fx.Node) -> None:
        tf = self.spec.tf_variant
        gradient = self._unscaled(weight, gradient, decayed=True)
        alpha = self.scalar("adaptiveAlpha", weight)
        square = self.state("Accl1", weight, self.spec.accl1_type, fill=1.0 if tf else 0.0)
        square = self.emit(
            ops.accumulate, square, gradient, alpha, like=gradient, kind="moving_average_square"
        )
        mean = None
        if self.spec.kind == "RMSPROP_CENTERED":
            mean = self.state("Accl2", weight, self.spec.accl2_type)
            mean = self.emit(ops.accumulate, mean, gradient, alpha, like=gradient, kind="moving_average")
        rate = self.scalar("learningRate", weight)
        updater = self.emit(
            ops.rmsprop_updater, gradient, square, mean, self.scalar("adamEps", weight), like=gradient, tf=tf
        )
        momentum = self._has_momentum(weight)
        if momentum:
            updater = self.scaled(updater, rate) if tf else updater
            velocity = self.state("Accl3", weight, torch.float32)
            factor = self.scalar("adaptiveMomentum", weight)
            updater = self.emit(ops.accumulate, velocity, updater, factor, like=gradient, kind="decay_add")
        self.emit(
            ops.scaled_var_update, weight, updater, rate, 0.0, like=gradient, lr_in_updater=tf and momentum
        )
